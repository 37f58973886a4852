//! Devices: create, destroy, register and unregister memory, switch context.

use crate::context::Context;
use crate::core::Core;
use crate::entry::MAX_FRAMES;
use crate::error::{DeviceCallError, KNOWN};
use crate::gate::{Gate, Inside};
use crate::hnode::{Allocator, Hnode};
use crate::sorted::{Sorted, lock_with_room};
use crate::space::Space;
use alloc::sync::{Arc, Weak};
use arrayvec::ArrayVec;
use gmem_hal::lock_api::Mutex;
use gmem_hal::{
    ByteLen, Capabilities, Device, DeviceError, DeviceId, HnodeId, Mode, PageSize, PhysRange, Platform, PmapId, SpaceId, Upcalls, VirtAddr,
};

/// The most pools of memory one device can have; bounds what a fault keeps on its stack.
pub(crate) const MAX_POOLS: usize = gmem_hal::MAX_MEMORIES;

/// The pools of one device.
pub(crate) type Pools<P> = ArrayVec<Arc<Hnode<P>>, MAX_POOLS>;

pub(crate) struct DeviceSlot<P: Platform> {
    pub(crate) id: DeviceId,            // c
    pub(crate) driver: Arc<dyn Device>, // c
    pub(crate) state: Mutex<P::RawLock, DeviceState<P>>,
    gate: Gate<P>,
}

/// Lock letter `d`: the device lock, innermost of all; nothing is called under it.
pub(crate) struct DeviceState<P: Platform> {
    pub(crate) hnodes: Pools<P>,                         // d
    pub(crate) contexts: Sorted<SpaceId, Attachment<P>>, // d
    pub(crate) current: Option<SpaceId>,                 // d
    pub(crate) dying: bool,                              // d
}

pub(crate) struct Attachment<P: Platform> {
    pub(crate) pmap: Option<PmapId>,
    pub(crate) space: Arc<Space<P>>,
    pub(crate) context: Arc<Context<P>>,
}

impl<P: Platform> DeviceSlot<P> {
    /// Enters the device's gate: from now on this thread alone changes its memory, its contexts, and which of them is current. `None` if the device is gone.
    pub(crate) fn enter_gate(&self, owner: &'static str) -> Option<Inside<'_, P>> {
        let inside = self.gate.enter(owner, None, VirtAddr::new(u64::from(self.id.0)));
        if self.state.lock().dying { None } else { Some(inside) }
    }

    pub(crate) fn is_peer(&self) -> bool {
        self.driver.info().capabilities.contains(Capabilities::PEER)
    }

    /// The address space and context that use the table `pmap` of this device.
    pub(crate) fn attachment(&self, pmap: PmapId) -> Option<(Arc<Space<P>>, Arc<Context<P>>)> {
        let state = self.state.lock();
        state.contexts.values().find(|a| a.pmap == Some(pmap)).map(|a| (a.space.clone(), a.context.clone()))
    }

    /// Every attachment, each looked up when it is asked for: no lock is held between two.
    fn each_attachment(&self) -> impl Iterator<Item = (Arc<Space<P>>, Arc<Context<P>>)> {
        let mut from = Some(SpaceId(0));
        ::core::iter::from_fn(move || {
            let state = self.state.lock();
            let (id, attachment) = state.contexts.from(from?).next()?;
            from = id.0.checked_add(1).map(SpaceId);
            Some((attachment.space.clone(), attachment.context.clone()))
        })
    }

    /// The pools of the device, as of now.
    pub(crate) fn pools(&self) -> Pools<P> {
        self.state.lock().hnodes.clone()
    }

    /// Its first pool, in which the pages of a peer are counted.
    pub(crate) fn first_pool(&self) -> Option<Arc<Hnode<P>>> {
        self.state.lock().hnodes.first().cloned()
    }
}

impl<P: Platform> Core<P> {
    /// Makes a device known (`gm_dev_create`). Its facts are checked and its driver is started before anyone can see it. May block.
    ///
    /// # Errors
    /// [`DeviceCallError::Malformed`] for contradicting facts; [`DeviceError::AlreadyStarted`] if `driver` is a device of this core, or is just being made one or
    /// ceasing to be; whatever [`Device::start`] answers.
    /// Nothing is left behind.
    pub fn device_create(self: &Arc<Self>, driver: Arc<dyn Device>) -> Result<DeviceId, DeviceCallError> {
        self.check_enabled().map_err(|_| DeviceCallError::Disabled)?;
        let info = driver.info();
        let peer = info.capabilities.contains(Capabilities::PEER);
        let malformed = if !KNOWN.contains(info.capabilities) {
            Some("a capability that does not exist")
        } else if peer != driver.peer().is_some() {
            Some("PEER without peer functions, or peer functions without PEER")
        } else if info.page_sizes.smallest().is_none() {
            Some("no page size that gmem has")
        } else if info.modes.is_empty() {
            Some("no mode at all")
        } else {
            None
        };
        if let Some(what) = malformed {
            return Err(DeviceCallError::Malformed(what));
        }
        let id = {
            let mut tables = lock_with_room(&self.tables, 1, |tables| &mut tables.drivers)?;
            if tables.drivers.values().any(|known| Arc::ptr_eq(known, &driver)) {
                return Err(DeviceError::AlreadyStarted.into());
            }
            let id = DeviceId(tables.fresh_device());
            tables.drivers.insert(id, driver.clone());
            id
        };
        self.start(id, driver).inspect_err(|_| self.forget_driver(id))
    }

