//! The integrated accelerator: cores without memory or MMU of their own. They use the CPU's page table, as an integrated GPU with a shared
//! one does, so their faults are CPU faults.

use crate::BuildError;
use crate::kernel::{self, Grid, Kernel, MAX_ARGS};
use crate::message;
use crate::shm::MAX_CORES;
use gmem_hal::{ByteLen, Compute, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, LaunchError, LaunchRequest, Mapping, Mmu};
use gmem_hal::{Capabilities, Modes, PageSizes, PhysAddr, PmapId, PmapRequest, Prot, Ticket, Upcalls, VirtRange};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

/// An accelerator whose cores are threads of this process and share the CPU's page table. [`gmem_hal::Mode::Share`] only.
///
/// A kernel that touches what is not mapped, or crashes, does what any thread of the program would do: it ends the program. A panic ends the
/// launch alone.
pub struct Integrated {
    info: DeviceInfo,
    cores: usize,
    pool: Arc<Pool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Describes an [`Integrated`] accelerator. Made by [`Integrated::builder`].
#[derive(Clone, Debug)]
pub struct IntegratedBuilder {
    name: String,
    cores: usize,
}

impl IntegratedBuilder {
    /// The name in messages and reports.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many cores run each kernel: by default as many as this machine has.
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores;
        self
    }

    /// Makes the device. Its threads start with it, when the core does.
    pub fn build(self) -> Result<Arc<Integrated>, BuildError> {
        if !(1..=MAX_CORES).contains(&self.cores) {
            return Err(BuildError::Cores);
        }
        let info = DeviceInfo {
            name: self.name,
            capabilities: Capabilities::REPLAYABLE,
            page_sizes: PageSizes::ALL,
            modes: Modes::SHARE,
            mmu_cookie: DeviceInfo::CPU_COOKIE,
        };
        Ok(Arc::new(Integrated { info, cores: self.cores, pool: Arc::default(), threads: Mutex::default() }))
    }
}

/// What the cores and those who launch share. Kernels touch unified memory, but never with the lock held.
#[derive(Default)]
struct Pool {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    launches: HashMap<u64, Launch>,
    /// How many cores each launch runs on; zero before the start.
    cores: usize,
    /// Launches started so far.
    started: u64,
    /// The launch that runs, or runs next.
    current: u64,
    stopping: bool,
}

struct Launch {
    kernel: &'static Kernel,
    args: Vec<u64>,
    remaining: usize,
    /// What the first core that panicked said.
    panicked: Option<String>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing panics with the lock held.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A core's life.
    fn run(&self, grid: Grid) {
        let mut next = 0;
        loop {
            let mine = |w: &Work| w.current == next && w.launches.contains_key(&next);
            let waiting = |w: &mut Work| !w.stopping && !mine(w);
            let work = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
            let Some(launch) = work.launches.get(&next).filter(|_| !work.stopping) else { return };
            let (kernel, args) = (launch.kernel, launch.args.clone());
            drop(work);
            // SAFETY: whoever launched the kernel passed the arguments it was written for; that is the contract of `Kernel::run`.
            let call = || unsafe { (kernel.run)(grid, &args) };
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).err();
            let panicked = panicked.map(|panic| message::clean(&message::of(panic)));
            let mut work = self.lock();
            if let Some(launch) = work.launches.get_mut(&next) {
                launch.panicked = launch.panicked.take().or(panicked);
                launch.remaining -= 1;
                if launch.remaining == 0 {
                    work.current += 1;
                    self.changed.notify_all();
                }
            }
            next += 1;
        }
    }
}

impl fmt::Debug for Integrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Integrated").field("name", &self.info.name).field("cores", &self.cores).finish_non_exhaustive()
    }
}

impl Integrated {
    /// Describes a device with as many cores as this machine has, unless told otherwise.
    pub fn builder() -> IntegratedBuilder {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_CORES));
        IntegratedBuilder { name: "integrated accelerator".into(), cores }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves only the signals that a core's own access can cause: blocked, they would end the process instead of reaching the handler that resolves
