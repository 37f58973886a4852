//! Checking the invariants that the core alone can see: one state per entry, one owner per frame, no leak, no frame counted twice.
//!
//! An entry names its frame and the frame's backlink names the entry's page. Both ways are checked, so two entries cannot share a frame, and as many frames
//! as entries that name one means that no frame is lost. What cannot be matched is **loose**: an operation has it in hand, between two of its steps, or it leaked.

use crate::core::Core;
use crate::entry::{Entry, State};
use crate::frame::{Frame, FrameId, List};
use crate::hnode::{Allocator, Hnode};
use crate::space::{Guard, Region, Space};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::{HnodeId, PhysAddr, Platform, SpaceId, VirtAddr};

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl ::core::fmt::Display for Violation {
    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an audit sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// A page that somebody touched.
    Page(PageSight),
    /// A frame that no operation may keep as it is: no entry names it, or it is on no list though nobody has its page in hand.
    Loose {
        /// Where it is.
        frame: PhysAddr,
        /// The page that its descriptor names.
        page: (SpaceId, VirtAddr),
    },
    /// Somebody holds the lock of this address space: its pages were not looked at.
    Locked(SpaceId),
}

/// What the logical page table says about a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSight {
    /// The address space.
    pub space: SpaceId,
    /// Where the page begins.
    pub page: VirtAddr,
    /// Where its bytes are.
    pub state: State,
    /// An operation has it in hand.
    pub busy: bool,
    /// The home is populated.
    pub home: bool,
    /// The pool of its frame; host memory if it is on no device.
    pub hnode: HnodeId,
    /// Its frame, if the core knows it: what a peer has is the peer's to say.
    pub frame: Option<PhysAddr>,
}

/// The hnodes in the order of their ids, each with how many entries name a frame of it.
type Pools<P> = Vec<(Arc<Hnode<P>>, usize)>;

impl<P: Platform> Core<P> {
    /// Checks the invariants; to be called while no operation is under way.
    ///
    /// # Errors
    /// The first violation found, with its numbers.
    pub fn verify(&self) -> Result<(), Violation> {
        let mut loose = None;
        self.look(
            |space| Some(space.lock()),
            |sight| {
                if let Sight::Loose { frame, page } = sight {
                    loose = loose.or(Some((frame, page)));
                }
            },
        )?;
        match loose {
            None => Ok(()),
            Some((frame, (space, va))) => {
                Err(Violation(format!("{frame:?} says that it holds {space}:{va}, and no entry names it or it can never be evicted")))
            }
        }
    }

    /// Checks what must hold at any moment, and shows every page that was touched, and every frame that is loose. Operations may be under way, so a loose frame
    /// is a leak only if it is still the same when those have ended. An address space whose lock is held is passed over.
    ///
    /// # Errors
    /// The first violation found, with its numbers.
    pub fn audit(&self, see: impl FnMut(Sight)) -> Result<(), Violation> {
        self.look(Space::try_lock, see)
    }

    fn look(&self, lock: impl Fn(&Space<P>) -> Option<Guard<'_, P>>, mut see: impl FnMut(Sight)) -> Result<(), Violation> {
        let mut pools: Pools<P> = self.each_hnode().map(|hnode| (hnode, 0)).collect();
        let mut locked = Vec::new();
        for space in self.each_space() {
            let Some(inner) = lock(&space) else {
                locked.push(space.id);
                see(Sight::Locked(space.id));
                continue;
            };
            for region in inner.regions() {
                audit_region(&space, &inner, &region, &mut pools, &mut see)?;
            }
        }
        for (hnode, named) in &pools {
            self.audit_pool(hnode, *named, &locked, &lock, &mut see)?;
        }
        Ok(())
    }

