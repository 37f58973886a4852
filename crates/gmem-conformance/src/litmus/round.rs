//! One round: map, clear, run, collect, judge, unmap.

use super::block::Block;
use super::disturb::disturb;
use super::judge::{self, Judgement};
use super::model::Verdicts;
use super::participant::{CORES, LITMUS, Task};
use super::plan::{Nearness, Plan, Role};
use super::program::{Repetition, Test};
use super::rng::Rng;
use super::world::{Unit, World};
use gmem::{Args, Error, Region};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// The alignment and length of a word.
const WORD: u64 = 8;
/// How many bytes a line of a cache has, at most of the processors at hand.
const LINE: u64 = 64;

/// What a round is run in and with.
pub(crate) struct Round<'a> {
    pub(crate) world: &'a World,
    pub(crate) block: &'a Block,
    pub(crate) test: &'a Test,
    pub(crate) verdicts: &'a Verdicts,
    pub(crate) plan: &'a Plan,
    /// The tag of its first word.
    pub(crate) tag: u32,
}

impl Round<'_> {
    /// Runs it. Returns what was seen and how many pages were moved under the participants.
    ///
    /// # Errors
    /// A region could not be mapped, or a launch failed.
    pub(crate) fn run(&self, rng: &mut Rng) -> Result<(Judgement, u64), Error> {
        let Self { world, plan, .. } = self;
        world.limit(plan);
        let map = |r: &super::plan::RegionPlan| {
            world.space.region().page_size(r.size).backing(r.backing).delivery(r.delivery).map(r.pages * r.size.bytes())
        };
        let regions = plan.regions.iter().map(map).collect::<Result<Vec<_>, _>>()?;
        self.prepare(rng, &regions);
        self.one(plan.clears, Task::Clear)?;
        let disturbance = Rng::stream(rng.below(u64::MAX), 0);
        let (stop, block) = (AtomicBool::new(false), self.block);
        let moved = std::thread::scope(|threads| {
            let (stop, regions) = (&stop, &regions);
            let disturber = plan.disturbed.then(|| threads.spawn(move || disturb(world, regions, disturbance, stop)));
            let result = self.all();
            stop.store(true, Ordering::Relaxed);
            let moved = disturber.map_or(Ok(0), std::thread::ScopedJoinHandle::join);
            result.map(|()| moved.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        self.one(plan.collects, Task::Collect)?;
        Ok((judge::judge(block, self.test, self.verdicts), moved))
    }

    /// Tells the participants in the block what to do, and where.
    fn prepare(&self, rng: &mut Rng, regions: &[Region]) {
        let Self { block, test, plan, .. } = self;
        let counting = test.repetition == Repetition::Counting;
        let set = |at: &std::sync::atomic::AtomicU32, value: usize| at.store(value as u32, Ordering::Relaxed);
        for (at, value) in [
            (&block.iterations, plan.iterations),
            (&block.participants, test.programs.len()),
            (&block.places, test.places()),
            (&block.stride, plan.stride as usize),
            (&block.pause, plan.pause as usize),
            (&block.gap, plan.gap as usize),
            (&block.tag, self.tag as usize),
            (&block.tag_step, if counting { 0 } else { super::program::PLACES }),
            (&block.arrived, 0),
            (&block.meetings, 0),
            (&block.noticed, 0),
        ] {
            set(at, value);
        }
        for (participant, line) in block.lines.iter().enumerate() {
            line.phase.store(super::block::phase::NOT_BEGUN, Ordering::Relaxed);
            line.iteration.store(0, Ordering::Relaxed);
            let program = test.programs.get(participant).copied().unwrap_or_default();
            for (i, code) in block.programs[participant].iter().enumerate() {
                code.store(program.get(i).map_or(0, |op| op.encode()), Ordering::Relaxed);
            }
        }
        let mut used = HashSet::new();
        for i in 0..plan.iterations {
            for place in 0..test.places() {
                let address = match (i, place) {
                    (1.., _) if counting => block.addresses[0][place].load(Ordering::Relaxed),
                    _ => self.word(rng, regions, &mut used, i, place),
                };
                block.addresses[i][place].store(address, Ordering::Relaxed);
            }
        }
        // Every process that looks is started, or told, after this.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// A word for a place that no other has, near the first word of this iteration if they are to be near each other.
    fn word(&self, rng: &mut Rng, regions: &[Region], used: &mut HashSet<u64>, i: usize, place: usize) -> u64 {
        let home = self.plan.homes[place];
        let region = regions[home].range();
        let neighbour = (0..place).find(|other| self.plan.homes[*other] == home);
        let neighbour = neighbour.map(|other| self.block.addresses[i][other].load(Ordering::Relaxed));
        let near = match self.plan.nearness {
            Nearness::Anywhere => None,
            Nearness::OnePage => Some(self.plan.regions[home].size.bytes()),
            Nearness::OneLine => Some(LINE),
        };
        // Near first. Where all is taken, half of the region is free.
        for attempt in 0u32.. {
            let (start, len) = match (neighbour, near) {
                (Some(at), Some(len)) if attempt < 16 => (at - at % len, len),
                _ => (region.start().get(), region.len().get()),
            };
            let address = start + rng.below(len / WORD) * WORD;
            if used.insert(address) {
                return address;
            }
        }
        unreachable!("a region has twice the words of a round")
    }

    /// Has one thread or core do a task alone.
    fn one(&self, role: Role, task: Task) -> Result<(), Error> {
        match role {
            // SAFETY: the addresses in the block are words of regions that live until the round is judged, and only atomics touch them.
            Role::Cpu => unsafe { task.run(self.block) },
            Role::Core { device, .. } => launch(&self.world.units[device], self.block, [task, Task::Idle])?,
        }
        Ok(())
    }

    /// Runs all participants at once, and waits for them.
    fn all(&self) -> Result<(), Error> {
        let Self { world, block, plan, .. } = self;
        let on = |device: usize| {
            let mut tasks = [Task::Idle; CORES];
            for (participant, role) in plan.roles.iter().enumerate() {
                if let Role::Core { device: its, core } = role
                    && *its == device
                {
                    tasks[*core] = Task::Take(participant);
                }
            }
            tasks
        };
        std::thread::scope(|threads| {
            let mut launches = Vec::new();
            for (device, unit) in world.units.iter().enumerate() {
                let tasks = on(device);
                if tasks != [Task::Idle; CORES] {
                    launches.push(threads.spawn(move || {
                        let result = launch(unit, block, tasks);
                        if result.is_err() {
                            // The others would wait for it for ever.
                            block.stop.store(1, Ordering::SeqCst);
                        }
                        result
                    }));
                }
            }
            for (participant, _) in plan.roles.iter().enumerate().filter(|(_, role)| **role == Role::Cpu) {
                // SAFETY: as in `one`; the regions outlive the scope.
                threads.spawn(move || unsafe { Task::Take(participant).run(block) });
            }
            let ends: Vec<_> = launches.into_iter().map(|launch| launch.join()).collect();
            ends.into_iter().try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

/// Runs tasks on the cores of a device, and waits for them.
fn launch(unit: &Unit, block: &Block, tasks: [Task; CORES]) -> Result<(), Error> {
    let args = block.words().into_iter().chain(tasks.map(Task::encode)).fold(Args::new(), |args, word| args.number(word));
    // SAFETY: `LITMUS` takes these numbers; the addresses in the block are words of regions that live until the round is judged, and only atomics touch them.
    unsafe { unit.context.run(&LITMUS, args) }
}
