//! An observer between the core and a driver, which checks the promises of both sides.
//!
//! [`Observed`] is a driver made of a driver: it passes every callback on, and keeps a shadow of the page tables from what it sees. A promise of the contracts
//! that either side breaks is noted with its words and the place where it is written. The kit puts one around every device it makes; a driver author can do the same in
//! a test of their own:
//!
//! ```
//! use gmem_conformance::{Observed, Reference};
//!
//! # fn main() -> Result<(), gmem::Error> {
//! let driver = Reference::builder().build();
//! let observed = Observed::new(driver.clone());
//! let gmem = gmem::Gmem::new()?;
//! let device = gmem.add_device(observed.clone())?;
//! // ... use it ...
//! assert_eq!(observed.breaches(), []);
//! # Ok(())
//! # }
//! ```
//!
//! It allocates in callbacks, which a driver may not do on the fault path: with in-thread fault delivery it is for programs whose heap is not in unified memory.

mod device;
mod memory;
mod mmu;
mod peer;
mod relay;
pub mod rules;
mod shadow;

pub use rules::{Breach, Rule, Side};
pub use shadow::Copied;

use gmem::hal::{Device, DeviceError, DeviceId, PeerError, PhysRange, PmapId, Upcalls, VirtRange};
use relay::Relay;
use shadow::{Call, Kind, Shadow};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a callback may take. Drivers answer in microseconds, and the most patient of ours gives a silent device up after five seconds.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(6);

/// How often the watch looks for callbacks that do not return.
const WATCH: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce() + Send>;
type Hook = Arc<dyn Fn(&Event) + Send + Sync>;

/// A callback that begins, for [`Observed::on_call`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The callback's name, such as `"pmap_enter"`. A peer's `map` that counts the page as used is `"map hot"`, and a copy to the host is
    /// `"copy home"`.
    pub name: &'static str,
    /// The page table and pages it is for, if it is for pages.
    pub page: Option<(PmapId, VirtRange)>,
}

/// What a callback answers.
trait Answer {
    /// The error, unless it is one that drivers answer every day: that there is no room, that the device is gone, or that it cannot do this at all.
    fn failure(&self) -> Option<DeviceError> {
        None
    }
}

impl Answer for () {}

impl Answer for bool {}

impl<T> Answer for Option<T> {}

impl<T> Answer for Result<T, DeviceError> {
    fn failure(&self) -> Option<DeviceError> {
        self.as_ref().err().copied().filter(|error| !matches!(error, DeviceError::NoMemory | DeviceError::Dead | DeviceError::Unsupported))
    }
}

impl<T> Answer for Result<T, PeerError> {
    fn failure(&self) -> Option<DeviceError> {
        let Err(PeerError::Device(error)) = self else { return None };
        Err::<(), _>(*error).failure()
    }
}

thread_local! {
    /// Whether the callback that this thread passed on last was answered in the driver's place.
    static INJECTED: Cell<bool> = const { Cell::new(false) };
}

/// A callback that is to fail.
struct Failure {
    name: &'static str,
    /// How many calls of it are passed on before.
    after: usize,
    error: PeerError,
}

/// A driver that passes every callback on to another one and notes which promises are broken.
pub struct Observed {
    inner: Arc<dyn Device>,
    shadow: Mutex<Shadow>,
    hook: Mutex<Option<Hook>>,
    failures: Mutex<Vec<Failure>>,
    /// What the thread for [`Observed::call`] is to do.
    calls: Mutex<Option<Sender<Job>>>,
    /// The way to the core that the driver is given.
    relay: OnceLock<Arc<Relay>>,
    me: Weak<Observed>,
}

