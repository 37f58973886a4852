//! Carrying out a plan step by step, and undoing it when a step fails.
//!
//! While a plan runs, the entry is busy and no lock is held. A physical table is a cache, so undoing never has to succeed: what cannot be entered again
//! costs a fault later. Only data must be where the entry says, and every step keeps the old copy until the new one is committed.

use crate::context::{Context, Table};
use crate::core::Core;
use crate::device::MAX_POOLS;
use crate::entry::State;
use crate::evict::{Room, Spare};
use crate::frame::FrameId;
use crate::hnode::{Allocator, Hnode, Released};
use crate::plan::{Step, Steps};
use crate::space::{Contexts, Guard, Region, Space};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::{
    ByteLen, DeviceError, Event, FaultError, Host, Mapping, Mode, PageSize, Pages, PeerError, PeerMap, PeerUnmap, PhysAddr, Platform, Prot,
    VirtRange,
};

/// Why pages move, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Fault,
    Prefetch,
    Evict,
    Other,
}

/// One operation on one page, whose entry it has busy.
pub(crate) struct Op<'a, P: Platform> {
    pub(crate) core: &'a Core<P>,
    pub(crate) space: &'a Arc<Space<P>>,
    pub(crate) region: Region,
    pub(crate) page: VirtRange,
    /// The entry's state and home when the operation began.
    pub(crate) state: State,
    pub(crate) home: bool,
    /// Who has the page on a device, in which pool and frame.
    pub(crate) from: Option<Arc<Context<P>>>,
    pub(crate) old: Option<(Arc<Hnode<P>>, Option<FrameId>)>,
    /// The requesting context.
    pub(crate) to: Option<Arc<Context<P>>>,
    /// The contexts in REPLICATE mode.
    pub(crate) replicas: Contexts<P>,
    pub(crate) cause: Cause,
    pub(crate) hot: bool,
    /// The requester's frame, once allocated.
    pub(crate) new: Option<(Arc<Hnode<P>>, Option<FrameId>, PhysAddr)>,
    /// The operation was put off several times: what it evicts goes, wanted or not.
    pub(crate) insist: bool,
    /// The requester's memory was full of frames that others have in hand: the pool, and its epoch before.
    pub(crate) full: Option<(Arc<Hnode<P>>, u32)>,
    /// The new frame may still be reached by a device that did not answer.
    pub(crate) new_in_reach: bool,
    /// The old frame may still be reached by its device.
    pub(crate) unsafe_to_free: bool,
    /// The entry stays marked willneed after the operation.
    pub(crate) keep_willneed: bool,
    /// Count a hold of a launch on the page when the operation succeeds.
    pub(crate) hold: bool,
    /// The peer gave its copy up: undoing cannot bring it back, so the bytes are in the home.
    pub(crate) peer_gave_up: bool,
}

/// Whether the operation ended as planned.
pub(crate) struct Failed {
    pub(crate) error: FaultError,
    /// The state to go back to.
    pub(crate) state: State,
}

