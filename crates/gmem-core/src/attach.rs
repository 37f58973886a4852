//! Contexts: attach and detach.

use crate::context::{Context, Table};
use crate::core::Core;
use crate::device::{Attachment, DeviceSlot};
use crate::error::{AttachError, DetachError, DeviceCallError};
use crate::execute::Cause;
use crate::fault::{Hold, Touch, Who};
use crate::sorted::lock_with_room;
use crate::space::Space;
use alloc::sync::Arc;
use gmem_hal::{
    Backing, DeviceError, DeviceId, DeviceInfo, FaultError, Host, Mode, PeerError, Platform, PmapId, PmapRequest, SpaceId, VirtAddr,
    WaitKind,
};

/// What a device is to an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextInfo {
    /// How it takes part.
    pub mode: Mode,
    /// The page table it uses; `None` for the CPU's.
    pub pmap: Option<PmapId>,
    /// Whether it was stopped for good after a failure. Detach it and attach again.
    pub fenced: bool,
}

impl<P: Platform> Core<P> {
    /// Attaches a device to an address space in a mode (`gm_as_attach`): makes its page table, lets pages live in its memory, tells it of what is mapped
    /// already, and with `activate` makes the context current. May block.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing changed, not even if only the activation failed.
    pub fn attach(&self, space: SpaceId, device: DeviceId, mode: Mode, activate: bool) -> Result<(), AttachError> {
        self.check_enabled().map_err(|_| AttachError::Disabled)?;
        let space = self.space(space).ok_or(AttachError::NoSuchSpace(space))?;
        let slot = self.device(device).map_err(|_| AttachError::NoSuchDevice(device))?;
        self.attach_in(&space, &slot, mode, activate)
    }

    fn attach_in(&self, space: &Arc<Space<P>>, slot: &Arc<DeviceSlot<P>>, mode: Mode, activate: bool) -> Result<(), AttachError> {
        let gate = space.enter_gate("attach").ok_or(AttachError::NoSuchSpace(space.id))?;
        let device_gate = slot.enter_gate("attach").ok_or(AttachError::NoSuchDevice(slot.id))?;
        self.check_attach(space, slot, mode)?;
        drop(lock_with_room(&slot.state, 1, |state| &mut state.contexts)?);
        let table = match mode {
            Mode::Share => self.table_to_share(space, slot)?,
            _ => Table::Own(self.make_pmap(space, slot, mode)?),
        };
        let context = Arc::new(Context::new(slot.clone(), mode, table));
        if slot.is_peer()
            && mode != Mode::Share
            && let Err(e) = reserve_all(space, &context)
        {
            self.drop_pmap(&context, space.id);
            return Err(e);
        }
        // What may be refused comes before anybody can see the context: a page that is on the device might not leave it again.
        if activate && let Err(e) = slot.driver.switch_context(context.pmap()) {
            if let (true, Table::Own(pmap)) = (slot.is_peer(), table) {
                free_all(space, &context, pmap);
            }
            self.drop_pmap(&context, space.id);
            return Err(e.into());
        }
        {
            let mut inner = space.lock();
            if mode == Mode::CoherentExclusive {
                slot.state.lock().hnodes.iter().for_each(|h| inner.allowed.insert(h.id));
            }
            inner.contexts.push(context.clone());
        }
        let attachment = Attachment { pmap: context.pmap(), space: space.clone(), context: context.clone() };
        {
            let mut state = slot.state.lock();
            state.contexts.insert(space.id, attachment);
            if activate {
                state.current = Some(space.id);
            }
        }
        drop((device_gate, gate));
        if mode == Mode::Replicate {
            self.replicate_all(space, &context);
        }
        Ok(())
    }

    fn check_attach(&self, space: &Space<P>, slot: &DeviceSlot<P>, mode: Mode) -> Result<(), AttachError> {
        let info = slot.driver.info();
        let inner = space.lock();
        if inner.contexts.iter().any(|c| c.device.id == slot.id) {
            return Err(AttachError::AlreadyAttached);
        }
        if inner.contexts.is_full() {
            return Err(AttachError::TooManyContexts);
        }
        if !info.modes.contains(mode.as_set()) {
            return Err(AttachError::ModeUnsupported(info.modes));
        }
        if mode == Mode::CoherentExclusive && slot.state.lock().hnodes.is_empty() {
            return Err(AttachError::NoDeviceMemory);
        }
        if mode == Mode::Replicate && self.platform.host().window(&space.host).is_none() {
            return Err(AttachError::NoHostWindow);
        }
        for region in inner.regions() {
            if mode != Mode::Share && !info.page_sizes.can_map(region.attrs.page_size) {
                return Err(AttachError::PageSizeUnsupported(region.attrs.page_size, info.page_sizes));
            }
            if mode == Mode::Replicate && region.attrs.backing == Backing::Private {
                return Err(AttachError::PrivateBacking(region.range));
            }
        }
        Ok(())
    }

