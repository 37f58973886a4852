//! A deterministic machine for gmem: a host and accelerators that exist to find bugs in the core.
//!
//! One seed replays everything. A [`Sim`] is a machine; [`SimPlatform`] and [`SimHost`] are its host, each [`SimDevice`] an accelerator with a page table of
//! several levels, a TLB that keeps stale entries on purpose, a copy engine that takes time and can fail half-way, and, if asked for, an operating
//! system of its own. Any callback can be made to fail ([`Sim::fail_nth`], [`Sim::fail_chance`]). Under a [`Scheduler`] several threads of control are
//! interleaved by the seed.
//!
//! The simulation does not only do what it is told: it **panics, with numbers**, when the core breaks a contract, above all when a frame is used again
//! before its shootdown is done, or copied while somebody could write it. What real hardware would let happen, such as an access by a stale
//! translation, is let happen and counted ([`Sim::hazards`]), and the byte model of [`random`] finds its consequence.
//!
//! # Layers
//!
//! [`Sim`] → the [host](SimHost) and the [devices](SimDevice) → [`random`], operations drawn by a seed and the model of what memory must contain.
#![deny(unsafe_code)]

mod changes;
mod clock;
mod device;
mod host;
mod index;
mod inject;
mod lock;
mod platform;
pub mod random;
mod ranges;
mod rng;
mod sched;
mod sim;
mod trace;

pub use changes::Change;
pub use clock::SimClock;
pub use device::{Canary, DeviceBuilder, DeviceFault, FaultKind, SimDevice};
pub use host::{CpuFault, HostCanary, SimHost, SimSpace};
pub use inject::{Callback, Coverage, Injected};
pub use lock::{SimEvent, SimLock};
pub use platform::{Account, SimPlatform};
pub use rng::Rng;
pub use sched::{Driver, Reason, Report, Run, Scheduler, Stopped, current, drive, is_scheduled, text as panic_text, yield_point};
pub use sim::{Hazards, Sim};
pub use trace::TraceEvent;
