//! The discrete device with a peer operating system.

use crate::common::*;
use gmem_accel::{Builder, Discrete};
use gmem_hal::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

const PAGES: u64 = 16;

/// A core that knows only which pages are busy: the peer knows the rest.
struct Core {
    device: Arc<Discrete>,
    buffer: usize,
    layout: std::alloc::Layout,
    range: VirtRange,
    pmap: OnceLock<PmapId>,
    busy: Mutex<HashSet<u64>>,
    changed: Condvar,
    refuse: AtomicBool,
    /// Keeps an eviction from going on.
    hold: Mutex<bool>,
    evictions: AtomicUsize,
}

impl Core {
    fn new(builder: Builder) -> Arc<Core> {
        let device = builder.peer(true).build().unwrap();
        let layout = std::alloc::Layout::from_size_align((PAGES * PAGE) as usize, PAGE as usize).unwrap();
        // SAFETY: the layout is not empty.
        let buffer = unsafe { std::alloc::alloc_zeroed(layout) } as usize;
        let core = Arc::new(Core {
            device,
            buffer,
            layout,
            range: VirtRange::from_len(VirtAddr::new(START), ByteLen(PAGES * PAGE)).unwrap(),
            pmap: OnceLock::new(),
            busy: Mutex::default(),
            changed: Condvar::new(),
            refuse: AtomicBool::new(false),
            hold: Mutex::new(false),
            evictions: AtomicUsize::new(0),
        });
        let upcalls: Weak<dyn Upcalls> = Arc::downgrade(&(core.clone() as Arc<dyn Upcalls>));
        core.device.start(DEVICE, upcalls).unwrap();
        core.device.memory_registered(HNODE, core.device.memory()).unwrap();
        core.pmap.set(core.create()).unwrap();
        core
    }

    fn create(&self) -> PmapId {
        let range = VirtRange::new(self.range.start(), VirtAddr::new(self.range.end().get() + 64 * PAGE)).unwrap();
        let request = PmapRequest { space: SpaceId(1), range, mode: Mode::CoherentExclusive, host: None };
        self.device.mmu().pmap_create(&request).unwrap()
    }

    fn pmap(&self) -> PmapId {
        *self.pmap.get().unwrap()
    }

    fn peer(&self) -> &dyn Peer {
        self.device.peer().expect("a PEER device has a peer")
    }

    fn reserve(&self) {
        self.peer().va_alloc_fixed(self.pmap(), self.range, Prot::RW).unwrap();
    }

    fn home(&self, page: u64) -> Option<PhysAddr> {
        Some(PhysAddr { hnode: HnodeId::HOST, addr: self.buffer as u64 + page * PAGE })
    }

    fn word(&self, page: u64) -> *mut u64 {
        self.home(page).unwrap().addr as *mut u64
    }

    fn get(&self, page: u64) -> u64 {
        // SAFETY: inside the buffer, which lives as long as the core.
        unsafe { self.word(page).read_volatile() }
    }

    fn set(&self, page: u64, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.word(page).write_volatile(value) }
    }

    fn va(&self, page: u64) -> VirtAddr {
        VirtAddr::new(START + page * PAGE)
    }

    fn map(&self, page: u64, copy: bool) -> Result<(), PeerError> {
        let copy = if copy { self.home(page) } else { None };
        self.peer().map(&PeerMap { pmap: self.pmap(), va: self.va(page), len: ByteLen(PAGE), prot: Prot::RW, copy, hot: false })
    }

    fn unmap(&self, page: u64, copy: bool) -> Result<(), DeviceError> {
        let copy = if copy { self.home(page) } else { None };
        self.peer().unmap(&PeerUnmap { pmap: self.pmap(), va: self.va(page), len: ByteLen(PAGE), copy })
    }

    fn launch(&self, kernel: &str, args: &[u64], replay: bool) -> Result<(), LaunchError> {
        let compute = self.device.compute().unwrap();
        compute.wait(compute.start(&LaunchRequest { pmap: Some(self.pmap()), kernel, args, replay })?)
    }
}

impl Upcalls for Core {
    fn device_fault(&self, _: DeviceId, pmap: PmapId, va: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        assert_eq!(pmap, self.pmap());
        let page = (va.get() - START) / PAGE;
        let busy = self.busy.lock().unwrap();
        drop(self.changed.wait_while(busy, |b| !b.insert(page)).unwrap());
        let result = self.map(page, true);
        self.busy.lock().unwrap().remove(&page);
        self.changed.notify_all();
        match result {
            Ok(()) | Err(PeerError::PageExists) => Ok(()),
            Err(PeerError::Device(e)) => Err(e.into()),
            Err(_) => Err(FaultError::NoDeviceMemory),
        }
    }