    fn table_to_share(&self, space: &Space<P>, slot: &DeviceSlot<P>) -> Result<Table, AttachError> {
        let cookie = slot.driver.info().mmu_cookie;
        if cookie == DeviceInfo::CPU_COOKIE {
            return if space.cpu_visible { Ok(Table::Cpu) } else { Err(AttachError::NothingToShare) };
        }
        let sharer = space.contexts().into_iter().find(|c| matches!(c.table, Table::Own(_)) && c.driver().info().mmu_cookie == cookie);
        let sharer = sharer.ok_or(AttachError::NothingToShare)?;
        check_id(slot, sharer.own_pmap())?;
        Ok(Table::Of(sharer.device.id, sharer.own_pmap()))
    }

    fn make_pmap(&self, space: &Space<P>, slot: &DeviceSlot<P>, mode: Mode) -> Result<PmapId, AttachError> {
        let host = if mode == Mode::Replicate { self.platform.host().window(&space.host) } else { None };
        let pmap = slot.driver.mmu().pmap_create(&PmapRequest { space: space.id, range: space.range, mode, host })?;
        // The driver broke its contract; and destroying the id could destroy the other table of that name.
        check_id(slot, pmap)?;
        Ok(pmap)
    }

    /// Enters what the host has into a new replica; what moves meanwhile is entered or revoked by whoever moves it.
    fn replicate_all(&self, space: &Arc<Space<P>>, context: &Arc<Context<P>>) {
        let _ = self.for_each_touched(space, space.range, |state, va| {
            if state == crate::entry::State::Host {
                let touch = Touch { who: Who::Context(context), access: None, cause: Cause::Prefetch, hot: false, hold: Hold::No };
                let _ = self.touch(space, va, &touch);
            }
            Ok::<_, FaultError>(())
        });
    }

    /// What a device is to an address space, if it is attached.
    pub fn context(&self, space: SpaceId, device: DeviceId) -> Option<ContextInfo> {
        let context = self.space(space)?.lock().context_of(device)?;
        Some(ContextInfo { mode: context.mode, pmap: context.pmap(), fenced: context.is_fenced() })
    }

    /// Stops a context for good, as after a failure of its device: its launches end with an error, nothing new is launched, and its pages come home when they are wanted.
    /// Waits for no launch; blocks for as long as the driver's [`Device::fence`](gmem_hal::Device::fence).
    ///
    /// # Errors
    /// [`DeviceCallError::NotAttached`]; [`DeviceError::Unsupported`] for a context that shares a page table, which is stopped by nobody, and nothing changed;
    /// [`DeviceError::NoAnswer`] if the driver cannot confirm the end: the context is fenced, and its launches may go on.
    pub fn fence_context(&self, space: SpaceId, device: DeviceId) -> Result<(), DeviceCallError> {
        let slot = self.device(device)?;
        let space = self.space(space).ok_or(DeviceCallError::NotAttached(space))?;
        // Not the address space's gate: whoever is inside may wait for the very launch that this is to end. The device's keeps the table from being destroyed, and its id
        // from becoming another's.
        let _gate = slot.enter_gate("fence").ok_or(DeviceCallError::NoSuchDevice(device))?;
        let context = space.lock().context_of(device).ok_or(DeviceCallError::NotAttached(space.id))?;
        if !matches!(context.table, Table::Own(_)) {
            return Err(DeviceError::Unsupported.into());
        }
        if self.fence(&context) { Ok(()) } else { Err(DeviceError::NoAnswer.into()) }
    }

    /// Detaches a device from an address space: brings its pages home, destroys its page table. Waits for launches that hold pages; one in
    /// REPLICATE mode, where nothing is held, ends with an error. May block.
    ///
    /// # Errors
    /// [`DetachError::DataStranded`] if a page cannot be copied home: the context then stays, fenced or not as it was.
    pub fn detach(&self, space: SpaceId, device: DeviceId) -> Result<(), DetachError> {
        let found = self.space(space).ok_or(DetachError::NoSuchSpace(space))?;
        let _gate = found.enter_gate("detach").ok_or(DetachError::NoSuchSpace(space))?;
        self.detach_in(&found, device)
    }

