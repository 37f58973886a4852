//! Simulated time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The clock of a simulation. It moves only when something that takes time says so, hence a run takes the same simulated time on any machine.
#[derive(Debug, Default)]
pub struct SimClock(AtomicU64);

impl SimClock {
    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// `ns` nanoseconds pass.
    pub fn advance_ns(&self, ns: u64) {
        self.0.fetch_add(ns, Relaxed);
    }
}
