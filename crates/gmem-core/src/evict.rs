//! Eviction: it starts from a frame, never from an address.
//!
//! Take a victim off its list, drop the list lock, take the owner's lock, check that the page still owns that frame, then move it home. What is busy,
//! pinned or held is left alone; willneed calls an eviction off at any point before the page is home.

use crate::context::Context;
use crate::core::Core;
use crate::entry::{Entry, PageEvent, State, transition};
use crate::execute::{Cause, Op};
use crate::fault::{Touch, list_of};
use crate::hnode::{Allocator, EVICT_BATCH, Hnode, Victim};
use crate::plan::{Facts, Step, Steps, Wish, plan};
use crate::space::Space;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::{DeviceId, EvictOutcome, HnodeId, PageSize, Platform, PmapId, VirtAddr, VirtRange};

/// How many rounds in which nothing could be evicted, and nobody had anything in hand, an allocation tries before it fails. More than one, because a page that was
/// used since it was last asked gets a second chance.
pub(crate) const IDLE_ROUNDS: usize = 10;

/// After how many of those a page goes although it was used. A device that uses all of its pages would otherwise get no frame at all.
const SECOND_CHANCE_ROUNDS: usize = 5;

/// How many rounds an allocation tries in all, if others take what it frees.
pub(crate) const MAX_ROUNDS: usize = 1000;

/// What an attempt to make room came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// Something was freed.
    Made,
    /// Nothing, but other operations have frames in hand, and will signal progress.
    InUse,
    /// Nothing.
    None,
}

/// Which pages an eviction spares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spare {
    /// Those that their device wants back while they go (willneed).
    wanted: bool,
    /// Those that were used since they were last asked.
    used: bool,
}

impl Spare {
    /// What an allocation spares that evicted nothing in so many rounds; with `insist`, not even what is wanted back.
    pub(crate) fn after(idle_rounds: usize, insist: bool) -> Self {
        Self { wanted: !insist, used: idle_rounds < SECOND_CHANCE_ROUNDS }
    }
}

/// How many mappings one round of background eviction revokes to learn whether they are used.
const SAMPLES: usize = 4;

/// Whether the eviction of a victim began.
#[expect(clippy::large_enum_variant, reason = "there is no allocation on this path, so it cannot be boxed")]
enum Begun<'a, P: Platform> {
    Yes(Op<'a, P>, Facts),
    /// Another operation has the page busy, or is giving its frame up.
    InHand,
    /// It was used since it was last asked: it is young again.
    Used,
    /// The page stays.
    No,
}

/// How many pages of a batch went, and what became of others.
#[derive(Clone, Copy, Default)]
struct Reclaimed {
    /// Frames that were freed.
    freed: usize,
    /// Victims that somebody else had in hand.
    in_hand: usize,
    /// Victims that got a second chance.
    used: usize,
}

/// How the eviction of a page ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Evicted {
    /// Its frame is free.
    Freed,
    /// Its device wanted it back.
    Wanted,
    /// It could not be moved, or its frame had to be quarantined.
    Stuck,
}

type Batch<'a, P> = ArrayVec<(Op<'a, P>, Facts), EVICT_BATCH>;

impl<P: Platform> Core<P> {
    /// Evicts for an allocation of a frame of `size` that failed. If enough is free, only in pieces, a whole `block` is emptied, over several calls.
    pub(crate) fn make_room(&self, hnode: &Arc<Hnode<P>>, size: PageSize, block: &mut Option<(HnodeId, u32)>, spare: Spare) -> Room {
        let outcome = if hnode.allocator == Allocator::Core && hnode.has_room(size.len()) {
            let current = block.filter(|(id, _)| *id == hnode.id).map(|(_, block)| block);
            let picked = hnode.pick_block(size, current);
            *block = picked.as_ref().filter(|(_, victims)| !victims.is_empty()).map(|(block, _)| (hnode.id, *block));
            picked.map_or(Reclaimed::default(), |(_, victims)| self.reclaim_these(hnode, &victims, spare))
        } else {
            // Small pages go in batches, so that one invalidation serves many; a large one pays for itself, and a small memory has none to spare.
            let dispensable = hnode.range.len().get() / size.bytes() / 32;
            let most = ((256 << 10) / size.bytes()).min(dispensable).clamp(1, EVICT_BATCH as u64) as usize;
            self.reclaim_these(hnode, &hnode.pick_victims(most), spare)
        };
        match outcome {
            Reclaimed { freed: 0, in_hand: 0, .. } if hnode.in_transit() == 0 => Room::None,
            Reclaimed { freed: 0, .. } => Room::InUse,
            _ => Room::Made,
        }
    }