    /// Starts a driver and lists its device.
    fn start(self: &Arc<Self>, id: DeviceId, driver: Arc<dyn Device>) -> Result<DeviceId, DeviceCallError> {
        let weak: Weak<Self> = Arc::downgrade(self);
        driver.start(id, weak as Weak<dyn Upcalls>)?;
        let state = DeviceState { hnodes: ArrayVec::new(), contexts: Sorted::new(), current: None, dying: false };
        let slot = Arc::new(DeviceSlot { id, driver, state: Mutex::new(state), gate: Gate::new() });
        match lock_with_room(&self.tables, 1, |tables| &mut tables.devices) {
            Ok(mut tables) => tables.devices.insert(id, slot),
            Err(e) => {
                slot.driver.stop();
                return Err(e.into());
            }
        }
        Ok(id)
    }

    /// A driver was stopped, or could not be started: it is nobody's now.
    fn forget_driver(&self, id: DeviceId) {
        let forgotten = self.tables.lock().drivers.remove(id);
        // Nothing is dropped under the lock.
        drop(forgotten);
    }

    /// Forgets a device and releases everything it registered (`gm_dev_destroy`). May block in [`Device::stop`].
    ///
    /// # Errors
    /// [`DeviceCallError::InUse`] while a context on it exists.
    pub fn device_destroy(&self, id: DeviceId) -> Result<(), DeviceCallError> {
        let slot = self.device(id)?;
        let gate = slot.enter_gate("destroy").ok_or(DeviceCallError::NoSuchDevice(id))?;
        {
            let mut state = slot.state.lock();
            let contexts = state.contexts.len();
            if contexts > 0 {
                return Err(DeviceCallError::InUse { contexts });
            }
            state.dying = true;
        }
        // No context is left, so nothing uses a frame; quarantined ones go with the device, which is stopped for good.
        for hnode in slot.pools() {
            // A page that left the device lets its frame go last, when nobody waits for it any more.
            hnode.close();
            self.take_back(&slot, &hnode);
            self.retire(hnode);
        }
        let listed = self.tables.lock().devices.remove(id);
        drop((gate, listed));
        slot.driver.stop();
        self.forget_driver(id);
        self.retire(slot);
        Ok(())
    }

    /// Takes memory back that the driver knows of: first from it, since its number may be another memory's from then on.
    fn take_back(&self, slot: &DeviceSlot<P>, hnode: &Arc<Hnode<P>>) {
        slot.state.lock().hnodes.retain(|h| h.id != hnode.id);
        slot.driver.memory_unregistered(hnode.id, hnode.range);
        self.forget(hnode);
    }

    /// Takes an hnode out of the tables.
    fn forget(&self, hnode: &Arc<Hnode<P>>) {
        {
            let mut tables = self.tables.lock();
            tables.hnodes.remove(hnode.id);
            tables.forget_hnode(hnode.id);
        }
        hnode.uncharge(&self.platform);
    }

    /// Registers device memory, which becomes an hnode (`gm_dev_register_physmem`).
    ///
    /// # Errors
    /// The range must not be empty or reversed, must lie on multiples of the device's smallest page size, and must not overlap another of this device;
    /// [`DeviceCallError::NoSuchMemory`] if the driver says that the device has none there.
    pub fn device_register_memory(&self, id: DeviceId, range: PhysRange) -> Result<HnodeId, DeviceCallError> {
        self.check_enabled().map_err(|_| DeviceCallError::Disabled)?;
        let slot = self.device(id)?;
        let _gate = slot.enter_gate("register memory").ok_or(DeviceCallError::NoSuchDevice(id))?;
        let smallest = slot.driver.info().page_sizes.smallest().expect("checked when the device was created");
        if range.begin >= range.end {
            return Err(DeviceCallError::EmptyRange);
        }
        if !(range.begin | range.end).is_multiple_of(smallest.bytes()) {
            return Err(DeviceCallError::Misaligned(smallest));
        }
        if slot.state.lock().hnodes.iter().any(|h| h.range.begin < range.end && range.begin < h.range.end) {
            return Err(DeviceCallError::Overlap);
        }
        // Frame numbers are 32 bits of 4 KiB; frame ids have a field of the entry.
        let frames = range.len().get() >> PageSize::Size4K.shift();
        if range.len().get() >> smallest.shift() > MAX_FRAMES as u64 || frames + 512 > u64::from(u32::MAX) {
            return Err(DeviceCallError::Overflow);
        }
        let allocator = match (slot.is_peer(), slot.driver.frames().is_some()) {
            (true, _) => Allocator::Peer,
            (false, true) => Allocator::Driver,
            (false, false) => Allocator::Core,
        };
        if slot.state.lock().hnodes.is_full() {
            return Err(DeviceCallError::TooManyMemories);
        }
        let hnode_id = self.tables.lock().fresh_hnode().ok_or(DeviceCallError::TooManyHnodes)?;
        let made = Hnode::new(hnode_id, id, range, smallest, allocator, &self.platform);
        let hnode = Arc::new(made.inspect_err(|_| self.tables.lock().forget_hnode(hnode_id))?);
        match lock_with_room(&self.tables, 1, |tables| &mut tables.hnodes) {
            Ok(mut tables) => tables.hnodes.insert(hnode_id, hnode.clone()),
            Err(e) => {
                self.forget(&hnode);
                return Err(e.into());
            }
        }
        slot.state.lock().hnodes.push(hnode.clone());
        if let Err(e) = slot.driver.memory_registered(hnode_id, range) {
            // No fault was allowed to take a frame of it.
            slot.state.lock().hnodes.retain(|h| h.id != hnode_id);
            self.forget(&hnode);
            self.retire(hnode);
            return Err(if e == DeviceError::BadRequest { DeviceCallError::NoSuchMemory(range) } else { e.into() });
        }
        // Faults take frames of it from here on, when the driver knows it.
        self.allow_everywhere(&slot, hnode_id, true);
        Ok(hnode_id)
    }

