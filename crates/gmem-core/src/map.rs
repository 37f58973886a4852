//! Mapping a region.

use crate::context::Context;
use crate::core::Core;
use crate::error::RangeError;
use crate::space::{Contexts, Inner, REGION_BYTES, Space, TABLE_BYTES};
use alloc::sync::Arc;
use gmem_hal::{
    Backing, ByteLen, DeviceError, Host, HostError, Mode, PageSize, Pages, PeerError, Platform, Prot, RegionAttrs, SpaceId, VirtAddr,
    VirtRange,
};

/// How many ranges are tried when a PEER device, or the program, uses the addresses for something else.
pub const MAP_TRIES: usize = 10;

/// A region to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// The length; a multiple of the page size.
    pub len: ByteLen,
    /// Where; a multiple of the page size. `None`: anywhere in the address space, aligned to 2 MiB if the region is as long.
    pub at: Option<VirtAddr>,
    /// The region's attributes.
    pub attrs: RegionAttrs,
}

impl<P: Platform> Core<P> {
    /// Maps a region of zeros. [`Prot::WRITE`] implies [`Prot::READ`]. Every PEER device reserves the same range; if one uses it otherwise, or something that is not
    /// gmem's lies there, up to [`MAP_TRIES`] ranges are tried. May block.
    ///
    /// # Errors
    /// See [`RangeError`]; nothing was mapped or reserved.
    pub fn map(&self, space: SpaceId, request: &MapRequest) -> Result<VirtRange, RangeError> {
        self.check_enabled().map_err(|_| RangeError::Disabled)?;
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let request = &MapRequest { attrs: RegionAttrs { prot: whole(request.attrs.prot), ..request.attrs }, ..*request };
        let size = request.attrs.page_size;
        if request.len.get() == 0 {
            return Err(RangeError::Empty);
        }
        if !request.len.get().is_multiple_of(size.bytes()) || request.at.is_some_and(|at| !at.is_aligned(size)) {
            return Err(RangeError::Misaligned(size));
        }
        // Before anything is asked for by its length.
        if request.len > space.range.len() {
            return Err(RangeError::NoAddressSpace);
        }
        self.platform.host().supports(&request.attrs)?;
        let _gate = space.enter_gate("map").ok_or(RangeError::NoSuchSpace(space.id))?;
        let peers = self.check_contexts(&space, &request.attrs)?;
        let bytes = (request.len.get() >> size.shift()) as usize * size_of::<u64>() + TABLE_BYTES + REGION_BYTES;
        self.platform.charge(bytes)?;
        self.map_somewhere(&space, request, &peers).inspect_err(|_| self.platform.uncharge(bytes))
    }

    /// Whether every attached device can take part in such a region; the peers among them.
    fn check_contexts(&self, space: &Space<P>, attrs: &RegionAttrs) -> Result<Contexts<P>, RangeError> {
        let mut peers = Contexts::new();
        for context in space.contexts().iter().filter(|c| c.mode != Mode::Share) {
            let sizes = context.driver().info().page_sizes;
            if !sizes.can_map(attrs.page_size) {
                return Err(RangeError::PageSizeUnsupported(attrs.page_size, sizes));
            }
            if context.mode == Mode::Replicate && attrs.backing == Backing::Private {
                return Err(RangeError::PrivateBacking);
            }
            if context.is_peer() && !context.is_fenced() {
                peers.push(context.clone());
            }
        }
        Ok(peers)
    }

    fn map_somewhere(&self, space: &Space<P>, request: &MapRequest, peers: &[Arc<Context<P>>]) -> Result<VirtRange, RangeError> {
        space.make_room(1, 1)?;
        let words = Inner::<P>::entries_for(VirtRange::from_len(VirtAddr::new(0), request.len).ok_or(RangeError::Empty)?, &request.attrs)?;
        let mut from = space.range.start();
        for _ in 0..MAP_TRIES {
            let range = candidate(space, request, from)?;
            match self.reserve(peers, range, &request.attrs) {
                Ok(()) => {
                    let region = Pages { range, attrs: request.attrs };
                    if let Err(e) = self.platform.host().region_map(&space.host, &region) {
                        self.give_back(peers, range);
                        if e == HostError::AddressInUse && request.at.is_none() {
                            from = range.end();
                            continue;
                        }
                        return Err(e.into());
                    }
                    space.lock().insert(range, request.attrs, words);
                    return Ok(range);
                }
                // The refused range is passed over; the next one begins after it.
                Err(PeerError::Conflict) if request.at.is_none() => from = range.end(),
                Err(PeerError::Conflict) => return Err(RangeError::AddressConflict),
                Err(e) => return Err(e.into()),
            }
        }
        Err(RangeError::AddressConflict)
    }
}

/// No MMU here can allow stores without loads.
pub(crate) fn whole(prot: Prot) -> Prot {
    if prot.contains(Prot::WRITE) { Prot::RW } else { prot }
}

fn candidate<P: Platform>(space: &Space<P>, request: &MapRequest, from: VirtAddr) -> Result<VirtRange, RangeError> {
    let inner = space.lock();
    let Some(at) = request.at else {
        // Long regions of small pages begin on 2 MiB too, so that the host can use large pages underneath.
        let large = request.len.get() >= PageSize::Size2M.bytes();
        let align = if large { PageSize::Size2M } else { request.attrs.page_size };
        return inner.find_free(from, space.range.end(), request.len.get(), align).ok_or(RangeError::NoAddressSpace);
    };
    let range = VirtRange::from_len(at, request.len).ok_or(RangeError::Empty)?;
    if !space.range.contains_range(range) {
        return Err(RangeError::NoAddressSpace);
    }
    match inner.regions_in(range).next() {
        Some(_) => Err(RangeError::NoAddressSpace),
        None => Ok(range),
    }
}

impl<P: Platform> Core<P> {
    /// Reserves `range` in every peer that lives, or in none.
    fn reserve(&self, peers: &[Arc<Context<P>>], range: VirtRange, attrs: &RegionAttrs) -> Result<(), PeerError> {
        for (n, context) in peers.iter().enumerate() {
            let peer = context.driver().peer().expect("checked when the device was created");
            match peer.va_alloc_fixed(context.own_pmap(), range, attrs.prot) {
                Ok(()) => {}
                // A peer that is gone has no addresses to reserve, and must not keep the others from mapping.
                Err(PeerError::Device(DeviceError::Dead)) => self.lose(context),
                Err(e) => {
                    self.give_back(&peers[..n], range);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn give_back(&self, peers: &[Arc<Context<P>>], range: VirtRange) {
        for context in peers {
            let peer = context.driver().peer().expect("checked when the device was created");
            if !context.is_fenced() && peer.va_free(context.own_pmap(), range).is_err() {
                // A revoke that failed: the peer's idea of its addresses is not ours any more.
                self.fence(context);
            }
        }
    }
}
