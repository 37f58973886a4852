//! A campaign: the whole core on a simulated machine, with several threads of control interleaved by a seed, failures injected, and everything that must hold
//! checked after every step.
//!
//! A **step** is one decision of the scheduler: one thread of control goes on from one yield point (before a lock, at a callback, in the middle of a copy, before an
//! access, at a wait) to the next. After each, the core's invariants are walked, and what the tables together allow and what every page contains is checked
//! against the ledger, for the pages of which something changed (`audit` says why that suffices).
//!
//! One seed decides everything, so a run can be repeated bit for bit: [`Campaign::run`] twice gives one trace hash. A failure is told by what each thread of control did
//! and who went on at each step ([`Case`]), and [`shrink`](mod@shrink) makes that short.

mod act;
mod audit;
mod coverage;
mod draw;
mod ledger;
mod pairs;
mod quiet;
mod shortage;
pub mod shrink;
mod tell;
mod thread;

pub use act::{Act, KINDS};
pub use audit::Auditor;
pub use coverage::{Coverage, missing};
pub use draw::{Drawer, Faults, ROLES, Role};
pub use ledger::{Ledger, Page};
pub use tell::test_of;

use crate::CoreWorld;
use crate::defects::Defect;
use crate::worlds::{CAMPAIGN, CAMPAIGNS, Kind};
use gmem_hal::{Access, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot};
use gmem_sim::{Scheduler, Sim, TraceEvent, panic_text};
use pairs::Pairs;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use thread::{Shared, Source};

/// What to run.
#[derive(Clone, Copy)]
pub struct Campaign {
    /// The world.
    pub kind: Kind,
    /// What decides everything.
    pub seed: u64,
    /// From this step on nobody begins anything; those under way end.
    pub steps: u64,
    /// What goes wrong.
    pub faults: Faults,
    /// A defect that is there on purpose.
    pub defect: Option<Defect>,
    /// Look at every page after every step, which is slow: what the usual way must agree with.
    pub everything: bool,
}

impl Campaign {
    /// The standard campaign of a seed: all failures, in the world of all kinds of devices.
    pub const fn new(seed: u64) -> Self {
        Self { kind: CAMPAIGN, seed, steps: 100_000, faults: Faults::All, defect: None, everything: false }
    }

    /// The campaign of a seed in the world that the seed draws.
    pub const fn drawn(seed: u64) -> Self {
        Self { kind: CAMPAIGNS[(seed % CAMPAIGNS.len() as u64) as usize].1, ..Self::new(seed) }
    }
}

/// What each thread of control does, and who goes on at each step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Case {
    /// By thread of control.
    pub acts: Vec<Vec<Act>>,
    /// The number of the thread of control of each step. When it is over, whoever can go on goes on until it waits.
    pub schedule: Vec<u8>,
}

/// How a run ended.
pub struct Ended {
    /// What went wrong, if something did.
    pub failure: Option<Failure>,
    /// How many steps were made.
    pub steps: u64,
    /// How many acts were begun.
    pub acts: u64,
    /// How often a page was lost with a device.
    pub losses: u64,
    /// A hash of everything that happened.
    pub trace_hash: u64,
    /// What it has been through.
    pub coverage: Coverage,
    /// What was done, so that it can be done again.
    pub case: Case,
}

impl Ended {
    /// Panics if something went wrong, with what it was and the last events before it.
    pub fn expect_clean(&self) {
        if let Some(Failure { why, controls, tail }) = &self.failure {
            let tail: Vec<String> = tail.iter().skip(tail.len().saturating_sub(40)).map(|event| format!("  {event}")).collect();
            panic!("after {} steps: {why}\n{controls}{}", self.steps, tail.join("\n"));
        }
    }
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What does not hold.
    pub why: String,
    /// What each thread of control was doing.
    pub controls: String,
    /// The last events.
    pub tail: Vec<TraceEvent>,
}

/// The stream of the seed from which the schedule is drawn.
const SCHEDULE: u64 = 0x1357_9bdf;

impl Campaign {
    /// Draws and runs it.
    pub fn run(&self) -> Ended {
        let source = |me: usize| Source::Drawn(Box::new(Drawer::new(self.seed, me, ROLES[me], self.faults)));
        self.go(ROLES.len(), source, Scheduler::new(self.seed ^ SCHEDULE), self.steps)
    }

    /// Does again what a case says.
    pub fn replay(&self, case: &Case) -> Ended {
        let source = |me: usize| Source::Given(case.acts[me].clone().into_iter());
        self.go(case.acts.len(), source, Scheduler::new(self.seed ^ SCHEDULE).follow(case.schedule.clone()), u64::MAX)
    }

