//! What must hold after every step, checked as cheaply as that takes.
//!
//! The core's own invariants are walked in full each time ([`gmem_core::Core::audit`]). What is wrong with a page across tables, or in its bytes, is checked for
//! the pages that changed. That is sound: whether a page is right depends on its entry, on what the CPU's and the devices' tables say about it, on the bytes of its
//! home and its frame, and on the ledger, and on nothing else. The walk shows each entry, which is compared with the one before; the machine tells of each change of a
//! table and of memory; and the ledger of its own. A context that the core gave up only leaves the comparison. So a page that was right and of which nothing changed is right. A page in
//! somebody's hand has no certain place: it stays among the changed ones until it is idle. Now and then all pages are looked at, as a check of this argument.

use super::ledger::Ledger;
use crate::CoreWorld;
use gmem_core::{PageSight, Sight, State};
use gmem_hal::{Backing, ByteLen, HnodeId, PageSize, PhysAddr, SpaceId, VirtAddr, VirtRange};
use gmem_sim::Change;

/// So many steps lie between two looks at everything.
const EVERYTHING: u64 = 4096;

/// A page by its address space and its number.
type At = (usize, usize);

/// A frame that an operation has in hand, or that leaked.
struct Loose {
    frame: PhysAddr,
    page: (SpaceId, VirtAddr),
    /// Which act each thread of control was at when it was first seen.
    acts: Vec<u64>,
    seen: u64,
}

/// Checks a world after every step.
pub struct Auditor {
    /// What the last look saw of each page, and which look last saw it.
    now: Vec<Vec<(Option<PageSight>, u64)>>,
    locked: Vec<bool>,
    changed: Vec<Vec<bool>>,
    changed_list: Vec<At>,
    changes: Vec<Change>,
    sights: Vec<(PhysAddr, (SpaceId, VirtAddr))>,
    loose: Vec<Loose>,
    looks: u64,
    full: bool,
    /// How often a page of each size and backing came to a device, in the order of [`PLACES`].
    arrivals: [u64; PLACES.len()],
}

/// The kinds of regions that pages can come to a device from.
pub(super) const PLACES: [(PageSize, Backing); 6] = [
    (PageSize::Size4K, Backing::Shared),
    (PageSize::Size4K, Backing::Private),
    (PageSize::Size64K, Backing::Shared),
    (PageSize::Size64K, Backing::Private),
    (PageSize::Size2M, Backing::Shared),
    (PageSize::Size2M, Backing::Private),
];

impl Auditor {
    /// Of a world in which nothing has happened.
    pub fn new(world: &CoreWorld) -> Self {
        world.sim.record_changes();
        let now = world.shape.spaces.iter().map(|space| vec![(None, 0); space.pages as usize]).collect();
        let changed = world.shape.spaces.iter().map(|space| vec![false; space.pages as usize]).collect();
        Self {
            now,
            locked: vec![false; world.spaces.len()],
            changed,
            changed_list: Vec::new(),
            changes: Vec::new(),
            sights: Vec::new(),
            loose: Vec::new(),
            looks: 0,
            full: false,
            arrivals: [0; PLACES.len()],
        }
    }

    /// Looks at every page every time: what the usual way must agree with.
    pub fn always_everything(mut self) -> Self {
        self.full = true;
        self
    }