/// a CPU fault. All others are for the program's threads.
fn only_faults() {
    // SAFETY: these calls only write the set and change this thread's own mask.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigdelset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
    }
}

impl Device for Integrated {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn start(&self, _id: DeviceId, _upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        let mut threads = self.threads();
        if !threads.is_empty() || self.pool.lock().stopping {
            return Err(DeviceError::AlreadyStarted);
        }
        self.pool.lock().cores = self.cores;
        for worker in 0..self.cores {
            let (pool, grid) = (self.pool.clone(), Grid { worker, workers: self.cores });
            let body = move || {
                only_faults();
                pool.run(grid);
            };
            match std::thread::Builder::new().name("gmem-core".into()).stack_size(8 << 20).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(_) => {
                    drop(threads);
                    self.stop();
                    return Err(DeviceError::NoMemory);
                }
            }
        }
        Ok(())
    }

    /// Waits for the kernel that runs, if one does; launches that have not begun end with [`DeviceError::Dead`].
    fn stop(&self) {
        self.pool.lock().stopping = true;
        self.pool.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads());
        // A core only panics in a kernel, which is caught.
        threads.into_iter().for_each(|t| drop(t.join()));
    }

    fn mmu(&self) -> &dyn Mmu {
        &NoMmu
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        &NoMmu
    }

    fn compute(&self) -> Option<&dyn Compute> {
        Some(&*self.pool)
    }
}

impl Drop for Integrated {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Compute for Pool {
    fn start(&self, request: &LaunchRequest<'_>) -> Result<Ticket, LaunchError> {
        let kernel = kernel::find(request.kernel).ok_or(LaunchError::UnknownKernel)?;
        if request.args.len() > MAX_ARGS {
            return Err(LaunchError::TooManyArgs { given: request.args.len(), most: MAX_ARGS });
        }
        if request.pmap.is_some() {
            return Err(LaunchError::BadRequest);
        }
        // The slice may lie in unified memory: it is read before the lock is taken.
        let args = request.args.to_vec();
        let mut work = self.lock();
        if work.stopping || work.cores == 0 {
            return Err(LaunchError::Device(DeviceError::Dead));
        }
        let ticket = work.started;
        work.started += 1;
        let remaining = work.cores;
        work.launches.insert(ticket, Launch { kernel: &kernel::KERNELS[kernel], args, remaining, panicked: None });
        self.changed.notify_all();
        Ok(Ticket(ticket))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), LaunchError> {
        let running = |w: &mut Work| !w.stopping && w.launches.get(&ticket.0).is_some_and(|l| l.remaining > 0);
        let mut work = self.changed.wait_while(self.lock(), running).unwrap_or_else(PoisonError::into_inner);
        let launch = work.launches.remove(&ticket.0).ok_or(LaunchError::BadRequest)?;
        match launch {
            Launch { remaining: 1.., .. } => Err(LaunchError::Device(DeviceError::Dead)),
            Launch { panicked: Some(said), .. } => Err(LaunchError::Panicked(said)),
            _ => Ok(()),
        }
    }
}

/// The MMU and copy engine of a device that has neither: the core never has a reason to call them.
struct NoMmu;

impl Mmu for NoMmu {
    fn pmap_create(&self, _request: &PmapRequest) -> Result<PmapId, DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn pmap_destroy(&self, _pmap: PmapId) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn pmap_enter(&self, _pmap: PmapId, _mapping: &Mapping) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn pmap_release(&self, _pmap: PmapId, _range: VirtRange) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn pmap_protect(&self, _pmap: PmapId, _range: VirtRange, _prot: Prot) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn tlb_invalidate(&self, _pmap: PmapId, _range: VirtRange) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}

impl CopyEngine for NoMmu {
    fn zero(&self, _dst: PhysAddr, _len: ByteLen) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    fn copy(&self, _dst: PhysAddr, _src: PhysAddr, _len: ByteLen) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}
