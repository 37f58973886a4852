//! How each row is measured.

use super::floors::{FaultElsewhere, InThreadFault, MapElsewhere, OtherProcess, ServiceFault};
use super::row::{Row, interleave};
use super::values::{CpuFault, DeviceFault, touch_here, touch_on_device};
use super::{Timed, idle};
use crate::args::{Common, DeviceKind};
use crate::engine::{Engine, Unified};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::measure::{CopySpeed, median};
use crate::setup::Setup;
use crate::workloads::vector_add;
use gmem::{Backing, Delivery, Mode, PageSize};
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
        "cpu_fault_2mib" => cpu_fault(name, Delivery::Service, &mut ServiceFault::new(PAGES)?),
        "cpu_fault_2mib_inthread" => cpu_fault(name, Delivery::InThread, &mut InThreadFault::new(PAGES)?),
        "replicate_fault_2mib" => replicate_fault(name),
        "exclusive_fault_2mib" => exclusive_fault(name),
        "fault_in_1tib" => fault_in_1tib(name),
        "metadata_2mib" => metadata(name, PageSize::Size2M, 1 << 30, 0.001),
        "metadata_4kib" => metadata(name, PageSize::Size4K, 64 << 20, 0.01),
        "idle_cpu" => idle_cpu(name),
        "vector_add_bandwidth" => vector_add_bandwidth(name, machine),
        _ => unreachable!("{name} is no row"),
    }
}

/// A discrete device with delivery and memory as said; everything else as usual.
fn setup(mode: Mode, page_size: PageSize, device_memory: u64, delivery: Delivery) -> Setup {
    Setup { device: DeviceKind::Discrete, mode, device_memory, page_size, cores: 1, replay: true, backing: Backing::Shared, delivery }
}

/// Device memory for all pages that take turns and then some: these rows are not about eviction.
const AMPLE: u64 = (2 * PAGES * PAGE) as u64;

fn cpu_fault(name: &'static str, delivery: Delivery, floor: &mut dyn Timed) -> Result<Row, Failure> {
    let setup = setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE, delivery);
    let unified = Unified::open(&setup, AMPLE)?;
    let mut value = CpuFault::new(&unified, PAGES, PAGE, PAGE)?;
    let (floor, value) = interleave(TIMES, floor, &mut value)?;
    Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
}

fn exclusive_fault(name: &'static str) -> Result<Row, Failure> {
    let setup = setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE, Delivery::Service);
    let unified = Unified::open(&setup, AMPLE + (1 << 30))?;
    // What the CPU touches, the device has no more.
    let take = |page: &mut [u8]| {
        touch_here(page);
        Ok(())
    };
    let mut value = DeviceFault::new(&unified, PAGES, PAGE, take)?;
    let (floor, value) = interleave(TIMES, &mut FaultElsewhere(OtherProcess::start(PAGES)?), &mut value)?;
    Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
}

fn fault_in_1tib(name: &'static str) -> Result<Row, Failure> {
    let setup = setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE, Delivery::Service);
    let (small, large) = (1usize << 30, 1usize << 40);
    let in_small = Unified::open(&setup, small as u64)?;
    let in_large = Unified::open(&setup, large as u64)?;
    let mut floor = CpuFault::new(&in_small, PAGES, PAGE, small / PAGES)?;
    let mut value = CpuFault::new(&in_large, PAGES, PAGE, large / PAGES)?;
    let (floor, value) = interleave(TIMES, &mut floor, &mut value)?;
    Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
}

/// The share of metadata with every page in use on both sides, against the limit we promise.
fn metadata(name: &'static str, page_size: PageSize, bytes: usize, limit: f64) -> Result<Row, Failure> {
    let setup = setup(Mode::CoherentExclusive, page_size, bytes as u64 / 4, Delivery::Service);
    let unified = Unified::open(&setup, bytes as u64)?;
    let mut data = unified.zeroed::<u8>(bytes)?;
    let page = page_size.bytes() as usize;
    data.chunks_mut(page).for_each(touch_here);
    touch_on_device(&unified, &mut data, page)?;
    let metadata = unified.counters().metadata_bytes;
    Ok(Row::new(name, "of the data", metadata as f64 / bytes as f64, limit))
}

/// The processor time of a second in which nobody touches anything, with a device attached and memory on both sides.
fn idle_cpu(name: &'static str) -> Result<Row, Failure> {
    let setup = setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE, Delivery::Service);
    let unified = Unified::open(&setup, AMPLE)?;
    let mut data = unified.zeroed::<u8>(4 * PAGE)?;
    data.chunks_mut(PAGE).for_each(touch_here);
    touch_on_device(&unified, &mut data, PAGE)?;
    // Whoever looks a while before it sleeps has done so by then.
    std::thread::sleep(Duration::from_millis(200));
    let before = idle::cpu_time()?;
    std::thread::sleep(Duration::from_secs(1));
    let used = idle::cpu_time()?.saturating_sub(before);
    Ok(Row::new(name, "s per s", used.as_secs_f64(), 0.0))
}

/// The workload at its default size, or as much of it as there is room for.
fn vector_add_bandwidth(name: &'static str, machine: &Machine) -> Result<Row, Failure> {
    // Three vectors, the device memory of a quarter of them, and as much again for everybody else.
    let elements = vector_add::DEFAULT_ELEMENTS.min(machine.available / 60);
    let needs = vector_add::needs(elements);
    let setup = Setup::resolve(&Common::default(), &needs, machine)?;
    let mut speed = CopySpeed::new(machine);
    let mut rates = Vec::new();
    for _ in 0..3 {
        speed.sample()?;
        let unified = Unified::open(&setup, setup.space(&needs)?)?;
        let outcome = vector_add::run(&unified, &setup, elements as usize)?;
        if let Some(mismatch) = outcome.mismatch {
            return Err(Failure::Failed(mismatch.to_string()));
        }
        let bytes = vector_add::bytes_that_must_cross(elements, setup.device_memory);
        rates.push(bytes as f64 / outcome.device.as_secs_f64());
    }
    speed.sample()?;
    Ok(Row::new(name, "GB/s", median(&mut rates) / 1e9, speed.bytes_per_second() / 1e9))
}

fn replicate_fault(name: &'static str) -> Result<Row, Failure> {
    let setup = setup(Mode::Replicate, PageSize::Size2M, AMPLE, Delivery::Service);
    let unified = Unified::open(&setup, AMPLE + (1 << 30))?;
    // PLACEHOLDER: has to take the mapping, and only it, from the device.
    let forget = |_: &mut [u8]| Ok(());
    let mut value = DeviceFault::new(&unified, PAGES, PAGE, forget)?;
    let (floor, value) = interleave(TIMES, &mut MapElsewhere(OtherProcess::start(PAGES)?), &mut value)?;
    Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
}