impl<P: Platform> Op<'_, P> {
    fn pages(&self) -> Pages {
        self.region.pages(self.page)
    }

    fn len(&self) -> ByteLen {
        self.page.len()
    }

    fn host(&self) -> &P::Host {
        self.core.platform.host()
    }

    fn home_addr(&self) -> PhysAddr {
        self.host().home(&self.space.host, &self.pages())
    }

    /// Runs `steps`. On failure everything done is undone.
    pub(crate) fn run(&mut self, steps: &Steps) -> Result<(), Failed> {
        for (done, step) in steps.iter().enumerate() {
            if let Err(error) = self.step(*step) {
                self.mistrust(*step, error);
                for step in steps[..done].iter().rev() {
                    self.undo(*step);
                }
                let state = if self.peer_gave_up { self.state_without_peer() } else { self.state };
                return Err(Failed { error, state });
            }
        }
        self.home |= steps.contains(&Step::Populate);
        Ok(())
    }

    /// A device that did not answer may still do what it was asked: its context is fenced, and unless that stops it for certain, the frame it was given is
    /// quarantined.
    fn mistrust(&mut self, step: Step, error: FaultError) {
        let by_owner = match step {
            // The step itself saw to that.
            Step::PeerUnmap { .. } => return,
            Step::CopyOut => true,
            _ => false,
        };
        let Some(context) = (if by_owner { &self.from } else { &self.to }).clone() else { return };
        match error {
            FaultError::Device(DeviceError::NoAnswer) => {
                let stopped = self.core.fence(&context);
                // The owner knows nothing of the frame that is for whoever asks for its page.
                self.new_in_reach |= !stopped && !by_owner;
            }
            FaultError::Device(DeviceError::Dead) if !by_owner => self.core.lose(&context),
            _ => {}
        }
    }

    /// Gives the page back to the device that had it; if that fails, its next access faults.
    pub(crate) fn reenter_owner(&self, write: bool) {
        let owner = self.owner();
        // A page that moves is held by nobody, and what nobody holds a device without replay does not see.
        if !owner.is_fenced() && owner.is_replayable() {
            let _ = self.enter(&owner, self.old_phys(), write);
        }
    }

    fn state_without_peer(&mut self) -> State {
        if self.state == State::Duplicated && !self.home {
            return State::Unmapped;
        }
        // The home holds the bytes; if the CPU cannot be given them now, its next access faults.
        self.home = true;
        let _ = self.cpu_map();
        State::Host
    }

    fn step(&mut self, step: Step) -> Result<(), FaultError> {
        let host_space = &self.space.host;
        match step {
            Step::Populate => self.host().populate(host_space, &self.pages())?,
            Step::AllocFrame => self.new = Some(self.core.alloc_frame(self)?),
            Step::CpuUnmap => self.host().cpu_unmap(host_space, &self.pages())?,
            Step::CpuMap => self.cpu_map()?,
            Step::ReplicasRevoke => self.replicas_revoke(),
            Step::ReplicasEnter => self.replicas_enter(),
            Step::ReplicaEnter => self.replica_enter(&self.requester())?,
            Step::Revoke => self.unsafe_to_free = !self.core.revoke(&self.owner(), self.page),
            Step::CopyOut => self.copy_out()?,
            Step::CopyIn => self.copy_in()?,
            Step::CopyAcross => self.copy_across()?,
            Step::Zero => {
                let (_, _, frame) = self.new_frame();
                self.requester().driver().copy_engine().zero(*frame, self.len())?;
                self.core.counters.zeroed_bytes.add(self.len().get());
            }
            Step::Enter { write } => {
                let (_, _, frame) = self.new_frame();
                self.enter(&self.requester(), *frame, write)?;
            }
            Step::Reenter { write } => self.enter(&self.requester(), self.old_phys(), write)?,
            Step::PeerMap { copy, write } => self.peer_map(copy, write)?,
            Step::PeerUnmap { copy } => self.peer_unmap(copy)?,
            Step::DiscardHome => self.host().discard(host_space, &self.pages()),
            // The entry still names the old frame: it is given up when the new state is committed.
            Step::FreeOld => {}
        }
        Ok(())
    }

    fn undo(&mut self, step: Step) {
        match step {
            // An unpopulated home stands for zeros, so a half-finished one must not stay.
            // Unless the home holds the only bytes now.
            Step::Populate if !(self.peer_gave_up && self.state == State::Device) => self.host().discard(&self.space.host, &self.pages()),
            Step::AllocFrame => match self.new.take() {
                Some((hnode, Some(frame), _)) if self.new_in_reach => hnode.quarantine(frame),
                Some((hnode, Some(frame), _)) => self.core.free_frame(&hnode, frame),
                _ => {}
            },
            Step::CpuUnmap => {
                let _ = self.cpu_map();
            }
            Step::ReplicasRevoke => self.replicas_enter(),
            Step::Revoke => self.reenter_owner(self.state == State::Device),
            _ => {}
        }
    }

    fn requester(&self) -> Arc<Context<P>> {
        self.to.clone().expect("a step for a device has a requesting context")
    }

    fn owner(&self) -> Arc<Context<P>> {
        self.from.clone().expect("a page on a device has a context that owns it")
    }

    /// Whether the requester is the owner.
    fn owns(&self) -> bool {
        matches!((&self.from, &self.to), (Some(from), Some(to)) if from.device.id == to.device.id)
    }

    fn new_frame(&self) -> &(Arc<Hnode<P>>, Option<FrameId>, PhysAddr) {
        self.new.as_ref().expect("the frame was allocated by an earlier step")
    }

    /// Where the old frame is.
    pub(crate) fn old_phys(&self) -> PhysAddr {
        match &self.old {
            Some((hnode, Some(frame))) => hnode.phys(*frame),
            other => panic!("the page at {} has no frame of the core's: {:?}", self.page, other.as_ref().map(|o| o.1)),
        }
    }

    fn prot(&self, write: bool) -> Prot {
        self.region.attrs.prot & if write { Prot::RW } else { Prot::READ }
    }

    fn enter(&self, context: &Context<P>, frame: PhysAddr, write: bool) -> Result<(), FaultError> {
        let prot = self.prot(write);
        if prot.is_empty() {
            // Nobody may touch the region now; the mapping is entered by a fault after it was unprotected.
            return Ok(());
        }
        if self.region.lowering {
            // The protect under way may not have come to this page, which then is there with more access; and entering only ever gives access.
            // It is lowered and not taken away: a launch may hold it.
            self.core.restrict(context, &[self.page], prot);
        }
        if context.is_fenced() {
            // Making room for this very page may have been the revoke that failed.
            return Err(FaultError::Fenced);
        }
        let mapping = Mapping { va: self.page.start(), frame, len: self.len(), prot };
        Ok(context.mmu().pmap_enter(context.own_pmap(), &mapping)?)
    }

    fn cpu_map(&self) -> Result<(), FaultError> {
        if self.region.attrs.prot.is_empty() {
            // Nobody may touch the page now; it comes by a fault after that has changed.
            return Ok(());
        }
        match self.host().cpu_map(&self.space.host, &self.pages()) {
            // Nobody on the CPU waits: an eviction or a detach is complete when the bytes are home, and a replica has what it wants; the CPU's mapping can wait for
            // its fault.
            Err(_) if matches!(self.cause, Cause::Evict | Cause::Other) || self.to.is_some() => Ok(()),
            other => Ok(other?),
        }
    }

    fn copy_out(&self) -> Result<(), FaultError> {
        let owner = self.owner();
        owner.driver().copy_engine().copy(self.home_addr(), self.old_phys(), self.len())?;
        self.count_out();
        Ok(())
    }

    fn count_out(&self) {
        let counters = &self.core.counters;
        let counter = match (self.cause, &self.to) {
            (Cause::Evict, _) => &counters.d2h_evict_bytes,
            (Cause::Fault, None) => &counters.d2h_fault_bytes,
            _ => &counters.d2h_other_bytes,
        };
        counter.add(self.len().get());
    }

    fn count_in(&self) {
        let counters = &self.core.counters;
        let counter = if self.cause == Cause::Fault { &counters.h2d_fault_bytes } else { &counters.h2d_prefetch_bytes };
        counter.add(self.len().get());
    }

    fn copy_in(&self) -> Result<(), FaultError> {
        let (_, _, frame) = self.new_frame();
        self.requester().driver().copy_engine().copy(*frame, self.home_addr(), self.len())?;
        self.count_in();
        Ok(())
    }

    fn copy_across(&self) -> Result<(), FaultError> {
        let (_, _, frame) = self.new_frame();
        self.requester().driver().copy_engine().copy(*frame, self.old_phys(), self.len())?;
        self.core.counters.d2d_bytes.add(self.len().get());
        Ok(())
    }

    fn peer_map(&mut self, copy: bool, write: bool) -> Result<(), FaultError> {
        let to = self.requester();
        let request = PeerMap {
            pmap: to.own_pmap(),
            va: self.page.start(),
            len: self.len(),
            prot: self.prot(write),
            copy: copy.then(|| self.home_addr()),
            hot: self.hot,
        };
        let answer = to.driver().peer().expect("checked when the device was created").map(&request);
        match answer {
            Ok(()) => {}
            // The peer has it mapped: that is what was asked, if it is a page that it has. One that it should not have holds nobody knows what.
            Err(PeerError::PageExists) if self.owns() => {}
            // It is about to evict this very page: the request that follows is refused, because the page is wanted.
            Err(PeerError::Migrating) if self.owns() => self.keep_willneed = true,
            Err(PeerError::PageExists | PeerError::Migrating) => {
                self.core.fence(&to);
                return Err(FaultError::Device(DeviceError::BadRequest));
            }
            Err(PeerError::NoMemory) => return Err(no_room(&to, self.region.attrs.page_size)),
            Err(PeerError::Conflict) => return Err(FaultError::Device(DeviceError::BadRequest)),
            Err(PeerError::Device(e)) => return Err(e.into()),
        }
        if copy {
            self.count_in();
        }
        Ok(())
    }

    fn peer_unmap(&mut self, copy: bool) -> Result<(), FaultError> {
        let from = self.owner();
        let copy_to = copy.then(|| self.home_addr());
        let request = PeerUnmap { pmap: from.own_pmap(), va: self.page.start(), len: self.len(), copy: copy_to };
        let peer = from.driver().peer().expect("checked when the device was created");
        // Not counted from here on: the peer may give the memory to another page before it answers.
        self.count_at_peer(false);
        let mut answer = peer.unmap(&request);
        if copy && !matches!(answer, Ok(()) | Err(DeviceError::CopyFailed)) && self.core.fence(&from) {
            // It is certain now that the device changes nothing any more, and its driver may still reach the bytes.
            answer = peer.unmap(&request);
        }
        match answer {
            Ok(()) => {}
            // Without a copy nothing is lost with the peer: it is stopped, and the page goes on without it.
            Err(_) if !copy => {
                self.core.fence(&from);
            }
            Err(e) => {
                self.count_at_peer(true);
                if e != DeviceError::CopyFailed {
                    self.core.fence(&from);
                }
                return Err(e.into());
            }
        }
        self.peer_gave_up = true;
        if copy {
            self.count_out();
        }
        Ok(())
    }

    /// Counts the page among those that its peer has, or no longer.
    fn count_at_peer(&self, there: bool) {
        if let Some((hnode, None)) = &self.old {
            hnode.count_peer_page(self.region.attrs.page_size, there);
        }
    }

    fn replicas_revoke(&self) {
        for replica in &self.replicas {
            // A home cannot be quarantined. A replica that does not answer is stopped by its driver; if the driver cannot do that, it goes on touching the
            // homes of its address space, which is why such a driver should not offer REPLICATE.
            self.core.revoke(replica, self.page);
        }
    }

    /// Best effort: a replica that misses a mapping faults for it.
    fn replicas_enter(&self) {
        for replica in &self.replicas {
            // The requester was entered by a step of its own.
            if !self.to.as_ref().is_some_and(|to| Arc::ptr_eq(to, replica)) {
                let _ = self.replica_enter(replica);
            }
        }
    }

    fn replica_enter(&self, replica: &Context<P>) -> Result<(), FaultError> {
        if replica.is_fenced() || replica.is_leaving() {
            return Err(FaultError::Fenced);
        }
        self.enter(replica, self.home_addr(), true)?;
        self.core.counters.replica_enters.add(1);
        Ok(())
    }
}

