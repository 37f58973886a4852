//! The core on a simulated machine: worlds that operations are done to, what must hold after each, and how a failure is told in few operations.
//!
//! `gmem-sim` is the machine and the judge, and knows only the contracts; here it meets the core. A [`CoreWorld`] is the core, its machine, and the address
//! spaces and devices that an [`Op`](gmem_sim::random::Op) names by their indices. [`worlds`] lists the kinds of worlds there are, [`CoreWorld::perform`]
//! does one operation, [`CoreWorld::check_tables`] looks across all page tables, and a [`Hunt`] does random operations to worlds of many seeds.
//!
//! ```
//! use gmem_explore::{CoreWorld, worlds};
//! use gmem_hal::{Backing, Prot};
//! use gmem_sim::{Sim, random::{Op, Outcome, PageRun, Spot}};
//!
//! let world = worlds::STANDARD.make(&Sim::new(1));
//! let spot = Spot { space: 0, page: 3, offset: 8, len: 4 };
//! world.perform(&Op::Map(PageRun { space: 0, first: 0, count: 8 }, Prot::RW, Backing::Shared));
//! world.perform(&Op::CpuWrite(spot, 7));
//! assert_eq!(world.perform(&Op::CpuRead(spot)), Outcome::Loaded(spot.bytes(7)));
//! world.tear_down();
//! ```
#![forbid(unsafe_code)]

pub mod bytes;
pub mod campaign;
mod check;
pub mod defects;
mod find;
mod judged;
mod perform;
mod plug;
mod refusal;
pub mod scripts;
mod world;
pub mod worlds;

pub use find::{Hunt, seeds, text};
pub use judged::{Judged, Point};
pub use perform::Touched;
pub use refusal::{Refuse, outcome};
pub use world::{CoreWorld, Member, injected};
pub use worlds::Kind;
