//! A campaign: many rounds of many tests, in many worlds.

use super::block::{Block, ITERATIONS};
use super::defect::Defect;
use super::plan::{self, Kind, Plan};
use super::program::{PLACES, Test};
use super::report::{Meanwhile, Report, Tally};
use super::rng::Rng;
use super::round::Round;
use super::watchdog::Watchdog;
use super::world::World;
use gmem::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The fewest rounds that a world is used for: starting devices takes longer than a round.
const ROUNDS_OF_A_WORLD: u64 = 6;

/// The most devices of a world.
pub const DEVICES: usize = 4;

/// What to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The tests.
    pub tests: Vec<&'static Test>,
    /// How many rounds of each.
    pub rounds: u32,
    /// How many devices beside the CPU; drawn from one to four for each world if nothing is said.
    pub devices: Option<usize>,
    /// Where the draws begin. The same seed draws the same worlds and plans; what participants then do is up to the machine.
    pub seed: u64,
    /// Breaks the devices' drivers, all of which are exclusive ones then, so that forbidden outcomes must be seen. The campaign ends with the first: what is lost may
    /// keep participants waiting for ever.
    pub defect: Option<Defect>,
    /// How long a round, or the making of a world, may take.
    pub limit: Duration,
}

/// Why a campaign ended early.
#[derive(Debug)]
pub enum Trouble {
    /// gmem refused something, or a launch failed: what was under way, and the error.
    Gmem(String, Error),
    /// The system has no memory or no thread left.
    System(std::io::Error),
    /// A step took too long: who waits for what. Its devices were ended.
    Stuck(String),
    /// Afterwards an invariant of gmem did not hold.
    Invariant(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gmem(what, error) => write!(f, "{what}: {error}"),
            Self::System(error) => write!(f, "the system refuses memory or a thread: {error}"),
            Self::Stuck(portrait) => f.write_str(portrait),
            Self::Invariant(violation) => write!(f, "an invariant does not hold after the rounds of a world: {violation}"),
        }
    }
}

impl std::error::Error for Trouble {}

/// Runs a campaign, and calls `advance` after every round.
///
/// # Errors
/// [`Trouble`]. A forbidden outcome is none: it is in the report.
pub fn run(campaign: &Campaign, advance: &dyn Fn()) -> Result<Report, Trouble> {
    let began = Instant::now();
    let block = Arc::new(Block::new().map_err(Trouble::System)?);
    let dog = Watchdog::new(block.clone(), campaign.limit).map_err(Trouble::System)?;
    let mut run = Run { campaign, block: &block, dog: &dog, meanwhile: Meanwhile::default() };
    let mut tallies: Vec<_> = campaign.tests.iter().copied().map(Tally::new).collect();
    let count = tallies.len() as u64;
    let (rounds, of_a_world) = (count * u64::from(campaign.rounds), count.max(ROUNDS_OF_A_WORLD));
    let late = || dog.bark().map(Trouble::Stuck);
    // Says whether a planted defect was found.
    let mut part = |first| {
        let world = run.open(first)?;
        let mut found = false;
        for number in first..rounds.min(first + of_a_world) {
            let forbidden = run.round(&world, number, &mut tallies[(number % count) as usize])?;
            // Participants that were told to stop have seen nothing.
            late().map_or(Ok(()), Err)?;
            advance();
            found = forbidden && campaign.defect.is_some();
            if found {
                break;
            }
        }
        run.close(world)?;
        Ok(found)
    };
    let result = (0..rounds).step_by(of_a_world as usize).map(&mut part).find(|ended| !matches!(ended, Ok(false))).unwrap_or(Ok(false));
    let meanwhile = run.meanwhile;
    // Whatever else went wrong then went wrong because the devices were ended.
    late().map_or(result, Err)?;
    Ok(Report::new(campaign.seed, tallies, meanwhile, began.elapsed().as_secs_f64()))
}

/// A campaign under way.
struct Run<'a> {
    campaign: &'a Campaign,
    block: &'a Block,
    dog: &'a Watchdog,
    meanwhile: Meanwhile,
}

impl Run<'_> {
    /// The world whose first round has this number.
    fn open(&self, first: u64) -> Result<World, Trouble> {
        let _step = self.dog.step(format!("making the world of round {first}"));
        let mut rng = Rng::stream(self.campaign.seed, 2 * first + 1);
        let count = self.campaign.devices.unwrap_or_else(|| 1 + rng.below(DEVICES as u64) as usize).clamp(1, DEVICES);
        let kinds = match self.campaign.defect {
            Some(_) => vec![Kind::Exclusive; count],
            None => plan::devices(&mut rng, count),
        };
        let world = World::new(&kinds, plan::largest(&mut rng, &kinds), self.campaign.defect);
        let world = world.map_err(|e| Trouble::Gmem(format!("making the world of round {first}, devices {kinds:?}"), e))?;
        self.dog.set_processes(world.processes());
        Ok(world)
    }

    /// Says whether an outcome was forbidden.
    fn round(&mut self, world: &World, number: u64, tally: &mut Tally) -> Result<bool, Trouble> {
        let mut rng = Rng::stream(self.campaign.seed, 2 * number);
        let test = tally.test;
        let kinds = world.kinds();
        let plan = Plan::draw(&mut rng, test, &kinds, world.largest, self.campaign.defect.is_some());
        let place = || format!("round {number} of {}, {}", test.name, plan.text(&kinds));
        let _step = self.dog.step(place());
        let tag = (number as u32).wrapping_mul((ITERATIONS * PLACES) as u32);
        let round = Round { world, block: self.block, test, verdicts: &tally.verdicts, plan: &plan, tag };
        let (judgement, moved) = round.run(&mut rng).map_err(|e| Trouble::Gmem(format!("{}; {}", place(), world.condition()), e))?;
        self.meanwhile.disturbances += moved;
        let forbidden = judgement.forbidden.is_some();
        tally.add(judgement, plan.traffic, place);
        Ok(forbidden)
    }

    fn close(&mut self, world: World) -> Result<(), Trouble> {
        let _step = self.dog.step("ending a world".into());
        let stats = world.gmem.stats();
        self.meanwhile.cpu_faults += stats.cpu_faults;
        self.meanwhile.device_faults += stats.device_faults;
        self.meanwhile.migrations += stats.migrations;
        self.meanwhile.evictions += stats.evictions;
        // A driver that is broken may have broken more.
        if self.campaign.defect.is_none() {
            crate::world::eventually(|| world.gmem.verify()).map_err(Trouble::Invariant)?;
        }
        self.dog.set_processes(Vec::new());
        drop(world);
        Ok(())
    }
}
