//! Lock and event on futex words. Both are async-signal-safe: an atomic operation, and a system call if there is contention.
#![allow(unsafe_code)]

use crate::report;
use crate::sync::atomic::{AtomicU32, Ordering::*};
use crate::sync::futex::{self, Flags, Timespec};
use gmem_hal::{Event, Wait, lock_api};
use rustix::io::Errno;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// How often a lock is looked at before its taker sleeps. A model tells nothing new by looking again.
const LOOKS: usize = if cfg!(loom) { 1 } else { 64 };

/// A lock that a signal handler may take, provided that its holders take no signals: gmem's own threads block them all, and the
/// handler for in-thread delivery runs with all of them masked.
#[derive(Debug)]
pub struct FutexLock(AtomicU32);

// SAFETY: a thread enters the critical section only by changing the word from FREE (the exchange in `try_lock` and the swap in `lock` both
// saw FREE), and the word becomes FREE only in `unlock`, which the contract lets only the holder call. So there is one holder at a time; Acquire on
// entry and Release on exit order the critical sections.
unsafe impl lock_api::RawMutex for FutexLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait asks for an initial value, copied into each lock")]
    const INIT: Self = Self(AtomicU32::new(FREE));
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        if self.0.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok() {
            return;
        }
        // Critical sections are short, so a holder that runs is soon done: look a few times before the system call.
        for _ in 0..LOOKS {
            core::hint::spin_loop();
            if self.0.load(Relaxed) == FREE && self.0.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok() {
                return;
            }
        }
        while self.0.swap(CONTENDED, Acquire) != FREE {
            // An early return (a changed word, an interruption) leads to another look.
            let _ = futex::wait(&self.0, Flags::PRIVATE, CONTENDED, None);
        }
    }

    fn try_lock(&self) -> bool {
        self.0.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Release) == CONTENDED {
            let _ = futex::wake(&self.0, Flags::PRIVATE, 1);
        }
    }

    fn is_locked(&self) -> bool {
        self.0.load(Relaxed) != FREE
    }
}

/// An event count on a futex word.
#[derive(Debug, Default)]
pub struct FutexEvent {
    epoch: AtomicU32,
    waiters: AtomicU32,
}

impl FutexEvent {
    /// Like [`Event::wait`], for waits that may rightly last for ever: nothing is reported.
    pub(crate) fn wait_quietly(&self, epoch: u32) {
        self.wait_inner(epoch, None);
    }

    fn wait_inner(&self, epoch: u32, mut what: Option<&Wait>) {
        const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
        // SeqCst on both words: either the signaller sees this waiter, or this waiter sees the new epoch.
        self.waiters.fetch_add(1, SeqCst);
        while self.epoch.load(SeqCst) == epoch {
            let timeout = what.is_some().then_some(&PATIENCE);
            if futex::wait(&self.epoch, Flags::PRIVATE, epoch, timeout) == Err(Errno::TIMEDOUT)
                && let Some(what) = what.take()
            {
                report::long_wait(what);
            }
        }
        self.waiters.fetch_sub(1, SeqCst);
    }
}

impl Event for FutexEvent {
    fn epoch(&self) -> u32 {
        self.epoch.load(SeqCst)
    }

    fn wait(&self, epoch: u32, what: &Wait) {
        self.wait_inner(epoch, Some(what));
    }

    fn signal(&self) {
        self.epoch.fetch_add(1, SeqCst);
        if self.waiters.load(SeqCst) != 0 {
            let _ = futex::wake(&self.epoch, Flags::PRIVATE, i32::MAX as u32);
        }
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use gmem_hal::{VirtAddr, WaitKind};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn the_lock_excludes() {
        let total = Arc::new(lock_api::Mutex::<FutexLock, u64>::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let total = total.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        *total.lock() += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("no panic"));
        assert_eq!(*total.lock(), 80_000);
        assert!(total.try_lock().is_some());
    }

    #[test]
    fn a_signal_between_epoch_and_wait_is_not_lost_and_a_long_wait_goes_on() {
        let event = Arc::new(FutexEvent::default());
        let what = Wait { kind: WaitKind::BusyPage, space: None, at: VirtAddr::new(0x1000), owner: "test" };
        let epoch = event.epoch();
        event.signal();
        event.wait(epoch, &what);
        let (other, epoch, began) = (event.clone(), event.epoch(), Instant::now());
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1200));
            other.signal();
        });
        event.wait(epoch, &what);
        assert!(began.elapsed() >= Duration::from_millis(1200), "the wait ended before the signal");
        t.join().expect("no panic");
    }
}
