//! The device, driven as the core would drive it, and as it must not.

use crate::{Callback, DeviceFault, FaultKind, Injected, Sim, SimDevice};
use gmem_hal::{
    Access, ByteLen, Capabilities, CopyEngine, Device, DeviceError, DeviceId, EvictOutcome, FaultError, FaultHint, Frames, HnodeId,
    HostFault, Mapping, Mmu, Mode, PageSize, PageSizes, Peer, PeerError, PeerMap, PeerUnmap, PhysAddr, PmapId, PmapRequest, Prot, SpaceId,
    Upcalls, VirtAddr, VirtRange,
};
use std::sync::{Arc, Mutex, Weak};

const PAGE: u64 = 4096;
const BASE: u64 = 1 << 32;
const HNODE: HnodeId = HnodeId(1);

/// A core that does what a test tells it.
#[derive(Default)]
struct Core {
    device: Mutex<Option<Arc<SimDevice>>>,
    refuse: Mutex<Vec<u64>>,
}

impl Upcalls for Core {
    fn device_fault(&self, _: DeviceId, _: PmapId, _: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        Err(FaultError::NotMapped)
    }

    fn device_evict(&self, _: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        if self.refuse.lock().unwrap().contains(&range.start().get()) {
            return EvictOutcome::Refused;
        }
        let device = self.device.lock().unwrap().clone().unwrap();
        device.unmap(&PeerUnmap { pmap, va: range.start(), len: range.len(), copy: None }).unwrap();
        EvictOutcome::Evicted
    }

    fn device_lost(&self, _: DeviceId, _: PmapId) {}

    fn host_fault(&self, _: VirtAddr, _: Access, _: bool) -> HostFault {
        HostFault::NotOurs
    }
}

fn va(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE)
}

fn pages(first: u64, count: u64) -> VirtRange {
    VirtRange::from_len(va(first), ByteLen(count * PAGE)).unwrap()
}

fn frame(number: u64) -> PhysAddr {
    PhysAddr { hnode: HNODE, addr: BASE + number * PAGE }
}

fn mapping(page: u64, number: u64, prot: Prot) -> Mapping {
    Mapping { va: va(page), frame: frame(number), len: ByteLen(PAGE), prot }
}

fn request(mode: Mode) -> PmapRequest {
    PmapRequest { space: SpaceId(0), range: pages(0, 1 << 20), mode, host: None }
}

fn started(device: &Arc<SimDevice>) -> PmapId {
    let core: Weak<Core> = Weak::new();
    device.start(DeviceId(0), core).unwrap();
    device.memory_registered(HNODE, device.memory()).unwrap();
    device.pmap_create(&request(Mode::CoherentExclusive)).unwrap()
}

fn device() -> (Arc<Sim>, Arc<SimDevice>, PmapId) {
    let sim = Sim::new(1);
    let device = SimDevice::builder(&sim, "test").own_frames().accessed_bits().build();
    let pmap = started(&device);
    (sim, device, pmap)
}

fn byte(device: &SimDevice, pmap: PmapId, page: u64) -> Result<u8, DeviceFault> {
    let mut byte = [0];
    device.read(pmap, va(page), &mut byte).map(|()| byte[0])
}

#[test]
fn a_stale_translation_lets_a_write_through_until_it_is_invalidated() {
    let (sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    device.write(pmap, va(5), &[1]).unwrap();
    device.pmap_release(pmap, pages(5, 1)).unwrap();
    device.write(pmap, va(5), &[2]).expect("the translation is still cached");
    assert_eq!(sim.hazards().stale_accesses, 1);
    let mut there = [0];
    sim.peek(frame(2), &mut there);
    assert_eq!(there, [2]);
    device.tlb_invalidate(pmap, pages(0, 16)).unwrap();
    let fault = device.write(pmap, va(5), &[3]).unwrap_err();
    assert_eq!((fault.kind, fault.va), (FaultKind::Absent, va(5)));
}

#[test]
#[should_panic(expected = "its shootdown is not done")]
fn a_frame_used_again_before_its_shootdown_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    byte(&device, pmap, 5).unwrap();
    device.pmap_release(pmap, pages(5, 1)).unwrap();
    let _ = device.zero(frame(2), ByteLen(PAGE));
}

#[test]
#[should_panic(expected = "a write could be lost")]
fn a_copy_from_a_writable_frame_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    let _ = device.copy(frame(3), frame(2), ByteLen(PAGE));
}

