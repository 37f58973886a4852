//! Interleaving threads of control by a seed.

use super::coroutine::{Control, Suspend};
use super::{Blocked, HELD, Reason, WOKEN};
use crate::Rng;
use std::any::Any;
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

/// A run that ended before every thread of control had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// What went wrong: the text of a panic, a deadlock, a livelock, or what the check after a step answered.
    pub why: String,
    /// What each thread of control was doing, a line each.
    pub controls: String,
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
    lost_wakes_per_mille: u16,
    /// Who goes on at each step, as far as that is given.
    given: Vec<u8>,
    /// Who went on at each step.
    taken: Vec<u8>,
}

/// At most as many threads of control as a word has bits.
const MOST: usize = 64;

impl Scheduler {
    /// An empty scheduler.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 0x5c4e);
        // Runs differ in how long a thread of control goes on undisturbed: some bugs need many switches, others two at the right places.
        let stay_per_mille = [0, 300, 700, 900][rng.index(4)];
        // An early return finds who does not look again, and hides who was not woken.
        let early_per_mille = [0, 20][rng.index(2)];
        let (given, taken) = (Vec::new(), Vec::new());
        Self { rng, tasks: Vec::new(), limit: 10_000_000, stay_per_mille, early_per_mille, lost_wakes_per_mille: 0, given, taken }
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

    /// A defect on purpose: so often in a thousand a wake-up is lost. None if not set.
    pub fn lost_wakes_per_mille(mut self, per_mille: u16) -> Self {
        self.lost_wakes_per_mille = per_mille;
        self
    }

    /// Goes by a recorded schedule as far as it goes: the number of the thread of control for each step, in the order of spawning, from zero. A step that
    /// is not possible is passed over; after the last one, whoever can go on goes on until it waits.
    pub fn follow(mut self, schedule: Vec<u8>) -> Self {
        self.given = schedule;
        self.given.reverse();
        self.stay_per_mille = 1000;
        self.early_per_mille = 0;
        self
    }

    /// Adds a thread of control, which starts when [`Scheduler::run`] first chooses it.
    pub fn spawn(&mut self, name: impl Into<String>, body: impl FnOnce() + 'static) {
        assert!(self.tasks.len() < MOST, "at most {MOST} threads of control");
        let id = self.tasks.len() as u32 + 1;
        let control = Control::new(id, body);
        self.tasks.push(Task { name: name.into(), control, state: State::Ready(Reason::Step) });
    }

    /// Runs until every thread of control has ended.
    ///
    /// # Panics
    /// With what each one does and waits for, if all that are left wait (a deadlock), or if the limit is reached. A panic of a thread of
    /// control is passed on.
    pub fn run(self) -> Report {
        let run = self.run_checked(|_| Ok(()));
        if let Err(Stopped { why, controls }) = run.result {
            eprintln!("threads of control when it failed, after {} resumes:\n{controls}", run.report.resumes);
            // The panic of a thread of control has told its text already.
            resume_unwind(Box::new(why));
        }
        run.report
    }

    /// Runs until every thread of control has ended, or `after`, which is called after each step with who made it, answers what is wrong. Panics of threads of control end it too.
    pub fn run_checked(mut self, mut after: impl FnMut(usize) -> Result<(), String>) -> Run {
        let mut report = Report::default();
        let ended = catch_unwind(AssertUnwindSafe(|| self.run_all(&mut report, &mut after)));
        let result = ended.unwrap_or_else(|panic| Err(text(&*panic))).map_err(|why| Stopped { why, controls: self.dump() });
        if result.is_err() {
            // Unwinding the stacks of the others would run destructors that meet a world broken in the middle: leak them instead.
            std::mem::forget(self.tasks);
            WOKEN.take();
            HELD.take();
        }
        Run { report, schedule: self.taken, result }
    }

    fn run_all(&mut self, report: &mut Report, after: &mut impl FnMut(usize) -> Result<(), String>) -> Result<(), String> {
        let mut last = usize::MAX;
        while let Some(next) = self.choose(last, report) {
            report.resumes += 1;
            report.switches += u64::from(next != last);
            assert!(report.resumes <= self.limit, "no end after {} resumes: a livelock\n{}", self.limit, self.dump());
            self.taken.push(next as u8);
            let task = &mut self.tasks[next];
            task.state = match task.control.resume() {
                Some(Suspend::Ready(reason)) => State::Ready(reason),
                Some(Suspend::Blocked(on)) => State::Blocked(on),
                None => State::Done,
            };
            last = next;
            self.wake_all();
            after(next)?;
        }
        Ok(())
    }

    fn wake_all(&mut self) {
        WOKEN.with_borrow_mut(|woken| {
            if woken.is_empty() {
                return;
            }
            if self.lost_wakes_per_mille > 0 && self.rng.chance(self.lost_wakes_per_mille) {
                woken.clear();
            }
            for task in &mut self.tasks {
                if matches!(&task.state, State::Blocked(on) if woken.contains(&on.key())) {
                    task.state = State::Ready(Reason::Step);
                }
            }
            woken.clear();
        });
    }

    /// The threads of control in a state, a bit each.
    fn those(&self, f: impl Fn(&State) -> bool) -> u64 {
        self.tasks.iter().enumerate().filter(|(_, task)| f(&task.state)).fold(0, |bits, (i, _)| bits | 1 << i)
    }

    /// Who goes on; `None` when all have ended.
    fn choose(&mut self, last: usize, report: &mut Report) -> Option<usize> {
        let ready = self.those(|s| matches!(s, State::Ready(_)));
        let waiting = self.those(|s| matches!(s, State::Blocked(Blocked::Event { .. })));
        if ready == 0 {
            let all_done = self.tasks.iter().all(|t| matches!(t.state, State::Done));
            assert!(all_done, "deadlock: every thread of control waits\n{}", self.dump());
            return None;
        }
        while let Some(given) = self.given.pop() {
            if (ready | waiting) & 1u64.checked_shl(given.into()).unwrap_or(0) != 0 {
                report.early_returns += u64::from(waiting & 1 << given != 0);
                return Some(given.into());
            }
        }
        // An early return is only given while someone else can go on: else it would hide a deadlock.
        if waiting != 0 && self.rng.chance(self.early_per_mille) {
            report.early_returns += 1;
            return Some(self.one_of(waiting));
        }
        if last < MOST && ready & 1 << last != 0 && self.rng.chance(self.stay_per_mille) {
            return Some(last);
        }
        Some(self.one_of(ready))
    }

    /// One of the bits, drawn.
    fn one_of(&mut self, bits: u64) -> usize {
        let skip = self.rng.index(bits.count_ones() as usize);
        let left = (0..skip).fold(bits, |bits, _| bits & (bits - 1));
        left.trailing_zeros() as usize
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

/// What became of a run, and who went on at each of its steps, for [`Scheduler::follow`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The figures.
    pub report: Report,
    /// The number of the thread of control at each step.
    pub schedule: Vec<u8>,
    /// Whether it ended as it should.
    pub result: Result<(), Stopped>,
}

/// What a panic said.
pub fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_else(|| "a panic without a text".into())
}
