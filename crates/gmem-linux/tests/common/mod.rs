//! A tiny pager: the least core that can drive a host, and a rig around it.
//!
//! It keeps a state per page and one "device" copy of the region in ordinary memory, preallocated, because faults may be resolved in a signal handler. A page's lock
//! is held over a whole resolution, which is crude and enough.
#![allow(dead_code, unreachable_pub, reason = "each test binary includes this and uses a part")]

use gmem_hal::lock_api::Mutex;
use gmem_hal::{
    Access, Backing, ByteLen, Delivery, DeviceId, EvictOutcome, FaultError, FaultHint, Host, HostError, HostFault, PageSize, Pages, PmapId,
    Prot, RegionAttrs, Upcalls, VirtAddr, VirtRange,
};
use gmem_linux::{FutexLock, LinuxHost, LinuxSpace, Threads, UffdAccess};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    Nowhere,
    Home,
    Cpu,
    Device,
}

pub struct Pager {
    pub host: LinuxHost,
    pub space: LinuxSpace,
    pub region: Pages,
    /// One lock per page: different pages move at the same time.
    pub state: Vec<Mutex<FutexLock, At>>,
    /// The device's memory, reached by raw pointers under the lock.
    device: Vec<AtomicU64>,
    /// Faults in the region fail.
    pub fail: AtomicBool,
    /// Do it wrong: copy before the CPU is shut out.
    pub copy_first: AtomicBool,
    pub faults: AtomicU64,
}

/// What a home holds after its bytes went to the device, so that whoever reads it without a fault is found out.
pub const GARBAGE: u8 = 0xee;

fn copy(dst: u64, src: u64, len: u64) {
    // SAFETY: both are live memory of the rig: a populated home, or the device copy. Concurrent writers exist only where the test does it wrong on purpose.
    unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, len as usize) }
}

impl Pager {
    pub fn page(&self, index: usize) -> Pages {
        let size = self.region.attrs.page_size;
        let start = VirtAddr::new(self.region.range.start().get() + index as u64 * size.bytes());
        Pages { range: VirtRange::page(start, size).expect("in range"), attrs: self.region.attrs }
    }

    pub fn home(&self, index: usize) -> u64 {
        self.host.home(&self.space, &self.page(index)).addr
    }

    fn device_at(&self, index: usize) -> u64 {
        self.device.as_ptr() as u64 + index as u64 * self.region.attrs.page_size.bytes()
    }

    /// Takes a page to the device. On a gmem thread.
    pub fn to_device(&self, index: usize) -> Result<(), HostError> {
        let page = self.page(index);
        let len = page.range.len().get();
        let mut state = self.state[index].lock();
        match *state {
            At::Device => return Ok(()),
            At::Nowhere => self.host.populate(&self.space, &page)?,
            At::Home => {}
            At::Cpu if self.copy_first.load(Relaxed) && self.region.attrs.backing == Backing::Shared => {
                copy(self.device_at(index), self.home(index), len);
                self.host.cpu_unmap(&self.space, &page)?;
                *state = At::Device;
                return Ok(());
            }
            At::Cpu => self.host.cpu_unmap(&self.space, &page)?,
        }
        copy(self.device_at(index), self.home(index), len);
        // SAFETY: the home is populated and not CPU-mapped.
        unsafe { std::ptr::write_bytes(self.home(index) as *mut u8, GARBAGE, len as usize) };
        *state = At::Device;
        Ok(())
    }

    /// Brings a page to the CPU.
    pub fn to_cpu(&self, index: usize) -> Result<(), HostError> {
        let page = self.page(index);
        let mut state = self.state[index].lock();
        match *state {
            At::Nowhere => self.host.populate(&self.space, &page)?,
            At::Device => {
                self.host.populate(&self.space, &page)?;
                copy(self.home(index), self.device_at(index), page.range.len().get());
            }
            At::Home | At::Cpu => {}
        }
        *state = At::Home;
        self.host.cpu_map(&self.space, &page)?;
        *state = At::Cpu;
        Ok(())
    }
}

impl Upcalls for Pager {
    fn device_fault(&self, _: DeviceId, _: PmapId, _: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        Err(FaultError::NotMapped)
    }

    fn device_evict(&self, _: DeviceId, _: PmapId, _: VirtRange) -> EvictOutcome {
        EvictOutcome::NotThere
    }

    fn device_lost(&self, _: DeviceId, _: PmapId) {}

    fn host_fault(&self, va: VirtAddr, access: Access, _may_wait: bool) -> HostFault {
        if !self.region.range.contains(va) {
            return HostFault::NotOurs;
        }
        self.faults.fetch_add(1, Relaxed);
        if self.fail.load(Relaxed) {
            return HostFault::Failed(FaultError::TooManyHolds);
        }
        if !self.region.attrs.prot.allows(access) {
            return HostFault::Failed(FaultError::Protection);
        }
        let index = (va.get() - self.region.range.start().get()) >> self.region.attrs.page_size.shift();
        match self.to_cpu(index as usize) {
            Ok(()) => HostFault::Resolved,
            Err(e) => HostFault::Failed(FaultError::Host(e)),
        }
    }
}

