//! Coherence litmus tests: a few loads and stores by several participants, repeated until every interleaving the machine can make has been seen.
//!
//! Participants are threads of the program and cores of one to four devices, each a process of its own (or, integrated, threads that share the CPU's table), exclusive, replicating
//! and peer. The words they touch lie wherever the seed says: in one line of a cache or in regions of different page sizes, backings and deliveries, on devices with so little memory
//! that they evict, with somebody moving pages about meanwhile.
//!
//! What the participants read, and what the words hold in the end, is compared with what the processor's memory model allows: memory that moves must look like memory that
//! does not. An outcome that is not allowed, or a word that nobody stored, is a defect. Outcomes that only accesses made at the same time explain are counted too: they show that the
//! test had a chance to see one.
//!
//! | file | is |
//! |---|---|
//! | `program`, `catalogue` | what participants do, and the tests |
//! | `model`, `outcome`, `judge` | what is allowed, what was seen, and what that means |
//! | `block`, `participant` | how participants are told, meet and answer, and what they run |
//! | `plan`, `world`, `round`, `disturb`, `campaign` | what the seed draws, and how it is carried out |
//! | `watchdog`, `defect` | every wait is bounded, and the tests can fail |

mod block;
mod campaign;
mod catalogue;
mod defect;
mod disturb;
mod judge;
mod model;
mod outcome;
mod participant;
mod plan;
mod program;
mod report;
mod rng;
mod round;
mod watchdog;
mod world;

pub use campaign::{Campaign, DEVICES, Trouble, run};
pub use catalogue::TESTS;
pub use defect::Defect;
pub use outcome::Class;
pub use plan::Traffic;
pub use program::{Op, Repetition, Test};
pub use report::{Counts, Meanwhile, OutcomeReport, Report, TestReport};
