//! How threads of the host and of the device process wait for each other: a bell (a futex word), bounded patience before sleeping, and a lock.
//!
//! Everything here is async-signal-safe: atomics, `futex` and `clock_gettime`, nothing else.

use rustix::thread::futex::{self, Flags};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

/// Nanoseconds on the monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// A point in time after which a wait gives up.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Option<u64>);

impl Deadline {
    /// Gives up after `limit`.
    pub(crate) fn after(limit: Duration) -> Self {
        Self(Some(now_ns().saturating_add(limit.as_nanos() as u64)))
    }

    /// Never gives up: for waits that something else is sure to end.
    pub(crate) const NEVER: Deadline = Deadline(None);

    /// Whether it is over.
    pub(crate) fn passed(self) -> bool {
        self.left().is_some_and(|d| d.is_zero())
    }

    /// What is left; `None` without a limit.
    fn left(self) -> Option<Duration> {
        self.0.map(|at| Duration::from_nanos(at.saturating_sub(now_ns())))
    }
}

/// A futex word that tells whether somebody sleeps on it, so that ringing costs a system call only when it must.
///
/// Only the one who rings ever clears the word: a waiter that left early costs one needless wake, never a lost one. Any number of threads
/// may sleep on one bell; all of them wake and look again.
#[derive(Clone, Copy)]
pub(crate) struct Bell<'a>(pub(crate) &'a AtomicU32);

impl Bell<'_> {
    /// Wakes the sleepers. The caller has stored what they wait for before.
    pub(crate) fn ring(self) {
        // Pairs with the fence in `sleep`: either we see ASLEEP, or the sleeper's second look sees what we stored.
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) != AWAKE && self.0.swap(AWAKE, Ordering::SeqCst) != AWAKE {
            // The result is the number woken. An error would mean an unmapped word, which `&AtomicU32` excludes.
            let _ = futex::wake(self.0, Flags::empty(), i32::MAX as u32);
        }
    }

    /// Wakes the sleepers whatever the word says. For the end of a process that rang this bell: it may have been killed between clearing the
    /// word and waking, or have cleared it out of malice.
    pub(crate) fn alarm(self) {
        self.0.store(AWAKE, Ordering::SeqCst);
        let _ = futex::wake(self.0, Flags::empty(), i32::MAX as u32);
    }

    /// Sleeps until rung, until `deadline`, or not at all if `ready` already holds. May return early: look again.
    fn sleep(self, deadline: Deadline, ready: &mut impl FnMut() -> bool) {
        self.0.store(ASLEEP, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if ready() {
            return;
        }
        let timeout = deadline.left().map(|d| rustix::time::Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        // EAGAIN (rung meanwhile), EINTR and ETIMEDOUT all mean: look again.
        let _ = futex::wait(self.0, Flags::empty(), ASLEEP, timeout.as_ref());
    }

    /// Waits until `ready`: with patience first, asleep then. Returns false if `deadline` passed before.
    pub(crate) fn wait(self, patience: &mut Patience, deadline: Deadline, mut ready: impl FnMut() -> bool) -> bool {
        if patience.spin(&mut ready) {
            return true;
        }
        let asleep_since = now_ns();
        loop {
            self.sleep(deadline, &mut ready);
            if ready() {
                patience.woken_after(now_ns().saturating_sub(asleep_since));
                return true;
            }
            if deadline.passed() {
                return false;
            }
        }
    }
}

/// How long a thread looks before it sleeps. It learns: looking that does not help gets shorter, and a sleep that ended soon makes it long again.
///
/// Waking a sleeping thread costs tens of microseconds on a virtual machine, but a thread that looks takes a core from whoever it waits for;
/// hence the learning. It does not yield between looks: among busy threads a yield gives a whole time slice away, while a sleeper that is woken
/// runs at once.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    longest_ns: u64,
    now_ns: u64,
}

/// Looks between two looks at the clock; the first lot is free, because a peer that is awake answers within a few microseconds.
const LOOKS: u32 = 100;
/// Patience never falls below this, so that an answer under way is not slept through.
const SHORTEST_NS: u64 = 1_000;

