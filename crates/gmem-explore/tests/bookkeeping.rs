//! What the core keeps about regions, pools and page tables: bounded, given back, and refused before anything is confused.

use gmem_core::{AttachError, DeviceCallError, MapRequest, RangeError};
use gmem_explore::CoreWorld;
use gmem_hal::*;
use gmem_sim::random::{cpu_read, cpu_write};
use gmem_sim::{Callback, Injected, SimDevice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

const PAGE: u64 = 4096;

fn pages(world: &CoreWorld, first: u64, count: u64) -> VirtRange {
    let start = world.shape.spaces[0].base.get() + first * PAGE;
    VirtRange::from_len(VirtAddr::new(start), ByteLen(count * PAGE)).expect("it does not wrap")
}

fn map(world: &CoreWorld, first: u64, count: u64) {
    let at = Some(pages(world, first, count).start());
    let attrs = RegionAttrs { page_size: PageSize::Size4K, ..RegionAttrs::default() };
    world.core.map(world.spaces[0], &MapRequest { len: ByteLen(count * PAGE), at, attrs }).expect("there is room");
}

#[test]
fn regions_that_were_cut_are_joined_when_they_do_not_differ_any_more() {
    let world = CoreWorld::standard(1);
    let (core, space) = (&world.core, world.spaces[0]);
    map(&world, 0, 16);
    map(&world, 16, 16);
    let before = world.account.charged();
    for page in [3, 0, 15, 16, 7, 8] {
        core.protect(space, pages(&world, page, 1), Prot::READ).expect("it is mapped");
    }
    assert!(world.account.charged() > before, "parts of a region are accounted for");
    core.protect(space, pages(&world, 2, 28), Prot::READ).expect("it is mapped");
    core.protect(space, pages(&world, 0, 32), Prot::RW).expect("it is mapped");
    assert_eq!(world.account.charged(), before, "what was cut and joined costs what it did before");
    // What two calls mapped stays two regions: each is unmapped, and its table of entries freed, by itself.
    core.unmap(space, pages(&world, 0, 16)).expect("whole pages");
    let half = world.account.charged();
    core.unmap(space, pages(&world, 16, 16)).expect("whole pages");
    assert!(half < before && world.account.charged() < half);
    world.tear_down();
}

#[test]
fn a_cut_for_which_there_is_no_memory_changes_nothing() {
    let world = CoreWorld::standard(1);
    let (core, space) = (&world.core, world.spaces[0]);
    map(&world, 0, 16);
    let va = pages(&world, 5, 1).start();
    cpu_write(&world.host, &**core, va, &[7]).expect("it is mapped");
    let before = world.account.charged();
    world.sim.fail_chance(Callback::Charge, 1000, Injected::OutOfMemory);
    assert!(matches!(core.unmap(space, pages(&world, 4, 4)), Err(RangeError::OutOfMemory(_))));
    assert!(matches!(core.protect(space, pages(&world, 4, 4), Prot::READ), Err(RangeError::OutOfMemory(_))));
    world.sim.clear_failures();
    assert_eq!(world.account.charged(), before);
    let mut byte = [0];
    cpu_read(&world.host, &**core, va, &mut byte).expect("it is still mapped");
    assert_eq!(byte, [7]);
    cpu_write(&world.host, &**core, va, &[8]).expect("and still writable");
    core.verify().expect("nothing is broken");
    world.tear_down();
}

#[test]
fn a_device_has_as_many_pools_as_its_faults_look_at() {
    let world = CoreWorld::standard(1);
    let device = SimDevice::builder(&world.sim, "many pools").memory(ByteLen(17 * PAGE)).build();
    let id = world.core.device_create(device.clone()).expect("its facts are right");
    let pool = |n: u64| {
        let begin = device.memory().begin + n * PAGE;
        world.core.device_register_memory(id, PhysRange { begin, end: begin + PAGE })
    };
    let pools: Vec<HnodeId> = (0..16).map(|n| pool(n).expect("there is room for sixteen")).collect();
    assert_eq!(pool(16), Err(DeviceCallError::TooManyMemories));
    // Every one of them is used.
    world.core.attach(world.spaces[0], id, Mode::CoherentExclusive, false).expect("it has memory");
    map(&world, 0, 16);
    let moved = world.core.prefetch(world.spaces[0], pages(&world, 0, 16), Some(id), Access::Write);
    assert_eq!(moved, Ok(16));
    for hnode in &pools {
        assert_eq!(world.core.hnode_stats(*hnode).expect("it is registered").used, ByteLen(PAGE), "{hnode}");
    }
    world.core.detach(world.spaces[0], id).expect("its pages come home");
    world.core.device_destroy(id).expect("it is not attached any more");
    world.tear_down();
}

/// A driver that numbers its tables from one, as every driver may, and is never asked to touch memory.
struct Numbering {
    info: DeviceInfo,
    tables: AtomicU64,
    /// What it does while it is started or stopped.
    at_ends: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// What it does when memory is registered, true, or taken back.
    at_memory: OnceLock<Box<dyn Fn(bool, HnodeId) + Send + Sync>>,
}

impl Mmu for Numbering {
    fn pmap_create(&self, _: &PmapRequest) -> Result<PmapId, DeviceError> {
        Ok(PmapId(self.tables.fetch_add(1, Ordering::Relaxed) + 1))
    }
    fn pmap_destroy(&self, _: PmapId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn pmap_enter(&self, _: PmapId, _: &Mapping) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
    fn pmap_release(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        Ok(())
    }
    fn pmap_protect(&self, _: PmapId, _: VirtRange, _: Prot) -> Result<(), DeviceError> {
        Ok(())
    }
    fn tlb_invalidate(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl CopyEngine for Numbering {
    fn zero(&self, _: PhysAddr, _: ByteLen) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
    fn copy(&self, _: PhysAddr, _: PhysAddr, _: ByteLen) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}

impl Device for Numbering {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn start(&self, _: DeviceId, _: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        self.at_ends.get().inspect(|then| then());
        Ok(())
    }
    fn stop(&self) {
        self.at_ends.get().inspect(|then| then());
    }
    fn memory_registered(&self, hnode: HnodeId, _: PhysRange) -> Result<(), DeviceError> {
        self.at_memory.get().inspect(|told| told(true, hnode));
        Ok(())
    }
    fn memory_unregistered(&self, hnode: HnodeId, _: PhysRange) {
        self.at_memory.get().inspect(|told| told(false, hnode));
    }
    fn mmu(&self) -> &dyn Mmu {
        self
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }
}

fn numbering(name: &str) -> Arc<Numbering> {
    let info = DeviceInfo {
        name: name.into(),
        capabilities: Capabilities::REPLAYABLE,
        page_sizes: PageSizes::ALL,
        modes: Modes::all(),
        mmu_cookie: 0x5a,
    };
    Arc::new(Numbering { info, tables: AtomicU64::new(0), at_ends: OnceLock::new(), at_memory: OnceLock::new() })
}

#[test]
fn a_driver_knows_its_memory_for_as_long_as_the_core_uses_it() {
    let world = CoreWorld::standard(1);
    let core = &world.core;
    let (driver, other) = (numbering("a"), numbering("b"));
    let device = core.device_create(driver.clone()).expect("its facts are right");
    let neighbour = core.device_create(other).expect("its facts are right");
    let (weak, told) = (Arc::downgrade(core), Arc::new(Mutex::new(Vec::new())));
    let seen = told.clone();
    let at_memory = move |registered: bool, hnode| {
        let core = weak.upgrade().expect("it calls");
        assert!(registered || core.hnodes_of(device).is_empty(), "{hnode} can be used, and its driver is told that it is gone");
        // The number is not free yet, or any more.
        let range = PhysRange { begin: 0, end: 8 * PAGE };
        let next = core.device_register_memory(neighbour, range).expect("it is free");
        assert_ne!(next, hnode, "the number is another memory's already");
        core.device_unregister_memory(neighbour, next).expect("nothing is in it");
        seen.lock().expect("nobody panics with it").push((registered, hnode));
    };
    assert!(driver.at_memory.set(Box::new(at_memory)).is_ok());
    let part = |n: u64| PhysRange { begin: 8 * n * PAGE, end: 8 * (n + 1) * PAGE };
    let first = core.device_register_memory(device, part(0)).expect("it is free");
    core.device_unregister_memory(device, first).expect("nothing is in it");
    let again = core.device_register_memory(device, part(1)).expect("it is free");
    core.device_destroy(device).expect("it is not attached");
    assert_eq!(*told.lock().expect("nobody panics with it"), [(true, first), (false, first), (true, again), (false, again)]);
    core.device_destroy(neighbour).expect("it is not attached");
    world.tear_down();
}

#[test]
fn memory_that_the_device_has_not_is_not_registered() {
    let world = CoreWorld::standard(1);
    let core = &world.core;
    let device = SimDevice::builder(&world.sim, "small").memory(ByteLen(4 * PAGE)).build();
    let id = core.device_create(device.clone()).expect("its facts are right");
    let end = device.memory().end;
    let part = |pages: u64| PhysRange { begin: end - 2 * PAGE, end: end - 2 * PAGE + pages * PAGE };
    let before = core.stats();
    assert_eq!(core.device_register_memory(id, part(3)), Err(DeviceCallError::NoSuchMemory(part(3))));
    assert_eq!((core.hnodes_of(id), core.stats().metadata), (vec![], before.metadata), "something of it was left");
    // Its number is free, and the part that the device has can be had.
    let next = core.device_register_memory(id, part(2)).expect("the device has it");
    assert_eq!(usize::from(next.0), before.hnodes.len() + 1);
    core.attach(world.spaces[0], id, Mode::CoherentExclusive, false).expect("it has memory");
    map(&world, 0, 2);
    assert_eq!(core.prefetch(world.spaces[0], pages(&world, 0, 2), Some(id), Access::Write), Ok(2));
    core.verify().expect("nothing is broken");
    core.detach(world.spaces[0], id).expect("its pages come home");
    core.device_destroy(id).expect("it is not attached any more");
    world.tear_down();
}

#[test]
fn a_driver_is_never_started_while_it_is_a_device() {
    let world = CoreWorld::standard(1);
    let core = &world.core;
    let (driver, other) = (numbering("a"), numbering("a"));
    let id = core.device_create(driver.clone()).expect("its facts are right");
    // This one would let itself be started again.
    assert_eq!(core.device_create(driver.clone()), Err(DeviceCallError::Device(DeviceError::AlreadyStarted)));
    let second = core.device_create(other).expect("another driver, though its facts are the same");
    core.device_destroy(id).expect("it is not attached");
    let again = core.device_create(driver).expect("it is no device any more, and says itself whether it can begin again");
    core.device_destroy(again).expect("it is not attached");
    core.device_destroy(second).expect("it is not attached");
    world.tear_down();
}

#[test]
fn a_driver_is_not_started_while_it_starts_or_stops() {
    let world = CoreWorld::standard(1);
    let core = &world.core;
    let driver = numbering("a");
    let (again, answers) = (Arc::downgrade(core), Arc::new(Mutex::new(Vec::new())));
    let (weak, heard) = (Arc::downgrade(&driver), answers.clone());
    let at_ends = move || {
        let (core, driver) = (again.upgrade().expect("it calls"), weak.upgrade().expect("it is called"));
        // Whoever comes in this moment, from whatever thread.
        let answer = if heard.lock().expect("nobody panics with it").len() < 4 { core.device_create(driver) } else { Ok(DeviceId(0)) };
        heard.lock().expect("nobody panics with it").push(answer);
    };
    assert!(driver.at_ends.set(Box::new(at_ends)).is_ok());
    for _ in 0..2 {
        let id = core.device_create(driver.clone()).expect("its facts are right");
        core.device_destroy(id).expect("it is not attached");
    }
    let started = Err(DeviceCallError::Device(DeviceError::AlreadyStarted));
    assert_eq!(*answers.lock().expect("nobody panics with it"), [started; 4], "at each start and each stop");
    world.tear_down();
}

#[test]
fn all_devices_together_have_as_many_memories_as_there_are_numbers() {
    let world = CoreWorld::standard(1);
    let core = &world.core;
    let before = core.stats().hnodes.len();
    let part = |n: u64| PhysRange { begin: 8 * n * PAGE, end: 8 * (n + 1) * PAGE };
    let devices: Vec<_> = (0..64).map(|_| core.device_create(numbering("a")).expect("its facts are right")).collect();
    let registered = devices.iter().flat_map(|id| (0..16).map(|n| core.device_register_memory(*id, part(n))));
    let (made, refused): (Vec<_>, Vec<_>) = registered.partition(Result::is_ok);
    assert_eq!(before + made.len(), 1023);
    assert!(!refused.is_empty() && refused.iter().all(|r| *r == Err(DeviceCallError::TooManyHnodes)), "{refused:?}");
    core.device_destroy(devices[0]).expect("it is not attached");
    core.device_register_memory(devices[63], part(15)).expect("numbers are free again");
    devices[1..].iter().for_each(|id| core.device_destroy(*id).expect("it is not attached"));
    assert_eq!(core.stats().hnodes.len(), before);
    world.tear_down();
}

#[test]
fn two_tables_of_one_name_are_never_on_one_device() {
    let world = CoreWorld::standard(1);
    let (core, first, second) = (&world.core, world.spaces[0], world.spaces[1]);
    let [a, b] = ["a", "b"].map(|name| {
        let id = core.device_create(numbering(name)).expect("its facts are right");
        core.device_register_memory(id, PhysRange { begin: 0, end: 8 * PAGE }).expect("it is free");
        id
    });
    core.attach(first, a, Mode::CoherentExclusive, false).expect("it has memory");
    core.attach(second, b, Mode::CoherentExclusive, false).expect("it has memory");
    // A fault of `b` in its own table and one in the table it shares could not be told apart.
    assert_eq!(core.attach(first, b, Mode::Share, false), Err(AttachError::Device(DeviceError::BadRequest)));
    core.detach(second, b).expect("nothing is on it");
    core.attach(first, b, Mode::Share, false).expect("now its only table is the shared one");
    core.detach(first, b).expect("nothing is on it");
    core.detach(first, a).expect("nothing is on it");
    core.device_destroy(a).expect("it is not attached any more");
    core.device_destroy(b).expect("it is not attached any more");
    world.tear_down();
}