impl<P: Platform> Core<P> {
    /// Takes `range` from a context and waits until it cannot touch it. Returns whether that is certain.
    pub(crate) fn revoke(&self, context: &Context<P>, range: VirtRange) -> bool {
        if context.is_fenced() {
            // Waits for a fence that is under way.
            return self.fence(context);
        }
        let (mmu, pmap) = (context.mmu(), context.own_pmap());
        let answer = mmu.pmap_release(pmap, range).and_then(|()| mmu.tlb_invalidate(pmap, range));
        self.counters.invalidations.add(1);
        self.revoked(context, answer)
    }

    /// What the answer of a revoke means: whether the device certainly cannot touch the range any more.
    pub(crate) fn revoked(&self, context: &Context<P>, answer: Result<(), DeviceError>) -> bool {
        match answer {
            Ok(()) => true,
            Err(DeviceError::Dead) => {
                self.lose(context);
                true
            }
            Err(_) => self.fence(context),
        }
    }

    /// Stops a context for good. Returns whether it certainly touches no memory any more.
    pub(crate) fn fence(&self, context: &Context<P>) -> bool {
        if context.stop() {
            self.counters.fences.add(1);
        }
        context.is_dead()
    }

    /// A context is gone, confirmed by its driver.
    pub(crate) fn lose(&self, context: &Context<P>) {
        if context.declare_dead() {
            self.counters.fences.add(1);
        }
    }

