//! The checks by which a device driver proves itself.
//!
//! A driver author describes a [`Subject`], some forty lines: how to make the device, and how the device reads, writes and adds. Its whole test file besides that is
//!
//! ```no_run
//! gmem_conformance::main!(gmem_conformance::Discrete);
//! ```
//!
//! with `harness = false` in its manifest. Every [`Check`] then runs in every mode, with every page size and in every shape of the device where its rule has a meaning, in processes
//! beside, each of which is used until a check fails in it, and a table says what passed, what failed and which rule was broken, and what does not apply and why.

mod case;
mod check;
pub mod checks;
mod defect;
pub mod hmm;
mod job;
pub mod litmus;
mod main_of;
pub mod observe;
mod options;
pub mod original;
mod reference;
mod report;
mod runner;
mod shipped;
mod subject;
mod target;
pub mod unchecked;
pub mod world;

pub use case::Case;
pub use check::{Applies, Check, Outcome, Stop};
pub use defect::Defect;
pub use main_of::{conclude, list, main_of, no_place, ready, run_aloud};
pub use observe::Observed;
pub use options::{ModeName, Options, SizeName};
pub use reference::{AccessFault, Reference, ReferenceBuilder, ReferenceSubject};
pub use report::{Report, Row, Verdict};
pub use runner::doomed::{Brink, Ending};
pub use runner::run;
pub use shipped::{Discrete, Integrated, SHIPPED, shipped};
pub use subject::{Cannot, Shape, Storing, Subject, fault_of};
pub use target::Target;
pub use world::{Unit, World};

/// The `main` of a driver's conformance test: `main!(subject)` for every shape of a [`Subject`], or `main!(targets: targets)` for a list of [`Target`]s.
#[macro_export]
macro_rules! main {
    (targets: $targets:expr) => {
        fn main() -> std::process::ExitCode {
            $crate::main_of($targets)
        }
    };
    ($subject:expr) => {
        $crate::main!(targets: $crate::Target::all($subject));
    };
}

/// The page on writing a device, whose examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-device.md")]
struct WritingADevice;