    /// Nothing of an hnode is counted twice or not at all, and each frame that no entry names is in somebody's hand.
    fn audit_pool(
        &self,
        hnode: &Hnode<P>,
        named: usize,
        locked: &[SpaceId],
        lock: impl Fn(&Space<P>) -> Option<Guard<'_, P>>,
        see: &mut impl FnMut(Sight),
    ) -> Result<(), Violation> {
        let capacity = hnode.range.len().get();
        let total = hnode.audit(|_, _| {});
        if hnode.allocator == Allocator::Core && total != Some(capacity) {
            return Err(Violation(format!("{}: used, free and quarantined are {total:?} bytes of {capacity}", hnode.id)));
        }
        if hnode.holding() == named {
            return Ok(());
        }
        let mut frames = Vec::new();
        hnode.audit(|id, frame| {
            if frame.list != List::Quarantined && !locked.contains(&frame.space) {
                frames.push((id, *frame));
            }
        });
        for (id, frame) in frames {
            if !self.is_in_hand(hnode.id, id, &frame, &lock) {
                // By what was seen: it may be free by now.
                let place = PhysAddr { hnode: hnode.id, addr: hnode.base() + (u64::from(frame.number) << 12) };
                see(Sight::Loose { frame: place, page: (frame.space, frame.va) });
            }
        }
        Ok(())
    }

    /// Whether the entry of its page names the frame, or the operation that has the page busy is about to make it do so.
    fn is_in_hand(&self, hnode: HnodeId, id: FrameId, frame: &Frame, lock: impl Fn(&Space<P>) -> Option<Guard<'_, P>>) -> bool {
        let Some(space) = self.space(frame.space) else { return false };
        // If it is locked by now, the next look will tell.
        let Some(inner) = lock(&space) else { return true };
        let entry = inner.region_at(frame.va).map(|region| inner.entry(&region, frame.va));
        entry.is_some_and(|entry| {
            let names = entry.hnode == hnode && entry.frame == Some(id);
            names || entry.busy && frame.list == List::Isolated
        })
    }
}

fn audit_region<P: Platform>(
    space: &Space<P>,
    inner: &Guard<'_, P>,
    region: &Region,
    pools: &mut Pools<P>,
    see: &mut impl FnMut(Sight),
) -> Result<(), Violation> {
    for (page, entry) in inner.touched(region) {
        check_entry(space.id, page, &entry)?;
        let mut frame = None;
        if let Some(id) = entry.frame {
            let at = pools.binary_search_by_key(&entry.hnode, |(hnode, _)| hnode.id);
            let Ok(at) = at else { return Err(Violation(format!("{}:{page} is in {}, which is gone", space.id, entry.hnode))) };
            let (hnode, named) = &mut pools[at];
            *named += 1;
            let there = hnode.frame(id).filter(|f| (f.space, f.va) == (space.id, page) && f.list != List::Quarantined);
            let Some(there) = there else {
                return Err(Violation(format!("{}:{page} is in {}/{id:?}, which says {:?}", space.id, hnode.id, hnode.frame(id))));
            };
            let place = PhysAddr { hnode: hnode.id, addr: hnode.base() + (u64::from(there.number) << 12) };
            frame = Some(place);
            if there.list == List::Isolated && !entry.busy {
                see(Sight::Loose { frame: place, page: (space.id, page) });
            }
        }
        let Entry { state, busy, home, hnode, .. } = entry;
        see(Sight::Page(PageSight { space: space.id, page, state, busy, home, hnode, frame }));
    }
    Ok(())
}

fn check_entry(space: SpaceId, page: VirtAddr, entry: &Entry) -> Result<(), Violation> {
    let wrong = match entry.state {
        State::Unmapped if entry.home => Some("is unmapped and has a home that is populated"),
        State::Host if !entry.home => Some("is at home in a home that is not populated"),
        State::Unmapped | State::Host if entry.frame.is_some() => Some("is on no device and has a frame"),
        State::Device | State::Duplicated if entry.hnode == HnodeId::HOST => Some("is on a device and in host memory"),
        _ if entry.evicting && !entry.busy => Some("is being evicted by nobody"),
        _ if entry.waiters && !entry.busy && entry.holds == 0 => Some("has waiters whom nobody will wake"),
        _ => None,
    };
    match wrong {
        Some(wrong) => Err(Violation(format!("{space}:{page} {wrong}: {entry:?}"))),
        None => Ok(()),
    }
}
