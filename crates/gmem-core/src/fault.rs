//! Faults, and everything else that touches a page: look the entry up, mark it busy, plan, execute, commit or undo, wake.

use crate::context::{Context, Table};
use crate::core::Core;
use crate::entry::{Entry, PageEvent, State};
use crate::execute::{Cause, Op, replicas};
use crate::frame::List;
use crate::hnode::Hnode;
use crate::plan::{Facts, Owner, Plan, Wish, plan};
use crate::space::{Change, Ended, Guard, Region, Space};
use alloc::sync::Arc;
use gmem_hal::{
    Access, DeviceId, Event, EvictOutcome, FaultError, FaultHint, Host, HostFault, Mode, Platform, PmapId, Upcalls, VirtAddr, VirtRange,
    Wait, WaitKind,
};

/// How often an operation that found its device's memory full of frames that others have in hand waits for one of them. Each wait ends with somebody's progress.
const CONTENDED_RETRIES: usize = 1000;

/// After how many of those willneed no longer protects a victim. A device that is about to use the page of the only frame would otherwise save it again and again, and lose it
/// again before it came to use it.
const INSIST_AFTER: usize = 3;

/// After how many of those a page that is on its way from another device is first brought home. Two devices that each wait for a frame the other
/// gives up would otherwise wait for each other.
const BY_WAY_OF_HOME: usize = 3;

/// Who touches a page.
pub(crate) enum Who<'a, P: Platform> {
    /// The CPU, or someone who wants the page home.
    Host { may_wait: bool },
    /// A context.
    Context(&'a Arc<Context<P>>),
}

/// A touch of one page.
pub(crate) struct Touch<'a, P: Platform> {
    pub(crate) who: Who<'a, P>,
    /// Checked against the region; `None` for moves that are no access.
    pub(crate) access: Option<Access>,
    pub(crate) cause: Cause,
    pub(crate) hot: bool,
    pub(crate) hold: Hold,
}

/// Whether a touch holds the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    No,
    /// For a launch or I/O. Waits for others who hold it elsewhere.
    Yes,
    /// The same, but does not wait for them: [`Touched::Pending`].
    Try,
}

impl<P: Platform> Touch<'_, P> {
    /// The page is wanted home; nobody accesses it.
    pub(crate) fn home(cause: Cause) -> Self {
        Self { who: Who::Host { may_wait: true }, access: None, cause, hot: false, hold: Hold::No }
    }
}

/// How a touch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Touched {
    /// The page changed sides.
    Moved,
    /// It was where it was wanted.
    Present,
    /// It is busy or held, and waiting was not allowed.
    Pending,
}

