//! The facade's error: which call failed, and why.

use crate::file::FileError;
use gmem_core::{AttachError, DetachError, DeviceCallError, RangeError, SpaceError};
use gmem_hal::{ByteLen, Crash, DeviceError, FaultError, LaunchError, VirtAddr};
use std::fmt;

/// A call failed; nothing it began is left behind.
///
/// `Debug` writes the same text as `Display`: what happened and what helps is what a `main` that returns this error prints, and a failed `unwrap`.
#[non_exhaustive]
pub enum Error {
    /// gmem is switched off by `GMEM=off` in the environment.
    Disabled,
    /// This process is a child, made by `fork`, of the one that started gmem, with which its threads, its devices and unified memory stayed. The child can execute another program,
    /// start a [`Gmem`](crate::Gmem) of its own, and exit.
    Forked,
    /// gmem's own threads or the host could not be started.
    Start(String),
    /// A software accelerator cannot be as described.
    Build(accel::BuildError),
    /// Adding, removing or switching a device.
    Device(DeviceCallError),
    /// Making an address space.
    Space(SpaceError),
    /// Making an address space: no place was named, and none is left that is long enough, or the process may have no more addresses (`ulimit -v`).
    NoPlace {
        /// How many addresses were asked for.
        len: ByteLen,
        /// Where places begin.
        first: VirtAddr,
        /// Where they end.
        last: VirtAddr,
    },
    /// Mapping a region: no place was named, and none that is long enough is free in the address space.
    NoRoom {
        /// How long the region was to be, in whole pages.
        len: ByteLen,
        /// How long the address space is.
        space: ByteLen,
    },
    /// A region of private backing has no in-thread delivery: private memory is for the kernel's I/O, and a fault of the kernel raises no signal.
    PrivateInThread,
    /// The device, or the context, belongs to another [`Gmem`](crate::Gmem) than what it was to be used with.
    OtherGmem,
    /// Attaching a device.
    Attach(AttachError),
    /// Detaching a device.
    Detach(DetachError),
    /// Mapping, protecting, moving or holding memory.
    Range(RangeError),
    /// Running a kernel.
    Launch(LaunchError),
    /// The device of this context was stopped after a failure: detach it and attach again.
    Fenced,
    /// The device offers no way to run kernels through gmem.
    NoCompute,
    /// The length in bytes overflows, or is zero.
    Length,
    /// A vector needs a region that may be read and written.
    VectorProt,
    /// The CPU does not see this address space: a vector in it would be somebody else's memory.
    DevicesOnly,
    /// The memory is pinned for the kernel's I/O: drop the pin first.
    PinnedForIo,
    /// Mapping a file, or writing back to it.
    File(FileError),
}

use gmem_accel as accel;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("gmem is switched off (GMEM=off): unset the variable to use it"),
            Self::Forked => gmem_linux::Forked.fmt(f),
            Self::Start(what) => f.write_str(what),
            Self::Build(e) => e.fmt(f),
            Self::Device(e) => e.fmt(f),
            Self::Space(e) => write!(f, "no address space: {e}"),
            Self::NoPlace { len, first, last } => write!(
                f,
                "no address space: no place is left for {len} of addresses between {first} and {last}, or the process may have no more of them \
                 (ulimit -v); drop an address space, ask for fewer addresses (SpaceBuilder::len), or say where (SpaceBuilder::at)"
            ),
            Self::NoRoom { len, space } => write!(
                f,
                "no region: {len} of free addresses side by side were asked for, and the address space, of {space} in all, has none so long; ask for less, \
                 drop a region, or make a longer address space (SpaceBuilder::len)"
            ),
            Self::PrivateInThread => f.write_str(
                "no region: private backing with in-thread delivery was asked for, and the kernel's accesses to private memory raise no signal in a \
                 thread; there are private backing with service delivery, and shared backing with either",
            ),
            Self::OtherGmem => f.write_str(
                "a device of one Gmem was to be used with an address space, a context or a device of another: add all devices that share data to one Gmem",
            ),
            Self::Attach(e) => write!(f, "not attached: {e}"),
            Self::Detach(e) => write!(f, "not detached: {e}"),
            Self::Range(e) => e.fmt(f),
            Self::Launch(e) => write!(f, "the launch failed: {e}"),
            Self::Fenced => f.write_str("the context was stopped, by the program or after a failure of its device: detach it and attach again"),
            Self::NoCompute => f.write_str("this device offers no way to run kernels"),
            Self::VectorProt => f.write_str("a vector needs a region that may be read and written: leave `prot` out, or map a region"),
            Self::DevicesOnly => f.write_str("the CPU does not see this address space: map a region and use its addresses on devices"),
            Self::PinnedForIo => f.write_str("the memory is pinned for the kernel's I/O: drop the pin first"),
            Self::File(e) => e.fmt(f),
            Self::Length => f.write_str("the length is zero or overflows"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($from:ty => $variant:ident),* $(,)?) => {
        $(impl From<$from> for Error {
            fn from(e: $from) -> Self {
                Self::$variant(e)
            }
        })*
    };
}

from! {
    accel::BuildError => Build,
    DeviceCallError => Device,
    SpaceError => Space,
    AttachError => Attach,
    DetachError => Detach,
    RangeError => Range,
    LaunchError => Launch,
    FileError => File,
}

impl From<gmem_linux::Forked> for Error {
    fn from(_: gmem_linux::Forked) -> Self {
        Self::Forked
    }
}

impl From<DeviceError> for Error {
    fn from(e: DeviceError) -> Self {
        Self::Device(DeviceCallError::Device(e))
    }
}

impl Error {
    /// Whether the device of the context died or does not answer, so that only detaching and attaching again helps.
    pub fn is_device_gone(&self) -> bool {
        matches!(
            self,
            Self::Fenced
                | Self::Launch(LaunchError::Device(DeviceError::Dead | DeviceError::NoAnswer))
                | Self::Launch(LaunchError::Crashed(Crash::Abort))
                | Self::Launch(LaunchError::Fault { error: FaultError::Fenced, .. })
                | Self::Range(RangeError::Fault(_, FaultError::Fenced | FaultError::Device(DeviceError::Dead | DeviceError::NoAnswer)))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_main_prints_says_what_to_do() {
        assert_eq!(format!("{:?}", Error::Disabled), "gmem is switched off (GMEM=off): unset the variable to use it");
    }
}
