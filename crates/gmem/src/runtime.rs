//! The runtime: gmem's own threads, the host, the core, and the background evictor.

use crate::error::Error;
use gmem_core::{Core, Stats};
use gmem_hal::Upcalls;
use gmem_linux::{LinuxHost, LinuxPlatform, Threads, UffdAccess};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

pub(crate) type LinuxCore = Core<LinuxPlatform>;

/// gmem, started. Clones name the same one. Several can live in one process, each with its own devices and address spaces.
///
/// It stays with the process that started it. In a child made by `fork` every call on it, and on whatever was made with it, answers [`Error::Forked`], or that nothing is
/// there, and dropping does nothing: the child may exit as it likes, execute another program, or start a `Gmem` of its own.
#[derive(Clone)]
pub struct Gmem {
    pub(crate) runtime: Arc<Runtime>,
}

/// How gmem should be started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builder {
    metadata_limit: Option<usize>,
    uffd: Option<UffdAccess>,
}

pub(crate) struct Runtime {
    /// Gone only while this is dropped.
    core: Option<Arc<LinuxCore>>,
    threads: Arc<Threads>,
    evictor: Mutex<Option<JoinHandle<()>>>,
}

impl Builder {
    /// At most so many bytes of metadata; operations that need more fail cleanly.
    pub fn metadata_limit(mut self, bytes: usize) -> Self {
        self.metadata_limit = Some(bytes);
        self
    }

    /// Uses this kind of userfaultfd rather than the best there is; for trying what happens where less is permitted.
    pub fn userfaultfd(mut self, access: UffdAccess) -> Self {
        self.uffd = Some(access);
        self
    }

    /// Starts gmem.
    ///
    /// # Errors
    /// [`Error::Disabled`] if the environment says `GMEM=off`; [`Error::Start`] if the system refuses threads.
    pub fn start(self) -> Result<Gmem, Error> {
        if std::env::var_os("GMEM").is_some_and(|v| v.eq_ignore_ascii_case("off") || v == "0") {
            return Err(Error::Disabled);
        }
        let threads = Arc::new(Threads::start().map_err(|e| Error::Start(e.to_string()))?);
        let host = threads.run(|| match self.uffd {
            Some(access) => LinuxHost::open_as(threads.clone(), access),
            None => LinuxHost::open(threads.clone()),
        });
        let host = host.map_err(|e| Error::Start(e.to_string()))?;
        let platform = match self.metadata_limit {
            Some(limit) => LinuxPlatform::with_metadata_limit(host, limit),
            None => LinuxPlatform::new(host),
        };
        let core = Core::new(platform);
        let upcalls: Weak<LinuxCore> = Arc::downgrade(&core);
        gmem_hal::Platform::host(core.platform()).set_upcalls(upcalls as Weak<dyn Upcalls>);
        let evictor = spawn_evictor(&threads, &core)?;
        Ok(Gmem { runtime: Arc::new(Runtime { core: Some(core), threads, evictor: Mutex::new(Some(evictor)) }) })
    }
}

/// Evicts in the background, so that a fault finds a free frame waiting.
fn spawn_evictor(threads: &Threads, core: &Arc<LinuxCore>) -> Result<JoinHandle<()>, Error> {
    let core = core.clone();
    let work = move || {
        while let Some(hnode) = core.platform().next_pressure() {
            core.evict_background(hnode);
        }
    };
    threads.spawn("gmem-evict", work).map_err(|e| Error::Start(format!("no thread for the evictor: {e}")))
}

impl Gmem {
    /// Starts gmem with everything as the machine permits.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn new() -> Result<Self, Error> {
        Builder::default().start()
    }

    /// Chooses how gmem starts.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The figures since it started.
    pub fn stats(&self) -> Stats {
        self.runtime.call(|core| core.stats()).unwrap_or_default()
    }

    /// Bytes of metadata asked of the system. [`Stats::metadata`] counts what of it was touched.
    pub fn metadata_charged(&self) -> usize {
        self.runtime.core().platform().metadata_bytes()
    }

    /// Switches gmem off, or on again. Off, nothing new can be made, mapped or attached; what exists goes on working, so that no data is cut off.
    pub fn set_enabled(&self, enabled: bool) {
        self.runtime.core().set_enabled(enabled);
    }

    /// Checks gmem's own invariants. For tests, while nothing is under way.
    ///
    /// # Errors
    /// A sentence with the numbers of the first that does not hold.
    pub fn verify(&self) -> Result<(), String> {
        self.runtime.call(|core| core.verify()).map_err(|e| e.to_string())?.map_err(|v| v.to_string())
    }
}

impl fmt::Debug for Gmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gmem").finish_non_exhaustive()
    }
}

impl Runtime {
    /// Calls the core on one of gmem's own threads, which own the descriptors and take no signals. In a forked child nothing is called.
    pub(crate) fn call<T: Send>(&self, work: impl FnOnce(&Arc<LinuxCore>) -> T + Send) -> Result<T, Error> {
        Ok(self.threads.try_run(|| work(self.core()))?)
    }

    /// To be asked before a lock is taken that is held over calls: in a forked child nobody might ever let it go.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if self.is_forked() { Err(Error::Forked) } else { Ok(()) }
    }

    /// Whether this is a child of the process that gmem was started in.
    pub(crate) fn is_forked(&self) -> bool {
        self.threads.is_forked()
    }

    /// Starts a thread of gmem's own.
    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = self.threads.spawn(name, work).map_err(|e| Error::Start(format!("no thread: {e}")))?;
        drop(thread);
        Ok(())
    }

    fn core(&self) -> &Arc<LinuxCore> {
        self.core.as_ref().expect("the core lives until the runtime is dropped")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.is_forked() {
            // Nothing of it is this process's to end: the addresses and descriptors are something else here by now, and the threads are not here.
            let evictor = self.evictor.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget((self.core.take(), evictor.take()));
            return;
        }
        self.core().platform().stop_pressure();
        if let Some(evictor) = self.evictor.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It ends at the next look; its panic, if any, was printed.
            let _ = evictor.join();
        }
        // On one of gmem's own threads: dropping the host closes descriptors of their table.
        let core = self.core.take();
        self.threads.run(move || drop(core));
    }
}
