//! Schedules that found something once, and canaries that must be found.
//!
//! A schedule is the string that a failing race prints. As the core changes, it no longer fits from some step on; from there the threads take turns, and the schedule
//! is one more interleaving near the one that failed.

use super::race::run;
use super::verb::Verb::{self, *};
use gmem_sim::Canary;
use shuttle::scheduler::{PctScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId};

/// Follows a schedule for as long as it fits.
struct Lenient(ReplayScheduler);

impl Lenient {
    fn new(schedule: &str) -> Self {
        let mut replay = ReplayScheduler::new_from_encoded(schedule);
        replay.set_allow_incomplete();
        Self(replay)
    }
}

impl Scheduler for Lenient {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        // In turn, so that who waits in a loop does not wait for one that never runs.
        let next = || {
            let mut ids: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
            ids.sort_unstable();
            let may_go_on = current.filter(|id| !is_yielding && ids.contains(id));
            may_go_on.or_else(|| ids.iter().copied().find(|id| Some(*id) > current)).or_else(|| ids.first().copied())
        };
        self.0.next_task(runnable, current, is_yielding).or_else(next)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

fn replay(verbs: &'static [Verb], canary: Option<Canary>, schedule: &str) {
    run(Lenient::new(schedule), verbs, canary);
}

/// A hold passed over a page that was unmapped while it took the others, and said that it had all.
#[test]
fn a_hold_of_a_range_that_loses_a_page_is_refused() {
    replay(&[Evict, Unmap, Hold], None, include_str!("schedules/hold_of_a_lost_page.txt").trim());
}

/// The end of a launch took a page from the sight of a context that had been detached, since the page belonged to the device's next context.
#[test]
fn a_launch_that_ends_leaves_the_next_context_alone() {
    replay(&[Evict, Detach], None, include_str!("schedules/close_of_a_context_that_left.txt").trim());
}

/// Planted: a protect that takes access away without waiting for the faults that began before it. One of them then mapped more than the region allows.
#[test]
fn a_protect_waits_for_a_fault_on_its_way() {
    replay(&[Fault, Protect], None, include_str!("schedules/protect_during_a_fault.txt").trim());
}

/// The same schedule finds the same defect again. This one is planted: a copy that leaves its second half out.
#[test]
#[should_panic = "instead of"]
fn a_schedule_that_found_a_torn_copy_finds_it_again() {
    replay(&[Fault, Evict], Some(Canary::TearsCopies), include_str!("schedules/torn_copy.txt").trim());
}

/// The checker finds a defect that is there, whoever goes first.
#[test]
#[should_panic = "instead of"]
fn torn_copies_are_found_by_chance_too() {
    run(PctScheduler::new_from_seed(0, 3, 400), &[Fault, Evict], Some(Canary::TearsCopies));
}
