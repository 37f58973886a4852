//! What can go wrong at the contracts, as states of the world.

use core::fmt;

/// What a user can do about a limit on descriptors. A process has one limit for each table of its own, and gmem's threads have a table, so both may be full.
const TOO_MANY_FILES: &str = "too many open files: raise the limit of the process (ulimit -n) or of the system (sysctl fs.file-max), \
                              or drop devices, contexts or address spaces";

/// A device callback failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DeviceError {
    /// The device has no room for this (a table, a ring, a frame), or the system has none for its driver (memory, processes). Trying again after freeing something may work.
    NoMemory,
    /// The device's page table has as many entries as it can: of a software device, which is a process, as many mappings as a process may have.
    TooManyMappings,
    /// The process, or the system, has as many files open as it may: there is no descriptor for the driver.
    TooManyFiles,
    /// [`Device::start`](crate::Device::start): this driver was started before, and serves, or served, another device.
    AlreadyStarted,
    /// The device or this context of it is gone, confirmed: it will never touch memory again.
    Dead,
    /// No answer within the driver's time limit: it may still be running and touching memory.
    NoAnswer,
    /// The device cannot do this at all.
    Unsupported,
    /// A copy or fill did not complete; the destination holds garbage, the source is unchanged.
    CopyFailed,
    /// The driver found the request to break the contract (an address outside its memory, an unknown pmap). A defect of the caller.
    BadRequest,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "there is no room for this on the device, or no memory or processes in the system for it",
            Self::TooManyMappings => {
                "too many scattered pages are on the device (a software device can have fewer than the sysctl vm.max_map_count): \
                 use 2 MiB pages, or have fewer of them there"
            }
            Self::TooManyFiles => TOO_MANY_FILES,
            Self::AlreadyStarted => {
                "this driver was started before, as a device of this Gmem or of another: clone that Device, or build another driver"
            }
            Self::Dead => "the device is gone",
            Self::NoAnswer => "the device did not answer in time",
            Self::Unsupported => "the device cannot do this",
            Self::CopyFailed => "a copy by the device failed",
            Self::BadRequest => "the driver refused a malformed request",
        })
    }
}

impl core::error::Error for DeviceError {}

