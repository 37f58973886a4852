//! The host contract: what the kernel gave the original, for a core that lives in user space.

use crate::{HostError, PhysAddr, Prot, RegionAttrs, VirtRange};

/// A run of whole pages of one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// Aligned to the region's page size.
    pub range: VirtRange,
    /// The region's attributes, as they are now.
    pub attrs: RegionAttrs,
}

/// Host memory as another process can map it: the byte at virtual address `va` of the address space is the byte
/// `offset + (va - start of the address space)` of the memory object `handle`. Holds for regions of shared backing.
/// A device maps the object shared, so that either side sees at once what the other stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostWindow {
    /// A file descriptor valid in gmem's own threads.
    pub handle: i32,
    /// The offset of the first byte of the address space.
    pub offset: u64,
    /// [`crate::Host::home`] of the start of the address space.
    pub base: PhysAddr,
}

/// The host's side of an address space: the CPU's page table, and one **home** frame per page.
///
/// A home is the place in host memory that belongs to one page for as long as its region exists. It is *populated* (holds bytes) or
/// not (reads as zero). The CPU reaches it by the page's own address while the page is *CPU-mapped*; copy engines reach it by
/// [`Host::home`] while it is populated and, for private backing, not CPU-mapped.
///
/// The calls on whole regions may block and allocate and come from gmem's own threads; those on [`Pages`] are on the fault path. A failed call
/// changed nothing visible, but for [`Host::region_protect`]. After `region_map`, a region is named as it was made, by a part of it, or by parts of it with equal attributes that lie side by side.
pub trait Host: Send + Sync + 'static {
    /// The host's own record of an address space.
    type Space: Send + Sync;

    /// Makes an address space over `range`. With `cpu_visible` its addresses are reserved in this process,
    /// [`HostError::AddressInUse`] if they are taken; without, only the homes exist.
    fn space_create(&self, range: VirtRange, cpu_visible: bool) -> Result<Self::Space, HostError>;

    /// Releases everything `space_create` made. No region is left.
    fn space_destroy(&self, space: &Self::Space);

    /// How another process maps the homes, if it can.
    fn window(&self, space: &Self::Space) -> Option<HostWindow>;

    /// Whether this pair of backing and delivery, with this page size, works on this machine: [`HostError::Unsupported`] or
    /// [`HostError::NotPermitted`] if not.
    fn supports(&self, attrs: &RegionAttrs) -> Result<(), HostError>;

    /// Prepares a region: no page is CPU-mapped or populated, and a CPU access faults to [`crate::Upcalls::host_fault`].
    fn region_map(&self, space: &Self::Space, region: &Pages) -> Result<(), HostError>;

    /// Takes a region or a part of one away: the CPU can no longer touch it, the homes are freed. Cannot be refused.
    fn region_unmap(&self, space: &Self::Space, region: &Pages);

    /// Changes what the CPU may do from `region.attrs.prot` to `prot`. No other call on pages of the region is under way, nor an operation of the core in the middle of
    /// several, so each sees either; and of private backing no page is CPU-mapped. Other pages may or may not stay so; access is never more than asked.
    ///
    /// On `Err` a part may be changed. Then the core calls again, for this region and for those that the same protect had changed, with the `prot` that
    /// `region.attrs` says, which was in force before. That answers `Ok`: it needs nothing that was not there. Should the system refuse it all the same, the
    /// host says so where the user sees it.
    fn region_protect(&self, space: &Self::Space, region: &Pages, prot: Prot) -> Result<(), HostError>;

    /// Where copy engines find the home of the first of `pages`; the homes of a run are contiguous. Pure.
    fn home(&self, space: &Self::Space, pages: &Pages) -> PhysAddr;

    /// Makes the homes of `pages` hold bytes: zeros, if they held none. They are not CPU-mapped. On `Err` some may be populated with zeros.
    fn populate(&self, space: &Self::Space, pages: &Pages) -> Result<(), HostError>;

    /// Does nothing in an address space that the CPU does not see. Otherwise lets the CPU touch `pages`, whose homes are populated, as `attrs.prot` allows, and wakes threads waiting there. CPU-mapped pages are no error.
    fn cpu_map(&self, space: &Self::Space, pages: &Pages) -> Result<(), HostError>;

    /// Takes `pages` from the CPU. After `Ok` no CPU access can change the homes, every earlier write is in them, and the next access
    /// faults. [`HostError::Pinned`] if the kernel holds one of them: then all are as they were. Pages that are not CPU-mapped are no error.
    fn cpu_unmap(&self, space: &Self::Space, pages: &Pages) -> Result<(), HostError>;

    /// Frees the homes of `pages`, which are not CPU-mapped: they read as zero from now on.
    fn discard(&self, space: &Self::Space, pages: &Pages);

    /// Makes threads that wait for a fault in `pages` try their access again.
    fn wake(&self, space: &Self::Space, pages: &Pages);
}
