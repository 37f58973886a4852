//! How each row is measured.

use super::floors::{FaultElsewhere, InThreadFault, MapElsewhere, OtherProcess, ServiceFault};
use super::row::{Row, interleave};
use super::values::{CpuFault, DeviceFault, ReplicaFaults, touch_here, touch_on_device};
use super::{Timed, idle};
use crate::args::{Common, DeviceKind};
use crate::engine::{Engine, Unified};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::measure::{CopySpeed, median, warm};
use crate::setup::Setup;
use crate::workloads::vector_add;
use gmem::{Backing, Delivery, Mode, PageSize};
use std::time::Duration;

/// Pages that take turns: with their frames, more than a cache holds.
const PAGES: usize = 64;

/// The bytes of a page.
const PAGE: usize = 2 << 20;

/// Device memory for all pages that take turns and then some: these rows are not about eviction.
const AMPLE: u64 = (2 * PAGES * PAGE) as u64;

/// Measures rows.
pub(crate) struct Bench<'a> {
    pub(crate) machine: &'a Machine,
    /// Fewer samples and less data.
    pub(crate) quick: bool,
}

impl Bench<'_> {
    /// Measures a row by its name, one of [`super::ROWS`].
    pub(crate) fn measure(&self, name: &'static str) -> Result<Row, Failure> {
        match name {
            "cpu_fault_2mib" => self.cpu_fault(name, Delivery::Service, &mut ServiceFault::new(PAGES)?),
            "cpu_fault_2mib_inthread" => self.cpu_fault(name, Delivery::InThread, &mut InThreadFault::new(PAGES)?),
            "replicate_fault_2mib" => self.replicate_fault(name),
            "exclusive_fault_2mib" => self.exclusive_fault(name),
            "fault_in_1tib" => self.fault_in_1tib(name),
            "metadata_2mib" => self.metadata(name, PageSize::Size2M, 1 << 30, 0.001),
            "metadata_4kib" => self.metadata(name, PageSize::Size4K, 64 << 20, 0.01),
            "idle_cpu" => self.idle_cpu(name),
            "vector_add_bandwidth" => self.vector_add_bandwidth(name),
            _ => unreachable!("{name} is no row"),
        }
    }

    /// Samples of each fault.
    fn times(&self) -> usize {
        if self.quick { 2 * PAGES } else { 8 * PAGES }
    }

    /// A discrete device with mode, pages and memory as said, and the delivery that this machine has; everything else as usual.
    fn setup(&self, mode: Mode, page_size: PageSize, device_memory: u64) -> Setup {
        let service = self.machine.refuses(Backing::Shared, Delivery::Service).is_none();
        let delivery = if service { Delivery::Service } else { Delivery::InThread };
        Setup {
            device: DeviceKind::Discrete,
            mode,
            device_memory,
            page_size,
            cores: 1,
            replay: true,
            backing: Backing::Shared,
            delivery,
            system_calls: false,
        }
    }

    fn cpu_fault(&self, name: &'static str, delivery: Delivery, floor: &mut dyn Timed) -> Result<Row, Failure> {
        let setup = Setup { delivery, ..self.setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE) };
        let unified = Unified::open(&setup, AMPLE)?;
        let mut value = CpuFault::new(&unified, PAGES, PAGE, PAGE)?;
        let before = unified.counters();
        let (floor, value) = interleave(self.times(), floor, &mut value)?;
        let after = unified.counters();
        self.proves(name, after.faults.cpu - before.faults.cpu)?;
        self.proves(name, (after.migrated_bytes.d2h - before.migrated_bytes.d2h) / PAGE as u64)?;
        Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
    }

    fn exclusive_fault(&self, name: &'static str) -> Result<Row, Failure> {
        let unified = Unified::open(&self.setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE), AMPLE)?;
        let mut value = DeviceFault::new(&unified, PAGES, PAGE)?;
        let before = unified.counters();
        let (floor, value) = interleave(self.times(), &mut FaultElsewhere(OtherProcess::start(PAGES)?), &mut value)?;
        let after = unified.counters();
        self.proves(name, (after.migrated_bytes.h2d - before.migrated_bytes.h2d) / PAGE as u64)?;
        Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
    }

    fn replicate_fault(&self, name: &'static str) -> Result<Row, Failure> {
        let unified = Unified::open(&self.setup(Mode::Replicate, PageSize::Size2M, AMPLE), AMPLE)?;
        let mut value = ReplicaFaults::new(&unified, PAGES, PAGE)?;
        let before = unified.counters();
        let (floor, value) = interleave(self.times(), &mut MapElsewhere(OtherProcess::start(PAGES)?), &mut value)?;
        self.proves(name, unified.counters().faults.device - before.faults.device)?;
        Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
    }

    /// Fails if what was timed did not happen as often as it was timed.
    fn proves(&self, name: &'static str, happened: u64) -> Result<(), Failure> {
        if happened >= self.times() as u64 {
            return Ok(());
        }
        Err(Failure::Failed(format!("{name}: {} accesses were timed and only {happened} of them did what was to be timed", self.times())))
    }

    fn fault_in_1tib(&self, name: &'static str) -> Result<Row, Failure> {
        let setup = self.setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE);
        let (small, large) = (1usize << 30, 1usize << 40);
        let in_small = Unified::open(&setup, small as u64)?;
        let in_large = Unified::open(&setup, large as u64)?;
        let mut floor = CpuFault::new(&in_small, PAGES, PAGE, small / PAGES)?;
        let mut value = CpuFault::new(&in_large, PAGES, PAGE, large / PAGES)?;
        let (floor, value) = interleave(self.times(), &mut floor, &mut value)?;
        self.proves(name, in_large.counters().migrated_bytes.d2h / PAGE as u64)?;
        Ok(Row::new(name, "µs", value / 1e3, floor / 1e3))
    }

    /// The share of metadata with every page in use on both sides, against the limit we promise.
    fn metadata(&self, name: &'static str, page_size: PageSize, bytes: usize, limit: f64) -> Result<Row, Failure> {
        let unified = Unified::open(&self.setup(Mode::CoherentExclusive, page_size, bytes as u64 / 4), bytes as u64)?;
        let mut data = unified.zeroed::<u8>(bytes)?;
        let page = page_size.bytes() as usize;
        data.chunks_mut(page).for_each(touch_here);
        touch_on_device(&unified, &mut data, page)?;
        let metadata = unified.counters().metadata_bytes;
        Ok(Row::new(name, "of the data", metadata as f64 / bytes as f64, limit))
    }

    /// The processor time of a second in which nobody touches anything, with a device attached and memory on both sides.
    fn idle_cpu(&self, name: &'static str) -> Result<Row, Failure> {
        let unified = Unified::open(&self.setup(Mode::CoherentExclusive, PageSize::Size2M, AMPLE), AMPLE)?;
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
    fn vector_add_bandwidth(&self, name: &'static str) -> Result<Row, Failure> {
        let (most, times) = if self.quick { (vector_add::DEFAULT_ELEMENTS / 8, 3) } else { (vector_add::DEFAULT_ELEMENTS, 5) };
        // Three vectors, the device memory of a quarter of them, and as much again for everybody else.
        let elements = most.min(self.machine.available / 60);
        let needs = vector_add::needs(elements);
        let setup = Setup::resolve(&Common::default(), &needs, self.machine)?;
        warm(needs.managed(setup.page_size).unwrap_or(0) + setup.device_memory)?;
        let mut speed = CopySpeed::new(self.machine);
        let mut rates = Vec::new();
        for _ in 0..times {
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
}
