//! The core of gmem: every state and every policy, and nothing else.
//!
//! It starts no thread, reads no clock, knows no operating system and holds no unsafe code; what it needs arrives through [`gmem_hal::Platform`]. One
//! **logical page table** per address space says for every page where its bytes are ([`State`]); the page tables of the CPU and of the devices are
//! caches of it. A miss in a cache is a fault: ask the truth, move or map, fill the cache, try the access again.
//!
//! Nouns are files (`entry frame hnode device space context`), and so are the verbs on an address space
//! (`create attach map unmap protect advise fault evict`). A verb finds the page's entry, marks it busy, makes a **plan** (a pure function, `plan`),
//! executes it with no lock held (`execute`), and commits or undoes.
//!
//! # Locks
//!
//! ```text
//! gate of a space        (sleeping; map unmap protect attach detach destroy)
//! ├─ gate of a device    (sleeping; attach detach destroy switch register unregister)
//! └─ space lock          entries, regions, contexts
//!    ├─ table lock       look-ups of devices, hnodes, spaces
//!    ├─ device lock      its hnodes and contexts
//!    └─ pool lock        an hnode's frames and lists
//! ```
//!
//! The three inner ones are never nested in each other. No callback runs, no byte is copied and nobody sleeps under any lock; a page that an operation
//! has in hand is marked busy, and whoever wants it parks and then looks again.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod advise;
mod attach;
mod bitmap;
mod buddy;
mod context;
mod core;
mod create;
mod device;
mod entry;
mod error;
mod evict;
mod execute;
mod fault;
mod frame;
mod gate;
mod hnode;
mod hnode_set;
mod hold;
mod map;
mod plan;
mod protect;
mod retire;
mod sorted;
mod space;
mod stats;
mod unmap;
mod verify;
mod zeroed;

pub use crate::core::Core;
pub use advise::Residence;
pub use attach::ContextInfo;
pub use entry::{PageEvent, State, TRANSITIONS, transition};
pub use error::{AttachError, DetachError, DeviceCallError, RangeError, SpaceError};
pub use hnode::HnodeStats;
pub use hold::HoldRange;
pub use map::{MAP_TRIES, MapRequest};
pub use stats::Stats;
pub use verify::{PageSight, Sight, Violation};
