//! The observer finds each promise that it knows when it is broken, and nothing when none is.

use gmem::hal::*;
use gmem_conformance::Observed;
use gmem_conformance::observe::{Breach, rules};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

const START: u64 = 0x1000_0000_0000;
const PAGE: u64 = 4096;
const HNODE: HnodeId = HnodeId(1);
const HOME: PhysAddr = PhysAddr { hnode: HnodeId::HOST, addr: 0x7000_0000_0000 };

/// The page at which the driver panics.
const PANICS: u64 = 1000;

/// A driver that says yes to everything, and is wrong in the ways that its flags say.
#[derive(Default)]
struct Yes {
    facts: OnceLock<[DeviceInfo; 2]>,
    core: OnceLock<(DeviceId, Weak<dyn Upcalls>)>,
    next: AtomicU64,
    changes_its_facts: AtomicBool,
    repeats_itself: AtomicBool,
    refuses_absent_pages: bool,
    calls_back: bool,
    fences: AtomicU64,
}

impl Device for Yes {
    fn physical_memory(&self) -> Vec<PhysRange> {
        vec![PhysRange { begin: 0, end: 64 * PAGE }]
    }
    fn info(&self) -> &DeviceInfo {
        let facts = self.facts.get_or_init(|| {
            let info = DeviceInfo {
                name: "yes".into(),
                capabilities: Capabilities::REPLAYABLE,
                page_sizes: PageSizes::ALL,
                modes: Modes::COHERENT_EXCLUSIVE | Modes::REPLICATE,
                mmu_cookie: 1,
            };
            [info.clone(), DeviceInfo { mmu_cookie: 2, ..info }]
        });
        &facts[usize::from(self.changes_its_facts.load(Ordering::Relaxed))]
    }
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        // Started twice in one of the cases.
        let _ = self.core.set((id, upcalls));
        Ok(())
    }
    fn mmu(&self) -> &dyn Mmu {
        self
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }
    fn peer(&self) -> Option<&dyn Peer> {
        Some(self)
    }
    fn frames(&self) -> Option<&dyn Frames> {
        Some(self)
    }
    fn fence(&self, _: PmapId) -> Result<(), DeviceError> {
        self.fences.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Mmu for Yes {
    fn pmap_create(&self, _: &PmapRequest) -> Result<PmapId, DeviceError> {
        Ok(PmapId(if self.repeats_itself.load(Ordering::Relaxed) { 1 } else { self.next.fetch_add(1, Ordering::Relaxed) + 1 }))
    }
    fn pmap_destroy(&self, _: PmapId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        assert!(mapping.va != range(PANICS, 1).start(), "as the test wants");
        if let Some((id, core)) = self.core.get().filter(|_| self.calls_back)
            && let Some(core) = core.upgrade()
        {
            assert!(core.device_fault(*id, pmap, mapping.va, Access::Read, None).is_err());
        }
        Ok(())
    }
    fn pmap_release(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        if self.refuses_absent_pages { Err(DeviceError::BadRequest) } else { Ok(()) }
    }
    fn pmap_protect(&self, _: PmapId, _: VirtRange, _: Prot) -> Result<(), DeviceError> {
        Ok(())
    }
    fn tlb_invalidate(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl CopyEngine for Yes {
    fn zero(&self, _: PhysAddr, _: ByteLen) -> Result<(), DeviceError> {
        Ok(())
    }
    fn copy(&self, _: PhysAddr, _: PhysAddr, _: ByteLen) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Frames for Yes {
    fn alloc_frame(&self, hnode: HnodeId, size: PageSize) -> Result<PhysAddr, DeviceError> {
        let n = if self.repeats_itself.load(Ordering::Relaxed) { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) };
        Ok(PhysAddr { hnode, addr: n * size.bytes() })
    }
    fn free_frame(&self, _: PhysAddr, _: PageSize) {}
}

impl Peer for Yes {
    fn va_alloc_fixed(&self, _: PmapId, _: VirtRange, _: Prot) -> Result<(), PeerError> {
        Ok(())
    }
    fn va_free(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        Ok(())
    }
    fn map(&self, _: &PeerMap) -> Result<(), PeerError> {
        Ok(())
    }
    fn unmap(&self, _: &PeerUnmap) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A page of which the core knows nothing.
const HOLE: u64 = 900;

/// Nobody is ever called by it.
struct NoCore;

/// Blocks signals in this thread, which plays the driver's, or lets them through.
fn signals(how: i32) {
    // SAFETY: the set is plain data that `sigfillset` makes valid, and the mask is this thread's.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(how, &raw const all, std::ptr::null_mut());
    }
}

impl Upcalls for NoCore {
    fn device_fault(&self, _: DeviceId, _: PmapId, va: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        if va == range(HOLE, 1).start() { Err(FaultError::NotMapped) } else { Ok(()) }
    }
    fn device_evict(&self, _: DeviceId, _: PmapId, _: VirtRange) -> EvictOutcome {
        EvictOutcome::NotThere
    }
    fn device_lost(&self, _: DeviceId, _: PmapId) {}
    fn host_fault(&self, _: VirtAddr, _: Access, _: bool) -> HostFault {
        HostFault::NotOurs
    }
}

/// A device that was started, with a page table.
struct Scene {
    observed: Arc<Observed>,
    driver: Arc<Yes>,
    core: Arc<dyn Upcalls>,
    pmap: PmapId,
}

fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(START + page * PAGE), ByteLen(pages * PAGE)).unwrap()
}

fn frame(n: u64) -> PhysAddr {
    PhysAddr { hnode: HNODE, addr: n * PAGE }
}

fn mapping(page: u64, frame: PhysAddr, prot: Prot) -> Mapping {
    Mapping { va: range(page, 1).start(), frame, len: ByteLen(PAGE), prot }
}

fn request(mode: Mode, host: Option<HostWindow>) -> PmapRequest {
    PmapRequest { space: SpaceId(1), range: range(0, 1024), mode, host }
}

fn unstarted(driver: Yes) -> Scene {
    signals(libc::SIG_BLOCK);
    let driver = Arc::new(driver);
    Scene { observed: Observed::new(driver.clone()), driver, core: Arc::new(NoCore), pmap: PmapId(1) }
}

fn scene(driver: Yes) -> Scene {
    let scene = unstarted(driver);
    scene.start();
    scene.observed.memory_registered(HNODE, PhysRange { begin: 0, end: 64 * PAGE }).unwrap();
    let pmap = scene.mmu().pmap_create(&request(Mode::CoherentExclusive, None)).unwrap();
    Scene { pmap, ..scene }
}

impl Scene {
    fn start(&self) {
        self.observed.start(DeviceId(1), Arc::downgrade(&self.core)).unwrap();
    }
    fn mmu(&self) -> &dyn Mmu {
        self.observed.mmu()
    }
    fn enter(&self, page: u64, frame: PhysAddr, prot: Prot) {
        self.mmu().pmap_enter(self.pmap, &mapping(page, frame, prot)).unwrap();
    }
    fn release(&self, page: u64) {
        self.mmu().pmap_release(self.pmap, range(page, 1)).unwrap();
    }
    fn invalidate(&self, page: u64) {
        self.mmu().tlb_invalidate(self.pmap, range(page, 1)).unwrap();
    }
    fn copy(&self, to: PhysAddr, from: PhysAddr, len: u64) {
        self.observed.copy_engine().copy(to, from, ByteLen(len)).unwrap();
    }
    fn peer_map(&self, page: u64) -> PeerMap {
        PeerMap { pmap: self.pmap, va: range(page, 1).start(), len: ByteLen(PAGE), prot: Prot::RW, copy: None, hot: false }
    }
    /// The driver says that the device is gone.
    fn lose(&self) {
        let (id, core) = self.driver.core.get().expect("it was started");
        core.upgrade().expect("the core lives").device_lost(*id, self.pmap);
    }
    fn breaches(self) -> Vec<Breach> {
        self.observed.breaches()
    }
}

#[test]
fn a_life_without_a_broken_promise_is_silent() {
    let scene = scene(Yes::default());
    scene.copy(frame(0), HOME, PAGE);
    scene.enter(0, frame(0), Prot::READ);
    scene.enter(0, frame(0), Prot::RW);
    scene.mmu().pmap_protect(scene.pmap, range(0, 2), Prot::READ).unwrap();
    scene.invalidate(0);
    scene.copy(HOME, frame(0), PAGE); // only readable since then
    scene.release(0);
    scene.invalidate(0);
    scene.observed.copy_engine().zero(frame(0), ByteLen(PAGE)).unwrap();
    scene.enter(7, frame(0), Prot::RW);
    scene.mmu().pmap_release(scene.pmap, range(0, 16)).unwrap();
    scene.mmu().tlb_invalidate_coalesced(scene.pmap, &[range(0, 8), range(8, 8)]).unwrap();

    let peer = scene.observed.peer().unwrap();
    peer.va_alloc_fixed(scene.pmap, range(100, 10), Prot::RW).unwrap();
    peer.map(&scene.peer_map(103)).unwrap();
    peer.unmap(&PeerUnmap { pmap: scene.pmap, va: range(103, 1).start(), len: ByteLen(PAGE), copy: Some(HOME) }).unwrap();
    peer.va_free(scene.pmap, range(102, 3)).unwrap();
    peer.va_free(scene.pmap, range(100, 2)).unwrap();

    let frames = scene.observed.frames().unwrap();
    let taken = frames.alloc_frame(HNODE, PageSize::Size4K).unwrap();
    frames.free_frame(taken, PageSize::Size4K);
    scene.observed.switch_context(Some(scene.pmap)).unwrap();
    scene.mmu().pmap_destroy(scene.pmap).unwrap();
    scene.observed.stop();
    assert_eq!(scene.breaches(), []);
}

#[test]
fn a_stopped_context_may_be_taken_down_as_it_is() {
    let scene = scene(Yes::default());
    scene.enter(0, frame(0), Prot::RW);
    scene.observed.fail("tlb_invalidate", 0, DeviceError::NoAnswer);
    scene.release(0);
    assert_eq!(scene.mmu().tlb_invalidate(scene.pmap, range(0, 1)), Err(DeviceError::NoAnswer));
    scene.observed.fence(scene.pmap).unwrap();
    scene.copy(HOME, frame(0), PAGE);
    scene.enter(1, frame(0), Prot::RW);
    scene.mmu().pmap_destroy(scene.pmap).unwrap();
    assert_eq!(scene.breaches(), []);
}

#[test]
fn a_device_that_dies_while_the_core_gives_it_up_is_fenced_once() {
    let scene = scene(Yes::default());
    scene.enter(0, frame(0), Prot::RW);
    scene.lose();
    scene.observed.fence(scene.pmap).unwrap();
    scene.mmu().pmap_destroy(scene.pmap).unwrap();
    assert_eq!(scene.breaches(), []);
}

#[test]
fn a_context_that_the_kit_stopped_by_force_is_not_fenced_again() {
    let scene = scene(Yes::default());
    scene.observed.stop_by_force(scene.pmap).expect("it can be");
    // The core knows nothing of it.
    scene.observed.fence(scene.pmap).expect("it is");
    scene.observed.stop_by_force(scene.pmap).expect("it is");
    assert_eq!((scene.driver.fences.load(Ordering::Relaxed), scene.observed.breaches()), (1, vec![]));
}

#[test]
fn what_a_device_entered_as_it_died_is_in_nobodys_way() {
    let scene = Arc::new(scene(Yes::default()));
    let dying = Arc::downgrade(&scene);
    scene.observed.on_call(move |event| {
        if event.name == "pmap_enter"
            && let Some(scene) = dying.upgrade()
        {
            scene.lose();
        }
    });
    scene.enter(0, frame(0), Prot::RW);
    scene.observed.on_call(|_| {});
    // Its frame goes to another context.
    let pmap = scene.mmu().pmap_create(&request(Mode::CoherentExclusive, None)).unwrap();
    scene.observed.copy_engine().zero(frame(0), ByteLen(PAGE)).unwrap();
    scene.mmu().pmap_enter(pmap, &mapping(0, frame(0), Prot::RW)).unwrap();
    assert_eq!(scene.observed.breaches(), []);
}

/// A promise, and a way to break it.
type Break = (&'static str, fn() -> Scene);

fn good() -> Scene {
    scene(Yes::default())
}

fn with(act: impl FnOnce(&Scene)) -> Scene {
    let scene = good();
    act(&scene);
    scene
}

/// Every promise but the one about time, which takes its time: the defect `answers-late` breaks it.
const BREAKS: &[Break] = &[
    ("START_FIRST", || {
        let scene = unstarted(Yes::default());
        scene.observed.memory_registered(HNODE, PhysRange { begin: 0, end: PAGE }).unwrap();
        scene
    }),
    ("STOP_LAST", || {
        with(|s| {
            s.mmu().pmap_destroy(s.pmap).unwrap();
            s.observed.stop();
            s.observed.switch_context(None).unwrap();
        })
    }),
    ("NO_PANIC", || {
        with(|s| {
            let entered = || s.mmu().pmap_enter(s.pmap, &mapping(PANICS, frame(0), Prot::RW));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(entered)).expect_err("the panic goes on");
        })
    }),
    ("WHOLE", || {
        with(|s| {
            let large = Mapping { len: ByteLen(16 * PAGE), ..mapping(16, frame(16), Prot::RW) };
            s.mmu().pmap_enter(s.pmap, &large).unwrap();
            s.mmu().pmap_protect(s.pmap, range(0, 32), Prot::READ).unwrap();
            s.mmu().pmap_release(s.pmap, range(16, 4)).unwrap();
        })
    }),
    ("KNOWN_PMAP", || with(|s| s.mmu().pmap_release(PmapId(99), range(0, 1)).unwrap())),
    ("WINDOW", || with(|s| assert!(s.mmu().pmap_create(&request(Mode::Replicate, None)).is_ok()))),
    ("ALIGNED", || with(|s| s.mmu().tlb_invalidate(s.pmap, range(1020, 8)).unwrap())),
    ("NO_OVERLAP", || {
        with(|s| {
            let (other, pmap, once) = (s.observed.clone(), s.pmap, AtomicBool::new(false));
            s.observed.on_call(move |_| {
                if !once.swap(true, Ordering::Relaxed) {
                    other.mmu().pmap_protect(pmap, range(0, 4), Prot::READ).unwrap();
                }
            });
            s.enter(3, frame(0), Prot::RW);
        })
    }),
    ("MAPPING", || with(|s| s.enter(0, frame(0), Prot::empty()))),
    ("FRAME_INSIDE", || with(|s| s.enter(0, frame(64), Prot::RW))),
    ("ENTER_SAME", || {
        with(|s| {
            s.enter(0, frame(0), Prot::RW);
            s.enter(0, frame(0), Prot::READ);
        })
    }),
    ("ONE_OWNER", || {
        with(|s| {
            s.enter(0, frame(0), Prot::RW);
            s.enter(1, frame(0), Prot::RW);
        })
    }),
    ("CUT_BEFORE_COPY", || {
        with(|s| {
            s.enter(0, frame(0), Prot::RW);
            s.copy(HOME, frame(0), PAGE);
        })
    }),
    ("SHOOTDOWN", || {
        with(|s| {
            s.enter(0, frame(0), Prot::RW);
            s.release(0);
            s.copy(frame(0), HOME, PAGE);
        })
    }),
    ("COPY_SHAPE", || with(|s| s.copy(frame(0), HOME, 2 * PAGE))),
    ("DISJOINT", || with(|s| s.mmu().tlb_invalidate_coalesced(s.pmap, &[range(4, 2), range(0, 5)]).unwrap())),
    ("DESTROY_EMPTY", || {
        with(|s| {
            s.enter(0, frame(0), Prot::RW);
            s.mmu().pmap_destroy(s.pmap).unwrap();
        })
    }),
    ("DESTROY_EACH", || with(|s| s.observed.stop())),
    ("FENCE_ONCE", || {
        with(|s| {
            s.observed.fence(s.pmap).unwrap();
            s.observed.fence(s.pmap).unwrap();
        })
    }),
    ("RESOLVED", || {
        with(|s| {
            // The core says that it is, and enters nothing.
            let (id, core) = s.driver.core.get().expect("it was started");
            let core = core.upgrade().expect("the core lives");
            assert_eq!(core.device_fault(*id, s.pmap, range(0, 1).start(), Access::Read, None), Ok(()));
        })
    }),
    ("ENTERED_IS_USED", || {
        with(|s| {
            s.mmu().pmap_enter(s.pmap, &mapping(0, frame(0), Prot::READ)).unwrap();
            let (id, core) = s.driver.core.get().expect("it was started");
            let core = core.upgrade().expect("the core lives");
            let fault = || core.device_fault(*id, s.pmap, range(0, 1).start(), Access::Read, None);
            let many = || (0..100_000).for_each(|_| assert_eq!(fault(), Ok(())));
            many();
            // What is taken away between them makes them new.
            s.mmu().pmap_protect(s.pmap, range(0, 1), Prot::READ).unwrap();
            many();
            assert_eq!(s.observed.breaches(), []);
            assert!(fault().is_err(), "it would never end");
            assert!(fault().is_err(), "nor does it now");
            assert_eq!(s.observed.breaches().len(), 1, "it is told once");
        })
    }),
    ("ERROR_ENDS", || {
        with(|s| {
            let (id, core) = s.driver.core.get().expect("it was started");
            let core = core.upgrade().expect("the core lives");
            let fault = |page| core.device_fault(*id, s.pmap, range(page, 1).start(), Access::Read, None);
            let many = || (0..99_999).for_each(|_| assert_eq!(fault(HOLE), Err(FaultError::NotMapped)));
            many();
            // Later it is another access.
            std::thread::sleep(std::time::Duration::from_millis(150));
            many();
            assert_eq!(s.observed.breaches(), []);
            (0..2).for_each(|_| assert_eq!(fault(HOLE), Err(FaultError::NotMapped)));
            assert_eq!(s.observed.breaches().len(), 1, "it is told once");
        })
    }),
    ("OWN_THREADS", || {
        with(|s| {
            let (id, core) = s.driver.core.get().expect("it was started");
            let core = core.upgrade().expect("the core lives");
            signals(libc::SIG_UNBLOCK);
            (0..2).for_each(|_| assert_eq!(core.device_evict(*id, s.pmap, range(0, 1)), EvictOutcome::NotThere));
            assert_eq!(s.observed.breaches().len(), 1, "it is told once");
        })
    }),
    ("FREE_ONCE", || with(|s| s.observed.frames().unwrap().free_frame(frame(5), PageSize::Size4K))),
    ("RESERVED", || with(|s| s.observed.peer().unwrap().map(&s.peer_map(0)).unwrap())),
    ("FACTS", || {
        with(|s| {
            s.observed.info();
            s.driver.changes_its_facts.store(true, Ordering::Relaxed);
            s.observed.info();
        })
    }),
    ("UNIQUE_PMAP", || {
        with(|s| {
            s.driver.repeats_itself.store(true, Ordering::Relaxed);
            s.mmu().pmap_create(&request(Mode::CoherentExclusive, None)).unwrap();
        })
    }),
    ("FREE_FRAME", || {
        with(|s| {
            s.driver.repeats_itself.store(true, Ordering::Relaxed);
            (0..2).for_each(|_| assert!(s.observed.frames().unwrap().alloc_frame(HNODE, PageSize::Size4K).is_ok()));
        })
    }),
    ("SELF_WAIT", || {
        let scene = scene(Yes { calls_back: true, ..Yes::default() });
        scene.enter(0, frame(0), Prot::RW);
        scene
    }),
    ("ABSENT", || {
        let scene = scene(Yes { refuses_absent_pages: true, ..Yes::default() });
        assert!(scene.mmu().pmap_release(scene.pmap, range(0, 1)).is_err());
        scene
    }),
];

#[test]
fn each_broken_promise_is_found_and_is_the_first_that_is() {
    for (name, act) in BREAKS {
        let rule = rules::ALL.iter().find(|(known, _)| known == name).map(|(_, rule)| *rule);
        let rule = rule.unwrap_or_else(|| panic!("there is no rule {name}"));
        let first = act().breaches().first().map(|breach| breach.rule);
        assert_eq!(first, Some(rule), "{name}");
    }
    let broken: Vec<_> = BREAKS.iter().map(|(name, _)| *name).collect();
    let spared: Vec<_> = rules::ALL.iter().map(|(name, _)| *name).filter(|name| !broken.contains(name)).collect();
    assert_eq!(spared, ["ANSWERS"], "rules that nothing here breaks");
}
