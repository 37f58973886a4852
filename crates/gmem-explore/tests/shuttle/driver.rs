//! Shuttle as the one who has the threads of control of the simulation.

use gmem_sim::Driver;
use shuttle::thread::{self, Thread};
use std::cell::RefCell;
use std::time::Duration;

/// Threads of shuttle.
pub(crate) struct Shuttle;

std::thread_local! {
    /// Who sleeps on what.
    static SLEEPERS: RefCell<Vec<(usize, Thread)>> = const { RefCell::new(Vec::new()) };
}

/// Forgets what a run that failed left.
pub(crate) fn forget() {
    SLEEPERS.take();
}

impl Driver for Shuttle {
    fn current(&self) -> u32 {
        shuttle::current::try_get_current_task().map_or(0, |task| usize::from(task) as u32 + 1)
    }

    fn switch(&self) {
        // Of shuttle's ways to let others go on, the one that does not ask it to.
        thread::sleep(Duration::ZERO);
    }

    fn block(&self, key: usize) {
        let me = thread::current();
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.push((key, me.clone())));
        thread::park();
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.retain(|(_, sleeper)| sleeper.id() != me.id()));
    }

    fn wake(&self, key: usize) {
        let woken: Vec<_> = SLEEPERS.with_borrow_mut(|sleepers| sleepers.extract_if(.., |(of, _)| *of == key).collect());
        woken.iter().for_each(|(_, sleeper)| sleeper.unpark());
    }
}