/// A callback of a PEER device failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PeerError {
    /// `va_alloc_fixed`: the peer uses this range already; another one may work.
    Conflict,
    /// `map`: the peer has no memory and found nothing to evict.
    NoMemory,
    /// `map`: the peer is evicting this very page, and has done with it what was asked besides: it has the access of the request. The core marks the page willneed,
    /// which cancels that eviction.
    Migrating,
    /// `map`: the page is mapped already. Tolerated of a page that the peer has; one that says this, or [`PeerError::Migrating`], of another page is fenced.
    PageExists,
    /// Anything a device can do wrong.
    Device(DeviceError),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict => f.write_str("the peer device uses this address range already"),
            Self::NoMemory => f.write_str("the peer device is out of memory"),
            Self::Migrating => f.write_str("the peer device is evicting this page"),
            Self::PageExists => f.write_str("the peer device has mapped this page already"),
            Self::Device(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for PeerError {}

impl From<DeviceError> for PeerError {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

/// A host call failed. It changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum HostError {
    /// The system has no memory, or a memory limit (cgroup, rlimit) was reached.
    NoMemory,
    /// The kernel holds a page pinned for I/O: it cannot leave the host now.
    Pinned,
    /// The address range is in use by something else.
    AddressInUse,
    /// A limit of the system on the number of mappings was reached (`vm.max_map_count`).
    TooManyMappings,
    /// The system refuses this to us; the probe says what to allow.
    NotPermitted,
    /// This host cannot do this, or not in this combination.
    Unsupported,
    /// The program unmapped, moved, replaced or protected the memory at these addresses behind gmem's back.
    Displaced,
    /// The process, or the system, has as many files open as it may.
    TooManyFiles,
    /// The calling thread has not gmem's descriptors: a driver calls the core from threads that it started in [`Device::start`](crate::Device::start) or in a callback.
    ForeignThread,
    /// No program has memory at these addresses: they begin where null pointers point, or end past those of a process.
    NoSuchAddresses,
    /// As many address spaces of the process have regions with in-thread delivery as its signal handler can tell apart (64).
    TooManyInThread,
    /// The kernel answered in a way the host does not know; the errno is kept.
    Os(i32),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("the host is out of memory"),
            Self::Pinned => f.write_str("the kernel holds a page pinned for I/O"),
            Self::AddressInUse => f.write_str("the address range is in use"),
            Self::TooManyMappings => f.write_str("the limit vm.max_map_count is reached"),
            Self::NotPermitted => f.write_str("the system does not permit this (see `gmem probe`)"),
            Self::Unsupported => f.write_str("this host cannot do this"),
            Self::Displaced => {
                f.write_str("the program unmapped, replaced or protected this memory by itself: use the region it came from")
            }
            Self::TooManyFiles => f.write_str(TOO_MANY_FILES),
            Self::ForeignThread => {
                f.write_str("this thread has not gmem's descriptors: call the core from a thread that the driver started in Device::start or in a callback")
            }
            Self::NoSuchAddresses => f.write_str(
                "a program can have no memory there: begin at 2 MiB or above, and above vm.mmap_min_addr, and end within the addresses of the processor (128 TiB on most)",
            ),
            Self::TooManyInThread => f.write_str(
                "64 address spaces of this process have regions with in-thread delivery, the most that can: drop one of them, or use service delivery",
            ),
            Self::Os(errno) => write!(f, "the kernel answered errno {errno}"),
        }
    }
}

impl core::error::Error for HostError {}

/// A fault could not be resolved. The page is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FaultError {
    /// Nothing is mapped at the address.
    NotMapped,
    /// A launch on a device that cannot replay faults touched what it had not named, or stored to what it had named for loads.
    NotNamed,
    /// The region does not allow this access.
    Protection,
    /// The device's memory is full and nothing in it can be evicted: it is pinned or held by launches. A PEER device keeps for a context what that once had.
    NoDeviceMemory,
    /// A page of the region is larger than every memory of the device, or than what its limit leaves.
    PageTooLarge,
    /// The context is fenced: a revoke failed, or the device died.
    Fenced,
    /// The context is not attached, or is being detached.
    NotAttached,
    /// As many launches hold the page as can be counted (255).
    TooManyHolds,
    /// The device failed.
    Device(DeviceError),
    /// The host failed.
    Host(HostError),
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => f.write_str("nothing is mapped at this address"),
            Self::NotNamed => f.write_str(
                "the launch did not name this memory for such an access: a device that cannot replay faults has only what its launch names (in Args)",
            ),
            Self::Protection => f.write_str("the region does not allow this access"),
            Self::NoDeviceMemory => f.write_str(
                "the device has no memory left for the page: all of it is pinned, held by launches or, in a PEER device, kept for its other contexts",
            ),
            Self::PageTooLarge => f.write_str(
                "a page of this region is larger than what any memory of the device may hold: map the region with smaller pages, or raise the device's limit",
            ),
            Self::Fenced => f.write_str("the context was stopped, by the program or after a failure of its device: detach it and attach again"),
            Self::NotAttached => f.write_str("the context is not attached"),
            Self::TooManyHolds => f.write_str("255 launches hold this page: wait for one of them to end"),
            Self::Device(e) => e.fmt(f),
            Self::Host(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for FaultError {}

impl From<DeviceError> for FaultError {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

impl From<HostError> for FaultError {
    fn from(e: HostError) -> Self {
        Self::Host(e)
    }
}

/// No memory for gmem's own metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for metadata")
    }
}

impl core::error::Error for OutOfMemory {}