#[test]
fn a_read_only_frame_can_be_copied_after_the_shootdown() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    device.write(pmap, va(5), &[9]).unwrap();
    device.pmap_protect(pmap, pages(5, 1), Prot::READ).unwrap();
    device.tlb_invalidate_coalesced(pmap, &[pages(5, 1)]).unwrap();
    device.copy(frame(3), frame(2), ByteLen(PAGE)).unwrap();
    device.pmap_enter(pmap, &mapping(6, 3, Prot::RW)).unwrap();
    assert_eq!(byte(&device, pmap, 6), Ok(9));
    assert_eq!(device.write(pmap, va(5), &[1]).unwrap_err().kind, FaultKind::Protection);
}

#[test]
#[should_panic(expected = "over a present entry")]
fn entering_another_frame_over_a_present_entry_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    let _ = device.pmap_enter(pmap, &mapping(5, 3, Prot::RW));
}

#[test]
#[should_panic(expected = "over a cached translation not yet invalidated")]
fn entering_another_frame_over_a_stale_translation_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    byte(&device, pmap, 5).unwrap();
    device.pmap_release(pmap, pages(5, 1)).unwrap();
    let _ = device.pmap_enter(pmap, &mapping(5, 3, Prot::RW));
}

#[test]
#[should_panic(expected = "one of the two is exclusive")]
fn mapping_an_exclusive_frame_twice_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::READ)).unwrap();
    let _ = device.pmap_enter(pmap, &mapping(6, 2, Prot::READ));
}

#[test]
#[should_panic(expected = "outside the registered memory")]
fn mapping_memory_that_is_not_there_is_a_defect() {
    let (_sim, device, pmap) = device();
    let _ = device.pmap_enter(pmap, &mapping(5, 256, Prot::READ));
}

#[test]
#[should_panic(expected = "is not aligned to it")]
fn an_unaligned_mapping_is_a_defect() {
    let (_sim, device, pmap) = device();
    let _ = device.pmap_enter(pmap, &Mapping { len: PageSize::Size64K.len(), ..mapping(5, 16, Prot::READ) });
}

#[test]
#[should_panic(expected = "is destroyed with entries")]
fn destroying_a_table_with_entries_is_a_defect() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    let _ = device.pmap_destroy(pmap);
}

#[test]
fn an_upgrade_faults_at_most_once_more() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::READ)).unwrap();
    byte(&device, pmap, 5).unwrap();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    assert_eq!(device.write(pmap, va(5), &[1]).unwrap_err().kind, FaultKind::Protection);
    device.write(pmap, va(5), &[1]).unwrap();
}

#[test]
fn absence_can_be_cached_once() {
    let sim = Sim::new(1);
    let device = SimDevice::builder(&sim, "test").caches_absent().build();
    let pmap = started(&device);
    assert!(byte(&device, pmap, 5).is_err());
    device.pmap_enter(pmap, &mapping(5, 2, Prot::READ)).unwrap();
    assert!(byte(&device, pmap, 5).is_err(), "cached as absent");
    assert!(byte(&device, pmap, 5).is_ok());
}

#[test]
fn large_pages_are_mapped_by_what_the_mmu_has_and_can_be_split() {
    for sizes in [PageSizes::ALL, PageSizes::from_bitmap(PAGE), PageSizes::from_bitmap(0x1_1000)] {
        let sim = Sim::new(1);
        let device = SimDevice::builder(&sim, "test").memory(ByteLen(4 << 20)).page_sizes(sizes).tlb_entries(4).build();
        let pmap = started(&device);
        let big = Mapping { va: va(512), frame: frame(512), len: PageSize::Size2M.len(), prot: Prot::RW };
        device.pmap_enter(pmap, &big).unwrap();
        for page in (512..1024).step_by(37) {
            device.write(pmap, va(page), &[page as u8]).unwrap();
        }
        device.pmap_release(pmap, pages(600, 1)).unwrap();
        device.tlb_invalidate(pmap, pages(600, 1)).unwrap();
        assert!(byte(&device, pmap, 600).is_err());
        assert_eq!(byte(&device, pmap, 512 + 37), Ok((512 + 37) as u8));
        device.zero(frame(600), ByteLen(PAGE)).unwrap();
        device.pmap_release(pmap, pages(512, 512)).unwrap();
        device.tlb_invalidate(pmap, pages(512, 512)).unwrap();
        device.zero(frame(512), PageSize::Size2M.len()).unwrap();
        device.pmap_destroy(pmap).unwrap();
    }
}

#[test]
fn a_full_cache_forgets_what_the_seed_says() {
    let sim = Sim::new(1);
    let device = SimDevice::builder(&sim, "test").tlb_entries(2).build();
    let pmap = started(&device);
    for page in 0..8 {
        device.pmap_enter(pmap, &mapping(page, page, Prot::READ)).unwrap();
        byte(&device, pmap, page).unwrap();
    }
    assert_eq!(device.cached_translations(), 2);
    device.pmap_release(pmap, pages(0, 8)).unwrap();
    let stale = (0..8).filter(|page| byte(&device, pmap, *page).is_ok()).count();
    assert_eq!(stale, 2);
}