    /// Takes device memory back (`gm_dev_unregister_physmem`).
    ///
    /// # Errors
    /// [`DeviceCallError::MemoryInUse`] while a frame of it is used or quarantined; [`DeviceCallError::InUse`] for a PEER device that is attached, since only the
    /// peer knows what it uses.
    pub fn device_unregister_memory(&self, id: DeviceId, hnode_id: HnodeId) -> Result<(), DeviceCallError> {
        let slot = self.device(id)?;
        let _gate = slot.enter_gate("unregister memory").ok_or(DeviceCallError::NoSuchDevice(id))?;
        let hnode = self.hnode(hnode_id).filter(|h| h.device == id).ok_or(DeviceCallError::NoSuchHnode)?;
        let contexts = slot.state.lock().contexts.len();
        if hnode.allocator == Allocator::Peer && contexts > 0 {
            return Err(DeviceCallError::InUse { contexts });
        }
        hnode.retire().map_err(DeviceCallError::MemoryInUse)?;
        self.allow_everywhere(&slot, hnode_id, false);
        self.take_back(&slot, &hnode);
        self.retire(hnode);
        Ok(())
    }

    /// Caps how much of an hnode is used (`max_memsize` of the original). Answers how much it was before.
    ///
    /// # Errors
    /// [`DeviceCallError::MemoryInUse`] with what is used now, if the limit is below that; [`DeviceCallError::LimitTooHigh`] with the capacity, if it is above.
    pub fn hnode_set_limit(&self, hnode: HnodeId, limit: ByteLen) -> Result<ByteLen, DeviceCallError> {
        let hnode = self.hnode(hnode).ok_or(DeviceCallError::NoSuchHnode)?;
        let most = hnode.range.len();
        if limit > most {
            return Err(DeviceCallError::LimitTooHigh(most));
        }
        hnode.set_limit(limit.get()).map_err(DeviceCallError::MemoryInUse)
    }

    fn allow_everywhere(&self, slot: &DeviceSlot<P>, hnode: HnodeId, allow: bool) {
        for (space, _) in slot.each_attachment().filter(|(_, context)| context.mode == Mode::CoherentExclusive) {
            let mut inner = space.lock();
            match allow {
                true => inner.allowed.insert(hnode),
                false => inner.allowed.remove(hnode),
            }
        }
    }

    /// Makes the context of `space` the current one of the device, or none, and tells the driver (`gm_dev_switch`). May block.
    ///
    /// # Errors
    /// [`DeviceCallError::NotAttached`]; the driver's refusal, upon which the former context stays current.
    pub fn switch(&self, id: DeviceId, space: Option<SpaceId>) -> Result<(), DeviceCallError> {
        let slot = self.device(id)?;
        let _gate = slot.enter_gate("switch").ok_or(DeviceCallError::NoSuchDevice(id))?;
        let pmap = match space {
            None => None,
            Some(space) => {
                let state = slot.state.lock();
                if state.current == Some(space) {
                    return Ok(());
                }
                state.contexts.get(space).ok_or(DeviceCallError::NotAttached(space))?.pmap
            }
        };
        slot.driver.switch_context(pmap)?;
        slot.state.lock().current = space;
        Ok(())
    }

    /// The address space whose context is current on the device.
    pub fn current(&self, id: DeviceId) -> Option<SpaceId> {
        self.device(id).ok()?.state.lock().current
    }

    pub(crate) fn forget_current(&self, slot: &DeviceSlot<P>, space: SpaceId) {
        let was = {
            let mut state = slot.state.lock();
            state.current.take_if(|s| *s == space).is_some()
        };
        if was {
            // Nothing depends on the answer: the context's table is destroyed next.
            let _ = slot.driver.switch_context(None);
        }
    }
}