    /// A frame in the memory of the requester of `op`, evicting if need be. Never waits for others, because the page that `op` has busy may be what they
    /// wait for: if others have all frames in hand, `op.full` says where to wait once the page is let go.
    fn alloc_frame(&self, op: &mut Op<'_, P>) -> Result<(Arc<Hnode<P>>, Option<FrameId>, PhysAddr), FaultError> {
        let context = op.requester();
        let size = op.region.attrs.page_size;
        let mut idle_rounds = 0;
        let mut block = None;
        for round in 0..crate::evict::MAX_ROUNDS {
            if round == 1 {
                self.counters.direct_reclaims.add(1);
            }
            let mut pools = ArrayVec::<_, MAX_POOLS>::new();
            for hnode in context.device.pools() {
                if hnode.range.len() < size.len() || !op.space.lock().allowed.contains(hnode.id) {
                    continue;
                }
                let epoch = hnode.progress.epoch();
                if let Some((frame, phys)) = self.try_take(&context, &hnode, op)? {
                    if hnode.shortage(false) > 0 {
                        self.platform.pressure(hnode.id);
                    }
                    return Ok((hnode, Some(frame), phys));
                }
                if hnode.usable(size).get() > 0 {
                    pools.push((hnode, epoch));
                }
            }
            // Whichever pool gives something up will do.
            let mut made = false;
            for (hnode, epoch) in pools {
                match self.make_room(&hnode, size, &mut block, Spare::after(idle_rounds, op.insist)) {
                    Room::Made => {
                        made = true;
                        break;
                    }
                    Room::InUse => op.full = op.full.take().or(Some((hnode, epoch))),
                    Room::None => {}
                }
            }
            if made {
                op.full = None;
                idle_rounds = 0;
                continue;
            }
            if op.full.is_some() {
                return Err(FaultError::NoDeviceMemory);
            }
            idle_rounds += 1;
            if idle_rounds > crate::evict::IDLE_ROUNDS {
                break;
            }
        }
        Err(no_room(&context, size))
    }