impl Patience {
    /// Looks for `longest` at most.
    pub(crate) fn new(longest: Duration) -> Self {
        let longest_ns = longest.as_nanos() as u64;
        Self { longest_ns, now_ns: longest_ns }
    }

    /// The same, having learned that this much is enough.
    pub(crate) fn shortened_to(self, now_ns: u64) -> Self {
        Self { now_ns: now_ns.min(self.longest_ns), ..self }
    }

    /// How long it would look now, in nanoseconds.
    pub(crate) fn current_ns(&self) -> u64 {
        self.now_ns
    }

    /// Looks until `ready` or out of patience. Says whether `ready`.
    pub(crate) fn spin(&mut self, ready: &mut impl FnMut() -> bool) -> bool {
        let start = now_ns();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if now_ns().saturating_sub(start) >= self.now_ns {
                break;
            }
        }
        self.now_ns = (self.now_ns / 2).max(SHORTEST_NS.min(self.longest_ns));
        false
    }

    /// A sleep that followed ended after `asleep_ns`: had looking a little longer been better?
    pub(crate) fn woken_after(&mut self, asleep_ns: u64) {
        if asleep_ns < self.longest_ns {
            self.now_ns = self.longest_ns;
        }
    }
}

/// A lock that a signal handler may take: it is only ever held over a few loads and stores, or over a bounded wait for room in a ring,
/// and no holder touches memory that can fault.
#[derive(Default)]
pub(crate) struct Lock(AtomicU32);

/// Holds a [`Lock`] until dropped.
pub(crate) struct Held<'a>(&'a Lock);

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const CONTENDED: u32 = 2;

impl Lock {
    /// Takes the lock, asleep if need be.
    pub(crate) fn lock(&self) -> Held<'_> {
        if self.0.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.0.swap(CONTENDED, Ordering::Acquire) != FREE {
                let _ = futex::wait(&self.0, Flags::PRIVATE, CONTENDED, None);
            }
        }
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.0.swap(FREE, Ordering::Release) == CONTENDED {
            let _ = futex::wake(&self.0.0, Flags::PRIVATE, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_bell_wakes_a_sleeper_and_a_deadline_ends_a_wait() {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let theirs = words.clone();
        let sleeper = std::thread::spawn(move || {
            let mut patience = Patience::new(Duration::from_micros(1));
            Bell(&theirs.0).wait(&mut patience, Deadline::after(Duration::from_secs(20)), || theirs.1.load(Ordering::SeqCst) == 7)
        });
        std::thread::sleep(Duration::from_millis(20));
        words.1.store(7, Ordering::SeqCst);
        Bell(&words.0).ring();
        assert!(sleeper.join().unwrap(), "the ring was lost");

        let mut patience = Patience::new(Duration::ZERO);
        let start = now_ns();
        assert!(!Bell(&words.0).wait(&mut patience, Deadline::after(Duration::from_millis(10)), || false));
        assert!(now_ns() - start >= 10_000_000, "gave up early");
    }

    #[test]
    fn an_alarm_wakes_whom_a_ring_no_longer_finds() {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let theirs = words.clone();
        let sleeper = std::thread::spawn(move || {
            let mut patience = Patience::new(Duration::ZERO);
            Bell(&theirs.0).wait(&mut patience, Deadline::after(Duration::from_secs(20)), || theirs.1.load(Ordering::SeqCst) == 7)
        });
        std::thread::sleep(Duration::from_millis(20));
        words.1.store(7, Ordering::SeqCst);
        // As a process that is killed in the middle of a ring leaves it.
        words.0.store(AWAKE, Ordering::SeqCst);
        let start = now_ns();
        Bell(&words.0).alarm();
        assert!(sleeper.join().unwrap());
        assert!(now_ns() - start < 10_000_000_000, "only the deadline ended the sleep");
    }

    #[test]
    fn the_lock_excludes() {
        let lock = Arc::new(Lock::default());
        let count = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (lock, count) = (lock.clone(), count.clone());
                std::thread::spawn(move || {
                    for _ in 0..2000 {
                        let _held = lock.lock();
                        let seen = count.load(Ordering::Relaxed);
                        std::hint::spin_loop();
                        count.store(seen + 1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 6000);
    }
}
