//! How threads of the host and of the device process wait for each other: a bell (a futex word), bounded patience before sleeping, and a lock.
//!
//! Everything here is async-signal-safe: atomics, `futex` and `clock_gettime`, nothing else.

use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::futex::{self, Flags};
use std::time::Duration;

/// The bit of a bell that says that somebody may sleep on it; the others count how often it was taken back.
const ASLEEP: u32 = 1;

/// Nanoseconds on the monotonic clock, which stands still in a model.
pub(crate) fn now_ns() -> u64 {
    if cfg!(loom) {
        return 0;
    }
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    if let Some(now) = crate::fuzzing::now_ns() {
        return now;
    }
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The longest sleep on a word that a device shares.
const NAP: Duration = Duration::from_millis(500);

/// When a wait gives up.
#[derive(Clone, Copy)]
pub(crate) enum Deadline {
    /// At this point in time.
    At(u64),
    /// Never: for waits that something else is sure to end.
    Never,
    /// Never, with a look every now and then: for waits of the host on a word that a device shares. The device may move the sleepers to another word
    /// (`FUTEX_REQUEUE`), where no ringing reaches them.
    Naps,
}

impl Deadline {
    /// Gives up after `limit`.
    pub(crate) fn after(limit: Duration) -> Self {
        Self::At(now_ns().saturating_add(limit.as_nanos() as u64))
    }

    /// Whether it is over.
    pub(crate) fn passed(self) -> bool {
        matches!(self, Self::At(at) if at <= now_ns())
    }

    /// How long to sleep at most; `None` without a limit.
    fn left(self) -> Option<Duration> {
        match self {
            Self::At(at) => Some(Duration::from_nanos(at.saturating_sub(now_ns()))),
            Self::Never => None,
            Self::Naps => Some(NAP),
        }
    }
}

/// In how many parts a time limit is waited for.
const NAPS: u32 = 8;

/// Waits as long as `limit` for what somebody else has to do, by `wait`, which says whether it is done. The time passes nap by nap: when the whole machine stood
/// still, one nap is over when it goes on, and whoever has to answer gets the others; by the clock alone the limit would have passed before it could run.
pub(crate) fn in_naps(limit: Duration, mut wait: impl FnMut(Deadline) -> bool) -> bool {
    (0..NAPS).any(|_| wait(Deadline::after(limit / NAPS)))
}

/// A futex word that tells whether somebody sleeps on it, so that ringing costs a system call only when it must.
///
/// Only the one who rings ever takes the mark of a sleeper back: a waiter that left early costs one needless wake, never a lost one. Any number of threads
/// may sleep on one bell; all of them wake and look again. That is what the count is for: one who is about to sleep when the bell rings, and finds the mark
/// that another has made since, must not take it for its own.
#[derive(Clone, Copy)]
pub(crate) struct Bell<'a>(pub(crate) &'a AtomicU32);

