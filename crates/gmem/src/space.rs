//! Address spaces.

use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::region::Region;
use crate::runtime::{Gmem, Runtime};
use crate::unified::UnifiedVec;
use bytemuck::Pod;
use gmem_core::{DetachError, MapRequest, RangeError, Residence, SpaceError};
use gmem_hal::{Access, Backing, ByteLen, Delivery, DeviceId, HostError, Mode, PageSize, Prot, RegionAttrs, SpaceId, VirtAddr, VirtRange};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where address spaces are placed when nothing is said: far below the addresses the kernel gives out by itself and far above programs, so that a device
/// process finds the same addresses free.
const FIRST_PLACE: u64 = 0x1000_0000_0000;
const LAST_PLACE: u64 = 0x4000_0000_0000;
const DEFAULT_LEN: u64 = 1 << 40;

/// How far to go on at least when something of the program's lies at a place, in bytes: what lies there may be large, and asking costs a system call.
const STRIDE: u64 = 1 << 30;

/// One virtual address space that the CPU and the attached devices share.
///
/// Clones name the same address space. It is destroyed when the last clone, context and buffer of it is gone.
#[derive(Clone)]
pub struct AddressSpace {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) id: SpaceId,
    pub(crate) range: VirtRange,
    /// Whether its addresses mean anything to the CPU.
    pub(crate) cpu_visible: bool,
    /// Devices that are attached and have no handle any more, because detaching them failed when it was dropped, and why. They live until they are detached.
    stranded: Mutex<Vec<(Device, DetachError)>>,
}

/// What an address space should be.
#[derive(Clone, Debug)]
pub struct SpaceBuilder {
    gmem: Gmem,
    len: u64,
    at: Option<VirtAddr>,
    cpu_visible: bool,
}

impl Gmem {
    /// An address space: 1 TiB, placed where it is free, visible to the CPU, unless said otherwise.
    pub fn address_space(&self) -> SpaceBuilder {
        SpaceBuilder { gmem: self.clone(), len: DEFAULT_LEN, at: None, cpu_visible: true }
    }
}

impl SpaceBuilder {
    /// How many addresses, in bytes: a multiple of 2 MiB. They cost nothing until they are used.
    pub fn len(mut self, bytes: u64) -> Self {
        self.len = bytes;
        self
    }

    /// Where, if a device wants it somewhere in particular: at a multiple of 2 MiB, and not at 0 if the CPU is to see it, where null pointers point.
    pub fn at(mut self, start: VirtAddr) -> Self {
        self.at = Some(start);
        self
    }

    /// Only devices see it: its addresses mean nothing to the CPU, and may overlap those of other address spaces.
    pub fn devices_only(mut self) -> Self {
        self.cpu_visible = false;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`Error::Space`] if the addresses are taken, [`Error::NoPlace`] if none were named and no place is free for so many, [`Error::Length`] if there are none.
    pub fn create(self) -> Result<AddressSpace, Error> {
        let runtime = self.gmem.runtime.clone();
        let (id, range) = match self.at {
            Some(at) => {
                let range = VirtRange::from_len(at, ByteLen(self.len)).ok_or(Error::Length)?;
                (runtime.call(|core| core.space_create(range, self.cpu_visible))??, range)
            }
            None => self.find_place(&runtime)?,
        };
        Ok(AddressSpace { inner: Arc::new(Inner { runtime, id, range, cpu_visible: self.cpu_visible, stranded: Mutex::default() }) })
    }

    /// Makes it at the first place that is free.
    fn find_place(&self, runtime: &Runtime) -> Result<(SpaceId, VirtRange), Error> {
        let mut start = VirtAddr::new(FIRST_PLACE);
        loop {
            if self.len == 0 {
                return Err(Error::Length);
            }
            let (len, first, last) = (ByteLen(self.len), VirtAddr::new(FIRST_PLACE), VirtAddr::new(LAST_PLACE));
            let none = Error::NoPlace { len, first, last };
            let Some(place) = VirtRange::from_len(start, len).filter(|place| place.end() <= last) else { return Err(none) };
            let next = match runtime.call(|core| core.space_create(place, self.cpu_visible))? {
                Ok(id) => return Ok((id, place)),
                // An address space that is being destroyed may be gone already.
                Err(SpaceError::Clash(other)) => runtime.call(|core| core.space_range(other))?.map_or(place.end(), VirtRange::end),
                Err(SpaceError::Host(HostError::AddressInUse)) => VirtAddr::new(start.get() + self.len.max(STRIDE)),
                // Addresses cost no memory: what ran out is the addresses of the process, of which gmem takes as many again elsewhere.
                Err(SpaceError::Host(HostError::NoMemory)) => return Err(none),
                Err(e) => return Err(e.into()),
            };
            start = next.align_up(PageSize::Size2M).ok_or(Error::Length)?;
        }
    }
}

