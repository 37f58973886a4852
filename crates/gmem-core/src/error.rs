//! What each call can answer besides success: small enums, one per kind of call, each value a state of the world.

use crate::entry::MAX_HNODES;
use ::core::fmt;
use gmem_hal::{
    ByteLen, Capabilities, DeviceError, DeviceId, FaultError, HostError, MAX_MEMORIES, Modes, OutOfMemory, PageSize, PageSizes, PeerError,
    PhysRange, SpaceId, VirtAddr, VirtRange,
};

macro_rules! from {
    ($to:ident: $($from:ident => $variant:ident),*) => {
        $(impl From<$from> for $to {
            fn from(e: $from) -> Self {
                $to::$variant(e)
            }
        })*
        impl ::core::error::Error for $to {}
    };
}

/// Creating, destroying or switching a device, or registering its memory, failed. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DeviceCallError {
    /// gmem is switched off.
    Disabled,
    /// No such device.
    NoSuchDevice(DeviceId),
    /// The driver's facts contradict each other: for instance PEER without peer functions, or no page size gmem has.
    Malformed(&'static str),
    /// The range is empty or reversed.
    EmptyRange,
    /// The range does not lie on multiples of the device's smallest page size.
    Misaligned(PageSize),
    /// The range overlaps one that is registered.
    Overlap,
    /// The range ends past the last address that frames can have.
    Overflow,
    /// The device has no memory there, says its driver.
    NoSuchMemory(PhysRange),
    /// No hnode of that number belongs to the device.
    NoSuchHnode,
    /// The device has [`MAX_MEMORIES`] memories registered, the most that it can have.
    TooManyMemories,
    /// All devices together have as many memories registered as gmem has hnodes (1023).
    TooManyHnodes,
    /// Contexts on the device exist.
    InUse {
        /// How many.
        contexts: usize,
    },
    /// Frames of the memory are in use.
    MemoryInUse(ByteLen),
    /// The limit is above what the memory has, which is this.
    LimitTooHigh(ByteLen),
    /// The device has no context in that address space.
    NotAttached(SpaceId),
    /// No memory for metadata.
    OutOfMemory(OutOfMemory),
    /// The driver failed.
    Device(DeviceError),
}

from!(DeviceCallError: OutOfMemory => OutOfMemory, DeviceError => Device);

impl fmt::Display for DeviceCallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str(DISABLED),
            Self::NoSuchDevice(id) => write!(f, "there is no {id}"),
            Self::Malformed(what) => write!(f, "the driver's facts are wrong: {what}"),
            Self::EmptyRange => f.write_str("the memory range is empty or reversed"),
            Self::Misaligned(size) => write!(f, "the memory range must begin and end on multiples of {size}, the device's smallest page"),
            Self::Overlap => f.write_str("the memory range overlaps one that is registered already"),
            Self::Overflow => f.write_str("the memory range ends past the last address a frame can have"),
            Self::NoSuchMemory(range) => write!(f, "the device has no memory at [{:#x}, {:#x})", range.begin, range.end),
            Self::NoSuchHnode => f.write_str("the device has no such hnode"),
            Self::TooManyMemories => {
                write!(f, "the device has {MAX_MEMORIES} memories registered, the most it can have: unregister one of them first")
            }
            Self::TooManyHnodes => {
                write!(f, "all devices together have {} memories registered, the most there can be: unregister one first", MAX_HNODES - 1)
            }
            Self::InUse { contexts } => write!(f, "{contexts} contexts are attached: detach them first"),
            Self::MemoryInUse(len) => write!(f, "{len} of the memory are in use: unmap them or detach the contexts first"),
            Self::LimitTooHigh(most) => write!(f, "the limit is above what the memory has: it can be {most} at most"),
            Self::NotAttached(space) => write!(f, "the device is not attached to {space}"),
            Self::OutOfMemory(e) => e.fmt(f),
            Self::Device(e) => e.fmt(f),
        }
    }
}

pub(crate) const DISABLED: &str = "gmem is switched off (GMEM=off): unset the variable to use it";

