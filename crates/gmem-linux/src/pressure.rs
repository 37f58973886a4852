//! Who is short of memory, from those who notice to the one who evicts.

use crate::FutexEvent;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use gmem_hal::Event;

/// A set of numbers that any thread adds to, even in a signal handler, and one takes from.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// A bit for each number.
    reported: Box<[AtomicU64]>,
    event: FutexEvent,
    stopped: AtomicBool,
}

impl Pressure {
    /// The empty set of numbers below `most`, a multiple of 64.
    pub(crate) fn new(most: usize) -> Self {
        let reported = (0..most / 64).map(|_| AtomicU64::default()).collect();
        Self { reported, event: FutexEvent::default(), stopped: AtomicBool::default() }
    }

    /// Adds `number`. Async-signal-safe.
    pub(crate) fn report(&self, number: usize) {
        let bit = 1 << (number % 64);
        if self.reported[number / 64].fetch_or(bit, SeqCst) & bit == 0 {
            self.event.signal();
        }
    }

    /// Waits until there is a number, and takes it. `None` after [`Pressure::stop`].
    pub(crate) fn next(&self) -> Option<usize> {
        loop {
            let epoch = self.event.epoch();
            if self.stopped.load(SeqCst) {
                return None;
            }
            for (i, word) in self.reported.iter().enumerate() {
                let bits = word.load(SeqCst);
                if bits != 0 {
                    let bit = bits.trailing_zeros();
                    word.fetch_and(!(1 << bit), SeqCst);
                    return Some(i * 64 + bit as usize);
                }
            }
            self.event.wait_quietly(epoch);
        }
    }

    /// Makes every call of [`Pressure::next`], present and future, answer `None`.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.event.signal();
    }

    /// Whether `number` was added and not taken.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_reported(&self, number: usize) -> bool {
        self.reported[number / 64].load(SeqCst) & 1 << (number % 64) != 0
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use gmem_loom::{model, together};
    use std::sync::Arc;

    /// Whatever two report is given out, each number once for as long as it was there, and then the end.
    #[test]
    fn loom_pressure_is_neither_lost_nor_given_out_twice() {
        model(|| {
            let pressure = Arc::new((Pressure::new(64), AtomicU64::default()));
            together(
                &pressure,
                vec![
                    Box::new(|(pressure, _)| pressure.report(3)),
                    Box::new(|(pressure, _)| pressure.report(5)),
                    Box::new(|(pressure, sum)| {
                        for _ in 0..2 {
                            sum.fetch_add(1 << pressure.next().expect("nobody stops it yet"), Relaxed);
                        }
                        pressure.stop();
                        assert_eq!(pressure.next(), None);
                    }),
                ],
            );
            assert_eq!(pressure.1.load(Relaxed), 1 << 3 | 1 << 5);
        });
    }

    #[test]
    fn loom_pressure_reported_again_is_given_out_again() {
        model(|| {
            let pressure = Arc::new(Pressure::new(64));
            together(
                &pressure,
                vec![
                    Box::new(|pressure| {
                        pressure.report(3);
                        pressure.report(3);
                        pressure.stop();
                    }),
                    Box::new(|pressure| {
                        let taken = std::iter::from_fn(|| pressure.next()).inspect(|number| assert_eq!(*number, 3)).count();
                        assert!(taken <= 2, "3 was reported twice and given out {taken} times");
                    }),
                ],
            );
        });
    }
}