    fn device_evict(&self, _: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        assert!(std::thread::current().name() == Some("gmem-evict") && pmap == self.pmap());
        let page = (range.start().get() - START) / PAGE;
        if self.refuse.load(Ordering::SeqCst) || !self.busy.lock().unwrap().insert(page) {
            return EvictOutcome::Refused;
        }
        drop(self.changed.wait_while(self.hold.lock().unwrap(), |h| *h).unwrap());
        self.unmap(page, true).unwrap();
        self.evictions.fetch_add(1, Ordering::SeqCst);
        self.busy.lock().unwrap().remove(&page);
        self.changed.notify_all();
        EvictOutcome::Evicted
    }

    fn device_lost(&self, _: DeviceId, _: PmapId) {}

    fn host_fault(&self, _: VirtAddr, _: Access, _: bool) -> HostFault {
        panic!("no host calls this core");
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.device.stop();
        // SAFETY: allocated with this layout; nothing refers to it any more.
        unsafe { std::alloc::dealloc(self.buffer as *mut u8, self.layout) };
    }
}

fn device() -> Builder {
    Discrete::builder().memory(4 * PAGE).cores(2)
}

#[test]
fn addresses_are_negotiated() {
    let _dog = watchdog("negotiation");
    let range = |from: u64, to: u64| VirtRange::new(VirtAddr::new(START + from * PAGE), VirtAddr::new(START + to * PAGE)).unwrap();
    let core = Core::new(device().occupied(range(20, 22)));
    let alloc = |from, to| core.peer().va_alloc_fixed(core.pmap(), range(from, to), Prot::RW);
    assert!(core.device.info().capabilities.contains(Capabilities::PEER));
    assert_eq!(core.map(0, false), Err(PeerError::Device(DeviceError::BadRequest)), "nothing was reserved");
    assert_eq!(alloc(16, 21), Err(PeerError::Conflict));
    assert_eq!(alloc(21, 30), Err(PeerError::Conflict));
    alloc(0, 16).unwrap();
    alloc(22, 30).unwrap();
    assert_eq!(alloc(15, 17), Err(PeerError::Conflict), "reserved by us");
    // A part from the middle is given back and taken again; the peer's own range is not ours to free.
    core.peer().va_free(core.pmap(), range(4, 8)).unwrap();
    core.map(3, false).unwrap();
    assert!(core.map(4, false).is_err());
    alloc(4, 8).unwrap();
    core.peer().va_free(core.pmap(), range(0, 40)).unwrap();
    assert_eq!(alloc(19, 21), Err(PeerError::Conflict));
    alloc(0, 20).unwrap();
}

#[test]
fn pages_are_mapped_and_unmapped_with_their_bytes() {
    let _dog = watchdog("map and unmap");
    let core = Core::new(device());
    core.reserve();
    core.set(0, 40);
    core.map(0, true).unwrap();
    assert_eq!(core.map(0, true), Err(PeerError::PageExists));
    core.launch("increment", &[START, 2], false).unwrap();
    assert_eq!(core.get(0), 40, "the host's copy is not the device's");
    core.unmap(0, true).unwrap();
    assert_eq!(core.get(0), 42);
    assert!(core.launch("load", &[START], false).is_err(), "an unmapped page is still there");
    core.unmap(0, false).unwrap();
    assert_eq!(core.unmap(0, true), Err(DeviceError::BadRequest), "there are no bytes to copy");
    // Without a copy the page is zero, whatever was in the frame.
    core.map(0, false).unwrap();
    core.launch("increment", &[START, 7], false).unwrap();
    core.unmap(0, true).unwrap();
    assert_eq!(core.get(0), 7);

    // For loads only, then for both.
    let map = PeerMap { pmap: core.pmap(), va: core.va(1), len: ByteLen(PAGE), prot: Prot::READ, copy: None, hot: true };
    core.peer().map(&map).unwrap();
    assert!(core.launch("store", &[START + PAGE, 1], false).is_err());
    assert_eq!(core.peer().map(&PeerMap { prot: Prot::RW, ..map }), Err(PeerError::PageExists));
    core.launch("store", &[START + PAGE, 1], false).unwrap();
    assert_eq!(core.device.mmu().pmap_release(core.pmap(), core.range), Err(DeviceError::Unsupported));
}

