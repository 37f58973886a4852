//! Running programs on a device.

use crate::{DeviceError, FaultError, PmapId, VirtAddr};
use alloc::string::String;
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaunchError {
    /// No kernel of this name.
    UnknownKernel,
    /// More arguments than a kernel of this device can have.
    TooManyArgs {
        /// How many there were.
        given: usize,
        /// How many are possible.
        most: usize,
    },
    /// A ticket that is not there, or a context that the device does not have.
    BadRequest,
    /// The kernel touched this address, which could not be resolved.
    Fault {
        /// The address.
        va: VirtAddr,
        /// Why not. [`FaultError::NotNamed`] for an access outside what a launch without replay named.
        error: FaultError,
    },
    /// The kernel panicked, saying this: the beginning of it if it is long, nothing if it was no text. The device said so and is not trusted: it is for people.
    Panicked(String),
    /// The kernel crashed.
    Crashed(Crash),
    /// The device failed or died.
    Device(DeviceError),
}

/// How a kernel crashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// It touched this address, which is outside the address space.
    Access(VirtAddr),
    /// It needed more stack than the cores of the device have.
    StackOverflow,
    /// It touched something that is no address at all.
    NoAddress,
    /// It reached an instruction that the processor does not execute, which is also how a compiler marks what is never reached.
    Instruction,
    /// Its arithmetic has no result, such as a division by zero.
    Arithmetic,
    /// It touched memory that the hardware or the system lost.
    Memory,
    /// It gave up (`abort`), which ended the device's process: the context is fenced.
    Abort,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(va) => write!(f, "it touched {va}, which is outside the address space"),
            Self::StackOverflow => f.write_str("it overflowed its stack: use less of it, or unified memory"),
            Self::NoAddress => f.write_str("it touched what is no address"),
            Self::Instruction => f.write_str("it reached an instruction that the processor does not execute"),
            Self::Arithmetic => f.write_str("its arithmetic has no result, such as a division by zero"),
            Self::Memory => f.write_str("it touched memory that the system lost"),
            Self::Abort => f.write_str("it aborted, which ended the device's process"),
        }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKernel => f.write_str("the device knows no kernel of this name"),
            Self::TooManyArgs { given, most } => {
                write!(f, "{given} arguments are more than the {most} a kernel can have; pass the address of a buffer that holds them")
            }
            Self::BadRequest => f.write_str("no such launch, or no such context"),
            Self::Fault { va, error } => write!(f, "the kernel touched {va}: {error}"),
            Self::Panicked(said) if said.is_empty() => f.write_str("the kernel panicked"),
            Self::Panicked(said) => write!(f, "the kernel panicked: {said}"),
            Self::Crashed(crash) => write!(f, "the kernel crashed: {crash}"),
            Self::Device(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for LaunchError {}

/// Kernels on a device.
pub trait Compute: Send + Sync {
    /// Starts a launch. Launches of one context run in the order they were started. Does not wait for the kernel; a device that can be given no more launches waits for
    /// one of those before to end, and for nobody to wait for them.
    fn start(&self, request: &LaunchRequest<'_>) -> Result<Ticket, LaunchError>;

    /// Waits for a launch to end, and forgets it. Blocks for as long as the kernel runs; ends with an error when the device dies, of which the driver tells the core
    /// first ([`Upcalls::device_lost`](crate::Upcalls::device_lost)): who is told by a launch finds the context fenced.
    fn wait(&self, ticket: Ticket) -> Result<(), LaunchError>;
}