    fn try_take(&self, context: &Context<P>, hnode: &Arc<Hnode<P>>, op: &Op<'_, P>) -> Result<Option<(FrameId, PhysAddr)>, FaultError> {
        let (size, space, va) = (op.region.attrs.page_size, op.space.id, op.page.start());
        if hnode.allocator != Allocator::Driver {
            return Ok(hnode.take(size, space, va));
        }
        if !hnode.begin_call(size.len()) {
            return Ok(None);
        }
        let frames = context.driver().frames().expect("the hnode was made for a driver with its own allocator");
        let taken = match frames.alloc_frame(hnode.id, size) {
            Ok(phys) => match hnode.adopt(phys, size, space, va) {
                Some(taken) => Ok(Some(taken)),
                None => {
                    frames.free_frame(phys, size);
                    Err(DeviceError::BadRequest.into())
                }
            },
            Err(DeviceError::NoMemory) => Ok(None),
            Err(e) => Err(e.into()),
        };
        hnode.end_call(size.len());
        taken
    }

    /// Frees a frame that no device can reach.
    pub(crate) fn free_frame(&self, hnode: &Hnode<P>, frame: FrameId) {
        self.tell_allocator(hnode, hnode.release(frame));
    }

    /// Gives a frame that was released back to the driver's own allocator, if it came from there.
    fn tell_allocator(&self, hnode: &Hnode<P>, (phys, size, tell): Released) {
        if tell {
            if let Ok(device) = self.device(hnode.device)
                && let Some(frames) = device.driver.frames()
            {
                frames.free_frame(phys, size);
            }
            hnode.end_call(ByteLen(0));
        }
    }

    /// Gives an old frame up after its page left it. `guard` is the lock under which the page becomes idle: whoever sees it idle, to end a quarantine or
    /// to look what is used, must find its frame settled.
    pub(crate) fn drop_old(&self, op: &Op<'_, P>, guard: Guard<'_, P>) {
        match &op.old {
            Some((hnode, Some(frame))) if op.unsafe_to_free => hnode.quarantine(*frame),
            Some((hnode, Some(frame))) => {
                let released = hnode.release(*frame);
                drop(guard);
                self.tell_allocator(hnode, released);
            }
            // Uncounted when the peer gave it up.
            Some((_, None)) | None => {}
        }
    }
}

/// The contexts of `contexts` that hold copies of every mapping.
pub(crate) fn replicas<P: Platform>(contexts: &Contexts<P>) -> Contexts<P> {
    contexts.iter().filter(|c| c.mode == Mode::Replicate && matches!(c.table, Table::Own(_)) && !c.is_stopped()).cloned().collect()
}

/// That the device has no memory for a page of this size: for now, or whatever leaves it.
fn no_room<P: Platform>(context: &Context<P>, size: PageSize) -> FaultError {
    let pools = context.device.pools();
    let never = !pools.is_empty() && pools.iter().all(|hnode| hnode.usable(size).get() == 0);
    if never { FaultError::PageTooLarge } else { FaultError::NoDeviceMemory }
}
