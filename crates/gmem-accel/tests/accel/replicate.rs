//! The discrete device in REPLICATE mode: it maps the host's memory.

use crate::common::*;
use gmem_accel::Discrete;
use gmem_hal::*;
use std::os::fd::AsRawFd;

const LEN: u64 = 4 * PAGE;

#[test]
fn a_replica_sees_what_the_host_writes_and_the_other_way_round() {
    let _dog = watchdog("replicate");
    let pager = Pager::without_context(Discrete::builder().memory(2 * PAGE).cores(1), PAGE, 4, |_| {});
    // The host's memory object, with something of its own in front of the address space.
    let ahead = 4096;
    let file = rustix::fs::memfd_create("window", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, ahead + 2 * LEN).unwrap();
    let flags = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 2 * LEN as usize, flags, rustix::mm::MapFlags::SHARED, &file, ahead).unwrap() }
        as u64;
    let base = PhysAddr { hnode: HnodeId::HOST, addr: at };
    let window = HostWindow { handle: file.as_raw_fd(), offset: ahead, base };
    let request = PmapRequest { mode: Mode::Replicate, host: Some(window), ..pager.request() };
    let pmap = pager.mmu().pmap_create(&request).unwrap();
    pager.pmap.set(pmap).unwrap();
    let word = (at + PAGE + 8) as *mut u64;
    // SAFETY: inside the mapping.
    unsafe { word.write_volatile(30) };

    let frame = PhysAddr { hnode: HnodeId::HOST, addr: at + PAGE };
    let mapping = Mapping { va: VirtAddr::new(START + PAGE), frame, len: ByteLen(PAGE), prot: Prot::RW };
    pager.mmu().pmap_enter(pmap, &mapping).unwrap();
    pager.launch_with("increment", &[START + PAGE + 8, 12], false).unwrap();
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { word.read_volatile() }, 42);
    assert!(pager.launch_with("load", &[START], false).is_err(), "nothing else was entered");

    // Device memory can be entered beside it.
    let own = Mapping { va: VirtAddr::new(START), frame: PhysAddr { hnode: HNODE, addr: PAGE }, ..mapping };
    pager.mmu().pmap_enter(pmap, &own).unwrap();
    pager.launch_with("store", &[START, 1], false).unwrap();

    // Beyond the window, and host frames in a context that was given none.
    for addr in [at - PAGE, at + 2 * LEN] {
        let outside = Mapping { frame: PhysAddr { addr, ..frame }, ..mapping };
        assert_eq!(pager.mmu().pmap_enter(pmap, &outside), Err(DeviceError::BadRequest));
    }
    let exclusive = pager.mmu().pmap_create(&pager.request()).unwrap();
    assert_eq!(pager.mmu().pmap_enter(exclusive, &mapping), Err(DeviceError::BadRequest));
    pager.mmu().pmap_destroy(exclusive).unwrap();
    pager.destroy();
    // SAFETY: the mapping made above, no longer used.
    unsafe { rustix::mm::munmap(at as *mut _, 2 * LEN as usize).unwrap() };
}

#[test]
fn devices_of_one_core_copy_directly() {
    let _dog = watchdog("devices");
    let first = Pager::without_context(Discrete::builder().memory(2 * PAGE), PAGE, 4, |_| {});
    let second = Discrete::builder().memory(PAGE).build().unwrap();
    let core: std::sync::Weak<dyn Upcalls> = std::sync::Arc::downgrade(&(first.clone() as std::sync::Arc<dyn Upcalls>));
    second.start(DeviceId(9), core).unwrap();
    let (own, other) = (HNODE, HnodeId(7));
    second.memory_registered(other, second.memory()).unwrap();
    let engine = first.device.copy_engine();
    assert!(engine.reaches(own) && engine.reaches(other) && second.copy_engine().reaches(own));
    assert!(!engine.reaches(HnodeId(8)) && !engine.reaches(HnodeId::HOST));
    // A device of another core may have the same number for its memory.
    let stranger = Pager::without_context(Discrete::builder().memory(PAGE), PAGE, 1, |_| {});
    assert!(!stranger.device.copy_engine().reaches(other));

    let frame = |hnode, addr| PhysAddr { hnode, addr };
    first.set(0, 77);
    engine.copy(frame(own, PAGE), first.home(0), ByteLen(PAGE)).unwrap();
    engine.copy(frame(other, 0), frame(own, PAGE), ByteLen(PAGE)).unwrap();
    second.copy_engine().copy(first.home(1), frame(other, 0), ByteLen(PAGE)).unwrap();
    assert_eq!(first.get(PAGE / 8), 77);
    engine.zero(frame(own, PAGE), ByteLen(PAGE)).unwrap();
    engine.copy(first.home(1), frame(own, PAGE), ByteLen(PAGE)).unwrap();
    assert_eq!(first.get(PAGE / 8), 0);

    let bad = Err(DeviceError::BadRequest);
    assert_eq!(engine.copy(frame(own, 2 * PAGE), first.home(0), ByteLen(PAGE)), bad);
    assert_eq!(engine.copy(frame(other, 4096), first.home(0), ByteLen(PAGE)), bad);
    assert_eq!(engine.zero(frame(HnodeId(8), 0), ByteLen(PAGE)), bad);
    assert_eq!(engine.zero(first.home(0), ByteLen(PAGE)), bad);
    second.memory_unregistered(other, second.memory());
    second.stop();
    assert!(!engine.reaches(other), "a device that was stopped is still reached");
}

/// A core that ends takes no memory back: what it had is told to nobody, and the next core may have its number, and the numbers of its memories.
#[test]
fn a_device_that_is_dropped_is_not_reached() {
    let _dog = watchdog("dropped");
    let first = Pager::without_context(Discrete::builder().memory(2 * PAGE), PAGE, 1, |_| {});
    let core: std::sync::Weak<dyn Upcalls> = std::sync::Arc::downgrade(&(first.clone() as std::sync::Arc<dyn Upcalls>));
    let engine = first.device.copy_engine();
    let second = |part: PhysRange, hnode| {
        let device = Discrete::builder().memory(2 * PAGE).build().unwrap();
        device.start(DeviceId(9), core.clone()).unwrap();
        device.memory_registered(HnodeId(hnode), part).unwrap();
        device
    };
    let halves = [PhysRange { begin: 0, end: PAGE }, PhysRange { begin: PAGE, end: 2 * PAGE }];
    let dropped = second(halves[0], 7);
    dropped.memory_registered(HnodeId(8), halves[1]).unwrap();
    assert!(engine.reaches(HnodeId(7)) && engine.reaches(HnodeId(8)));
    drop(dropped);
    let (to, from) = (PhysAddr { hnode: HNODE, addr: 0 }, PhysAddr { hnode: HnodeId(7), addr: 0 });
    assert!(!engine.reaches(HnodeId(7)) && !engine.reaches(HnodeId(8)), "memory that is unmapped is reached");
    assert_eq!(engine.copy(to, from, ByteLen(PAGE)), Err(DeviceError::BadRequest));
    // Nor does it take a place for ever: there are 256.
    for _ in 0..300 {
        drop(second(halves[0], 7));
    }
    let _third = second(halves[0], 7);
    assert!(engine.reaches(HnodeId(7)), "no place is left for memory");
}
