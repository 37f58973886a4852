//! How each row is measured.

use super::floors::{FaultElsewhere, InThreadFault, MapElsewhere, OtherProcess, ServiceFault};
use super::row::{Row, interleave};
use super::values::{CpuFault, DeviceFault, touch_here};
use super::{Timed, idle};
use crate::args::{Common, DeviceKind};
use crate::engine::Unified;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::measure::CopySpeed;
use crate::setup::{Needs, Setup};
use crate::workloads::vector_add;
use gmem_hal::{Delivery, Mode, PageSize};
use std::time::Duration;

/// Samples of each figure.
const TIMES: usize = 300;

/// Pages that take turns: with their frames, more than a cache holds.
const PAGES: usize = 64;

/// The bytes of a page.
const PAGE: usize = 2 << 20;

/// Measures a row by its name, one of [`super::ROWS`].
pub(crate) fn measure(name: &'static str, machine: &Machine) -> Result<Row, Failure> {
    match name {
        "cpu_fault_2mib" => cpu_fault(name, Delivery::Service, &mut ServiceFault::new(PAGES)?, machine),
        "cpu_fault_2mib_inthread" => cpu_fault(name, Delivery::InThread, &mut InThreadFault::new(PAGES)?, machine),
        "replicate_fault_2mib" => device_fault(name, Mode::Replicate, &mut MapElsewhere(OtherProcess::start(PAGES)?), machine),
        "exclusive_fault_2mib" => device_fault(name, Mode::CoherentExclusive, &mut FaultElsewhere(OtherProcess::start(PAGES)?), machine),
        "fault_in_1tib" => fault_in_1tib(name, machine),
        "metadata_2mib" => metadata(name, PageSize::Size2M, 0.001, machine),
        "metadata_4kib" => metadata(name, PageSize::Size4K, 0.01, machine),
        "idle_cpu" => idle_cpu(name, machine),
        "vector_add_bandwidth" => vector_add_bandwidth(name, machine),
        _ => unreachable!("{name} is no row"),
    }
}
