//! The contract of a PEER device, whose own operating system manages its addresses and its memory.

use crate::{ByteLen, DeviceError, PeerError, PhysAddr, PmapId, Prot, VirtAddr, VirtRange};

/// A request to map one page in the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerMap {
    /// The peer's table.
    pub pmap: PmapId,
    /// Start of the page, aligned to `len`.
    pub va: VirtAddr,
    /// The size of the page.
    pub len: ByteLen,
    /// What the device may do.
    pub prot: Prot,
    /// Copy the page from this host memory. `None`: the peer fills it with zeros.
    pub copy: Option<PhysAddr>,
    /// The page will be used soon: count it as recently used.
    pub hot: bool,
}

/// A request to unmap one page from the peer and free its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerUnmap {
    /// The peer's table.
    pub pmap: PmapId,
    /// Start of the page, aligned to `len`.
    pub va: VirtAddr,
    /// The size of the page.
    pub len: ByteLen,
    /// Copy the page to this host memory after the device can no longer write it and before its memory is freed.
    pub copy: Option<PhysAddr>,
}

/// The functions of a PEER device: the four peer callbacks of the original interface. Of its [`crate::Mmu`] the core calls `pmap_create`, `pmap_destroy`,
/// `pmap_protect` and the invalidations; entering and releasing are parts of `map` and `unmap`.
///
/// A peer orders the steps inside one call itself: map = allocate, fill or copy, enter; unmap = release, invalidate and wait, copy, free. A peer
/// that needs memory evicts pages of its own choice by [`crate::Upcalls::device_evict`], before or during a `map`; the core refuses to evict a page
/// that is busy, and the peer must then choose another one rather than wait.
pub trait Peer: Send + Sync {
    /// Reserves `range` in the peer's address space. [`PeerError::Conflict`] makes the core try another range. May block and allocate.
    fn va_alloc_fixed(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), PeerError>;

    /// Gives a reserved range, or a part of one, back. Nothing in it is mapped. May block.
    fn va_free(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError>;

    /// Maps a page; on `Err` nothing was mapped and no memory is kept. On a page that is mapped already with `hot` set it refreshes recency,
    /// with more access in `prot` it upgrades, and in both cases answers `Ok` or [`PeerError::PageExists`].
    fn map(&self, request: &PeerMap) -> Result<(), PeerError>;

    /// Unmaps a page and frees its memory. A page that is not mapped is no error, unless a copy of it is asked for
    /// ([`DeviceError::BadRequest`]): the core would take a stale home for the page. If only the copy fails
    /// ([`DeviceError::CopyFailed`]) the page stays mapped and the data is where it was. After any other error the core fences the context, and
    /// asks once more if that confirmed its end: a driver that still reaches the memory of a dead device copies then, and the data is saved.
    fn unmap(&self, request: &PeerUnmap) -> Result<(), DeviceError>;
}