    /// Evicts up to `pages` pages of the hnode, oldest first; pages that were used since they were last asked go after all others. Returns how many. May block.
    pub fn evict(&self, hnode: HnodeId, pages: usize) -> usize {
        let Some(hnode) = self.hnode(hnode) else { return 0 };
        // Every page gets one second chance, or pages in steady use would keep this going for ever.
        let (mut evicted, mut chances) = (0, hnode.holding());
        while evicted < pages {
            let batch = self.reclaim(&hnode, pages - evicted);
            evicted += batch.freed;
            if batch.freed == 0 && (batch.used == 0 || chances == 0) {
                break;
            }
            chances = chances.saturating_sub(batch.used);
        }
        evicted
    }

    /// Background eviction: from below the low watermark up to the high one. Call it from a thread of its own when [`Platform::pressure`] said so. Returns how
    /// many pages were evicted; stops when there is no progress, since the next allocation will ask again.
    pub fn evict_background(&self, hnode: HnodeId) -> usize {
        let Some(hnode) = self.hnode(hnode) else { return 0 };
        let mut evicted = 0;
        if hnode.shortage(false) == 0 {
            return 0;
        }
        self.counters.background_reclaims.add(1);
        while hnode.shortage(true) > 0 {
            match self.reclaim(&hnode, 4).freed {
                0 => break,
                freed => evicted += freed,
            }
        }
        self.sample(&hnode);
        evicted
    }

    /// Evicts one batch.
    fn reclaim(&self, hnode: &Arc<Hnode<P>>, most: usize) -> Reclaimed {
        self.reclaim_these(hnode, &hnode.pick_victims(most), Spare { wanted: true, used: true })
    }

    /// Evicts these, except for those to spare.
    fn reclaim_these(&self, hnode: &Arc<Hnode<P>>, victims: &[Victim], spare: Spare) -> Reclaimed {
        let spaces: ArrayVec<Option<Arc<Space<P>>>, EVICT_BATCH> = victims.iter().map(|v| self.space(v.space)).collect();
        let mut batch = Batch::new();
        let mut outcome = Reclaimed::default();
        for (victim, space) in victims.iter().zip(&spaces) {
            let Some(space) = space else { continue };
            match self.begin_evict(space, hnode, victim, spare) {
                Begun::Yes(op, facts) => batch.push((op, facts)),
                Begun::InHand => outcome.in_hand += 1,
                Begun::Used => outcome.used += 1,
                Begun::No => {}
            }
        }
        self.revoke_batch(batch.iter_mut().map(|(op, _)| op).collect());
        for (op, facts) in batch {
            match self.evict_one(op, &facts, spare) {
                Evicted::Freed => outcome.freed += 1,
                Evicted::Wanted => outcome.in_hand += 1,
                Evicted::Stuck => {}
            }
        }
        outcome
    }

    /// Marks a victim's page busy, if the page still owns the frame and may go.
    fn begin_evict<'a>(&'a self, space: &'a Arc<Space<P>>, hnode: &Arc<Hnode<P>>, victim: &Victim, spare: Spare) -> Begun<'a, P> {
        let Some((guard, region)) = space.unchanging(|inner| inner.region_at(victim.va)) else { return Begun::InHand };
        let entry = guard.entry(&region, victim.va);
        let owns = entry.state.on_device() && entry.hnode == hnode.id && entry.frame == Some(victim.frame);
        // Whoever has the page busy puts its frame back on a list when done.
        if !owns || entry.busy {
            return Begun::InHand;
        }
        if entry.pins > 0 || entry.holds > 0 {
            hnode.resettle(victim.frame, list_of(&entry));
            return Begun::No;
        }
        let (op, facts) = self.prepare(space, &guard, &region, victim.va, entry, &Touch::home(Cause::Evict));
        self.mark_busy(guard, &region, victim.va, entry, true);
        let owner = op.from.as_ref().expect("a page with a frame has an owner");
        if spare.used && !owner.is_fenced() && owner.mmu().harvest_accessed(owner.own_pmap(), op.page) == Some(true) {
            self.keep(op, true);
            return Begun::Used;
        }
        Begun::Yes(op, facts)
    }

