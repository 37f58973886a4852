//! A tiny pager in the place of the core: it owns a host buffer and moves its pages to a device and back, first in first out.
#![allow(dead_code, unreachable_pub)] // each test program uses its own part

use gmem_accel::{Builder, Discrete, kernel};
use gmem_hal::*;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

pub const DEVICE: DeviceId = DeviceId(3);
pub const HNODE: HnodeId = HnodeId(1);
pub const START: u64 = 0x2000_0000_0000;
pub const PAGE: u64 = 2 << 20;

/// Ends the whole program, loudly, if a test takes longer than a minute. Dropping it calls it off.
pub struct Watchdog(Arc<(Mutex<bool>, Condvar)>);

pub fn watchdog(name: &'static str) -> Watchdog {
    let state = Arc::new((Mutex::new(false), Condvar::new()));
    let theirs = state.clone();
    std::thread::spawn(move || {
        let (done, changed) = &*theirs;
        let until = Instant::now() + Duration::from_secs(60);
        let mut done = done.lock().unwrap();
        while !*done {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("watchdog: {name} hangs; threads:");
                for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                    let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
                    eprintln!("  {} {} {}", task.file_name().display(), read("comm").trim(), read("wchan").trim());
                }
                std::process::abort();
            }
            done = changed.wait_timeout(done, left).unwrap().0;
        }
    });
    Watchdog(state)
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// What the pager knows, under one lock.
#[derive(Default)]
pub struct State {
    pub free: Vec<u64>,
    /// Page number and frame, oldest first.
    pub resident: VecDeque<(u64, u64)>,
    pub faults: Vec<(u64, Access)>,
    pub lost: Vec<PmapId>,
    pub moved_in: usize,
    pub moved_out: usize,
}

/// The pager.
pub struct Pager {
    pub device: Arc<Discrete>,
    pub range: VirtRange,
    pub page: u64,
    host: usize,
    layout: std::alloc::Layout,
    /// Enter pages for reading only until a store faults.
    pub upgrade: bool,
    /// Answer faults without copying anything.
    pub no_copy: bool,
    /// Answer every fault with this.
    pub refuse: Option<FaultError>,
    pub pmap: OnceLock<PmapId>,
    pub state: Mutex<State>,
    pub lost: Condvar,
}

impl Pager {
    /// A device made of `builder`, started and registered, with a context over `pages` pages of `page` bytes.
    pub fn new(builder: Builder, page: u64, pages: u64, tune: impl FnOnce(&mut Pager)) -> Arc<Pager> {
        let pager = Self::without_context(builder, page, pages, tune);
        pager.attach().unwrap();
        pager
    }

    pub fn without_context(builder: Builder, page: u64, pages: u64, tune: impl FnOnce(&mut Pager)) -> Arc<Pager> {
        let device = builder.build().unwrap();
        let layout = std::alloc::Layout::from_size_align((page * pages) as usize, PAGE as usize).unwrap();
        // SAFETY: the layout is not empty.
        let host = unsafe { std::alloc::alloc_zeroed(layout) } as usize;
        let memory = device.memory();
        let free = (0..memory.len().get() / page).rev().map(|i| i * page).collect();
        let mut pager = Pager {
            device: device.clone(),
            range: VirtRange::from_len(VirtAddr::new(START), ByteLen(page * pages)).unwrap(),
            page,
            host,
            layout,
            upgrade: false,
            no_copy: false,
            refuse: None,
            pmap: OnceLock::new(),
            state: Mutex::new(State { free, ..State::default() }),
            lost: Condvar::new(),
        };
        tune(&mut pager);
        let pager = Arc::new(pager);
        let upcalls: Weak<dyn Upcalls> = Arc::downgrade(&(pager.clone() as Arc<dyn Upcalls>));
        device.start(DEVICE, upcalls).unwrap();
        device.memory_registered(HNODE, memory).unwrap();
        pager
    }

    /// Makes the context. Once.
    pub fn attach(&self) -> Result<PmapId, DeviceError> {
        let pmap = self.device.mmu().pmap_create(&self.request())?;
        self.pmap.set(pmap).unwrap();
        Ok(pmap)
    }

    pub fn request(&self) -> PmapRequest {
        PmapRequest { space: SpaceId(1), range: self.window(), mode: Mode::CoherentExclusive, host: None }
    }