    /// Detaches, under the gate.
    pub(crate) fn detach_in(&self, space: &Arc<Space<P>>, device: DeviceId) -> Result<(), DetachError> {
        let context = space.lock().context_of(device).ok_or(DetachError::NotAttached(device))?;
        let sharer = space.lock().contexts.iter().find(|c| matches!(c.table, Table::Of(d, _) if d == device)).map(|c| c.device.id);
        if let Some(sharer) = sharer {
            return Err(DetachError::Shared(sharer));
        }
        context.set_leaving(true);
        if let Err((va, error)) = self.bring_home(space, &context) {
            context.set_leaving(false);
            return Err(DetachError::DataStranded(va, error));
        }
        // What chose its replicas before this one began to leave is over when each page was seen idle; what begins now enters nothing into it.
        self.wait_idle(space, space.range);
        let device_gate = context.device.enter_gate("detach").ok_or(DetachError::NotAttached(device))?;
        self.forget_current(&context.device, space.id);
        if let Table::Own(pmap) = context.table {
            if context.mode == Mode::Replicate && !context.is_fenced() {
                // Homes outlive the context, so nothing of it may reach them from here on. While it is still listed, whoever takes a page from the replicas takes
                // it from this one too.
                for region in space.walk(space.range) {
                    self.revoke(&context, region.range);
                }
            }
            if context.is_peer() && !context.is_fenced() {
                free_all(space, &context, pmap);
            }
        }
        {
            let mut inner = space.lock();
            inner.contexts.retain(|c| c.device.id != device);
            context.device.state.lock().hnodes.iter().for_each(|h| inner.allowed.remove(h.id));
        }
        // What chose its replicas while this was one may still be about to take its page from it.
        self.wait_idle(space, space.range);
        self.drop_pmap(&context, space.id);
        // Last: while the device has an attachment it cannot be destroyed.
        let listed = context.device.state.lock().contexts.remove(space.id);
        drop((listed, device_gate));
        self.retire(context);
        Ok(())
    }

    fn drop_pmap(&self, context: &Context<P>, space: SpaceId) {
        let Table::Own(pmap) = context.table else { return };
        let answer = context.mmu().pmap_destroy(pmap);
        // A table that cannot be destroyed in order is destroyed by force. If the driver cannot do that either, its frames stay quarantined until the device
        // is destroyed.
        if matches!(answer, Ok(()) | Err(DeviceError::Dead)) || self.fence(context) {
            self.end_quarantine(context, space);
        } else {
            // The next context of this device here must not end a quarantine that is not its own.
            for hnode in context.device.pools() {
                hnode.orphan_quarantine(space);
            }
        }
    }

    /// The context is confirmed to touch no memory any more: frames held back for it are free.
    fn end_quarantine(&self, context: &Context<P>, space: SpaceId) {
        for hnode in context.device.pools() {
            while let Some(frame) = hnode.end_quarantine(space) {
                self.free_frame(&hnode, frame);
            }
        }
    }

    /// Moves every page that `context` has to its home. The context is leaving: no page comes to it any more, and one that was on its way is busy and
    /// waited for.
    fn bring_home(&self, space: &Arc<Space<P>>, context: &Context<P>) -> Result<(), (VirtAddr, FaultError)> {
        self.for_each_touched(space, space.range, |_, va| {
            loop {
                let inner = space.lock();
                let Some(region) = inner.region_at(va) else { return Ok(()) };
                let entry = inner.entry(&region, va);
                if entry.busy {
                    space.park(inner, &region, va, WaitKind::BusyPage);
                    continue;
                }
                let owned = entry.state.on_device() && self.hnode(entry.hnode).is_some_and(|h| h.device == context.device.id);
                drop(inner);
                if !owned {
                    return Ok(());
                }
                self.touch(space, va, &Touch::home(Cause::Other)).map_err(|e| (va, e))?;
            }
        })
    }
}

/// Two contexts of a device whose tables have one id could not be told apart: not in a fault, nor in a launch.
fn check_id<P: Platform>(slot: &DeviceSlot<P>, pmap: PmapId) -> Result<(), AttachError> {
    match slot.attachment(pmap) {
        Some(_) => Err(DeviceError::BadRequest.into()),
        None => Ok(()),
    }
}

/// Reserves everything that is mapped in a new peer; on a conflict, gives back what was reserved.
fn reserve_all<P: Platform>(space: &Space<P>, context: &Context<P>) -> Result<(), AttachError> {
    let peer = context.driver().peer().expect("checked when the device was created");
    for region in space.walk(space.range) {
        if let Err(e) = peer.va_alloc_fixed(context.own_pmap(), region.range, region.attrs.prot) {
            for reserved in space.walk(space.range).take_while(|r| r.range.start() < region.range.start()) {
                let _ = peer.va_free(context.own_pmap(), reserved.range);
            }
            return Err(match e {
                PeerError::Device(e) => e.into(),
                PeerError::NoMemory => DeviceError::NoMemory.into(),
                _ => AttachError::AddressConflict(region.range),
            });
        }
    }
    Ok(())
}

fn free_all<P: Platform>(space: &Space<P>, context: &Context<P>, pmap: PmapId) {
    let peer = context.driver().peer().expect("checked when the device was created");
    for region in space.walk(space.range) {
        // The table is destroyed next, and the reservations with it.
        let _ = peer.va_free(pmap, region.range);
    }
}
