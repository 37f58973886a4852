//! Futexes as the kernel keeps them: one lock over the look at the word and the queue of its sleepers, so that a wake either finds the sleeper or
//! comes before its look.

use crate::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
pub use rustix::thread::futex::{Flags, Timespec};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

/// Sleepers by the address of their word.
type Queues = BTreeMap<usize, Arc<Condvar>>;

loom::lazy_static! {
    static ref QUEUES: Mutex<Queues> = Mutex::new(Queues::new());
}

fn queues() -> MutexGuard<'static, Queues> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn queue(queues: &mut Queues, word: &AtomicU32) -> Arc<Condvar> {
    queues.entry(std::ptr::from_ref(word).addr()).or_default().clone()
}

/// Below this many nanoseconds a limit is a way to look again soon, which passes at once. Others guard against what must not happen: they never pass, so that it is
/// found.
const SHORT: i64 = 10_000_000;

/// Sleeps while `word` holds `expected`, until woken or, if `limit` is short, not at all.
pub fn wait(word: &AtomicU32, _flags: Flags, expected: u32, limit: Option<&Timespec>) -> rustix::io::Result<()> {
    if limit.is_some_and(|limit| limit.tv_sec == 0 && limit.tv_nsec < SHORT) {
        loom::thread::yield_now();
        return Err(rustix::io::Errno::TIMEDOUT);
    }
    let mut queues = queues();
    // Relaxed, as the lock orders it after the change that a wake which came before belongs to, and nothing else need be seen.
    if word.load(Ordering::Relaxed) != expected {
        return Err(rustix::io::Errno::AGAIN);
    }
    let queue = queue(&mut queues, word);
    drop(queue.wait(queues).unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Wakes one sleeper of `word`, or all if `most` is more than that.
pub fn wake(word: &AtomicU32, _flags: Flags, most: u32) -> rustix::io::Result<usize> {
    let mut queues = queues();
    let queue = queue(&mut queues, word);
    if most == 1 {
        queue.notify_one();
    } else {
        queue.notify_all();
    }
    // Nobody of ours reads how many.
    Ok(0)
}