impl Observed {
    /// An observer of `driver`, to be added to gmem in its place.
    pub fn new(driver: Arc<dyn Device>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            inner: driver,
            shadow: Mutex::default(),
            hook: Mutex::default(),
            failures: Mutex::default(),
            calls: Mutex::default(),
            relay: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// Whether the driver has a frame allocator of its own.
    pub fn has_frames(&self) -> bool {
        self.inner.frames().is_some() && self.inner.peer().is_none()
    }

    /// The promises that were broken so far, by either side.
    pub fn breaches(&self) -> Vec<Breach> {
        self.shadow().breaches.clone()
    }

    /// What was copied so far, counted from the calls and not from what the core says of itself.
    pub fn copied(&self) -> Copied {
        self.shadow().copied
    }

    /// How many faults the device reported for pages that were entered with the access that it wanted, as after a translation that was cached as absent.
    pub fn needless_faults(&self) -> u64 {
        let shadow = self.shadow();
        shadow.needless - shadow.hinted
    }

    /// The same with a hint, which may be meant for the hint alone.
    pub fn hinted_faults(&self) -> u64 {
        self.shadow().hinted
    }

    /// The memory that is registered.
    pub fn registered_memory(&self) -> Vec<PhysRange> {
        self.shadow().memory.iter().map(|(_, range)| *range).collect()
    }

    /// The context that the driver was last told to make the current one, and did.
    pub fn current(&self) -> Option<PmapId> {
        self.shadow().current
    }

    /// Whether the device was started, and whether it was stopped.
    pub fn life(&self) -> (bool, bool) {
        let shadow = self.shadow();
        (shadow.started, shadow.stopped)
    }

    /// Whether the driver confirmed that this context touches nothing any more.
    pub fn is_stopped(&self, pmap: Option<PmapId>) -> bool {
        let shadow = self.shadow();
        pmap.is_some_and(|pmap| shadow.tables.get(&pmap).is_none_or(|table| table.is_dead()))
    }

    /// Whether the driver answered a revoke of this context with [`DeviceError::Dead`].
    pub fn answered_dead(&self, pmap: Option<PmapId>) -> bool {
        pmap.is_some_and(|pmap| self.shadow().answered_dead.contains(&pmap))
    }

    /// Calls the core as the driver would, from a thread like the driver's own, and waits for the answer. `None` before the device is started, or after it was stopped.
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce(DeviceId, &dyn Upcalls) -> T + Send + 'static) -> Option<T> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (id, core) = self.upcalls()?;
        let (tell, answer) = channel();
        // Whoever asked waits for it.
        let job = move || drop(tell.send(work(id, &*core)));
        calls.send(Box::new(job)).ok()?;
        answer.recv().ok()
    }

    /// The id of the device and the way to call the core, once it was started and while the core lives. As [`Upcalls`] says, only for threads started in a callback,
    /// and for callbacks; others use [`Observed::call`].
    pub fn upcalls(&self) -> Option<(DeviceId, Arc<dyn Upcalls>)> {
        let id = self.shadow().core.as_ref().filter(|(_, core)| core.strong_count() > 0)?.0;
        let core: Arc<dyn Upcalls> = self.relay.get()?.clone();
        Some((id, core))
    }

    /// Calls `hook` at the beginning of every callback, in its thread, with no lock held. One hook at a time: the last one given.
    pub fn on_call(&self, hook: impl Fn(&Event) + Send + Sync + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// Has a callback fail with `error`, once, after so many that are passed on. The driver is not told of it, as of a request that its device did not take.
    /// Failing, too, is something the contracts allow; what the core makes of it is its side of them.
    pub fn fail(&self, name: &'static str, after: usize, error: impl Into<PeerError>) {
        let failure = Failure { name, after, error: error.into() };
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// Forgets the failures that did not come to pass. Returns how many.
    pub fn cancel_failures(&self) -> usize {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner)).len()
    }