    /// Does the acts of a case again, by a schedule that another seed draws.
    pub fn reschedule(&self, case: &Case, seed: u64) -> Ended {
        let source = |me: usize| Source::Given(case.acts[me].clone().into_iter());
        self.go(case.acts.len(), source, Scheduler::new(seed), u64::MAX)
    }

    fn go(&self, threads: usize, source: impl Fn(usize) -> Source, scheduler: Scheduler, until: u64) -> Ended {
        let _quiet = quiet::quiet();
        let sim = Sim::new(self.seed);
        let begun = catch_unwind(AssertUnwindSafe(|| self.begin(&sim, threads, until)));
        let shared = match begun {
            Ok(shared) => Rc::new(shared),
            Err(panic) => return nothing(&sim, panic_text(&*panic)),
        };
        // Threads of control that wait for something may need a while to come to an end; what needs more than this goes round in circles.
        let limit = if until == u64::MAX { 3_000_000 } else { until.saturating_add(3_000_000) };
        let mut scheduler = scheduler.limit(limit).lost_wakes_per_mille(self.defect.map_or(0, Defect::lost_wakes_per_mille));
        for me in 0..threads {
            let (shared, source) = (shared.clone(), source(me));
            scheduler.spawn(ROLES.get(me).map_or("thread", |role| role.name()), move || shared.live(me, source));
        }
        let mut auditor = Auditor::new(&shared.world);
        if self.everything {
            auditor = auditor.always_everything();
        }
        let mut acts = Vec::new();
        let run = scheduler.run_checked(|who| {
            let mut ledger = shared.ledger.borrow_mut();
            ledger.now += 1;
            shared.pairs.borrow_mut().step(who);
            shared.pairs.borrow().acts(&mut acts);
            if shared.shortage.borrow_mut().as_mut().is_some_and(|shortage| shortage.is_over(ledger.now, &acts)) {
                *shared.shortage.borrow_mut() = None;
                shared.world.sim.end_shortage();
            }
            auditor.check(&shared.world, &mut ledger, &acts)
        });
        let failure = run.result.err().map(|stopped| (stopped.why, stopped.controls));
        finish(&sim, shared, auditor, run.report.resumes, run.schedule, failure)
    }

    /// The world, with memory mapped in every address space and every device attached to the first.
    fn begin(&self, sim: &std::sync::Arc<Sim>, threads: usize, until: u64) -> Shared {
        let mut world = self.kind.make_with(sim, self.defect.and_then(Defect::of_devices));
        if let Some(canary) = self.defect.and_then(Defect::of_host) {
            sim.plant(canary);
        }
        world.interleaved = true;
        let mut ledger = Ledger::new(&world.shape);
        for space in 0..world.spaces.len() {
            // No replica is attached yet, but only the first address space will have one at once.
            let backing = world.shape.backings[space % world.shape.backings.len()];
            for all in world.shape.runs(space).collect::<Vec<_>>() {
                let run = PageRun { count: (all.count * 3 / 4).max(1), ..all };
                ledger.begin_change(&run, false);
                assert_eq!(world.act(&Op::Map(run, Prot::RW, backing), &mut |_| {}), Outcome::Done);
                ledger.end_map(&run, Prot::RW, backing);
            }
        }
        for (device, modes) in world.shape.devices.iter().enumerate() {
            let attach = Op::Attach { space: 0, device, mode: modes[0], activate: true };
            ledger.begin_link(0, device);
            let attached = world.act(&attach, &mut |_| {}) == Outcome::Done;
            ledger.end_link(0, device, attached);
        }
        Shared {
            world,
            ledger: RefCell::new(ledger),
            pairs: RefCell::new(Pairs::new(threads)),
            faults: self.faults,
            before: RefCell::new(vec![0; threads + 1]),
            shortage: RefCell::default(),
            done: RefCell::new(vec![Vec::new(); threads]),
            until,
        }
    }
}

/// A run that failed before it began.
fn nothing(sim: &Sim, why: String) -> Ended {
    let failure = Some(Failure { why, controls: String::new(), tail: sim.trace_tail() });
    Ended { failure, steps: 0, acts: 0, losses: 0, trace_hash: sim.trace_hash(), coverage: Coverage::default(), case: Case::default() }
}

