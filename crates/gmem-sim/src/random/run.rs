//! Running operations against a world and its model.

use super::generate::Generator;
use super::model::{Model, Tolerance};
use super::ops::{Op, Outcome, Shape};
use std::fmt;

/// Something operations can be done to.
pub trait World {
    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Outcome;

    /// Checks the world's own invariants; called after every operation.
    fn verify(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A world did what it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// How many operations went well before.
    pub step: usize,
    /// The operation.
    pub op: Op,
    /// How it ended.
    pub outcome: Outcome,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, op, why, .. } = self;
        write!(f, "step {step}, {op:?}: {why}")
    }
}

impl std::error::Error for Failure {}

fn step(world: &mut impl World, model: &mut Model, op: &Op, tolerance: Tolerance, step: usize) -> Result<(), Box<Failure>> {
    let outcome = world.apply(op);
    let judged = model.judge(op, &outcome, tolerance).and_then(|()| world.verify().map_err(|why| format!("afterwards, {why}")));
    judged.map_err(|why| Box::new(Failure { step, op: *op, outcome, why }))
}

/// Runs `ops` on a fresh world, and looks at every byte at the end. Answers the model as it is then.
pub fn replay(world: &mut impl World, shape: &Shape, ops: &[Op], tolerance: Tolerance) -> Result<Model, Box<Failure>> {
    let mut model = Model::new(shape.clone());
    for (i, op) in ops.iter().enumerate() {
        step(world, &mut model, op, tolerance, i)?;
    }
    for op in model.sweep() {
        step(world, &mut model, &op, tolerance, ops.len())?;
    }
    Ok(model)
}

/// Draws and runs `steps` operations on a fresh world, looking at every byte now and then and before the last.
///
/// Each operation is added to `ops` before it is done, so that the list is there also when one panics; the last one is the one that failed.
pub fn explore(
    world: &mut impl World,
    shape: &Shape,
    generator: &mut Generator,
    steps: usize,
    tolerance: Tolerance,
    ops: &mut Vec<Op>,
) -> Result<Model, Box<Failure>> {
    /// A sweep costs as much as an operation per page; this many operations lie between two.
    const SWEEP_EVERY: usize = 500;
    let mut model = Model::new(shape.clone());
    for drawn in 1..=steps {
        let sweep = if drawn % SWEEP_EVERY == 0 || drawn == steps { model.sweep() } else { Vec::new() };
        for op in sweep.into_iter().chain([generator.draw(&model)]) {
            ops.push(op);
            step(world, &mut model, &op, tolerance, ops.len() - 1)?;
        }
    }
    Ok(model)
}

/// Makes a list of operations that `fails` as short as leaving out parts can make it.
pub fn shrink(mut ops: Vec<Op>, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut chunk = ops.len().next_power_of_two() / 2;
    while chunk > 0 {
        let mut at = 0;
        let before = ops.len();
        while at < ops.len() {
            let end = (at + chunk).min(ops.len());
            let shorter: Vec<Op> = ops[..at].iter().chain(&ops[end..]).copied().collect();
            if fails(&shorter) {
                ops = shorter;
            } else {
                at = end;
            }
        }
        // A single operation that could go may make room for another one: go over the list until nothing changes.
        if chunk > 1 || ops.len() == before {
            chunk /= 2;
        }
    }
    ops
}