impl Bell<'_> {
    /// Wakes the sleepers. The caller has stored what they wait for before.
    pub(crate) fn ring(self) {
        // Pairs with the fence in `sleep`: either we see ASLEEP, or the sleeper's second look sees what we stored.
        fence(Ordering::SeqCst);
        let word = self.0.load(Ordering::Relaxed);
        // Only another ring changes a word that is marked; it wakes those that this one would have.
        if word & ASLEEP != 0 && self.0.compare_exchange(word, word.wrapping_add(1), Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            // The result is the number woken. An error would mean an unmapped word, which `&AtomicU32` excludes.
            let _ = futex::wake(self.0, Flags::empty(), i32::MAX as u32);
        }
    }

    /// Wakes the sleepers whatever the word says. For the end of a process that rang this bell: it may have been killed between changing the
    /// word and waking, or have changed it out of malice.
    pub(crate) fn alarm(self) {
        self.0.fetch_add(2, Ordering::SeqCst);
        let _ = futex::wake(self.0, Flags::empty(), i32::MAX as u32);
    }

    /// Sleeps until rung, until `deadline`, or not at all if `ready` already holds. May return early: look again.
    fn sleep(self, deadline: Deadline, ready: &mut impl FnMut() -> bool) {
        let marked = self.0.fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP;
        fence(Ordering::SeqCst);
        if ready() {
            return;
        }
        let timeout = deadline.left().map(|d| rustix::time::Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        // EAGAIN (rung meanwhile), EINTR and ETIMEDOUT all mean: look again.
        let _ = futex::wait(self.0, Flags::empty(), marked, timeout.as_ref());
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

/// How long a thread looks before it sleeps, and what it learned about that.
///
/// Waking a sleeping thread costs tens of microseconds on a virtual machine, so a thread had better look for an answer that comes soon. But when cores
/// are scarce, the one who looks keeps the one who would answer from running. Hence: looking that did not help is given up at once, and
/// is tried again only after a few sleeps that were short; after twice as many each time it fails again. There is no yield between looks: among
/// busy threads it would give a whole time slice away, while a sleeper that is woken runs at once.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    longest_ns: u32,
    now_ns: u32,
    /// log2 of how many short sleeps it takes to try again.
    mistrust: u8,
    /// The most that can become.
    most_mistrust: u8,
    /// A sleep shorter than this is one that looking would have spared.
    short_ns: u32,
    /// How many of them are still to come.
    sleeps: u8,
}

/// Looks between two looks at the clock. The first lot is always spent: a peer that is awake answers within a few microseconds.
const LOOKS: u32 = 100;
/// What waking a thread on another core of a virtual machine can take.
const WAKE_UP_NS: u32 = 100_000;
/// Six doublings: at most one look in 64 short sleeps is wasted.
const MOST_MISTRUST: u8 = 6;

impl Patience {
    /// Looks for `longest` at most.
    pub(crate) fn new(longest: Duration) -> Self {
        let longest_ns = longest.as_nanos().min(u32::MAX.into()) as u32;
        Self { longest_ns, now_ns: longest_ns, mistrust: 0, most_mistrust: MOST_MISTRUST, short_ns: longest_ns, sleeps: 0 }
    }

    /// Looks again after two short sleeps: for one who waits for what comes in bursts, where the pause before a burst says nothing about the burst.
    pub(crate) fn for_bursts(longest: Duration) -> Self {
        let patience = Self::new(longest);
        // A sleep of no length at all is as long as a wake-up takes.
        Self { most_mistrust: 1, short_ns: patience.longest_ns.saturating_add(WAKE_UP_NS), ..patience }
    }

    /// What it learned, as a number that is never zero.
    pub(crate) fn learned(&self) -> u64 {
        1 << 63 | u64::from(self.mistrust) << 48 | u64::from(self.sleeps) << 40 | u64::from(self.now_ns)
    }

    /// The same, having learned this; zero stands for nothing.
    pub(crate) fn having(self, learned: u64) -> Self {
        if learned == 0 {
            return self;
        }
        let now_ns = (learned as u32).min(self.longest_ns);
        Self { now_ns, mistrust: (learned >> 48) as u8 & 0x7f, sleeps: (learned >> 40) as u8, ..self }
    }

    /// Looks until `ready` or out of patience. Says whether `ready`.
    pub(crate) fn spin(&mut self, ready: &mut impl FnMut() -> bool) -> bool {
        if cfg!(loom) {
            return ready(); // looking again shows a model nothing new
        }
        let start = now_ns();
        let mut first = true;
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    if !first {
                        self.mistrust = 0;
                    }
                    return true;
                }
                std::hint::spin_loop();
            }
            if now_ns().saturating_sub(start) >= self.now_ns.into() {
                break;
            }
            first = false;
        }
        if self.now_ns > 0 {
            self.now_ns = 0;
            self.sleeps = 1 << self.mistrust;
            self.mistrust = (self.mistrust + 1).min(self.most_mistrust);
        }
        false
    }

    /// The sleep that followed ended after `asleep_ns`: would looking have been better?
    pub(crate) fn woken_after(&mut self, asleep_ns: u64) {
        if asleep_ns >= self.short_ns.into() {
            return;
        }
        self.sleeps = self.sleeps.saturating_sub(1);
        if self.sleeps == 0 && self.now_ns == 0 {
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

#[cfg(all(test, not(loom)))]
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
        words.0.fetch_add(1, Ordering::SeqCst);
        let start = now_ns();
        Bell(&words.0).alarm();
        assert!(sleeper.join().unwrap());
        assert!(now_ns() - start < 10_000_000_000, "only the deadline ended the sleep");
    }

    #[test]
    fn who_was_moved_to_another_word_looks_again() {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)));
        let theirs = words.clone();
        let (tell, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut patience = Patience::new(Duration::ZERO);
            tell.send(Bell(&theirs.0).wait(&mut patience, Deadline::Naps, || theirs.1.load(Ordering::SeqCst) == 7))
        });
        // As a device does that means ill.
        // SAFETY: both words live meanwhile.
        let moved = || unsafe { libc::syscall(libc::SYS_futex, words.0.as_ptr(), libc::FUTEX_REQUEUE, 0, 1_usize, words.2.as_ptr()) };
        while moved() == 0 {
            std::thread::yield_now();
        }
        words.1.store(7, Ordering::SeqCst);
        Bell(&words.0).alarm();
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(true), "nobody wakes it");
    }

    #[test]
    fn looking_in_vain_is_given_up_for_longer_each_time() {
        let longest = Duration::from_micros(50);
        let mut patience = Patience::new(longest);
        let mut sleeps_between = Vec::new();
        for _ in 0..8 {
            assert!(patience.now_ns > 0 && !patience.spin(&mut || false));
            let mut sleeps = 0;
            while patience.now_ns == 0 {
                assert!(!patience.spin(&mut || false));
                patience = Patience::new(longest).having(patience.learned());
                patience.woken_after(10_000);
                sleeps += 1;
            }
            sleeps_between.push(sleeps);
        }
        assert_eq!(sleeps_between, [1, 2, 4, 8, 16, 32, 64, 64]);
        // A look that helped restores the trust; a long sleep teaches nothing.
        let mut looks = 0;
        assert!(patience.spin(&mut || {
            looks += 1;
            looks > 2 * LOOKS
        }));
        assert_eq!((patience.mistrust, patience.now_ns), (0, 50_000));
        assert!(!patience.spin(&mut || false));
        patience.woken_after(10_000_000);
        assert_eq!(patience.now_ns, 0);
        patience.woken_after(10_000);
        assert_eq!(patience.now_ns, 50_000);
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
