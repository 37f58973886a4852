//! A few words of memory that two processes share, and how they wait for each other.

use crate::failure::Failure;
use rustix::thread::futex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The words. All zeros is the state before anything was asked.
#[repr(C)]
pub(crate) struct Ring {
    /// The number of requests made; the other process sleeps on it.
    pub(crate) asked: AtomicU32,
    /// The number of requests done.
    pub(crate) done: AtomicU32,
    /// What the current request is: a [`Request`].
    pub(crate) request: AtomicU32,
    /// The page it is about.
    pub(crate) page: AtomicU32,
    /// The number of faults reported by the other process.
    pub(crate) faulted: AtomicU32,
    /// The number of faults resolved.
    pub(crate) resolved: AtomicU32,
    /// Whether the last request failed.
    pub(crate) failed: AtomicU32,
    /// How long the access of the last request took.
    pub(crate) nanoseconds: AtomicU64,
}

/// What the other process can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Request {
    /// Nothing, which is how it is woken before the clock runs.
    Wake = 0,
    /// Map a home and touch it.
    MapHome = 1,
    /// Touch a page that is absent.
    Touch = 2,
    /// Take a page away.
    Unmap = 3,
}

/// How often to look before it is worth a sleep: some hundred microseconds.
pub(crate) const LOOKS: u32 = 100_000;

/// Waits, without sleeping, until `ready`; every now and then asks whether `alive`.
pub(crate) fn spin(mut ready: impl FnMut() -> bool, mut alive: impl FnMut() -> bool) -> Result<(), Failure> {
    loop {
        for _ in 0..LOOKS {
            if ready() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if !alive() {
            return Err(Failure::Failed("the hand-written floor: the other process ended".to_owned()));
        }
    }
}

/// Waits until `word` is no longer `old`: looks `looks` times, then sleeps, so that an idle process disturbs nobody. `None` after a long sleep without a change.
pub(crate) fn wait_for_change(word: &AtomicU32, old: u32, looks: u32) -> Option<u32> {
    for _ in 0..looks {
        let now = word.load(Ordering::Acquire);
        if now != old {
            return Some(now);
        }
        std::hint::spin_loop();
    }
    let second = rustix::fs::Timespec { tv_sec: Duration::from_secs(1).as_secs() as i64, tv_nsec: 0 };
    // A wake, a change that came first, a signal and the end of the second all lead to another look.
    let _ = futex::wait(word, futex::Flags::empty(), old, Some(&second));
    let now = word.load(Ordering::Acquire);
    (now != old).then_some(now)
}

/// Changes `word` and wakes whoever sleeps on it.
pub(crate) fn advance(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
    // Nobody asleep is no error.
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}