/// Creating or destroying an address space failed. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SpaceError {
    /// gmem is switched off.
    Disabled,
    /// No such address space.
    NoSuchSpace(SpaceId),
    /// The ends are not multiples of 2 MiB.
    Misaligned,
    /// The range overlaps an address space that the CPU sees; those must be disjoint, because the CPU has one page table.
    Clash(SpaceId),
    /// A context could not be detached.
    Detach(DetachError),
    /// No memory for metadata.
    OutOfMemory(OutOfMemory),
    /// The host failed.
    Host(HostError),
}

from!(SpaceError: OutOfMemory => OutOfMemory, HostError => Host, DetachError => Detach);

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str(DISABLED),
            Self::NoSuchSpace(id) => write!(f, "there is no {id}"),
            Self::Misaligned => f.write_str("an address space must begin and end on multiples of 2 MiB"),
            Self::Clash(id) => write!(f, "the range overlaps {id}; address spaces that the CPU sees must be disjoint"),
            Self::Detach(e) => e.fmt(f),
            Self::OutOfMemory(e) => e.fmt(f),
            Self::Host(e) => e.fmt(f),
        }
    }
}

/// Attaching failed. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// gmem is switched off.
    Disabled,
    /// No such address space.
    NoSuchSpace(SpaceId),
    /// No such device.
    NoSuchDevice(DeviceId),
    /// The device is attached to this address space already.
    AlreadyAttached,
    /// The device cannot take part in this way; it can in these.
    ModeUnsupported(Modes),
    /// A region has pages smaller than the device's smallest.
    PageSizeUnsupported(PageSize, PageSizes),
    /// REPLICATE needs memory the device can reach, and this region has private backing.
    PrivateBacking(VirtRange),
    /// This host cannot share its memory with a device: REPLICATE is not possible.
    NoHostWindow,
    /// SHARE: neither the CPU nor an attached device has a page table of this device's format.
    NothingToShare,
    /// The device has no memory registered, and this mode moves pages there.
    NoDeviceMemory,
    /// The PEER device uses a mapped range for something else.
    AddressConflict(VirtRange),
    /// The address space has as many contexts as it can.
    TooManyContexts,
    /// No memory for metadata.
    OutOfMemory(OutOfMemory),
    /// The driver failed.
    Device(DeviceError),
}

from!(AttachError: OutOfMemory => OutOfMemory, DeviceError => Device);

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str(DISABLED),
            Self::NoSuchSpace(id) => write!(f, "there is no {id}"),
            Self::NoSuchDevice(id) => write!(f, "there is no {id}"),
            Self::AlreadyAttached => f.write_str("the device is attached to this address space already"),
            Self::ModeUnsupported(modes) => {
                f.write_str("the device cannot be attached in this mode; it can in: ")?;
                let names = [(Modes::SHARE, "share"), (Modes::COHERENT_EXCLUSIVE, "exclusive"), (Modes::REPLICATE, "replicate")];
                let mut first = true;
                for (_, name) in names.into_iter().filter(|(mode, _)| modes.contains(*mode)) {
                    write!(f, "{}{name}", if ::core::mem::take(&mut first) { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::PageSizeUnsupported(size, _) => write!(f, "a region has pages of {size}, smaller than any the device has"),
            Self::PrivateBacking(range) => {
                write!(f, "the region {range} has private backing, which another process cannot reach: use shared backing for replicate")
            }
            Self::NoHostWindow => f.write_str("this host cannot share its memory with a device, as replicate needs"),
            Self::NothingToShare => f.write_str("no page table of this device's format is there to share"),
            Self::NoDeviceMemory => f.write_str("the device has no memory registered, as this mode needs: its driver names it (Device::physical_memory), or the program registers it"),
            Self::AddressConflict(range) => write!(f, "the device uses the addresses {range} for something else"),
            Self::TooManyContexts => write!(f, "an address space has at most {} contexts", crate::space::MAX_CONTEXTS),
            Self::OutOfMemory(e) => e.fmt(f),
            Self::Device(e) => e.fmt(f),
        }
    }
}

/// Detaching failed; the context is still attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DetachError {
    /// No such address space.
    NoSuchSpace(SpaceId),
    /// The device is not attached to it.
    NotAttached(DeviceId),
    /// Another context shares this one's page table: detach that first.
    Shared(DeviceId),
    /// A page could not be brought home; detaching would lose its data.
    DataStranded(VirtAddr, FaultError),
}

