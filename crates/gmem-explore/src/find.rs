//! Looking for a failure by many seeds, and telling it in few operations.

use crate::CoreWorld;
use crate::worlds::{Kind, STANDARD};
use gmem_sim::Sim;
use gmem_sim::random::{Generator, Op, Tolerance, Weights, explore, replay, shrink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// One kind of run.
pub struct Hunt {
    /// The world.
    pub kind: Kind,
    /// How often each operation is drawn.
    pub weights: Weights,
    /// How many operations.
    pub steps: usize,
    /// Which refusals are excused.
    pub tolerance: Tolerance,
    /// Sets failures up before the first operation.
    pub prepare: Box<dyn Fn(&CoreWorld, u64)>,
}

impl Default for Hunt {
    fn default() -> Self {
        Self { kind: STANDARD, weights: Weights::default(), steps: 2000, tolerance: Tolerance::default(), prepare: Box::new(|_, _| {}) }
    }
}

/// How many seeds a run takes: more with `GMEM_SIM_SEEDS`, others with `GMEM_SIM_FIRST`.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let first = number("GMEM_SIM_FIRST").unwrap_or(0);
    first..first + number("GMEM_SIM_SEEDS").unwrap_or(usual)
}

impl Hunt {
    /// Runs every seed.
    ///
    /// # Panics
    /// If a seed fails; before, the failure is shrunk and told with the last events before it.
    pub fn run(&self, seeds: std::ops::Range<u64>) {
        for seed in seeds {
            let mut ops = Vec::new();
            let failed = catch_unwind(AssertUnwindSafe(|| self.explore(seed, &mut ops)));
            let why = match failed {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(panic) => text(&*panic),
            };
            eprintln!("{}, seed {seed} failed after {} operations: {why}", self.kind.name, ops.len());
            self.tell(seed, ops);
            panic!("seed {seed}: {why}");
        }
    }

    fn explore(&self, seed: u64, ops: &mut Vec<Op>) -> Result<(), String> {
        let mut world = self.kind.make(&Sim::new(seed));
        (self.prepare)(&world, seed);
        let mut generator = Generator::new(seed, self.weights);
        let result = explore(&mut world, &self.kind.shape(), &mut generator, self.steps, self.tolerance, ops);
        result.map_err(|failure| failure.to_string())?;
        world.sim.clear_failures();
        world.tear_down();
        Ok(())
    }

    /// Runs a list of operations again. Answers the machine, and what went wrong.
    fn replay(&self, seed: u64, ops: &[Op]) -> (Arc<Sim>, Result<(), String>) {
        let mut world = self.kind.make(&Sim::new(seed));
        let sim = world.sim.clone();
        let result = catch_unwind(AssertUnwindSafe(|| {
            (self.prepare)(&world, seed);
            let result = replay(&mut world, &self.kind.shape(), ops, self.tolerance).map_err(|failure| failure.to_string());
            result.map(|_| {
                world.sim.clear_failures();
                world.tear_down();
            })
        }));
        (sim, result.unwrap_or_else(|panic| Err(text(&*panic))))
    }

    fn tell(&self, seed: u64, ops: Vec<Op>) {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let short = shrink(ops, |ops| self.replay(seed, ops).1.is_err());
        let (sim, result) = self.replay(seed, &short);
        std::panic::set_hook(hook);
        eprintln!("in {} operations: {}", short.len(), result.err().unwrap_or_default());
        short.iter().for_each(|op| eprintln!("    {op:?}"));
        let tail = sim.trace_tail();
        tail.iter()
            .skip(tail.len().saturating_sub(std::env::var("GMEM_SIM_TAIL").ok().and_then(|s| s.parse().ok()).unwrap_or(40)))
            .for_each(|event| eprintln!("  {event}"));
    }
}

/// What a panic said.
pub fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_else(|| "a panic without a text".into())
}
