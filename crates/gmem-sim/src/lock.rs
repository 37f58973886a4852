//! The lock and the event count of the simulation.

use crate::sched::{self, Blocked, Reason, Waiting};
use gmem_hal::lock_api::{GuardNoSend, RawMutex};
use gmem_hal::{Event, Wait};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// A lock that knows its holder.
///
/// Taking it while holding it panics, as it would wait for itself. Under a scheduler, taking it while another thread of control holds it lets others go on.
#[derive(Debug)]
pub struct SimLock {
    /// 0: free. Otherwise the holder's [`sched::current`] plus one.
    holder: AtomicU32,
}

impl SimLock {
    fn key(&self) -> usize {
        self as *const Self as usize
    }
}

// SAFETY: `lock` and `try_lock` return success only after `holder` went from 0 to the caller by a compare-and-exchange, and only `unlock`,
// which the holder alone may call, sets it back to 0. All accesses are sequentially consistent. Hence at most one holder at a time.
#[allow(unsafe_code)]
unsafe impl RawMutex for SimLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait asks for a constant to start from")]
    const INIT: Self = Self { holder: AtomicU32::new(0) };

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        sched::yield_point(Reason::Lock);
        while !self.try_lock() {
            let holder = self.holder.load(SeqCst);
            let me = sched::current();
            assert_ne!(holder, me + 1, "control {me} takes a lock that it holds: it would wait for itself");
            assert!(sched::is_scheduled(), "a lock is held by control {} and nobody can give it back", holder.wrapping_sub(1));
            sched::block(Blocked::Lock { key: self.key(), holder: holder.wrapping_sub(1) });
        }
    }

    fn try_lock(&self) -> bool {
        let taken = self.holder.compare_exchange(0, sched::current() + 1, SeqCst, SeqCst).is_ok();
        if taken {
            sched::lock_taken();
        }
        taken
    }

    unsafe fn unlock(&self) {
        let holder = self.holder.swap(0, SeqCst);
        let me = sched::current();
        assert!(holder == me + 1 || std::thread::panicking(), "control {me} gives back a lock held by control {}", i64::from(holder) - 1);
        sched::lock_given_back();
        sched::wake(self.key());
        sched::yield_point(Reason::Unlock);
    }

    fn is_locked(&self) -> bool {
        self.holder.load(SeqCst) != 0
    }
}

/// The event count. Waiting lets the other threads of control go on; where there are none, it panics, because nothing could ever signal.
#[derive(Debug, Default)]
pub struct SimEvent {
    epoch: AtomicU32,
}

impl SimEvent {
    fn key(&self) -> usize {
        self as *const Self as usize
    }
}

impl Event for SimEvent {
    fn epoch(&self) -> u32 {
        self.epoch.load(SeqCst)
    }

    fn wait(&self, epoch: u32, what: &Wait) {
        sched::assert_no_lock_held("a wait");
        sched::yield_point(Reason::Step);
        if self.epoch() != epoch {
            return;
        }
        assert!(sched::is_scheduled(), "would wait for ever: {}", Waiting(what));
        // One block only: returning early, without a signal, is allowed, and the caller must look again.
        sched::block(Blocked::Event { key: self.key(), wait: *what });
    }

    fn signal(&self) {
        self.epoch.fetch_add(1, SeqCst);
        sched::wake(self.key());
        sched::yield_point(Reason::Signal);
    }
}