impl ::core::error::Error for DetachError {}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchSpace(id) => write!(f, "there is no {id}"),
            Self::NotAttached(id) => write!(f, "{id} is not attached to this address space"),
            Self::Shared(id) => write!(f, "{id} shares this context's page table: detach it first"),
            Self::DataStranded(va, e) => write!(f, "the page at {va} could not be brought home ({e}); detaching would lose it"),
        }
    }
}

/// A call on a range of addresses (map, unmap, protect, prefetch, discard, pin, hold) failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RangeError {
    /// gmem is switched off.
    Disabled,
    /// No such address space.
    NoSuchSpace(SpaceId),
    /// The device is not attached to it.
    NotAttached(DeviceId),
    /// Address or length is not a multiple of the region's page size.
    Misaligned(PageSize),
    /// The length is zero or the range wraps.
    Empty,
    /// The range is not wholly inside the address space, or a part of it is not mapped.
    NotMapped(VirtAddr),
    /// The range wanted is taken, or no free range is long enough.
    NoAddressSpace,
    /// Every range tried (ten at the most) is in use in a PEER device.
    AddressConflict,
    /// An attached device has no page size this small.
    PageSizeUnsupported(PageSize, PageSizes),
    /// A context in REPLICATE mode is attached, which needs shared backing.
    PrivateBacking,
    /// A page has as many pins or holds as can be counted.
    TooManyPins(VirtAddr),
    /// The page is not pinned.
    NotPinned(VirtAddr),
    /// A page could not be brought where it should be.
    Fault(VirtAddr, FaultError),
    /// A launch, or I/O by the kernel, holds the page elsewhere.
    Held(VirtAddr),
    /// More is to be held at once than the device may have in its memory, whoever else has some there.
    DoesNotFit {
        /// What was asked for, in whole pages.
        asked: ByteLen,
        /// What the device's memories may hold, by their limits.
        room: ByteLen,
    },
    /// No memory for metadata.
    OutOfMemory(OutOfMemory),
    /// A peer device failed.
    Peer(PeerError),
    /// The host failed.
    Host(HostError),
}

from!(RangeError: OutOfMemory => OutOfMemory, HostError => Host, PeerError => Peer);

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str(DISABLED),
            Self::NoSuchSpace(id) => write!(f, "there is no {id}"),
            Self::NotAttached(id) => write!(f, "{id} is not attached to this address space"),
            Self::Misaligned(size) => write!(f, "address and length must be multiples of the page size, {size}"),
            Self::Empty => f.write_str("the range is empty or wraps around"),
            Self::NotMapped(va) => write!(f, "nothing is mapped at {va}"),
            Self::NoAddressSpace => f.write_str("no free range of this length is left at the place asked for"),
            Self::AddressConflict => f.write_str("every range tried is in use in a peer device"),
            Self::PageSizeUnsupported(size, _) => write!(f, "an attached device has no pages as small as {size}"),
            Self::PrivateBacking => {
                f.write_str("a context in replicate mode is attached, which cannot reach private backing: use shared backing")
            }
            Self::TooManyPins(va) => write!(f, "the page at {va} is pinned or held as often as can be counted"),
            Self::NotPinned(va) => write!(f, "the page at {va} is not pinned"),
            Self::Fault(va, e) => write!(f, "the page at {va}: {e}"),
            Self::Held(va) => write!(f, "the page at {va} is held elsewhere, by a launch or for I/O: try again when that is over"),
            Self::DoesNotFit { asked, room } => write!(
                f,
                "{asked} of memory in whole pages are needed on the device at once, and it may hold {room}: name less in one launch, use smaller pages, \
                 or raise the device's limit"
            ),
            Self::OutOfMemory(e) => e.fmt(f),
            Self::Peer(e) => e.fmt(f),
            Self::Host(e) => e.fmt(f),
        }
    }
}

/// What a check of capabilities needs to name: the two that exist.
pub(crate) const KNOWN: Capabilities = Capabilities::REPLAYABLE.union(Capabilities::PEER);