    /// Ends an operation that left the page where it was.
    pub(crate) fn keep(&self, op: Op<'_, P>, young: bool) {
        let page = op.page.start();
        let mut guard = op.space.lock();
        let entry = guard.entry(&op.region, page);
        let ended = guard.end(&op.region, page, Entry { willneed: false, ..entry });
        if let Some((hnode, Some(frame))) = &op.old {
            if young {
                hnode.settle(*frame, list_of(&entry));
            } else {
                hnode.resettle(*frame, list_of(&entry));
            }
        }
        drop(guard);
        self.platform.under_way(-1);
        self.wake(op.space, &op.region, op.page, ended);
    }

    /// Takes the pages of a batch from their devices, with one invalidation per page table.
    pub(crate) fn revoke_batch(&self, mut ops: ArrayVec<&mut Op<'_, P>, EVICT_BATCH>) {
        while let Some(first) = ops.pop() {
            let context = first.from.clone().expect("a page with a frame has an owner");
            let mut group = ArrayVec::<&mut Op<'_, P>, EVICT_BATCH>::new();
            group.push(first);
            while let Some(at) = ops.iter().position(|op| op.from.as_ref().is_some_and(|c| Arc::ptr_eq(c, &context))) {
                group.push(ops.swap_remove(at));
            }
            let ranges: ArrayVec<VirtRange, EVICT_BATCH> = group.iter().map(|op| op.page).collect();
            let safe = self.revoke_many(&context, &ranges);
            for op in group {
                op.unsafe_to_free = !safe;
            }
        }
    }

    /// Takes several ranges from a context and waits until it can touch none. Returns whether that is certain.
    pub(crate) fn revoke_many(&self, context: &Context<P>, ranges: &[VirtRange]) -> bool {
        if let [range] = ranges {
            return self.revoke(context, *range);
        }
        if context.is_fenced() {
            return self.fence(context);
        }
        let (mmu, pmap) = (context.mmu(), context.own_pmap());
        let released = ranges.iter().try_for_each(|range| mmu.pmap_release(pmap, *range));
        let answer = released.and_then(|()| mmu.tlb_invalidate_coalesced(pmap, ranges));
        self.counters.coalesced_invalidations.add(1);
        self.revoked(context, answer)
    }

    /// Moves one page home whose device cannot touch it any more.
    fn evict_one(&self, mut op: Op<'_, P>, facts: &Facts, spare: Spare) -> Evicted {
        if spare.wanted && self.is_wanted(&op) {
            self.counters.evictions_cancelled.add(1);
            self.cancel(op, facts.state == State::Duplicated);
            return Evicted::Wanted;
        }
        let plan = plan(facts, Wish::Evict);
        let at = plan.steps.iter().position(|s| *s == Step::CpuMap).unwrap_or(plan.steps.len());
        let moves: Steps = plan.steps[..at].iter().copied().filter(|s| *s != Step::Revoke).collect();
        if op.run(&moves).is_err() {
            self.cancel(op, false);
            return Evicted::Stuck;
        }
        let copied = facts.state == State::Device;
        if copied {
            op.home = true;
        }
        if spare.wanted && self.is_wanted(&op) && !op.unsafe_to_free {
            self.counters.evictions_cancelled.add(1);
            self.cancel(op, true);
            return Evicted::Wanted;
        }
        // Nothing after the copy can fail for an eviction: the CPU's mapping and the replicas' are best effort.
        let _ = op.run(&plan.steps[at..].iter().copied().collect());
        let freed = if op.unsafe_to_free { Evicted::Stuck } else { Evicted::Freed };
        self.count_eviction(facts);
        self.commit(op, plan.event);
        freed
    }

    fn count_eviction(&self, facts: &Facts) {
        self.counters.evictions.add(1);
        if facts.state == State::Duplicated {
            self.counters.clean_evictions.add(1);
        }
    }

    fn is_wanted(&self, op: &Op<'_, P>) -> bool {
        op.space.lock().entry(&op.region, op.page.start()).willneed
    }

    /// Calls an eviction off; `late` if all was done that there was to copy: both copies are good then.
    fn cancel(&self, op: Op<'_, P>, late: bool) {
        let event = PageEvent::EvictCancel;
        let next = if late { transition(op.state, event).expect("an eviction under way can be called off") } else { op.state };
        op.reenter_owner(next == State::Device);
        if next != op.state {
            self.commit(op, event);
            return;
        }
        if late {
            self.counters.take_transition(op.state, event);
        }
        self.keep(op, true);
    }