impl<P: Platform> Core<P> {
    /// Brings the page at `va` to where `touch` wants it.
    pub(crate) fn touch(&self, space: &Arc<Space<P>>, va: VirtAddr, touch: &Touch<'_, P>) -> Result<Touched, FaultError> {
        let mut retries = 0;
        loop {
            let guard = space.lock();
            let region = guard.region_at(va).filter(|r| !r.closing && !guard.dying).ok_or(FaultError::NotMapped)?;
            let waits = match guard.change(&region) {
                Change::No => false,
                // From inside a callback: what waits for the end of that callback must not be waited for.
                Change::Awaited => self.platform.under_way(0) == 0,
                Change::UnderWay => true,
            };
            if waits {
                // What is allowed is decided when that is over.
                if let Who::Host { may_wait: false } = touch.who {
                    return Ok(Touched::Pending);
                }
                space.await_change(guard, region.page(va).start());
                continue;
            }
            if touch.access.is_some_and(|access| !region.attrs.prot.allows(access)) {
                return Err(FaultError::Protection);
            }
            let page = region.page(va).start();
            let entry = guard.entry(&region, page);
            let wish = wish(touch);
            if entry.busy {
                if !self.wait_for(space, guard, &region, page, touch, WaitKind::BusyPage) {
                    return Ok(Touched::Pending);
                }
                continue;
            }
            check_context(touch)?;
            let (mut op, facts) = self.prepare(space, &guard, &region, page, entry, touch);
            op.insist = retries >= INSIST_AFTER;
            let plan = plan(&facts, wish);
            let moves = moves(&facts, wish);
            if entry.holds > 0 && moves {
                if touch.hold == Hold::Try {
                    return Ok(Touched::Pending);
                }
                if !self.wait_for(space, guard, &region, page, touch, WaitKind::HeldPage) {
                    return Ok(Touched::Pending);
                }
                continue;
            }
            if touch.hold != Hold::No && entry.holds == u8::MAX {
                return Err(FaultError::TooManyHolds);
            }
            self.mark_busy(guard, &region, page, entry, false);
            match self.carry_out(op, &plan) {
                Ok(()) if moves => return Ok(Touched::Moved),
                Ok(()) => return Ok(Touched::Present),
                Err((_, Some((hnode, epoch)))) if retries < CONTENDED_RETRIES => {
                    retries += 1;
                    if retries.is_multiple_of(BY_WAY_OF_HOME) && facts.owner != Owner::Nobody {
                        // Where a launch holds it by now it stays, for one that does not wait.
                        let who = Who::Host { may_wait: touch.hold != Hold::Try };
                        self.touch(space, va, &Touch { who, ..Touch::home(Cause::Other) })?;
                    }
                    let at = VirtAddr::new(u64::from(hnode.id.0));
                    hnode.progress.wait(epoch, &Wait { kind: WaitKind::Frame, space: None, at, owner: "fault or evict" });
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits for the page, or leaves a note that somebody waits. Returns whether to look again.
    fn wait_for(
        &self,
        space: &Space<P>,
        mut guard: Guard<'_, P>,
        region: &Region,
        page: VirtAddr,
        touch: &Touch<'_, P>,
        kind: WaitKind,
    ) -> bool {
        let mut entry = guard.entry(region, page);
        // Only who has it may keep it.
        if entry.evicting && matches!(&touch.who, Who::Context(c) if self.hnode(entry.hnode).is_some_and(|h| h.device == c.device.id)) {
            entry.willneed = true;
            guard.set_entry(region, page, entry);
        }
        if let Who::Host { may_wait: false } = touch.who {
            entry.waiters = true;
            guard.set_entry(region, page, entry);
            return false;
        }
        space.park(guard, region, page, kind);
        true
    }

    pub(crate) fn mark_busy(&self, mut guard: Guard<'_, P>, region: &Region, page: VirtAddr, entry: Entry, evicting: bool) {
        self.platform.under_way(1);
        guard.set_entry(region, page, Entry { busy: true, evicting, ..entry });
    }

    /// The operation that `touch` needs, and what its plan depends on. Nothing is changed.
    pub(crate) fn prepare<'a>(
        &'a self,
        space: &'a Arc<Space<P>>,
        guard: &Guard<'_, P>,
        region: &Region,
        page: VirtAddr,
        entry: Entry,
        touch: &Touch<'_, P>,
    ) -> (Op<'a, P>, Facts) {
        let old = entry.state.on_device().then(|| {
            let hnode = self.hnode(entry.hnode).unwrap_or_else(|| panic!("the page at {page} is in {}, which does not exist", entry.hnode));
            (hnode, entry.frame)
        });
        let from = old.as_ref().map(|(hnode, _)| {
            guard.context_of(hnode.device).unwrap_or_else(|| panic!("the page at {page} is on {}, which is not attached", hnode.device))
        });
        let to = match &touch.who {
            Who::Context(context) => Some((*context).clone()),
            Who::Host { .. } => None,
        };
        let own = match (&from, &to) {
            (Some(from), Some(to)) => from.device.id == to.device.id,
            _ => false,
        };
        let owner = match &from {
            None => Owner::Nobody,
            Some(from) if from.is_peer() => Owner::Peer,
            Some(_) => Owner::Frames,
        };
        let direct = match (&to, &old) {
            (Some(to), Some((hnode, _))) => owner == Owner::Frames && to.driver().copy_engine().reaches(hnode.id),
            _ => false,
        };
        let facts = Facts { state: entry.state, home: entry.home, owner, own, direct };
        let op = Op {
            core: self,
            space,
            region: *region,
            page: region.page(page),
            state: entry.state,
            home: entry.home,
            from,
            old,
            to,
            replicas: replicas(&guard.contexts),
            cause: touch.cause,
            hot: touch.hot,
            new: None,
            full: None,
            insist: false,
            new_in_reach: false,
            unsafe_to_free: false,
            keep_willneed: false,
            hold: touch.hold != Hold::No,
            peer_gave_up: false,
        };
        (op, facts)
    }

    /// Executes a plan on a page that is marked busy, and commits or undoes. An error comes with the full pool to wait for, if
    /// trying again after that may help.
    fn carry_out(&self, mut op: Op<'_, P>, plan: &Plan) -> Result<(), (FaultError, Option<(Arc<Hnode<P>>, u32)>)> {
        match op.run(&plan.steps) {
            Ok(()) => {
                self.commit(op, plan.event);
                Ok(())
            }
            Err(failed) => {
                let full = op.full.take();
                self.abandon(op, failed.state);
                Err((failed.error, full))
            }
        }
    }

    /// `event` has happened to the page: the entry says so, and whoever waits is woken.
    pub(crate) fn commit(&self, mut op: Op<'_, P>, event: PageEvent) {
        let page = op.page.start();
        let next = self.counters.take_transition(op.state, event);
        let same_owner = match (&op.from, &op.to) {
            (Some(from), Some(to)) => from.device.id == to.device.id,
            _ => false,
        };
        let kept = if next.on_device() && (same_owner || op.to.is_none()) { op.old.take() } else { None };
        let mut guard = op.space.lock();
        let mut entry = guard.entry(&op.region, page);
        entry = Entry { state: next, willneed: op.keep_willneed, ..entry };
        entry.home = match next {
            State::Unmapped => false,
            State::Host => true,
            // A home is populated on the way to a device only if the page was, or had to go through it.
            State::Device | State::Duplicated => op.home,
        };
        entry.holds += u8::from(op.hold);
        let place = match (kept, op.new.take()) {
            (Some((hnode, frame)), None) => Some((hnode, frame)),
            (None, Some((hnode, frame, _))) => Some((hnode, frame)),
            (None, None) if next.on_device() => Some((self.peer_pool(&op), None)),
            (None, None) => None,
            (Some(_), Some(_)) => panic!("the page at {page} has two frames"),
        };
        let newcomer = op.from.is_none() || op.old.is_some();
        (entry.hnode, entry.frame) = place.as_ref().map_or((gmem_hal::HnodeId::HOST, None), |(hnode, frame)| (hnode.id, *frame));
        let ended = guard.end(&op.region, page, entry);
        match &place {
            Some((hnode, Some(frame))) => hnode.settle(*frame, list_of(&entry)),
            Some((hnode, None)) if newcomer => hnode.count_peer_page(op.region.attrs.page_size, true),
            _ => {}
        }
        self.drop_old(&op, guard);
        self.platform.under_way(-1);
        self.wake(op.space, &op.region, op.page, ended);
    }

    /// The operation failed and was undone: the page is in `state`, which differs from the former only if a peer gave it up on the way.
    pub(crate) fn abandon(&self, op: Op<'_, P>, state: State) {
        let page = op.page.start();
        let mut guard = op.space.lock();
        let mut entry = Entry { willneed: false, ..guard.entry(&op.region, page) };
        let lost_owner = entry.state.on_device() && !state.on_device();
        if lost_owner {
            entry = Entry { state, home: state == State::Host, hnode: gmem_hal::HnodeId::HOST, frame: None, ..entry };
        }
        let ended = guard.end(&op.region, page, entry);
        if let (Some((hnode, Some(frame))), false) = (&op.old, lost_owner) {
            hnode.resettle(*frame, list_of(&entry));
        }
        if lost_owner {
            self.drop_old(&op, guard);
        } else {
            drop(guard);
        }
        self.platform.under_way(-1);
        self.wake(op.space, &op.region, op.page, ended);
    }

    /// Wakes whoever waits for the page at `range`, in the core and in the host.
    pub(crate) fn wake(&self, space: &Space<P>, region: &Region, range: VirtRange, ended: Ended) {
        space.signal(range.start(), ended);
        if ended.waiters {
            self.platform.host().wake(&space.host, &region.pages(range));
        }
    }

    fn peer_pool(&self, op: &Op<'_, P>) -> Arc<Hnode<P>> {
        let to = op.to.as_ref().expect("only a requesting peer has pages without frames");
        to.device.first_pool().unwrap_or_else(|| panic!("{} lost its memory while pages are on it", to.device.id))
    }

    /// The context that a context in SHARE mode uses the table of, or itself.
    pub(crate) fn table_owner(&self, space: &Space<P>, context: &Arc<Context<P>>) -> Option<Arc<Context<P>>> {
        match context.table {
            Table::Own(_) => Some(context.clone()),
            Table::Of(device, _) => space.lock().context_of(device),
            Table::Cpu => None,
        }
    }

    /// Counts how a fault ended.
    fn count(&self, result: &Result<Touched, FaultError>) {
        match result {
            Ok(Touched::Moved) => self.counters.migrations.add(1),
            Ok(Touched::Present) => self.counters.soft_faults.add(1),
            Ok(Touched::Pending) => {}
            Err(_) => self.counters.failed_faults.add(1),
        }
    }
}

/// The list that a frame belongs on by the entry of its page.
pub(crate) fn list_of(entry: &Entry) -> List {
    if entry.pins > 0 || entry.holds > 0 {
        List::Pinned
    } else if entry.state == State::Device {
        List::Dirty
    } else {
        List::Clean
    }
}

fn wish<P: Platform>(touch: &Touch<'_, P>) -> Wish {
    let write = touch.access == Some(Access::Write);
    match &touch.who {
        Who::Host { .. } => Wish::Home,
        Who::Context(context) if context.mode == Mode::Replicate => Wish::Replica,
        Who::Context(context) if context.is_peer() => Wish::Peer { write },
        Who::Context(_) => Wish::Frame { write },
    }
}

/// Whether the page goes from one memory to another.
fn moves(facts: &Facts, wish: Wish) -> bool {
    match wish {
        Wish::Home | Wish::Replica | Wish::Evict => facts.state != State::Host,
        Wish::Frame { .. } | Wish::Peer { .. } => !facts.own,
        Wish::Discard => true,
    }
}

fn check_context<P: Platform>(touch: &Touch<'_, P>) -> Result<(), FaultError> {
    match &touch.who {
        Who::Context(context) if context.is_leaving() => Err(FaultError::NotAttached),
        Who::Context(context) if context.is_fenced() => Err(FaultError::Fenced),
        _ => Ok(()),
    }
}

impl<P: Platform> Upcalls for Core<P> {
    fn device_fault(
        &self,
        device: DeviceId,
        pmap: PmapId,
        va: VirtAddr,
        access: Access,
        hint: Option<FaultHint>,
    ) -> Result<(), FaultError> {
        let slot = self.device(device).map_err(|_| FaultError::NotAttached)?;
        let (space, context) = slot.attachment(pmap).ok_or(FaultError::NotAttached)?;
        self.counters.device_faults.add(1);
        let owner = self.table_owner(&space, &context);
        let who = match &owner {
            Some(owner) => Who::Context(owner),
            None => Who::Host { may_wait: true },
        };
        let hot = hint == Some(FaultHint::MarkHot);
        let result = self.touch(&space, va, &Touch { who, access: Some(access), cause: Cause::Fault, hot, hold: Hold::No });
        self.count(&result);
        result.map(|_| ())
    }

    fn device_evict(&self, device: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        self.evict_for_peer(device, pmap, range)
    }

    fn device_lost(&self, device: DeviceId, pmap: PmapId) {
        if let Ok(slot) = self.device(device)
            && let Some((_, context)) = slot.attachment(pmap)
        {
            self.lose(&context);
        }
    }

    fn host_fault(&self, va: VirtAddr, access: Access, may_wait: bool) -> HostFault {
        let Some(space) = self.space_at(va) else { return HostFault::NotOurs };
        let touch = Touch { who: Who::Host { may_wait }, access: Some(access), cause: Cause::Fault, hot: false, hold: Hold::No };
        let result = self.touch(&space, va, &touch);
        if result != Ok(Touched::Pending) {
            self.counters.cpu_faults.add(1);
        }
        self.count(&result);
        match result {
            Ok(Touched::Pending) => HostFault::Pending,
            Ok(_) => HostFault::Resolved,
            Err(e) => HostFault::Failed(e),
        }
    }
}
