//! gmem's own threads.
//!
//! gmem cannot work in the program's threads, for two reasons. A program may close every descriptor it does not know
//! (`close_range(3, ~0)`), and absent pages would then silently read as zero; so gmem's descriptors live in a table of their own, which only threads
//! made here can see. And a signal handler of the program that interrupts gmem while it holds a lock, and touches unified memory, would wait for
//! itself; so these threads take no signals.
//!
//! A **root** thread leaves the program's descriptor table, blocks all signals, and makes every other thread; they inherit both.

mod root;
mod slot;

use crate::host::cause;
use crate::sys;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering::*};
use slot::{Job, Slot};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Workers kept when there is nothing to do; more of them end after [`LINGER`].
const KEPT_WORKERS: usize = 4;
/// How long a surplus worker waits for a call.
const LINGER: Duration = Duration::from_secs(5);

thread_local! {
    /// Which [`Threads`] this thread belongs to; 0: none.
    static OWNER: Cell<usize> = const { Cell::new(0) };
    /// Which [`Threads`] this thread, which is none of theirs, was seen to have the descriptors of; 0: none.
    static KNOWN: Cell<usize> = const { Cell::new(0) };
}

/// gmem's own threads could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// No thread could be made; the errno.
    Spawn(i32),
    /// The thread could not leave the program's descriptor table; the errno. `close_range` with `CLOSE_RANGE_UNSHARE` needs Linux 5.9.
    Descriptors(i32),
    /// Signals could not be blocked; the errno.
    Signals(i32),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(e) => write!(f, "no thread could be started: {}", cause(*e)),
            Self::Descriptors(e) => write!(f, "no descriptor table of our own: {}", cause(*e)),
            Self::Signals(e) => write!(f, "signals could not be blocked: {}", cause(*e)),
        }
    }
}

impl std::error::Error for StartError {}

/// The calling process is a child, made by `fork`, of the one that started the threads. A child has only the thread that forked: nobody here would answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forked;

impl fmt::Display for Forked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this process was made by fork from the one that started gmem, with which its threads, devices and memory stayed: execute a program here, or start gmem anew",
        )
    }
}

impl std::error::Error for Forked {}

/// A set of gmem threads with one descriptor table. Dropping it ends the workers and waits for them.
///
/// **Descriptors do not cross.** One opened by the program means nothing, or something else, here, and the other way round; a closure given to
/// [`Threads::run`] must not open or close descriptors on behalf of the program. Standard input and output are `/dev/null` here, so that gmem does not
/// hold the program's pipes open; standard error is the program's.
///
/// **In a child made by `fork`** there are no such threads: [`Threads::try_run`] and [`Threads::spawn`] say so, and dropping does nothing.
pub struct Threads {
    /// The process they are threads of.
    process: u32,
    shared: Arc<Shared>,
    root: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    id: usize,
    /// The root thread's number, by which its descriptor table is asked for.
    root_thread: AtomicI32,
    state: Mutex<State>,
    work: Condvar,
    root: Mutex<Sender<Request>>,
}

struct State {
    queue: VecDeque<Job>,
    /// Workers that will look at the queue before they do anything else: in `work.wait`, or done with a call.
    idle: usize,
    stopping: bool,
}

