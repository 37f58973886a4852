//! The MMU contract: one page table per context, entered, protected and released by the core.

use crate::{ByteLen, DeviceError, HostWindow, Mode, PhysAddr, PmapId, Prot, SpaceId, VirtAddr, VirtRange};

/// What a driver is told when a page table is to be made.
#[derive(Clone, Copy, Debug)]
pub struct PmapRequest {
    /// The address space the table is for.
    pub space: SpaceId,
    /// Every address that will ever be entered lies in this range.
    pub range: VirtRange,
    /// How the device takes part.
    pub mode: Mode,
    /// Host memory that the table's entries may name. `Some` only in [`Mode::Replicate`]: no other mode lets a device reach host frames.
    pub host: Option<HostWindow>,
}

/// One mapping to enter. The core asks for every mapping that there is; a driver makes none of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Start, aligned to `len`.
    pub va: VirtAddr,
    /// The first byte of `len` contiguous bytes of memory, aligned to `len` within its pool.
    pub frame: PhysAddr,
    /// One of [`crate::PageSize`]'s sizes. A MMU without this size uses several entries of a smaller one.
    pub len: ByteLen,
    /// What the device may do. Never empty.
    pub prot: Prot,
}

impl Mapping {
    /// The virtual range mapped.
    ///
    /// # Panics
    /// If the mapping would pass the last address, which the core never asks for.
    pub fn range(&self) -> VirtRange {
        VirtRange::from_len(self.va, self.len).expect("a mapping is never empty and never wraps")
    }
}

/// The functions of a device's MMU: the seven MMU callbacks of the original interface.
///
/// A **shootdown** has three steps: `pmap_release` (or a lowering `pmap_protect`) *queues*, one of the `tlb_invalidate` functions *dispatches and
/// waits*. Between the two the device may still use a stale translation; after `Ok` from the second it must not. The core frees a
/// frame only after that.
///
/// Where another device shares a table ([`crate::Mode::Share`], an equal [`crate::DeviceInfo::mmu_cookie`]), the owner's driver answers for both: its
/// invalidations, its `pmap_destroy` and its [`crate::Device::fence`] cover every device that uses the table. Drivers that cannot do that must give their devices
/// cookies of their own.
///
/// The driver may assume: ranges are page aligned and inside [`PmapRequest::range`], and hold a page that was entered whole or not at all, whatever its size; calls for one page never overlap in time; calls for different
/// pages of one pmap may come from several threads at once.
pub trait Mmu: Send + Sync {
    /// Makes an empty page table, whose id is unique on this device, and among the devices of an equal cookie whose tables it may share. May block and allocate. On
    /// `Err` nothing was made.
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError>;

    /// Destroys a page table. Everything was released and invalidated before, or the context is fenced. After `Ok`, or after
    /// `Err(`[`DeviceError::Dead`]`)`, the device never uses this table or a frame it named again; this is what ends a quarantine. Any
    /// other error leaves the context fenced.
    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError>;

    /// Enters a mapping. The page is absent from the table, or present with the same frame and less or equal access (an upgrade, or a reminder). After `Ok` the device
    /// can touch the page without a fault and finds the bytes of the frame there, and no other page was entered; a translation cached as absent or with less access may at most cause one more fault.
    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError>;

    /// Removes every entry in `range`; absent pages are no error. The device may go on using cached translations until the invalidation.
    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError>;

    /// Changes the access of the entries present in `range`; absent pages are no error. Lowering takes effect with the invalidation.
    /// With an empty `prot` this is [`Mmu::pmap_release`] with the frames kept.
    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError>;

    /// Drops every cached translation of `range`, and returns when no access of the device uses one any more.
    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError>;

    /// The same for many ranges in one request, which is what makes batches cheap. The ranges are disjoint.
    fn tlb_invalidate_coalesced(&self, pmap: PmapId, ranges: &[VirtRange]) -> Result<(), DeviceError> {
        ranges.iter().try_for_each(|range| self.tlb_invalidate(pmap, *range))
    }

    /// Reads and clears the accessed mark of `page`, which the next access sets again: `None` if this MMU keeps none, and ageing then samples by revoking mappings.
    fn harvest_accessed(&self, _pmap: PmapId, _page: VirtRange) -> Option<bool> {
        None
    }
}