impl AddressSpace {
    /// The id.
    pub fn id(&self) -> SpaceId {
        self.inner.id
    }

    /// The addresses.
    pub fn range(&self) -> VirtRange {
        self.inner.range
    }

    /// Attaches a device and makes the context its current one. What is mapped already is the device's too from now on. The
    /// context belongs to the address space: any thread may use it, and a device may have one in each of several.
    ///
    /// # Errors
    /// [`Error::Attach`]; [`Error::Detach`] if a former context of the device could not be detached when it was dropped, and cannot be yet; [`Error::OtherGmem`] for a device of another [`Gmem`].
    pub fn attach(&self, device: &Device, mode: Mode) -> Result<Context, Error> {
        self.attach_as(device, mode, true)
    }

    /// Attaches a device and leaves the context that is current on it as it is; [`Device::switch`] changes it.
    ///
    /// # Errors
    /// As [`AddressSpace::attach`].
    pub fn attach_inactive(&self, device: &Device, mode: Mode) -> Result<Context, Error> {
        self.attach_as(device, mode, false)
    }

    fn attach_as(&self, device: &Device, mode: Mode, activate: bool) -> Result<Context, Error> {
        device.check_of(&self.inner.runtime)?;
        self.inner.detach_stranded(|stranded, _| stranded.id() == device.id())?;
        self.inner.runtime.call(|core| core.attach(self.inner.id, device.inner.id, mode, activate))??;
        Ok(Context::new(self.clone(), device.clone(), mode))
    }

    /// A region: 2 MiB pages, shared backing, faults resolved by gmem's thread, unless said otherwise.
    pub fn region(&self) -> RegionBuilder {
        RegionBuilder { space: self.clone(), attrs: RegionAttrs::default(), at: None }
    }

    /// A vector of `len` zeroed elements, in a region of its own.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if no place is free that is long enough, [`Error::Length`] if the length is zero or overflows; as [`RegionBuilder::map`] otherwise.
    pub fn vec<T: Pod>(&self, len: usize) -> Result<UnifiedVec<T>, Error> {
        self.region().vec(len)
    }

    /// Where the pages of `range` are now.
    ///
    /// # Errors
    /// None for a range of this address space; holes are left out.
    pub fn residency(&self, range: VirtRange) -> Result<Vec<Residence>, Error> {
        Ok(self.inner.runtime.call(|core| core.residency(self.inner.id, range))??)
    }

    /// Brings the pages of `range` to a device, or home with `None`, and returns how many moved.
    ///
    /// # Errors
    /// [`Error::Range`] with the first page that could not be brought; [`Error::OtherGmem`] for a device of another [`Gmem`].
    pub fn prefetch(&self, range: VirtRange, device: Option<&Device>, access: Access) -> Result<usize, Error> {
        device.map_or(Ok(()), |device| device.check_of(&self.inner.runtime))?;
        Ok(self.inner.runtime.call(|core| core.prefetch(self.inner.id, range, device.map(Device::id), access))??)
    }

    /// Keeps the pages of `range` from being evicted until [`AddressSpace::unpin`].
    ///
    /// # Errors
    /// [`Error::Range`]; then nothing was pinned.
    pub fn pin(&self, range: VirtRange) -> Result<(), Error> {
        Ok(self.inner.runtime.call(|core| core.pin(self.inner.id, range))??)
    }

    /// Takes one [`AddressSpace::pin`] back.
    ///
    /// # Errors
    /// [`Error::Range`] with the first page that has no pin.
    pub fn unpin(&self, range: VirtRange) -> Result<(), Error> {
        Ok(self.inner.runtime.call(|core| core.unpin(self.inner.id, range))??)
    }
}

