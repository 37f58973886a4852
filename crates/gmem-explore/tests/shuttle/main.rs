//! The core's operations against each other, two and three at a time, interleaved by [shuttle](https://docs.rs/shuttle).
//!
//! Control passes at every lock, callback and wait, in the middle of copies, and before every access of a program or a kernel. The atomics of the core are no such
//! points, and need not be: a context's standing and whether it is leaving are each read in one step between two such points, and change nothing but the answer
//! of that read; the count of an `Arc` frees memory and nothing else. What one thread does between two points is atomic to the others, so a change that falls there
//! has the effect of one at the next point. How memory orders those accesses is not explored here but argued where they stand: what they guard is constant
//! or under a lock.
//!
//! `GMEM_SHUTTLE_RUNS` says how often each pair runs under each scheduler, `GMEM_SHUTTLE_SEED` from which seed on. A long campaign:
//!
//! ```text
//! GMEM_SHUTTLE_RUNS=20000 GMEM_SHUTTLE_SEED=$RANDOM cargo test --release -p gmem-explore --test shuttle
//! ```
//!
//! A failure prints the schedule that led to it, as a string. Give it to a test in `regressions.rs`, which keeps it.

mod arena;
mod driver;
mod matrix;
mod pairs;
mod race;
mod racer;
mod regressions;
mod triples;
mod verb;