    /// Whether the call of `name` that begins now is to fail.
    fn refuse_peer(&self, name: &str) -> Result<(), PeerError> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = failures.iter().position(|f| f.name == name) else { return Ok(()) };
        match failures[at].after.checked_sub(1) {
            Some(left) => {
                failures[at].after = left;
                Ok(())
            }
            None => {
                INJECTED.set(true);
                Err(failures.remove(at).error)
            }
        }
    }

    fn refuse(&self, name: &str) -> Result<(), DeviceError> {
        self.refuse_peer(name).map_err(|error| match error {
            PeerError::Device(error) => error,
            _ => DeviceError::BadRequest,
        })
    }

    fn shadow(&self) -> MutexGuard<'_, Shadow> {
        // Nothing panics under it; if a hook does in a callback, the lock is not held.
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The callbacks that the driver, and not [`Observed::fail`], answered with an error: what an error of gmem's does not say.
    pub(crate) fn failed(&self) -> Vec<(&'static str, DeviceError)> {
        self.shadow().failed.clone()
    }

    /// Passes a callback on: notes that it begins, lets `before` check what the core says, has `call` make it, and lets `after` note what it changed.
    fn pass<T: Answer>(
        &self,
        name: &'static str,
        page: Option<(PmapId, VirtRange, Kind)>,
        before: impl FnOnce(&mut Shadow),
        call: impl FnOnce() -> T,
        after: impl FnOnce(&mut Shadow, &T),
    ) -> T {
        let token = {
            let mut shadow = self.shadow();
            if !shadow.started {
                shadow.breach(rules::START_FIRST, format_args!("{name} comes before start"));
            }
            if shadow.stopped {
                shadow.breach(rules::STOP_LAST, format_args!("{name} comes after stop"));
            }
            if let Some((pmap, range, _)) = page {
                shadow.check_range(name, pmap, range);
            }
            if let Some(page) = page {
                shadow.check_overlap(name, page);
                if page.2 == Kind::Revoke {
                    shadow.revoke_begins(page.0, page.1);
                }
            }
            before(&mut shadow);
            shadow.tokens += 1;
            let token = shadow.tokens;
            shadow.calls.push(Call { token, name, begun: Instant::now(), thread: std::thread::current().id(), page, late: false });
            token
        };
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook(&Event { name, page: page.map(|(pmap, range, _)| (pmap, range)) });
        }
        INJECTED.set(false);
        let answer = catch_unwind(AssertUnwindSafe(|| self.told_if_it_panics(name, call))).unwrap_or_else(|panic| {
            self.shadow().calls.retain(|call| call.token != token);
            resume_unwind(panic)
        });
        let mut shadow = self.shadow();
        if let Some(at) = shadow.calls.iter().position(|call| call.token == token) {
            let call = shadow.calls.swap_remove(at);
            if call.begun.elapsed() > ANSWER_LIMIT && !call.late {
                shadow.breach(rules::ANSWERS, format_args!("{name} took {:.1} s", call.begun.elapsed().as_secs_f64()));
            }
        }
        if let Some(error) = answer.failure()
            && !INJECTED.get()
            && !shadow.failed.contains(&(name, error))
        {
            shadow.failed.push((name, error));
        }
        after(&mut shadow, &answer);
        answer
    }

    /// Makes a callback of the driver's. A panic of it is told at once: whoever waits for the page of the call waits for ever.
    fn told_if_it_panics<T>(&self, name: &str, call: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
            self.shadow().breach(rules::NO_PANIC, format_args!("{name}: {}", crate::job::said(&*panic)));
            resume_unwind(panic)
        })
    }

    fn set_calls(&self, calls: Option<Sender<Job>>) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) = calls;
    }

    /// Looks, now and then, for callbacks that do not return, until the device is stopped or gone.
    fn watch(me: Weak<Self>) {
        while let Some(observed) = me.upgrade() {
            let mut shadow = observed.shadow();
            if shadow.stopped {
                return;
            }
            let mut late = Vec::new();
            for call in shadow.calls.iter_mut().filter(|call| !call.late && call.begun.elapsed() > ANSWER_LIMIT) {
                call.late = true;
                late.push(call.name);
            }
            for name in late {
                shadow.breach(rules::ANSWERS, format_args!("{name} has not answered for {} s", ANSWER_LIMIT.as_secs()));
            }
            drop(shadow);
            drop(observed);
            std::thread::sleep(WATCH);
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("device", &self.inner.info().name).finish_non_exhaustive()
    }
}