    /// The address space: the buffer and as much again behind it, where nothing is mapped.
    pub fn window(&self) -> VirtRange {
        VirtRange::from_len(self.range.start(), ByteLen(2 * self.range.len().get())).unwrap()
    }

    pub fn pmap(&self) -> PmapId {
        *self.pmap.get().unwrap()
    }

    pub fn mmu(&self) -> &dyn Mmu {
        self.device.mmu()
    }

    /// The address of the first byte.
    pub fn start(&self) -> u64 {
        self.range.start().get()
    }

    /// Item `i` of the buffer as `u64`s. Only what is at home.
    pub fn word(&self, i: u64) -> *mut u64 {
        assert!(i * 8 < self.range.len().get());
        (self.host as u64 + i * 8) as *mut u64
    }

    pub fn get(&self, i: u64) -> u64 {
        // SAFETY: inside the buffer, which lives as long as the pager.
        unsafe { self.word(i).read_volatile() }
    }

    pub fn set(&self, i: u64, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.word(i).write_volatile(value) }
    }

    pub fn home(&self, page: u64) -> PhysAddr {
        PhysAddr { hnode: HnodeId::HOST, addr: self.host as u64 + page * self.page }
    }

    pub fn page_range(&self, page: u64) -> VirtRange {
        VirtRange::from_len(VirtAddr::new(self.start() + page * self.page), ByteLen(self.page)).unwrap()
    }

    pub fn enter(&self, page: u64, frame: u64, prot: Prot) -> Result<(), DeviceError> {
        let va = self.page_range(page).start();
        let mapping = Mapping { va, frame: PhysAddr { hnode: HNODE, addr: frame }, len: ByteLen(self.page), prot };
        self.mmu().pmap_enter(self.pmap(), &mapping)
    }

    /// Brings the oldest page home.
    fn evict(&self, state: &mut State) -> Result<(), DeviceError> {
        let (page, frame) = state.resident.pop_front().expect("a full device has resident pages");
        let range = self.page_range(page);
        self.mmu().pmap_release(self.pmap(), range)?;
        self.mmu().tlb_invalidate(self.pmap(), range)?;
        if !self.no_copy {
            self.device.copy_engine().copy(self.home(page), PhysAddr { hnode: HNODE, addr: frame }, ByteLen(self.page))?;
        }
        state.free.push(frame);
        state.moved_out += 1;
        Ok(())
    }

    /// Brings everything home.
    pub fn bring_home(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.resident.is_empty() {
            self.evict(&mut state).unwrap();
        }
    }

    fn fault(&self, va: VirtAddr, access: Access) -> Result<(), FaultError> {
        let mut state = self.state.lock().unwrap();
        state.faults.push((va.get(), access));
        if let Some(error) = self.refuse {
            return Err(error);
        }
        if !self.range.contains(va) {
            return Err(FaultError::NotMapped);
        }
        let page = (va.get() - self.start()) / self.page;
        let prot = if self.upgrade && access == Access::Read { Prot::READ } else { Prot::RW };
        if let Some((_, frame)) = state.resident.iter().find(|(p, _)| *p == page) {
            return Ok(self.enter(page, *frame, prot)?);
        }
        if state.free.is_empty() {
            self.evict(&mut state)?;
        }
        let frame = state.free.pop().unwrap();
        if !self.no_copy {
            self.device.copy_engine().copy(PhysAddr { hnode: HNODE, addr: frame }, self.home(page), ByteLen(self.page))?;
        }
        self.enter(page, frame, prot)?;
        state.resident.push_back((page, frame));
        state.moved_in += 1;
        Ok(())
    }

    pub fn launch(&self, kernel: &str, args: &[u64]) -> Result<(), LaunchError> {
        self.launch_with(kernel, args, true)
    }

    pub fn launch_with(&self, kernel: &str, args: &[u64], replay: bool) -> Result<(), LaunchError> {
        let ticket = self.start_launch(kernel, args, replay)?;
        self.device.compute().unwrap().wait(ticket)
    }

    pub fn start_launch(&self, kernel: &str, args: &[u64], replay: bool) -> Result<Ticket, LaunchError> {
        let request = LaunchRequest { pmap: self.pmap.get().copied(), kernel, args, replay };
        self.device.compute().unwrap().start(&request)
    }

    pub fn destroy(&self) {
        self.mmu().pmap_destroy(self.pmap()).unwrap();
    }

    /// Waits until the pager heard of a lost context.
    pub fn wait_lost(&self) {
        let state = self.state.lock().unwrap();
        drop(self.lost.wait_while(state, |s| s.lost.is_empty()).unwrap());
    }
}

