//! Random operations against the flat byte model, on accelerators whose MMUs, faults and memory are real.
//!
//! The same operations and the same model as on the simulated machine. `GMEM_RANDOM_OPS`, `GMEM_RANDOM_SEEDS` and `GMEM_RANDOM_FIRST` ask for more,
//! and for others.

mod common;
mod machine;

use common::watched;
use gmem_sim::random::{Generator, Model, Op, Tolerance, Weights};
use machine::Machine;

/// What the project promises.
const OPERATIONS: u64 = 1000;

/// A look at every byte costs as much as an operation per page; this many operations lie between two.
const SWEEP_EVERY: u64 = 250;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn step(machine: &mut Machine, model: &mut Model, op: &Op) -> Result<(), String> {
    if let Op::CpuRead(spot) | Op::DevRead(_, spot) = op {
        machine.expect(model.bytes(spot));
    }
    let outcome = machine.apply(op);
    model.judge(op, &outcome, Tolerance::default()).and_then(|()| machine.verify()).map_err(|why| format!("{why} ({outcome:?})"))
}

fn explore(seed: u64, operations: u64) {
    let shape = machine::shape();
    let mut machine = Machine::new(&shape);
    let mut model = Model::new(shape);
    // The facade switches contexts by itself, with each launch. So many maps and prefetches that the devices' memory is too small for what is there.
    let weights = Weights { switch: 0, map: 10, unmap: 1, attach: 8, detach: 3, prefetch: 12, ..Weights::default() };
    let mut generator = Generator::new(seed, weights);
    let mut done: Vec<Op> = Vec::new();
    for drawn in 1..=operations {
        let sweep = if drawn % SWEEP_EVERY == 0 || drawn == operations { model.sweep() } else { Vec::new() };
        for op in sweep.into_iter().chain([generator.draw(&model)]) {
            done.push(op);
            if let Err(why) = step(&mut machine, &mut model, &op) {
                for op in &done[done.len().saturating_sub(30)..] {
                    eprintln!("  {op:?}");
                }
                panic!("seed {seed}, operation {drawn}, {op:?}: {why}");
            }
        }
    }
    let stats = machine.stats();
    eprintln!(
        "seed {seed}: {operations} operations drawn, {} done with the looks at every byte; {} migrations, {} evictions, {} of them clean, {} direct \
         reclaims, {} replicas entered, faults {} by the CPU and {} by devices",
        done.len(),
        stats.migrations,
        stats.evictions,
        stats.clean_evictions,
        stats.direct_reclaims,
        stats.replica_enters,
        stats.cpu_faults,
        stats.device_faults
    );
    assert!(stats.evictions > 0 && stats.migrations > 100 && stats.replica_enters > 0, "nothing was fought over: {stats:#?}");
}

#[test]
fn memory_contains_what_was_written() {
    let first = number("GMEM_RANDOM_FIRST", 1);
    for seed in first..first + number("GMEM_RANDOM_SEEDS", 1) {
        watched(|| explore(seed, number("GMEM_RANDOM_OPS", OPERATIONS)));
    }
}
