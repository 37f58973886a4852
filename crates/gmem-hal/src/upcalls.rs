//! The calls a plug-in makes into the core.

use crate::{Access, DeviceId, FaultError, PmapId, VirtAddr, VirtRange};

/// What a device says with a fault. "No hint" can be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FaultHint {
    /// The page will be used soon: count it as recently used even if it is present.
    MarkHot,
}

/// How a CPU fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostFault {
    /// The access can be tried again.
    Resolved,
    /// The page is busy or held by a launch; [`crate::Host::wake`] is called for it when that ends. Only said if waiting was not allowed.
    Pending,
    /// The address lies in no address space: the fault is the program's own.
    NotOurs,
    /// The fault is the program's error, or the data cannot be brought.
    Failed(FaultError),
}

/// What became of a peer's request to evict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EvictOutcome {
    /// The pages were taken home by `unmap` calls and their memory was freed.
    Evicted,
    /// A page is busy, pinned, held or wanted (willneed): it keeps its memory. Choose another victim.
    Refused,
    /// The peer holds nothing there (any more).
    NotThere,
}

/// The core, as a host or a driver calls it. Drivers call from threads of their own, started in [`crate::Device::start`] or in a callback, where all signals are blocked: a signal
/// handler of the program that touches unified memory must not interrupt the core. Only such threads have gmem's descriptors, too: from any other the host would answer
/// [`HostError::ForeignThread`](crate::HostError::ForeignThread). All calls may block while pages move, and none may be made from inside a callback for the same page.
pub trait Upcalls: Send + Sync {
    /// The device could not translate `va` for `access` in `pmap` (`gm_dev_fault`). One fault brings the whole page, zeros if nobody wrote it. After `Ok` the access can be replayed, and goes on
    /// while the page is there (a translation cached before may cause one more fault); after `Err` it has not happened and never will: it ends with the error. `hint`: none, or mark hot.
    fn device_fault(&self, device: DeviceId, pmap: PmapId, va: VirtAddr, access: Access, hint: Option<FaultHint>)
    -> Result<(), FaultError>;

    /// A PEER device wants its pages in `range` taken home (`gm_dev_evict`).
    fn device_evict(&self, device: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome;

    /// The context of the device is gone, confirmed. The core fences it and takes its pages home when they are next touched. Unlike the others this call waits for no page, and
    /// a launch does not end with an error of a dead device before it was made ([`crate::Compute::wait`]).
    fn device_lost(&self, device: DeviceId, pmap: PmapId);

    /// The CPU could not translate `va` for `access` (`gm_host_fault`). With `may_wait` the call parks while the page is busy or held; without, it answers
    /// [`HostFault::Pending`].
    fn host_fault(&self, va: VirtAddr, access: Access, may_wait: bool) -> HostFault;
}
