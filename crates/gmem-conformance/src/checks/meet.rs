//! Evidence that two parts of a check met: a race that did not take place proves nothing.

use crate::Case;
use crate::check::Stop;
use crate::observe::Observed;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often two parts were under way at the same time.
#[derive(Default)]
pub(super) struct Meetings {
    /// How often the first part began and ended: odd while it is under way.
    flights: AtomicU64,
    met: AtomicU64,
}

impl Meetings {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The first part, once: `work` is under way until this returns.
    pub(super) fn fly<T>(&self, work: impl FnOnce() -> T) -> T {
        self.flights.fetch_add(1, Ordering::SeqCst);
        let done = work();
        self.flights.fetch_add(1, Ordering::SeqCst);
        done
    }

    fn is_under_way(&self) -> bool {
        self.flights.load(Ordering::SeqCst) % 2 == 1
    }

    /// The second part, once: they met if the first was under way when it began, or began before it ended.
    pub(super) fn meet<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.flights.load(Ordering::SeqCst);
        let done = work();
        if before % 2 == 1 || self.flights.load(Ordering::SeqCst) != before {
            self.count();
        }
        done
    }

    fn count(&self) {
        self.met.fetch_add(1, Ordering::SeqCst);
    }

    /// How often they met.
    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::SeqCst)
    }

    /// The second part is a callback of this name, which the first does not cause: it is kept from being made for a moment, so that the first can come upon it.
    pub(super) fn watch(self: &Arc<Self>, observed: &Observed, name: &'static str) {
        /// Longer than it takes to come, shorter than anybody minds.
        const MOMENT: Duration = Duration::from_millis(3);
        let meetings = self.clone();
        observed.on_call(move |event| {
            if event.name != name {
                return;
            }
            let until = Instant::now() + MOMENT;
            while !meetings.is_under_way() && Instant::now() < until {
                std::thread::yield_now();
            }
            if meetings.is_under_way() {
                meetings.count();
            }
        });
    }
}

/// Repeats `round`, which is given its number, until `met` says that the parts of it met so often.
///
/// # Errors
/// What a round says; and that they did not meet, when half of the time is over that the check may take.
pub(super) fn until_met(
    case: &Case<'_>,
    often: u64,
    met: impl Fn() -> u64,
    mut round: impl FnMut(u64) -> Result<(), Stop>,
) -> Result<u64, Stop> {
    let until = Instant::now() + case.limit() / 2;
    for number in 0.. {
        if met() >= often {
            return Ok(number);
        }
        if Instant::now() > until {
            break;
        }
        round(number)?;
    }
    let (met, seconds) = (met(), (case.limit() / 2).as_secs_f64());
    let never = if met == 0 { "never met" } else { "hardly met" };
    Err(Stop::Failed(format!(
        "what is to race {never}: {met} times of {often} in {seconds} s, so nothing is proved (a slow machine has --time-limit)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_meet_if_one_begins_while_the_other_is_under_way() {
        let meetings = Meetings::new();
        meetings.fly(|| ());
        meetings.meet(|| ());
        meetings.fly(|| ());
        assert_eq!(meetings.met(), 0);
        meetings.fly(|| meetings.meet(|| ()));
        assert_eq!(meetings.met(), 1);
        meetings.meet(|| meetings.fly(|| ()));
        assert_eq!(meetings.met(), 2);
    }
}
