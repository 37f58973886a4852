//! Threads of control that somebody else runs.

use super::HELD;
use std::cell::Cell;

/// Another scheduler than ours, such as a model checker's: it has the threads of control, and is told where they may pass control on.
///
/// All of them run on one thread of the system, one at a time, and control passes only inside the calls below.
pub trait Driver {
    /// The running thread of control, from 1; 0 if none of them runs.
    fn current(&self) -> u32;

    /// Lets another thread of control go on first, or not.
    fn switch(&self);

    /// Sleeps until `key` is woken, or any shorter time. Whoever calls looks again.
    fn block(&self, key: usize);

    /// Wakes all that sleep on `key` now.
    fn wake(&self, key: usize);
}

thread_local! {
    static DRIVER: Cell<Option<&'static dyn Driver>> = const { Cell::new(None) };
}

/// The driver of this thread's threads of control, if there is one.
pub(super) fn driver() -> Option<&'static dyn Driver> {
    DRIVER.get()
}

/// From now on `driver` has the threads of control of this thread of the system, or, with `None`, [`Scheduler`](super::Scheduler) again. Locks that an earlier run
/// left held are forgotten.
pub fn drive(driver: Option<&'static dyn Driver>) {
    HELD.take();
    DRIVER.set(driver);
}