impl Inner {
    /// A context of `device` lost its handle and could not be detached. The device must outlive it.
    pub(crate) fn keep_attached(&self, device: &Device, why: DetachError) {
        // One that somebody else detached is gone.
        if !matches!(why, DetachError::NoSuchSpace(_) | DetachError::NotAttached(_)) {
            self.stranded().push((device.clone(), why));
        }
    }

    /// The context of `device` is detached, and what shared its page table need not wait for it any more.
    pub(crate) fn detach_sharers_of(&self, device: DeviceId) {
        // One that cannot go yet is kept.
        let _ = self.detach_stranded(|_, why| *why == DetachError::Shared(device));
    }

    /// Tries again to detach those that `which` picks.
    fn detach_stranded(&self, which: impl Fn(&Device, &DetachError) -> bool) -> Result<(), Error> {
        self.runtime.check_process()?;
        loop {
            let next = {
                let mut stranded = self.stranded();
                let at = stranded.iter().position(|(device, why)| which(device, why));
                at.map(|at| stranded.swap_remove(at).0)
            };
            // Not under the lock: it may take long, and the device may go with it.
            let Some(device) = next else { return Ok(()) };
            if let Err(why) = self.runtime.call(|core| core.detach(self.id, device.id()))? {
                self.keep_attached(&device, why);
                return Err(why.into());
            }
        }
    }

    fn stranded(&self) -> MutexGuard<'_, Vec<(Device, DetachError)>> {
        // A push or a removal is done or not, whatever panics.
        self.stranded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Buffers and contexts keep the address space alive, so nothing of it is in use. What could not be detached is, with nothing mapped; its device may go next.
        let _ = self.runtime.call(|core| core.space_destroy(self.id));
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("id", &self.inner.id).field("range", &self.inner.range).finish()
    }
}

/// What a region should be.
#[derive(Clone, Debug)]
pub struct RegionBuilder {
    pub(crate) space: AddressSpace,
    pub(crate) attrs: RegionAttrs,
    at: Option<VirtAddr>,
}

impl RegionBuilder {
    /// The unit of residency and transfer.
    pub fn page_size(mut self, size: PageSize) -> Self {
        self.attrs.page_size = size;
        self
    }

    /// Where the host keeps the bytes.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.attrs.backing = backing;
        self
    }

    /// Who resolves CPU faults.
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.attrs.delivery = delivery;
        self
    }

    /// What may be done there.
    pub fn prot(mut self, prot: Prot) -> Self {
        self.attrs.prot = prot;
        self
    }

    /// Where, a multiple of the page size.
    pub fn at(mut self, start: VirtAddr) -> Self {
        self.at = Some(start);
        self
    }

    /// Maps `bytes` zero bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Length`]; [`Error::NoRoom`] if no place was named and none is free that is long enough; [`Error::PrivateInThread`].
    pub fn map(self, bytes: u64) -> Result<Region, Error> {
        if (self.attrs.backing, self.attrs.delivery) == (Backing::Private, Delivery::InThread) {
            return Err(Error::PrivateInThread);
        }
        let len = bytes.checked_next_multiple_of(self.attrs.page_size.bytes()).filter(|len| *len > 0).ok_or(Error::Length)?;
        let request = MapRequest { len: ByteLen(len), at: self.at, attrs: self.attrs };
        let (id, space) = (self.space.id(), self.space.range().len());
        let range = self.space.inner.runtime.call(|core| core.map(id, &request))?.map_err(|e| match e {
            RangeError::NoAddressSpace if self.at.is_none() => Error::NoRoom { len: request.len, space },
            other => other.into(),
        })?;
        Ok(Region::new(self.space, range, self.attrs))
    }

    /// A vector of `len` zeroed elements in such a region. The region must be readable and writable.
    ///
    /// # Errors
    /// As [`RegionBuilder::map`]; [`Error::VectorProt`] with another protection; [`Error::DevicesOnly`] in an address space that the CPU does not see, where something else may lie at these addresses.
    pub fn vec<T: Pod>(self, len: usize) -> Result<UnifiedVec<T>, Error> {
        if !self.space.inner.cpu_visible {
            return Err(Error::DevicesOnly);
        }
        if !self.attrs.prot.contains(Prot::RW) {
            return Err(Error::VectorProt);
        }
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Error::Length)?;
        UnifiedVec::new(self.map(bytes as u64)?, len)
    }
}
