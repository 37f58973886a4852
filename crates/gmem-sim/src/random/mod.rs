//! The random model test: operations drawn by a seed, and a flat model of what memory must contain.
//!
//! The same [`Op`]s and the same [`Model`] serve any [`World`]: the core on a simulated machine, the core on a real one, a fuzzer, or a list of
//! operations pasted from a failure. [`explore`] draws operations until one goes wrong, [`shrink`] makes the list that led there short, [`replay`]
//! runs a list again.

mod access;
mod generate;
mod model;
mod ops;
mod run;

#[cfg(test)]
mod tests;

pub use access::{cpu_read, cpu_write, device_read, device_write};
pub use generate::{Generator, Weights};
pub use model::{Model, Tolerance};
pub use ops::{Op, Outcome, PageRun, Refusal, Shape, SpaceShape, Spot};
pub use run::{Failure, World, explore, replay, shrink};
