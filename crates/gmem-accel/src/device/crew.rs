//! What all workers share about the launch under way.

use crate::shm::{Shared, launch};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Patience};

/// The workers, as those who begin and end a launch together.
pub(crate) struct Crew {
    workers: u32,
    /// Workers that have not finished their part.
    remaining: AtomicU32,
    /// Launches finished by all, wrapping.
    completed: AtomicU32,
    completed_bell: AtomicU32,
    /// Whether some worker has recorded how this launch failed.
    failed: AtomicU32,
}

impl Crew {
    pub(crate) fn new(workers: u32) -> Self {
        let crew = Self {
            workers,
            remaining: AtomicU32::default(),
            completed: AtomicU32::default(),
            completed_bell: AtomicU32::default(),
            failed: AtomicU32::default(),
        };
        crew.remaining.store(workers, Ordering::Relaxed);
        crew
    }

    /// Waits until all launches before `next` have ended, and it has been started.
    pub(crate) fn wait_for(&self, shm: &Shared, next: u32, patience: &mut Patience) {
        Bell(&self.completed_bell).wait(patience, Deadline::Never, || self.completed.load(Ordering::Acquire) == next);
        Bell(shm.launch_bell()).wait(patience, Deadline::Never, || shm.launch_head().load(Ordering::Acquire) != next);
    }

    /// Records how the launch at this turn failed, unless another worker did already: `detail` gives the code and the address. Async-signal-safe if that is.
    pub(crate) fn fail(&self, shm: &Shared, turn: u32, status: u32, detail: impl FnOnce() -> (u64, u64)) {
        if self.failed.swap(status, Ordering::AcqRel) == 0 {
            let slot = shm.launch(record(shm, turn));
            let (code, va) = detail();
            slot.va.store(va, Ordering::Relaxed);
            slot.code.store(code, Ordering::Relaxed);
            slot.status.store(status, Ordering::Release);
        }
    }

    /// A worker's part of the launch at this turn is over; the last one ends the launch. Async-signal-safe.
    pub(crate) fn arrive(&self, shm: &Shared, turn: u32) {
        if self.remaining.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let slot = shm.launch(record(shm, turn));
        if self.failed.swap(0, Ordering::AcqRel) == 0 {
            slot.status.store(launch::OK, Ordering::Relaxed);
        }
        self.remaining.store(self.workers, Ordering::Relaxed);
        // Before the next launch begins. Its record is the host's from here on.
        slot.over.store(1, Ordering::SeqCst);
        self.completed.store(turn.wrapping_add(1), Ordering::SeqCst);
        Bell(slot.bell).ring();
        Bell(&self.completed_bell).ring();
    }
}

/// The record of the launch at this turn, which has begun and is not over. Async-signal-safe.
pub(crate) fn record(shm: &Shared, turn: u32) -> u32 {
    // The host wrote it before it counted the launch, which was seen.
    shm.launch_record(turn).load(Ordering::Relaxed)
}
