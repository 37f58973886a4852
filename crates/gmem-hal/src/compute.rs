//! Running programs on a device.

use crate::{DeviceError, FaultError, PmapId, VirtAddr};
use core::fmt;

/// A launch: one kernel, run once with all cores of the device.
#[derive(Clone, Copy, Debug)]
pub struct LaunchRequest<'a> {
    /// The context's table. `None`: the context shares the CPU's.
    pub pmap: Option<PmapId>,
    /// The kernel's name in its registry.
    pub kernel: &'a str,
    /// The arguments: numbers and unified addresses.
    pub args: &'a [u64],
    /// Whether faults may be resolved by the core. If not, a fault ends the launch with an error.
    pub replay: bool,
}

/// A launch under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// A launch could not be made, or ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaunchError {
    /// No kernel of this name.
    UnknownKernel,
    /// Too many arguments, or a ticket that is not there.
    BadRequest,
    /// The kernel touched this address, which could not be resolved.
    Fault {
        /// The address.
        va: VirtAddr,
        /// Why not. [`FaultError::NotMapped`] for an access outside what a launch without replay named.
        error: FaultError,
    },
    /// The kernel crashed by itself (an illegal instruction, a panic, an address outside the address space at `0` if unknown).
    Crashed(VirtAddr),
    /// The device failed or died.
    Device(DeviceError),
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKernel => f.write_str("the device knows no kernel of this name"),
            Self::BadRequest => f.write_str("too many arguments, or no such launch"),
            Self::Fault { va, error } => write!(f, "the kernel touched {va}: {error}"),
            Self::Crashed(va) => write!(f, "the kernel crashed at address {va}"),
            Self::Device(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for LaunchError {}

/// Kernels on a device.
pub trait Compute: Send + Sync {
    /// Starts a launch. Launches of one context run in the order they were started. Does not wait for the kernel.
    fn start(&self, request: &LaunchRequest<'_>) -> Result<Ticket, LaunchError>;

    /// Waits for a launch to end, and forgets it. Blocks for as long as the kernel runs; ends with an error when the device dies.
    fn wait(&self, ticket: Ticket) -> Result<(), LaunchError>;
}