/// Threads, host, space, one region at its start, and the pager.
pub struct Rig {
    pub threads: Arc<Threads>,
    pub pager: Arc<Pager>,
}

/// A range that no other rig of this process has.
pub fn fresh_range(len: u64) -> VirtRange {
    static NEXT: AtomicU64 = AtomicU64::new(0x1000_0000_0000);
    let start = NEXT.fetch_add(len.next_multiple_of(1 << 40), Relaxed);
    VirtRange::from_len(VirtAddr::new(start), ByteLen(len)).expect("in range")
}

pub fn attrs(backing: Backing, delivery: Delivery, page_size: PageSize) -> RegionAttrs {
    RegionAttrs { prot: Prot::RW, page_size, backing, delivery }
}

/// Every triple that this machine should support.
pub fn triples() -> Vec<RegionAttrs> {
    let kinds = [(Backing::Shared, Delivery::Service), (Backing::Shared, Delivery::InThread), (Backing::Private, Delivery::Service)];
    kinds.into_iter().flat_map(|(b, d)| PageSize::ALL.map(|s| attrs(b, d, s))).collect()
}

impl Rig {
    pub fn new(attrs: RegionAttrs, pages: u64) -> Self {
        let threads = Arc::new(Threads::start().expect("threads"));
        let host = LinuxHost::open(threads.clone()).expect("a host");
        Self::on(host, attrs, pages)
    }

    pub fn on(host: LinuxHost, attrs: RegionAttrs, pages: u64) -> Self {
        let len = pages * attrs.page_size.bytes();
        let range = fresh_range(len.next_multiple_of(2 << 20));
        let region = Pages { range: VirtRange::from_len(range.start(), ByteLen(len)).expect("in range"), attrs };
        let threads = host.threads().clone();
        let pager = threads.run(|| {
            let space = host.space_create(range, true).expect("a space");
            host.region_map(&space, &region).expect("a region");
            let state = (0..pages).map(|_| Mutex::new(At::Nowhere)).collect();
            let mut device = Vec::new();
            device.resize_with(len as usize / 8, || AtomicU64::new(0));
            let (fail, copy_first, faults) = Default::default();
            Arc::new(Pager { host, space, region, state, device, fail, copy_first, faults })
        });
        let weak: Weak<Pager> = Arc::downgrade(&pager);
        pager.host.set_upcalls(weak);
        Self { threads, pager }
    }

    pub fn page_bytes(&self) -> u64 {
        self.pager.region.attrs.page_size.bytes()
    }

    pub fn va(&self, page: usize, offset: u64) -> u64 {
        self.pager.page(page).range.start().get() + offset
    }

    /// A word of managed memory.
    pub fn word(&self, page: usize, offset: u64) -> &AtomicU64 {
        // SAFETY: an aligned address in the region, which lives as long as the rig; a fault on the way is resolved or kills the test.
        unsafe { AtomicU64::from_ptr(self.va(page, offset) as *mut u64) }
    }

    /// A word of the home, which must be populated and not moving.
    pub fn home_word(&self, page: usize, offset: u64) -> &AtomicU64 {
        // SAFETY: the caller's duty, see above.
        unsafe { AtomicU64::from_ptr((self.pager.home(page) + offset) as *mut u64) }
    }

    pub fn to_device(&self, page: usize) -> Result<(), HostError> {
        self.threads.run(|| self.pager.to_device(page))
    }

    pub fn pages(&self) -> usize {
        self.pager.state.len()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.threads.run(|| {
            self.pager.host.region_unmap(&self.pager.space, &self.pager.region);
            self.pager.host.space_destroy(&self.pager.space);
        });
    }
}

/// Aborts the process if it is not dropped in time: a test must fail, never hang.
pub struct Watchdog(Arc<AtomicBool>);

pub fn watchdog(seconds: u64) -> Watchdog {
    let done = Arc::new(AtomicBool::new(false));
    let (seen, name) = (done.clone(), std::thread::current().name().unwrap_or("?").to_owned());
    std::thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            if seen.load(Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("watchdog: {name} did not end within {seconds} s");
        std::process::abort();
    });
    Watchdog(done)
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Whether this process was started by [`child`] for the test `name`.
pub fn is_child(name: &str) -> bool {
    std::env::var("GMEM_TEST_CHILD").is_ok_and(|v| v == name)
}

/// Runs the test `name` of this binary alone in a process of its own, where [`is_child`] is true, with `param` in `GMEM_TEST_PARAM`.
pub fn child(name: &str, param: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("GMEM_TEST_CHILD", name)
        .env("GMEM_TEST_PARAM", param)
        .status()
        .expect("a child process")
}

pub fn param() -> String {
    std::env::var("GMEM_TEST_PARAM").unwrap_or_default()
}

/// The triple with this number, for children.
pub fn triple_of_param() -> RegionAttrs {
    triples()[param().parse::<usize>().expect("a number")]
}

pub fn assert_signal(status: ExitStatus, signal: i32, what: &str) {
    assert_eq!(status.signal(), Some(signal), "{what}: {status}");
}

pub fn host_without_uffd() -> LinuxHost {
    let threads = Arc::new(Threads::start().expect("threads"));
    LinuxHost::open_as(threads, UffdAccess::Refused).expect("a host")
}
