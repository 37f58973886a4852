//! Threads that loom runs.

use loom::sync::{Condvar, Mutex};
pub use loom::thread::{JoinHandle, spawn, yield_now};
use std::sync::{Arc, PoisonError};

/// A handle to a thread. Its token is a flag under a lock: loom's own is given at once, so that nobody could run between a change and the unpark that tells of
/// it, and it wakes its thread from any sleep.
#[derive(Clone, Debug)]
pub struct Thread(Arc<(Mutex<bool>, Condvar)>);

loom::thread_local! {
    static ME: Thread = Thread(Arc::new((Mutex::new(false), Condvar::new())));
}

/// The calling thread.
pub fn current() -> Thread {
    ME.with(Thread::clone)
}

/// As in the standard library.
pub fn park() {
    let Thread(me) = current();
    let mut token = me.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*token {
        token = me.1.wait(token).unwrap_or_else(PoisonError::into_inner);
    }
    *token = false;
}

impl Thread {
    /// As in the standard library.
    pub fn unpark(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_one();
    }
}