impl Upcalls for Pager {
    fn device_fault(
        &self,
        device: DeviceId,
        pmap: PmapId,
        va: VirtAddr,
        access: Access,
        hint: Option<FaultHint>,
    ) -> Result<(), FaultError> {
        assert_eq!((device, pmap, hint), (DEVICE, self.pmap(), None));
        self.fault(va, access)
    }

    fn device_evict(&self, _device: DeviceId, _pmap: PmapId, _range: VirtRange) -> EvictOutcome {
        panic!("this device is no peer");
    }

    fn device_lost(&self, device: DeviceId, pmap: PmapId) {
        assert_eq!(device, DEVICE);
        self.state.lock().unwrap().lost.push(pmap);
        self.lost.notify_all();
    }

    fn host_fault(&self, _va: VirtAddr, _access: Access, _may_wait: bool) -> HostFault {
        panic!("no host calls this pager");
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.device.stop();
        // SAFETY: allocated with this layout; nothing refers to it any more.
        unsafe { std::alloc::dealloc(self.host as *mut u8, self.layout) };
    }
}

kernel!(VECTOR_ADD = "vector-add", |grid, args| {
    let (a, b, c, len) = (args[0] as *const u64, args[1] as *const u64, args[2] as *mut u64, args[3] as usize);
    for i in grid.share(len) {
        c.add(i).write(a.add(i).read().wrapping_add(b.add(i).read()));
    }
});

kernel!(NOTHING = "nothing", |_, _| {});

kernel!(STORE = "store", |grid, args| {
    if grid.worker == 0 {
        (args[0] as *mut u64).write_volatile(args[1]);
    }
});

kernel!(LOAD = "load", |grid, args| {
    if grid.worker == 0 {
        std::hint::black_box((args[0] as *const u64).read_volatile());
    }
});

kernel!(INCREMENT = "increment", |grid, args| {
    if grid.worker == 0 {
        let word = args[0] as *mut u64;
        word.write_volatile(word.read_volatile() + args[1]);
    }
});

// Stores until another store, of anything but zero, is seen at the second address.
kernel!(SPIN = "spin", |grid, args| {
    if grid.worker == 0 {
        let (word, stop) = (args[0] as *mut u64, args[1] as *const u64);
        while stop.read_volatile() == 0 {
            word.write_volatile(word.read_volatile() + 1);
        }
    }
});

// Touches one word in each page, from the first argument on: as many pages, of so many bytes.
kernel!(TOUCH = "touch", |grid, args| {
    for i in grid.share(args[1] as usize) {
        std::hint::black_box(((args[0] + i as u64 * args[2]) as *const u64).read_volatile());
    }
});

kernel!(PANIC = "panic", |grid, args| {
    if grid.worker == 0 {
        panic!("a kernel panics, as the test wants: {}", args[0]);
    }
});

// Panics with what is no text, and panics again when that is dropped.
kernel!(PANIC_WITH = "panic-with", |grid, _| {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    if grid.worker == 0 {
        std::panic::panic_any(Bomb);
    }
});

kernel!(ABORT = "abort", |grid, _| {
    if grid.worker == 0 {
        std::process::abort();
    }
});

#[cfg(target_arch = "x86_64")]
kernel!(DIVIDE = "divide", |_, args| {
    // Not by `/`, which checks and panics.
    core::arch::asm!("div {0}", in(reg) args[0], inout("rax") 1u64 => _, inout("rdx") 0u64 => _);
});

/// Needs so many frames of its stack.
fn recurse(levels: u64) -> u64 {
    let frame = std::hint::black_box([levels; 64]);
    if levels == 0 { 0 } else { recurse(levels - 1) + std::hint::black_box(&frame)[7] }
}

kernel!(RECURSE = "recurse", |_, args| {
    std::hint::black_box(recurse(args[0]));
});

kernel!(UNDEFINED = "undefined", |grid, _| {
    if grid.worker == 0 {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("ud2");
        #[cfg(not(target_arch = "x86_64"))]
        core::arch::asm!("udf #0");
    }
});
