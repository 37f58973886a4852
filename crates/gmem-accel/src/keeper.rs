//! The threads that own descriptors: one *keeper* per device, one *watcher* per context.
//!
//! A driver's calls come from any thread, even from a program's own in a signal handler, and those do not see gmem's descriptors: the same numbers
//! may name the program's files there. So only these threads, which share gmem's table of descriptors, ever use one; others leave a wish and
//! ring. The keeper starts and kills device processes; a watcher waits for the end of one and reaps it.

use crate::context::{Context, Facts};
use crate::faults;
use crate::peer::Mirror;
use crate::shm::Config;
use crate::spawn;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Patience, in_naps};
use gmem_hal::{DeviceError, EvictOutcome, PmapId, VirtRange};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// How the driver's threads call the core. Made by the glue.
pub(crate) struct Hooks {
    pub(crate) resolve: Box<faults::Resolve>,
    pub(crate) lost: Box<dyn Fn(PmapId) + Send + Sync>,
    pub(crate) evict: Box<dyn Fn(PmapId, VirtRange) -> EvictOutcome + Send + Sync>,
}

thread_local! {
    /// Whether this thread is one of a device's own.
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// A wish for a device process.
struct Wish {
    facts: Facts,
    config: Config,
    reply: mpsc::SyncSender<Result<Arc<Context>, DeviceError>>,
}

/// The keeper, as other threads see it.
pub(crate) struct Keeper {
    bell: AtomicU32,
    /// `None` once the keeper has gone: nobody would answer.
    wishes: Mutex<Option<VecDeque<Wish>>>,
    stopping: AtomicBool,
    hooks: Hooks,
    /// Threads of this device that have not ended.
    threads: AtomicU32,
    threads_bell: AtomicU32,
}

/// A process the keeper keeps.
struct Kept {
    context: Arc<Context>,
    pidfd: OwnedFd,
    /// Closing it, which our own death does too, ends the process.
    _socket: OwnedFd,
    killed: bool,
}

impl Keeper {
    /// Starts the keeper of a device whose memory is `dram`.
    pub(crate) fn start(hooks: Hooks, dram: OwnedFd) -> Result<Arc<Self>, DeviceError> {
        let keeper = Arc::new(Self {
            bell: AtomicU32::new(0),
            wishes: Mutex::new(Some(VecDeque::new())),
            stopping: AtomicBool::new(false),
            hooks,
            threads: AtomicU32::new(0),
            threads_bell: AtomicU32::new(0),
        });
        let theirs = keeper.clone();
        keeper.thread("gmem-keeper", move || theirs.run(&dram))?;
        Ok(keeper)
    }

    /// Starts a thread that is counted, and that no signal of the program's interrupts.
    fn thread(self: &Arc<Self>, name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), DeviceError> {
        let keeper = self.clone();
        keeper.threads.fetch_add(1, Ordering::SeqCst);
        let body = move || {
            block_signals();
            OURS.set(true);
            f();
            keeper.threads.fetch_sub(1, Ordering::SeqCst);
            Bell(&keeper.threads_bell).ring();
        };
        match std::thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(body) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.threads.fetch_sub(1, Ordering::SeqCst);
                Err(DeviceError::NoMemory)
            }
        }
    }

    /// Has a process started. Blocks until it exists; it is not ready yet.
    pub(crate) fn create(&self, facts: Facts, config: Config) -> Result<Arc<Context>, DeviceError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.wishes().as_mut().ok_or(DeviceError::Dead)?.push_back(Wish { facts, config, reply });
        self.ring();
        // The keeper answers every wish, or drops it when it goes.
        answer.recv().unwrap_or(Err(DeviceError::Dead))
    }

    /// Has `context` killed. Async-signal-safe; returns at once.
    pub(crate) fn kill(&self, context: &Context) {
        context.kill.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Has the keeper look at what it keeps. Async-signal-safe.
    pub(crate) fn ring(&self) {
        Bell(&self.bell).ring();
    }

    /// Kills every process and waits, for `limit` at most, until all threads of the device have ended. A thread of a device, which may be the one
    /// to drop the last owner of the core, does not wait: it would wait for itself.
    pub(crate) fn stop(&self, limit: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        self.ring();
        if OURS.get() {
            return;
        }
        let ended = || self.threads.load(Ordering::SeqCst) == 0;
        in_naps(limit, |nap| Bell(&self.threads_bell).wait(&mut Patience::new(Duration::ZERO), nap, ended));
    }

    fn wishes(&self) -> MutexGuard<'_, Option<VecDeque<Wish>>> {
        // Nothing panics with the lock held.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_wish(&self) -> Option<Wish> {
        self.wishes().as_mut()?.pop_front()
    }

    fn run(self: &Arc<Self>, dram: &OwnedFd) {
        let mut kept: Vec<Kept> = Vec::new();
        let mut patience = Patience::new(Duration::ZERO);
        loop {
            while let Some(wish) = self.next_wish() {
                let made = if self.stopping.load(Ordering::SeqCst) { Err(DeviceError::Dead) } else { self.make(&wish, dram, &mut kept) };
                // Nobody listens any more only if the caller's thread ended; the process then dies with the device.
                let _ = wish.reply.send(made);
            }
            let stopping = self.stopping.load(Ordering::SeqCst);
            kept.retain_mut(|k| {
                if !k.killed && (stopping || k.context.kill.load(Ordering::SeqCst)) {
                    k.killed = true;
                    k.context.expected.fetch_or(stopping, Ordering::SeqCst);
                    // ESRCH: it is dead already, which its watcher is about to say.
                    let _ = rustix::process::pidfd_send_signal(&k.pidfd, Signal::KILL);
                }
                !k.context.is_dead()
            });
            if stopping && kept.is_empty() {
                *self.wishes() = None;
                return;
            }
            let work = || {
                let wish = self.wishes().as_ref().is_some_and(|w| !w.is_empty());
                let stop = self.stopping.load(Ordering::SeqCst) != stopping;
                wish || stop || kept.iter().any(|k| k.context.is_dead() || (!k.killed && k.context.kill.load(Ordering::SeqCst)))
            };
            Bell(&self.bell).wait(&mut patience, Deadline::Never, work);
        }
    }

    /// Starts a process and the threads that serve it.
    fn make(self: &Arc<Self>, wish: &Wish, dram: &OwnedFd, kept: &mut Vec<Kept>) -> Result<Arc<Context>, DeviceError> {
        let mirror = if wish.config.peer { Some(Mirror::new(wish.config.dram_len).ok_or(DeviceError::NoMemory)?) } else { None };
        let host = wish.facts.host.map(|window| borrow(window.handle));
        let started = spawn::spawn(&wish.config, dram.as_fd(), host).map_err(spawn::refusal)?;
        let facts = Facts { pid: started.pid.as_raw_nonzero().get(), ..wish.facts };
        let context = Arc::new(Context::new(facts, started.shm, mirror));
        let watched = rustix::io::fcntl_dupfd_cloexec(&started.pidfd, 0);
        kept.push(Kept { context: context.clone(), pidfd: started.pidfd, _socket: started.socket, killed: false });
        let result = watched.map_err(spawn::refusal).and_then(|pidfd| self.serve(&context, pidfd));
        if result.is_err() {
            // Without its watcher nobody would reap it but us, here.
            let lost = kept.pop();
            reap(lost);
        }
        result.map(|()| context)
    }

    /// Starts the threads of a context: fault servers, and last the watcher, which ends them all.
    fn serve(self: &Arc<Self>, context: &Arc<Context>, pidfd: OwnedFd) -> Result<(), DeviceError> {
        for first in 0..faults::threads(context.facts.workers) {
            let (keeper, context) = (self.clone(), context.clone());
            self.thread("gmem-fault", move || faults::serve(&context, first, &keeper.hooks.resolve))?;
        }
        if context.mirror.is_some() {
            let (keeper, context) = (self.clone(), context.clone());
            self.thread("gmem-evict", move || context.evictor.serve(&context, &keeper.hooks.evict))?;
        }
        let (keeper, theirs) = (self.clone(), context.clone());
        self.thread("gmem-watch", move || keeper.watch(&theirs, &pidfd))
    }

    /// Waits for the end of the process, reaps it, and tells everyone.
    fn watch(&self, context: &Context, pidfd: &OwnedFd) {
        wait_and_reap(pidfd.as_fd());
        context.set_dead(|| {
            self.ring();
            if !context.expected.load(Ordering::SeqCst) {
                (self.hooks.lost)(context.facts.pmap);
            }
        });
    }
}

/// Kills and reaps a process that has no watcher, and ends the threads that serve it.
fn reap(kept: Option<Kept>) {
    if let Some(k) = kept {
        let _ = rustix::process::pidfd_send_signal(&k.pidfd, Signal::KILL);
        wait_and_reap(k.pidfd.as_fd());
        k.context.set_dead(|| {});
    }
}

/// Waits for the process to end. The program may have reaped it before us (`wait` for any child), which is as good.
fn wait_and_reap(pidfd: BorrowedFd<'_>) {
    while rustix::event::poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], None) == Err(Errno::INTR) {}
    while rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED).is_err_and(|e| e == Errno::INTR) {}
}

/// The descriptor of a [`gmem_hal::HostWindow`].
fn borrow<'a>(handle: RawFd) -> BorrowedFd<'a> {
    // SAFETY: by the contract of `HostWindow` the number is a descriptor of gmem's own threads, of which the keeper is one, and the
    // address space outlives the `pmap_create` that waits for us.
    unsafe { BorrowedFd::borrow_raw(handle) }
}

/// Blocks every signal in this thread: the program's handlers have no business here. Threads started from it inherit that.
fn block_signals() {
    // SAFETY: both calls only write the set and change this thread's own mask.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}
