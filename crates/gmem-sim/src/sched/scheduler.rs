//! Interleaving threads of control by a seed.

use super::coroutine::{Control, Suspend};
use super::{Blocked, HELD, Reason, WOKEN};
use crate::Rng;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// How a run went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// How often a thread of control was resumed.
    pub resumes: u64,
    /// How often that was another one than before.
    pub switches: u64,
    /// How often one that waited was resumed although nothing woke it, as the contract of events allows.
    pub early_returns: u64,
}

enum State {
    Ready(Reason),
    Blocked(Blocked),
    Done,
}

struct Task {
    name: String,
    control: Control,
    state: State,
}

/// Runs several threads of control on this thread, one at a time. A seed chooses at each [`super::yield_point`] who goes on.
pub struct Scheduler {
    rng: Rng,
    tasks: Vec<Task>,
    limit: u64,
    stay_per_mille: u16,
    early_per_mille: u16,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 0x5c4e);
        // Runs differ in how long a thread of control goes on undisturbed: some bugs need many switches, others two at the right places.
        let stay_per_mille = [0, 300, 700, 900][rng.index(4)];
        // An early return finds who does not look again, and hides who was not woken.
        let early_per_mille = [0, 20][rng.index(2)];
        Self { rng, tasks: Vec::new(), limit: 10_000_000, stay_per_mille, early_per_mille }
    }

    /// A run that resumes threads of control more than `resumes` times panics: it makes no progress. Ten million if not set.
    pub fn limit(mut self, resumes: u64) -> Self {
        self.limit = resumes;
        self
    }

    /// How often in a thousand, at a yield point, nobody else gets control. Drawn from the seed if not set.
    pub fn stay_per_mille(mut self, per_mille: u16) -> Self {
        self.stay_per_mille = per_mille;
        self
    }

    /// How often in a thousand resumes a wait returns early. Never or 20, drawn from the seed, if not set.
    pub fn early_per_mille(mut self, per_mille: u16) -> Self {
        self.early_per_mille = per_mille;
        self
    }

    /// Adds a thread of control, which starts when [`Scheduler::run`] first chooses it.
    pub fn spawn(&mut self, name: impl Into<String>, body: impl FnOnce() + 'static) {
        let id = self.tasks.len() as u32 + 1;
        let control = Control::new(id, body);
        self.tasks.push(Task { name: name.into(), control, state: State::Ready(Reason::Step) });
    }

    /// Runs until every thread of control has ended.
    ///
    /// # Panics
    /// With what each one does and waits for, if all that are left wait (a deadlock), or if the limit is reached. A panic of a thread of
    /// control is passed on.
    pub fn run(mut self) -> Report {
        let mut report = Report::default();
        let result = catch_unwind(AssertUnwindSafe(|| self.run_all(&mut report)));
        if let Err(panic) = result {
            eprintln!("threads of control when it failed, after {} resumes:\n{}", report.resumes, self.dump());
            // Unwinding the stacks of the others would run destructors that meet a world broken in the middle: leak them instead.
            std::mem::forget(self.tasks);
            WOKEN.take();
            HELD.take();
            resume_unwind(panic);
        }
        report
    }

    fn run_all(&mut self, report: &mut Report) {
        let mut last = usize::MAX;
        while let Some(next) = self.choose(last, report) {
            report.resumes += 1;
            report.switches += u64::from(next != last);
            assert!(report.resumes <= self.limit, "no end after {} resumes: a livelock\n{}", self.limit, self.dump());
            let task = &mut self.tasks[next];
            task.state = match task.control.resume() {
                Some(Suspend::Ready(reason)) => State::Ready(reason),
                Some(Suspend::Blocked(on)) => State::Blocked(on),
                None => State::Done,
            };
            last = next;
            self.wake_all();
        }
    }

    fn wake_all(&mut self) {
        let woken = WOKEN.take();
        for task in &mut self.tasks {
            if matches!(&task.state, State::Blocked(on) if woken.contains(&on.key())) {
                task.state = State::Ready(Reason::Step);
            }
        }
    }

    /// Who goes on; `None` when all have ended.
    fn choose(&mut self, last: usize, report: &mut Report) -> Option<usize> {
        let with = |tasks: &[Task], f: fn(&State) -> bool| -> Vec<usize> { (0..tasks.len()).filter(|i| f(&tasks[*i].state)).collect() };
        let ready = with(&self.tasks, |s| matches!(s, State::Ready(_)));
        let waiting = with(&self.tasks, |s| matches!(s, State::Blocked(Blocked::Event { .. })));
        if ready.is_empty() {
            let all_done = self.tasks.iter().all(|t| matches!(t.state, State::Done));
            assert!(all_done, "deadlock: every thread of control waits\n{}", self.dump());
            return None;
        }
        // An early return is only given while someone else can go on: else it would hide a deadlock.
        if !waiting.is_empty() && self.rng.chance(self.early_per_mille) {
            report.early_returns += 1;
            return Some(waiting[self.rng.index(waiting.len())]);
        }
        if ready.contains(&last) && self.rng.chance(self.stay_per_mille) {
            return Some(last);
        }
        Some(ready[self.rng.index(ready.len())])
    }

    fn dump(&self) -> String {
        let mut text = String::new();
        for (i, task) in self.tasks.iter().enumerate() {
            let state = match &task.state {
                State::Ready(reason) => format!("can go on after {reason:?}"),
                State::Blocked(on) => on.to_string(),
                State::Done => "has ended".into(),
            };
            writeln!(text, "  control {} {:?} {state}", i + 1, task.name).expect("writing to a string does not fail");
        }
        text
    }
}