#[test]
fn the_peer_evicts_by_itself_and_computes_right() {
    let _dog = watchdog("self-eviction");
    let core = Core::new(device());
    core.reserve();
    let len = PAGES * PAGE / 8 / 3;
    let item = |i: u64| (core.buffer as u64 + i * 8) as *mut u64;
    for i in 0..2 * len {
        // SAFETY: inside the buffer.
        unsafe { item(i).write_volatile(i * 3) };
    }
    let at = |i: u64| START + i * 8;
    core.launch("vector-add", &[at(0), at(len), at(2 * len), len], true).unwrap();
    // Those that the peer evicted are home already, and it has nothing to copy.
    (0..PAGES).for_each(|p| assert!(matches!(core.unmap(p, true), Ok(()) | Err(DeviceError::BadRequest))));
    for i in 0..len {
        // SAFETY: inside the buffer.
        assert_eq!(unsafe { item(2 * len + i).read_volatile() }, i * 3 + (len + i) * 3, "item {i}");
    }
    assert!(core.evictions.load(Ordering::SeqCst) >= 12);
    assert!(core.device.resident(core.pmap()).unwrap().get() < 4 * PAGE + (64 << 20));
}

#[test]
fn the_oldest_page_goes_first_and_a_hot_one_stays() {
    let _dog = watchdog("recency");
    let core = Core::new(device());
    core.reserve();
    (0..4).for_each(|p| core.map(p, false).unwrap());
    let hot = PeerMap { pmap: core.pmap(), va: core.va(0), len: ByteLen(PAGE), prot: Prot::RW, copy: None, hot: true };
    assert_eq!(core.peer().map(&hot), Err(PeerError::PageExists));
    core.map(4, false).unwrap();
    assert_eq!(core.map(0, false), Err(PeerError::PageExists), "the hot page was evicted");
    assert_eq!(core.map(2, false), Err(PeerError::PageExists));
    core.launch("load", &[START], false).unwrap();
    assert!(core.launch("load", &[START + PAGE], false).is_err(), "the oldest page stayed");
}

#[test]
fn without_a_victim_there_is_no_memory_and_nobody_hangs() {
    let _dog = watchdog("no victim");
    let core = Core::new(device().time_limit(Duration::from_millis(300)));
    core.reserve();
    (0..4).for_each(|p| core.map(p, false).unwrap());
    core.refuse.store(true, Ordering::SeqCst);
    let start = Instant::now();
    assert_eq!(core.map(4, false), Err(PeerError::NoMemory));
    assert!(start.elapsed() < Duration::from_secs(5));
    core.refuse.store(false, Ordering::SeqCst);
    core.map(4, false).unwrap();
}

#[test]
fn a_page_that_is_being_evicted_says_so() {
    let _dog = watchdog("migrating");
    let core = Core::new(device());
    core.reserve();
    (0..4).for_each(|p| core.map(p, false).unwrap());
    *core.hold.lock().unwrap() = true;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| core.map(4, false));
        let until = Instant::now() + Duration::from_secs(10);
        while core.map(0, false) != Err(PeerError::Migrating) {
            assert!(Instant::now() < until, "the page is never said to be evicted");
            std::thread::sleep(Duration::from_millis(1));
        }
        *core.hold.lock().unwrap() = false;
        core.changed.notify_all();
        waiting.join().unwrap().unwrap();
    });
    core.map(0, false).unwrap();
}

#[test]
fn a_killed_peer_loses_no_data_and_its_memory_comes_back() {
    let _dog = watchdog("killed peer");
    let core = Core::new(device());
    core.reserve();
    core.map(0, false).unwrap();
    core.launch("store", &[START, 99], false).unwrap();
    core.device.fence(core.pmap()).unwrap();
    assert_eq!(core.map(1, false), Err(PeerError::Device(DeviceError::Dead)));
    core.unmap(0, true).unwrap();
    assert_eq!(core.get(0), 99);
    core.device.mmu().pmap_destroy(core.pmap()).unwrap();
    let next = core.create();
    core.peer().va_alloc_fixed(next, core.range, Prot::RW).unwrap();
    for page in 0..4 {
        let map = PeerMap { pmap: next, va: core.va(page), len: ByteLen(PAGE), prot: Prot::RW, copy: None, hot: false };
        core.peer().map(&map).unwrap();
    }
}