/// What the root thread is asked for.
enum Request {
    Worker,
    Named { name: String, work: Box<dyn FnOnce() + Send>, reply: Sender<io::Result<JoinHandle<()>>> },
    Stop,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these locks is held, and the data would be whole if it did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    /// Starts the root thread and a first worker.
    pub fn start() -> Result<Self, StartError> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let (requests, inbox) = mpsc::channel();
        let state = State { queue: VecDeque::new(), idle: 0, stopping: false };
        let shared = Arc::new(Shared {
            id: NEXT.fetch_add(1, Relaxed),
            root_thread: AtomicI32::new(0),
            state: Mutex::new(state),
            work: Condvar::new(),
            root: Mutex::new(requests),
        });
        let (ready, answer) = mpsc::channel();
        let for_root = shared.clone();
        let root = thread::Builder::new()
            .name("gmem-root".into())
            .spawn(move || root::main(&for_root, &inbox, &ready))
            .map_err(|e| StartError::Spawn(e.raw_os_error().unwrap_or(0)))?;
        match answer.recv() {
            Ok(Ok(())) => Ok(Self { process: std::process::id(), shared, root: Mutex::new(Some(root)) }),
            failed => {
                let _ = root.join();
                Err(failed.ok().and_then(Result::err).unwrap_or(StartError::Spawn(0)))
            }
        }
    }

    /// Whether the calling thread is one of these.
    pub fn is_current(&self) -> bool {
        OWNER.get() == self.shared.id
    }

    /// Whether the descriptors of these threads are the calling thread's too: it is one of them, or was started by one. Async-signal-safe.
    pub(crate) fn lend_descriptors(&self) -> bool {
        if self.is_current() || KNOWN.get() == self.shared.id {
            return true;
        }
        // A kernel that cannot be asked has the calls meet what is there.
        let shared = sys::process::shares_descriptors_with(self.shared.root_thread.load(Relaxed)).unwrap_or(true);
        if shared {
            KNOWN.set(self.shared.id);
        }
        shared
    }

    /// Whether this process is a child of the one that started the threads. Locks nothing.
    pub fn is_forked(&self) -> bool {
        // Asked of the kernel each time: a child can be made without anybody's knowledge. It costs far less than the call it is asked for.
        std::process::id() != self.process
    }

    /// Runs `work` on one of these threads and waits for it: inline if the caller is one. Calls from several threads run at the same time, each on
    /// a worker of its own. A panic in `work` goes on in the caller. Not for signal handlers.
    ///
    /// # Panics
    /// In a child made by `fork`: see [`Threads::try_run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_run(work).unwrap_or_else(|forked| panic!("{forked}"))
    }

    /// [`Threads::run`] for those who may be in a child made by `fork`.
    ///
    /// # Errors
    /// [`Forked`] there; `work` is dropped then.
    pub fn try_run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Forked> {
        if self.is_current() {
            return Ok(work());
        }
        if self.is_forked() {
            return Err(Forked);
        }
        let slot = Slot::new(work);
        // SAFETY: called once for this slot; `submit` queues the job, and as `self` is borrowed a worker that takes it exists until it ran; `wait`
        // follows with nothing between that could panic or return.
        #[allow(unsafe_code)]
        let job = unsafe { slot.job() };
        self.submit(job);
        Ok(slot.wait())
    }

    fn submit(&self, job: Job) {
        let mut state = locked(&self.shared.state);
        state.queue.push_back(job);
        // A worker that was notified counts as idle until it holds the state, and its job counts as queued until then: the difference is right.
        if state.queue.len() > state.idle {
            // The channel is open for as long as `self` is: only `drop` stops the root.
            let _ = locked(&self.shared.root).send(Request::Worker);
        } else {
            self.shared.work.notify_one();
        }
    }

    /// Starts a thread of its own that runs `work`, named `name` (at most 15 bytes show). The caller ends and joins it before dropping `self`'s last owner
    /// only if `work` needs that; a thread left running keeps the descriptor table alive.
    ///
    /// # Errors
    /// The system's refusal; [`Forked`] in a child made by `fork`.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        if self.is_forked() {
            return Err(io::Error::other(Forked));
        }
        let (reply, answer) = mpsc::channel();
        let request = Request::Named { name: name.into(), work: Box::new(work), reply };
        let gone = || io::Error::other("gmem's root thread is gone");
        locked(&self.shared.root).send(request).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.is_forked() {
            // There is nobody to stop, the locks may be held by who is not here, and the handle names a thread whose stack may be something else by now.
            let root = self.root.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(root.take());
            return;
        }
        locked(&self.shared.state).stopping = true;
        self.shared.work.notify_all();
        let _ = locked(&self.shared.root).send(Request::Stop);
        // The last owner may be one of these threads, which cannot wait for itself; it ends soon after anyway.
        if let Some(root) = locked(&self.root).take()
            && !self.is_current()
        {
            let _ = root.join();
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

/// A worker: runs calls until told to stop, or until it is surplus for a while.
fn worker(shared: &Shared) {
    let mut state = locked(&shared.state);
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            let done = job.run();
            // Idle before the caller goes on: its next call, which may come at once, must not ask for another thread.
            locked(&shared.state).idle += 1;
            drop(done);
            state = locked(&shared.state);
            state.idle -= 1;
            continue;
        }
        if state.stopping {
            return;
        }
        state.idle += 1;
        let (next, timeout) = shared.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
        state = next;
        state.idle -= 1;
        if timeout.timed_out() && state.queue.is_empty() && state.idle >= KEPT_WORKERS {
            return;
        }
    }
}