#[test]
fn a_failed_copy_leaves_garbage_and_time_passes() {
    let (sim, device, _) = device();
    let at = sim.clock().now_ns();
    device.zero(frame(1), ByteLen(PAGE)).unwrap();
    device.zero(frame(2), ByteLen(PAGE)).unwrap();
    assert!(sim.clock().now_ns() > at);
    sim.fail_nth(Callback::Copy, 1, Injected::Device(DeviceError::CopyFailed));
    assert_eq!(device.copy(frame(2), frame(1), ByteLen(PAGE)), Err(DeviceError::CopyFailed));
    let mut bytes = [0; PAGE as usize];
    sim.peek(frame(2), &mut bytes);
    assert!(bytes[..2048].iter().all(|b| *b == 0) && bytes[2048..].iter().all(|b| *b == 0xee));
    sim.peek(frame(1), &mut bytes);
    assert!(bytes.iter().all(|b| *b == 0), "the source is unchanged");
}

#[test]
fn memory_is_never_zero_by_itself() {
    let (sim, _device, _) = device();
    let mut byte = [0];
    sim.peek(frame(7), &mut byte);
    assert_ne!(byte, [0]);
}

#[test]
fn a_dead_device_answers_dead_and_touches_nothing() {
    let (sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    byte(&device, pmap, 5).unwrap();
    sim.fail_nth(Callback::TlbInvalidate, 1, Injected::Device(DeviceError::Dead));
    assert_eq!(device.tlb_invalidate(pmap, pages(5, 1)), Err(DeviceError::Dead));
    assert_eq!(device.zero(frame(3), ByteLen(PAGE)), Err(DeviceError::Dead));
    assert_eq!(byte(&device, pmap, 5).unwrap_err().kind, FaultKind::Stopped);
    device.revive();
    assert_eq!(device.pmap_release(pmap, pages(5, 1)), Err(DeviceError::Dead), "the context is from before");
    assert_eq!(device.pmap_destroy(pmap), Err(DeviceError::Dead));
    device.zero(frame(2), ByteLen(PAGE)).expect("nothing reaches the frame any more");
}

#[test]
fn a_fenced_context_reaches_nothing() {
    let (sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    byte(&device, pmap, 5).unwrap();
    sim.fail_nth(Callback::PmapRelease, 1, Injected::Device(DeviceError::NoAnswer));
    assert_eq!(device.pmap_release(pmap, pages(5, 1)), Err(DeviceError::NoAnswer));
    device.fence(pmap).unwrap();
    device.zero(frame(2), ByteLen(PAGE)).unwrap();
    assert_eq!(byte(&device, pmap, 5).unwrap_err().kind, FaultKind::Stopped);
    device.pmap_destroy(pmap).unwrap();
}

#[test]
fn accessed_marks_are_read_and_cleared() {
    let (_sim, device, pmap) = device();
    device.pmap_enter(pmap, &mapping(5, 2, Prot::RW)).unwrap();
    assert_eq!(device.harvest_accessed(pmap, pages(5, 1)), Some(false));
    byte(&device, pmap, 5).unwrap();
    assert_eq!(device.harvest_accessed(pmap, pages(5, 1)), Some(true));
    assert_eq!(device.harvest_accessed(pmap, pages(5, 1)), Some(false));
}

#[test]
fn its_own_frames_come_and_go() {
    let (_sim, device, pmap) = device();
    let first = device.alloc_frame(HNODE, PageSize::Size4K).unwrap();
    let large = device.alloc_frame(HNODE, PageSize::Size64K).unwrap();
    assert!(large.addr.is_multiple_of(PageSize::Size64K.bytes()) && large != first);
    assert_eq!(device.alloc_frame(HNODE, PageSize::Size2M), Err(DeviceError::NoMemory));
    device.pmap_enter(pmap, &Mapping { frame: first, ..mapping(1, 0, Prot::RW) }).unwrap();
    device.pmap_release(pmap, pages(1, 1)).unwrap();
    device.free_frame(first, PageSize::Size4K);
    assert_eq!(device.alloc_frame(HNODE, PageSize::Size4K), Ok(first), "the first free frame is used again at once");
}

fn peer(frames: u64) -> (Arc<Sim>, Arc<SimDevice>, PmapId, Arc<Core>) {
    let sim = Sim::new(1);
    let capabilities = Capabilities::REPLAYABLE | Capabilities::PEER;
    let device = SimDevice::builder(&sim, "peer").memory(ByteLen(frames * PAGE)).capabilities(capabilities).build();
    let core = Arc::new(Core::default());
    *core.device.lock().unwrap() = Some(device.clone());
    let weak: Weak<Core> = Arc::downgrade(&core);
    device.start(DeviceId(0), weak).unwrap();
    let pmap = device.pmap_create(&request(Mode::CoherentExclusive)).unwrap();
    device.va_alloc_fixed(pmap, pages(0, 64), Prot::RW).unwrap();
    (sim, device, pmap, core)
}

fn peer_map(pmap: PmapId, page: u64, hot: bool) -> PeerMap {
    PeerMap { pmap, va: va(page), len: ByteLen(PAGE), prot: Prot::RW, copy: None, hot }
}

#[test]
fn a_peer_makes_room_by_evicting_what_is_least_recent_and_not_refused() {
    let (_sim, device, pmap, core) = peer(4);
    for page in 0..4 {
        device.map(&peer_map(pmap, page, false)).unwrap();
    }
    assert!(matches!(device.map(&peer_map(pmap, 0, true)), Ok(()) | Err(PeerError::PageExists)));
    core.refuse.lock().unwrap().push(va(1).get());
    device.map(&peer_map(pmap, 4, false)).unwrap();
    let there: Vec<u64> = (0..5).filter(|page| byte(&device, pmap, *page).is_ok()).collect();
    assert_eq!(there, [0, 1, 3, 4], "0 is recent, 1 was refused, 2 went");
    assert_eq!(device.peer_evictions(), (1, 1));
    core.refuse.lock().unwrap().extend((0..5).map(|page| va(page).get()));
    assert_eq!(device.map(&peer_map(pmap, 5, false)), Err(PeerError::NoMemory));
}

#[test]
fn a_peer_keeps_its_own_addresses() {
    let (_sim, device, pmap, _core) = peer(4);
    device.occupy(pages(100, 10));
    assert_eq!(device.va_alloc_fixed(pmap, pages(95, 10), Prot::RW), Err(PeerError::Conflict));
    device.va_alloc_fixed(pmap, pages(64, 10), Prot::RW).unwrap();
    device.va_free(pmap, pages(60, 10)).unwrap();
    device.va_alloc_fixed(pmap, pages(60, 4), Prot::RW).unwrap();
}

#[test]
#[should_panic(expected = "with a page mapped")]
fn freeing_addresses_with_a_page_is_a_defect() {
    let (_sim, device, pmap, _core) = peer(4);
    device.map(&peer_map(pmap, 3, false)).unwrap();
    let _ = device.va_free(pmap, pages(0, 64));
}

#[test]
fn a_peer_keeps_a_page_whose_copy_failed() {
    let (sim, device, pmap, _core) = peer(4);
    let host = crate::SimHost::new(&sim);
    let attrs = gmem_hal::RegionAttrs { page_size: PageSize::Size4K, ..Default::default() };
    let region = gmem_hal::Pages { range: pages(16, 1), attrs };
    use gmem_hal::Host;
    let space = host.space_create(pages(16, 16), true).unwrap();
    host.region_map(&space, &region).unwrap();
    host.populate(&space, &region).unwrap();
    let home = host.home(&space, &region);
    device.map(&peer_map(pmap, 3, false)).unwrap();
    device.write(pmap, va(3), &[42]).unwrap();
    sim.fail_nth(Callback::PeerUnmap, 1, Injected::Device(DeviceError::CopyFailed));
    let unmap = PeerUnmap { pmap, va: va(3), len: ByteLen(PAGE), copy: Some(home) };
    assert_eq!(device.unmap(&unmap), Err(DeviceError::CopyFailed));
    assert_eq!(byte(&device, pmap, 3), Ok(42));
    device.unmap(&unmap).unwrap();
    assert_eq!(device.peer_pages(), 0);
    let mut byte = [0];
    sim.peek(home, &mut byte);
    assert_eq!(byte, [42]);
}

#[test]
fn one_seed_gives_one_trace() {
    let run = |seed| {
        let sim = Sim::new(seed);
        sim.fail_chance(Callback::PmapEnter, 300, Injected::Device(DeviceError::NoMemory));
        let device = SimDevice::builder(&sim, "test").tlb_entries(2).build();
        let pmap = started(&device);
        for page in 0..32 {
            let _ = device.pmap_enter(pmap, &mapping(page, page, Prot::RW));
            let _ = device.write(pmap, va(page), &[page as u8]);
        }
        sim.trace_hash()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
