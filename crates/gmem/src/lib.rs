//! One virtual address space for the CPU and every accelerator attached to it.
//!
//! Memory of an [`AddressSpace`] is used by the CPU and by every attached device through the same pointers, coherently, even when it is many
//! times larger than the device's memory.
//!
//! ```
//! use gmem::{Args, Gmem, Mode, accel};
//!
//! // A kernel runs on the device, at native speed, over plain pointers.
//! gmem::kernel!(DOUBLE = "double", |grid, args| {
//!     let (data, len) = (args[0] as *mut u64, args[1] as usize);
//!     for i in grid.share(len) {
//!         *data.add(i) *= 2;
//!     }
//! });
//!
//! # fn main() -> Result<(), gmem::Error> {
//! let gmem = Gmem::new()?;
//! let device = gmem.add_device(accel::Discrete::builder().memory(8 << 20).build()?)?;
//! let space = gmem.address_space().create()?;
//! let context = space.attach(&device, Mode::CoherentExclusive)?;
//!
//! // 32 MiB of unified memory: four times what the device has.
//! let mut data = space.vec::<u64>(4 << 20)?;
//! data.iter_mut().enumerate().for_each(|(i, x)| *x = i as u64);
//! let len = data.len();
//! // SAFETY: `DOUBLE` takes the address and the number of 64-bit integers, which it reads and writes.
//! unsafe { context.run(&DOUBLE, Args::new().write(&mut data).number(len))? };
//! assert!(data.iter().enumerate().all(|(i, x)| *x == 2 * i as u64));
//! # Ok(())
//! # }
//! ```
//!
//! The borrow in [`Args`] is what keeps the CPU's hands off while the kernel works; [`Context::scope`] runs several launches at once under the same rule.

mod args;
mod context;
mod device;
mod error;
mod file;
mod launch;
mod region;
mod runtime;
mod space;
mod unified;

pub use args::{Args, Number};
pub use context::{Context, DetachFailed, Launch, Scope};
pub use device::Device;
pub use error::Error;
pub use file::{FileError, FileSharing};
pub use gmem_accel as accel;
pub use gmem_accel::{Grid, Kernel, kernel};
pub use gmem_core::{AttachError, DetachError, DeviceCallError, HnodeStats, RangeError, Residence, SpaceError, State, Stats};
pub use gmem_hal::{Access, Backing, ByteLen, Delivery, Mode, PageSize, Prot, RegionAttrs, VirtAddr, VirtRange};
pub use gmem_linux::{Probe, UffdAccess, probe};
pub use region::{IoPin, Region};
pub use runtime::{Builder, Gmem};
pub use space::{AddressSpace, RegionBuilder, SpaceBuilder};
pub use unified::UnifiedVec;

/// The contracts, for those who write a driver.
pub use gmem_hal as hal;