/// The end of a run: if nothing went wrong so far, every byte is looked at and everything taken apart.
fn finish(sim: &Sim, shared: Rc<Shared>, auditor: Auditor, steps: u64, schedule: Vec<u8>, failure: Option<(String, String)>) -> Ended {
    let coverage = Coverage::of(&shared.world, &shared.pairs.borrow(), &auditor);
    let acts = shared.pairs.borrow().begun();
    let losses = shared.ledger.borrow().losses;
    let case = Case { acts: shared.done.take(), schedule };
    let failure = failure.or_else(|| {
        let shared = Rc::try_unwrap(shared).unwrap_or_else(|_| panic!("every thread of control has ended"));
        let end = catch_unwind(AssertUnwindSafe(|| take_apart(shared, auditor))).unwrap_or_else(|panic| Err(panic_text(&*panic)));
        end.err().map(|why| (format!("at the end, {why}"), String::new()))
    });
    let failure = failure.map(|(why, controls)| Failure { why, controls, tail: sim.trace_tail() });
    if failure.is_some() {
        // What a broken world holds is leaked, because its destructors could not bear it; let that be little.
        sim.give_up_memory();
    }
    Ended { failure, steps, acts, losses, trace_hash: sim.trace_hash(), coverage, case }
}

/// What is lost with a device is refused as that, until somebody says that it need not be there.
fn give_up_lost(world: &CoreWorld, ledger: &mut Ledger) -> Result<(), String> {
    for space in 0..world.spaces.len() {
        for page in 0..world.shape.spaces[space].pages {
            if !ledger.is_lost(space, page as usize) {
                continue;
            }
            let spot = Spot { space, page, offset: 0, len: 1 };
            let loaded = world.act(&Op::CpuRead(spot), &mut |_| {});
            if !matches!(loaded, Outcome::Refused(Refusal::Failed | Refusal::Invalid)) {
                return Err(format!("page {page} of address space {space} is lost, and a load of it ended as {loaded:?}"));
            }
            let run = PageRun { space, first: page, count: 1 };
            let since = ledger.begin_discard(&run);
            let discarded = world.act(&Op::Discard(run), &mut |_| {});
            if discarded != Outcome::Done {
                return Err(format!("page {page} of address space {space} is lost, and cannot be discarded: {discarded:?}"));
            }
            ledger.came_back(space, page as usize);
            ledger.end_discard(&run, since, true)?;
        }
    }
    Ok(())
}

/// Nothing fails any more: every byte must be there, and everything must come apart.
fn take_apart(shared: Shared, auditor: Auditor) -> Result<(), String> {
    let Shared { world, ledger, .. } = shared;
    let mut ledger = ledger.into_inner();
    world.sim.clear_failures();
    for member in world.members.iter().map(crate::Member::device).filter(|device| device.is_dead()) {
        member.report_lost();
        member.revive();
    }
    let mut auditor = auditor.always_everything();
    let mut look = |ledger: &mut Ledger| {
        world.core.verify().map_err(|violation| violation.0)?;
        auditor.check(&world, ledger, &[])
    };
    look(&mut ledger)?;
    give_up_lost(&world, &mut ledger)?;
    // Those who share a table go before the one whose it is.
    for share in [true, false] {
        for (device, modes) in world.shape.devices.iter().enumerate().filter(|(_, modes)| modes.contains(&Mode::Share) == share) {
            for space in 0..world.spaces.len() {
                let detached = world.act(&Op::Detach(space, device), &mut |_| {});
                if !matches!(detached, Outcome::Done | Outcome::Refused(Refusal::Invalid)) {
                    return Err(format!("device {device} ({modes:?}) cannot be detached from address space {space}: {detached:?}"));
                }
            }
        }
    }
    look(&mut ledger)?;
    for space in (0..world.spaces.len()).filter(|space| world.shape.spaces[*space].cpu_visible) {
        for page in 0..world.shape.spaces[space].pages {
            if !ledger.pages[space][page as usize].is_mapped() {
                continue;
            }
            let spot = Spot { space, page, offset: 0, len: world.shape.size_of(space, page).bytes() };
            if !ledger.page(&spot).may(Access::Read).is() {
                let run = PageRun { space, first: page, count: 1 };
                let readable = world.act(&Op::Protect(run, Prot::READ), &mut |_| {});
                if readable != Outcome::Done {
                    return Err(format!("page {page} of address space {space} cannot be made readable: {readable:?}"));
                }
                ledger.end_protect(&run, Prot::READ);
            }
            match world.act(&Op::CpuRead(spot), &mut |_| {}) {
                Outcome::Loaded(bytes) => ledger.load(&spot, &bytes)?,
                other => return Err(format!("page {page} of address space {space} cannot be read: {other:?}")),
            }
        }
    }
    world.tear_down();
    Ok(())
}