    /// Revokes a few of the oldest mappings: a page that is touched again before its turn comes becomes young, the others are known to be unused. MMUs
    /// that report accesses need no sampling.
    fn sample(&self, hnode: &Arc<Hnode<P>>) {
        let chosen = hnode.sample(SAMPLES);
        let spaces: ArrayVec<Option<Arc<Space<P>>>, EVICT_BATCH> = chosen.iter().map(|v| self.space(v.space)).collect();
        let mut ops = ArrayVec::<Op<'_, P>, EVICT_BATCH>::new();
        for (victim, space) in chosen.iter().zip(&spaces) {
            let Some(space) = space else { continue };
            let Some((guard, region)) = space.unchanging(|inner| inner.region_at(victim.va)) else { continue };
            let entry = guard.entry(&region, victim.va);
            let owns = entry.state.on_device() && entry.hnode == hnode.id && entry.frame == Some(victim.frame);
            if !owns || entry.busy || entry.pins > 0 || entry.holds > 0 {
                continue;
            }
            let (op, _) = self.prepare(space, &guard, &region, victim.va, entry, &Touch::home(Cause::Other));
            self.mark_busy(guard, &region, victim.va, entry, false);
            let owner = op.from.as_ref().expect("a page with a frame has an owner");
            match if owner.is_fenced() { Some(false) } else { owner.mmu().harvest_accessed(owner.own_pmap(), op.page) } {
                Some(accessed) => self.keep(op, accessed),
                None => ops.push(op),
            }
        }
        self.counters.samples.add(ops.len() as u64);
        self.revoke_batch(ops.iter_mut().collect());
        for op in ops {
            self.keep(op, false);
        }
    }

    /// A peer wants its pages in `range` taken home (`gm_dev_evict`).
    pub(crate) fn evict_for_peer(&self, device: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        let Some((space, context)) = self.device(device).ok().and_then(|d| d.attachment(pmap)) else { return EvictOutcome::NotThere };
        if !context.is_peer() {
            return EvictOutcome::Refused;
        }
        let mut at = range.start();
        let mut outcome = EvictOutcome::NotThere;
        while let Some(rest) = VirtRange::new(at, range.end()) {
            let (page, one) = self.evict_peer_page(&space, &context, rest);
            match one {
                EvictOutcome::Refused => return EvictOutcome::Refused,
                EvictOutcome::Evicted => outcome = EvictOutcome::Evicted,
                EvictOutcome::NotThere => {}
            }
            at = page;
        }
        outcome
    }

    /// The first page of `rest`. Returns where the next begins. Waits for nobody but the host: the peer may be in the middle of a request for another page.
    fn evict_peer_page(&self, space: &Arc<Space<P>>, context: &Arc<Context<P>>, rest: VirtRange) -> (VirtAddr, EvictOutcome) {
        // Holes are passed over: behind one there may be pages that the peer has.
        let found = space.unchanging(|inner| inner.regions_in(rest).next());
        let Some((mut guard, region)) = found else { return (rest.end(), EvictOutcome::NotThere) };
        let va = rest.start().max(region.range.start());
        let page = region.page(va);
        let mut entry = guard.entry(&region, page.start());
        let owned = entry.state.on_device() && self.hnode(entry.hnode).is_some_and(|h| h.device == context.device.id);
        if entry.busy || owned && (entry.pins > 0 || entry.holds > 0) {
            return (page.end(), EvictOutcome::Refused);
        }
        if !owned {
            return (page.end(), EvictOutcome::NotThere);
        }
        if ::core::mem::take(&mut entry.willneed) {
            guard.set_entry(&region, page.start(), entry);
            self.counters.evictions_cancelled.add(1);
            return (page.end(), EvictOutcome::Refused);
        }
        let (mut op, facts) = self.prepare(space, &guard, &region, page.start(), entry, &Touch::home(Cause::Evict));
        self.mark_busy(guard, &region, page.start(), entry, true);
        let plan = plan(&facts, Wish::Evict);
        match op.run(&plan.steps) {
            Ok(()) => {
                self.count_eviction(&facts);
                self.commit(op, plan.event);
                (page.end(), EvictOutcome::Evicted)
            }
            Err(failed) => {
                self.abandon(op, failed.state);
                (page.end(), EvictOutcome::Refused)
            }
        }
    }
}