    /// Checks everything that must hold now. `acts` says which act each thread of control is at, or `None` for one that is between two.
    ///
    /// # Errors
    /// What does not hold, with its numbers.
    pub fn check(&mut self, world: &CoreWorld, ledger: &mut Ledger, acts: &[Option<u64>]) -> Result<(), String> {
        self.looks += 1;
        self.walk(world, ledger)?;
        self.check_loose(world, acts)?;
        self.collect(world, ledger);
        if self.full || self.looks.is_multiple_of(EVERYTHING) {
            (0..self.now.len()).for_each(|space| (0..self.now[space].len()).for_each(|page| self.mark(space, page)));
        }
        let mut at = 0;
        while let Some(&(space, page)) = self.changed_list.get(at) {
            if self.check_page(world, ledger, (space, page))? {
                self.changed[space][page] = false;
                self.changed_list.swap_remove(at);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// The core's own invariants, and what its entries say.
    fn walk(&mut self, world: &CoreWorld, ledger: &Ledger) -> Result<(), String> {
        let Self { now, locked, sights, changed, changed_list, looks, arrivals, .. } = self;
        sights.clear();
        locked.fill(false);
        let index = |id| world.spaces.iter().position(|space| *space == id);
        let mut mark = |space: usize, page: usize| {
            if !std::mem::replace(&mut changed[space][page], true) {
                changed_list.push((space, page));
            }
        };
        let audited = world.core.audit(|sight| match sight {
            Sight::Page(page) => {
                if let Some(space) = index(page.space) {
                    let number = world.shape.page_at(space, page.page).expect("a page is one of its address space") as usize;
                    let (last, seen) = &mut now[space][number];
                    *seen = *looks;
                    if *last != Some(page) {
                        if page.hnode != last.map_or(HnodeId::HOST, |last| last.hnode) && page.state.on_device() {
                            let place = (world.shape.size_of(space, number as u64), ledger.pages[space][number].backing);
                            PLACES.iter().position(|one| *one == place).into_iter().for_each(|at| arrivals[at] += 1);
                        }
                        *last = Some(page);
                        mark(space, number);
                    }
                }
            }
            Sight::Loose { frame, page } => sights.push((frame, page)),
            Sight::Locked(space) => index(space).into_iter().for_each(|space| locked[space] = true),
        });
        audited.map_err(|violation| violation.0)?;
        // What is not shown any more is untouched now.
        for (space, pages) in now.iter_mut().enumerate().filter(|(space, _)| !locked[*space]) {
            for (page, (last, _)) in pages.iter_mut().enumerate().filter(|(_, (last, seen))| *seen != *looks && last.is_some()) {
                *last = None;
                mark(space, page);
            }
        }
        Ok(())
    }

    /// A frame that nobody has in hand is lost: all the acts that were under way when it was first seen have ended, and it is as it was.
    fn check_loose(&mut self, world: &CoreWorld, acts: &[Option<u64>]) -> Result<(), String> {
        let looks = self.looks;
        for (frame, page) in &self.sights {
            match self.loose.iter_mut().find(|loose| loose.frame == *frame && loose.page == *page) {
                Some(loose) => {
                    loose.seen = looks;
                    if loose.acts.iter().zip(acts).all(|(then, now)| *then == 0 || *now != Some(*then)) {
                        return Err(format!(
                            "{frame:?} of {}:{} is lost: no entry names it or no list has it, and nobody is at work on it",
                            page.0, page.1
                        ));
                    }
                }
                None => {
                    let acts = acts.iter().map(|act| act.unwrap_or(0)).collect();
                    self.loose.push(Loose { frame: *frame, page: *page, acts, seen: looks });
                }
            }
        }
        let locked = |id| world.spaces.iter().zip(&self.locked).any(|(space, locked)| *space == id && *locked);
        self.loose.retain(|loose| loose.seen == looks || locked(loose.page.0));
        Ok(())
    }

    /// How often a page came to a device, by the size and backing of its region.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = ((PageSize, Backing), u64)> + '_ {
        PLACES.into_iter().zip(self.arrivals)
    }

    fn mark(&mut self, space: usize, page: usize) {
        if !std::mem::replace(&mut self.changed[space][page], true) {
            self.changed_list.push((space, page));
        }
    }

    /// The pages of which something changed.
    fn collect(&mut self, world: &CoreWorld, ledger: &mut Ledger) {
        let mut changes = std::mem::take(&mut self.changes);
        world.sim.take_changes(&mut changes);
        for change in &changes {
            match *change {
                Change::Cpu(range) => {
                    let visible = |s: &usize| world.shape.spaces[*s].cpu_visible && world.shape.space_range(*s).overlaps(range);
                    if let Some(space) = (0..self.now.len()).find(visible) {
                        self.mark_range(world, space, range.start(), range.len());
                    }
                }
                Change::Device(id, range) => {
                    if let Some(space) = world.spaces.iter().position(|space| *space == id) {
                        self.mark_range(world, space, range.start(), range.len());
                    }
                }
                Change::Bytes(at, len) if at.hnode == HnodeId::HOST => {
                    if let Some((number, va)) = world.host.locate(at)
                        && (number as usize) < self.now.len()
                    {
                        self.mark_range(world, number as usize, va, len);
                    }
                }
                Change::Bytes(at, _) => self.mark_frame(world, at),
                Change::Power => self.mark_devices(|_, _, _| true),
            }
        }
        self.changes = changes;
        for (space, page) in std::mem::take(&mut ledger.touched) {
            self.mark(space, page);
        }
    }

    fn mark_range(&mut self, world: &CoreWorld, space: usize, va: VirtAddr, len: ByteLen) {
        let Some(range) = VirtRange::from_len(va, len) else { return };
        for page in world.shape.pages_in(space, range) {
            self.mark(space, page as usize);
        }
    }

    /// The page in this frame; if it is a frame of a peer's own, any page that a peer has.
    fn mark_frame(&mut self, world: &CoreWorld, at: PhysAddr) {
        self.mark_devices(|sight, space, page| match sight.frame {
            Some(frame) => frame.hnode == at.hnode && at.addr.wrapping_sub(frame.addr) < world.shape.size_of(space, page as u64).bytes(),
            None => true,
        });
    }

    fn mark_devices(&mut self, which: impl Fn(&PageSight, usize, usize) -> bool) {
        for space in 0..self.now.len() {
            for page in 0..self.now[space].len() {
                if self.now[space][page].0.is_some_and(|sight| sight.state.on_device() && which(&sight, space, page)) {
                    self.mark(space, page);
                }
            }
        }
    }

    /// Checks one page. Answers whether it was idle, so that all of it could be checked.
    fn check_page(&self, world: &CoreWorld, ledger: &mut Ledger, (space, page): At) -> Result<bool, String> {
        let va = world.shape.start(space, page as u64);
        world.check_page(space, va, ledger.pages[space][page].most())?;
        let sight = self.now[space][page].0;
        if self.locked[space] || sight.is_some_and(|sight| sight.busy) {
            return Ok(false);
        }
        if sight.is_some_and(|sight| is_lost(world, space, va, page, &sight)) {
            ledger.lose(space, page);
            return Ok(true);
        }
        if ledger.is_lost(space, page) && !ledger.came_back(space, page) {
            return Err(format!("page {page} of space {space} ({va}): its bytes were lost with a device, but it is there ({sight:?})"));
        }
        let wrong = self.compare(world, ledger, space, va, page, sight.as_ref());
        let strays = ledger.has_strays(space, page);
        let wrong = wrong.filter(|_| !strays || !self.is_stray(world, ledger, space, va, page, sight.as_ref()));
        if strays && !sight.is_some_and(|sight| is_given_up(world, space, &sight)) {
            ledger.settled(space, page);
        }
        let Some(wrong) = wrong else { return Ok(true) };
        let zero = self.is_zero(world, space, va, page, sight.as_ref());
        // What is there while it is being unmapped is nobody's, and who unmaps it says when that is over.
        if zero && ledger.became_zero(space, page) || ledger.pages[space][page].unmapping {
            return Ok(true);
        }
        Err(format!("page {page} of space {space} ({va}): {wrong} ({sight:?})"))
    }

    /// Whether the page is as stray stores can have left it, wherever its bytes are.
    fn is_stray(&self, world: &CoreWorld, ledger: &mut Ledger, space: usize, va: VirtAddr, page: usize, sight: Option<&PageSight>) -> bool {
        let Ok(places) = places(world, space, va, sight) else { return false };
        let mut bytes = vec![0; world.shape.size_of(space, page as u64).bytes() as usize];
        if places == [None; 2] {
            return ledger.became(space, page, &bytes);
        }
        places.into_iter().flatten().all(|place| {
            world.sim.peek(place, &mut bytes);
            ledger.became(space, page, &bytes)
        })
    }

    fn is_zero(&self, world: &CoreWorld, space: usize, va: VirtAddr, page: usize, sight: Option<&PageSight>) -> bool {
        let places = places(world, space, va, sight);
        let size = world.shape.size_of(space, page as u64);
        places.is_ok_and(|places| places.into_iter().flatten().all(|at| differ(world, at, size, None).is_none()))
    }

    /// What is wrong with the bytes of a page that is idle.
    fn compare(
        &self,
        world: &CoreWorld,
        ledger: &Ledger,
        space: usize,
        va: VirtAddr,
        page: usize,
        sight: Option<&PageSight>,
    ) -> Option<String> {
        let right = ledger.pages[space][page].bytes();
        let places = match places(world, space, va, sight) {
            Ok(places) => places,
            Err(why) => return Some(why),
        };
        if places == [None; 2] || sight.is_some_and(|s| s.state == State::Duplicated && !s.home) {
            let nonzero = right.and_then(|bytes| bytes.iter().position(|byte| *byte != 0));
            if let Some(at) = nonzero {
                return Some(format!("byte {at:#x} must be {:#04x}, but the page stands for zeros", right.map_or(0, |bytes| bytes[at])));
            }
        }
        let size = world.shape.size_of(space, page as u64);
        // A copy that was lost while the home is good is nobody's concern: it can only be dropped.
        let good = |place: &PhysAddr| sight.is_none_or(|s| s.state != State::Duplicated) || !world.sim.is_lost(*place, size.len());
        places.into_iter().flatten().filter(good).find_map(|place| differ(world, place, size, right))
    }
}

/// Where the bytes of an idle page are: nowhere, in one place, or in two that must be equal.
fn places(world: &CoreWorld, space: usize, va: VirtAddr, sight: Option<&PageSight>) -> Result<[Option<PhysAddr>; 2], String> {
    let Some(sight) = sight.filter(|sight| sight.state != State::Unmapped) else { return Ok([None; 2]) };
    let home = || world.host.home_at(space as u32, va).ok_or("no region is there at the host".to_owned());
    if sight.state == State::Host {
        return Ok([Some(home()?), None]);
    }
    let frame = match sight.frame {
        Some(frame) => frame,
        None => peer_frame(world, space, va, sight.hnode)?,
    };
    let home = if sight.state == State::Duplicated && sight.home { Some(home()?) } else { None };
    Ok([Some(frame), home])
}

/// Whether the only copy of an idle page is in memory whose content was lost.
fn is_lost(world: &CoreWorld, space: usize, va: VirtAddr, page: usize, sight: &PageSight) -> bool {
    let place = if sight.state == State::Device { places(world, space, va, Some(sight)) } else { Ok([None; 2]) };
    let size = world.shape.size_of(space, page as u64).len();
    place.is_ok_and(|place| place.into_iter().flatten().any(|at| world.sim.is_lost(at, size)))
}

/// Whether a page is on a device that the core gave up in this address space.
fn is_given_up(world: &CoreWorld, space: usize, sight: &PageSight) -> bool {
    let has = |member: &&crate::Member| member.pools().iter().any(|(_, id)| *id == Some(sight.hnode));
    let member = world.members.iter().find(has).filter(|_| sight.state.on_device());
    member.is_some_and(|member| world.core.context(world.spaces[space], member.id()).is_none_or(|context| context.fenced))
}

fn peer_frame(world: &CoreWorld, space: usize, va: VirtAddr, hnode: HnodeId) -> Result<PhysAddr, String> {
    let owns = |member: &&crate::Member| member.pools().iter().any(|(_, id)| *id == Some(hnode));
    let member = world.members.iter().find(owns).ok_or(format!("it is in {hnode}, which is no device's"))?;
    let context = world.core.context(world.spaces[space], member.id()).ok_or(format!("it is on {}, which is not attached", member.id()))?;
    let frame = context.pmap.and_then(|pmap| member.device().peer_frame(pmap, va));
    frame.ok_or(format!("it is on {}, which does not have it", member.id()))
}

/// The first byte of a page that is not what it must be: `right`, or zero.
fn differ(world: &CoreWorld, at: PhysAddr, size: PageSize, right: Option<&[u8]>) -> Option<String> {
    const GRAIN: usize = PageSize::Size4K.bytes() as usize;
    const ZEROS: [u8; GRAIN] = [0; GRAIN];
    (0..size.bytes() as usize).step_by(GRAIN).find_map(|offset| {
        let right = right.map_or(&ZEROS[..], |bytes| &bytes[offset..offset + GRAIN]);
        let part = PhysAddr { addr: at.addr + offset as u64, ..at };
        world.sim.inspect(part, ByteLen(GRAIN as u64), |bytes| match bytes {
            None => Some(format!("its bytes should be in {at:?}, which does not exist")),
            Some(bytes) if bytes == right => None,
            Some(bytes) => {
                let n = bytes.iter().zip(right).position(|(is, must)| is != must).unwrap_or(0);
                Some(format!("byte {:#x} in {at:?} is {:#04x}, but must be {:#04x}", offset + n, bytes[n], right[n]))
            }
        })
    })
}
