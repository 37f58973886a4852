//! Where control may pass from one thread of control to another.
//!
//! Everything that another thread could get in front of calls [`yield_point`] first: every lock, every callback, every wait. Without a scheduler it
//! does nothing, and a run is one thread of control. Under a [`Scheduler`] the threads of control are coroutines of one thread, and a seed chooses
//! who goes on. A [`Driver`] does the same with threads of control of its own.

mod coroutine;
mod driver;
mod scheduler;
#[cfg(test)]
mod tests;

pub use driver::{Driver, drive};
pub use scheduler::{Report, Run, Scheduler, Stopped, text};

use coroutine::Suspend;
use gmem_hal::Wait;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

/// Why control may pass here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A lock is about to be taken.
    Lock,
    /// A lock was given back.
    Unlock,
    /// A callback was called: its name.
    Callback(&'static str),
    /// In the middle of a callback that takes time.
    Inside(&'static str),
    /// A program is about to access memory.
    Access,
    /// An event was signalled.
    Signal,
    /// Anything else.
    Step,
}

/// What a thread of control waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blocked {
    /// A lock.
    Lock {
        /// Which; only compared.
        key: usize,
        /// Who holds it.
        holder: u32,
    },
    /// An event.
    Event {
        /// Which; only compared.
        key: usize,
        /// What for.
        wait: Wait,
    },
}

impl Blocked {
    fn key(&self) -> usize {
        match self {
            Self::Lock { key, .. } | Self::Event { key, .. } => *key,
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock { holder, .. } => write!(f, "waits for a lock held by control {holder}"),
            Self::Event { wait, .. } => write!(f, "waits for {}", Waiting(wait)),
        }
    }
}

/// A [`Wait`] in words.
pub(crate) struct Waiting<'a>(pub(crate) &'a Wait);

impl fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { kind, space, at, owner } = self.0;
        write!(f, "{kind:?} at {at}")?;
        if let Some(space) = space {
            write!(f, " in {space}")?;
        }
        write!(f, ", owned by {owner:?}")
    }
}

thread_local! {
    /// The running thread of control; 0 outside of a scheduler.
    static CURRENT: Cell<u32> = const { Cell::new(0) };
    /// How many locks of the core each thread of control holds.
    static HELD: RefCell<BTreeMap<u32, u32>> = const { RefCell::new(BTreeMap::new()) };
    /// Keys of locks and events that were released or signalled since the scheduler last looked.
    static WOKEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The running thread of control: 0 outside of a scheduler, from 1 inside.
pub fn current() -> u32 {
    driver::driver().map_or_else(|| CURRENT.get(), Driver::current)
}

/// Whether a scheduler runs the caller.
pub fn is_scheduled() -> bool {
    current() != 0
}

/// Lets another thread of control go on first, if a scheduler is there and its seed says so.
pub fn yield_point(reason: Reason) {
    // A panic on its way out runs destructors; switching away would leave it half-way.
    if is_scheduled() && !std::thread::panicking() {
        match driver::driver() {
            Some(driver) => driver.switch(),
            None => coroutine::suspend(Suspend::Ready(reason)),
        }
    }
}

/// Sleeps until [`wake`] is called for what the caller waits for, or earlier. Only under a scheduler.
pub(crate) fn block(on: Blocked) {
    match driver::driver() {
        Some(driver) => driver.block(on.key()),
        None => coroutine::suspend(Suspend::Blocked(on)),
    }
}

/// Wakes every thread of control that blocks on `key`.
pub(crate) fn wake(key: usize) {
    if is_scheduled() {
        match driver::driver() {
            Some(driver) => driver.wake(key),
            None => WOKEN.with_borrow_mut(|woken| woken.push(key)),
        }
    }
}

pub(crate) fn lock_taken() {
    HELD.with_borrow_mut(|held| *held.entry(current()).or_default() += 1);
}

pub(crate) fn lock_given_back() {
    HELD.with_borrow_mut(|held| {
        let held = held.entry(current()).or_default();
        *held = held.saturating_sub(1);
    });
}

/// How many locks of the core the thread of control `id` holds.
fn held_by(id: u32) -> u32 {
    HELD.with_borrow(|held| held.get(&id).copied().unwrap_or_default())
}

/// Panics if the caller holds a lock of the core, over which it must not do `what`.
pub(crate) fn assert_no_lock_held(what: &str) {
    let held = held_by(current());
    assert!(
        held == 0 || std::thread::panicking(),
        "{what} with {held} locks of the core held: no callback, copy or wait may be under a lock"
    );
}
