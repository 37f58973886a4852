//! Software accelerators that are real in every way that matters to memory management.
//!
//! * [`Discrete`]: memory of its own and an MMU of its own. Each context is a process whose real page table over the address space *is* the pmap, its
//!   faults are real faults, and its kernels run at native speed. With the PEER capability it manages its own addresses and pages.
//! * [`Integrated`]: cores that share the CPU's page table.
//!
//! Kernels are registered with [`kernel!`] and found by name.
//!
//! # Trust
//! A device process is given its own DRAM, a ring, a socket and, in REPLICATE mode, the host's memory of one address space. It cannot shrink what
//! the host maps, what it says is copied before it is checked, and every wait for it is bounded. Contexts of one device share its DRAM and are not protected from
//! each other.
//!
//! # Linking
//! A device process is this very executable, started again with `GMEM_ACCEL_DEVICE` in its environment; it becomes a device before `main`.

mod builder;
mod capacity;
mod codec;
mod compute;
mod context;
mod copy;
mod device;
mod discrete;
mod dram;
mod evictor;
mod faults;
#[doc(hidden)]
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub mod fuzzing;
mod glue;
mod integrated;
mod keeper;
mod kernel;
mod launches;
mod machine;
mod memories;
mod message;
mod mmu;
#[cfg(all(test, loom))]
mod models;
mod pagemap;
mod peer;
mod shm;
mod spawn;
mod sync;
mod table;
mod wait;

pub use builder::{BuildError, Builder};
pub use capacity::machine_memory;
pub use discrete::Discrete;
pub use integrated::{Integrated, IntegratedBuilder};
pub use kernel::{Grid, KERNELS, Kernel, MAX_ARGS};

#[doc(hidden)]
pub mod __private {
    pub use linkme;
}
