//! Checking the invariants that the core alone can see: one state per entry, one owner per frame, no leak, no frame counted twice.

use crate::core::Core;
use crate::entry::{Entry, State};
use crate::frame::{FrameId, List};
use crate::hnode::Allocator;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use gmem_hal::{HnodeId, Platform, SpaceId, VirtAddr};

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl ::core::fmt::Display for Violation {
    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        f.write_str(&self.0)
    }
}

type Owners = BTreeMap<(HnodeId, FrameId), (SpaceId, VirtAddr)>;

impl<P: Platform> Core<P> {
    /// Checks the invariants; to be called while no operation is under way, or at a point where those under way hold no lock.
    ///
    /// # Errors
    /// The first violation found, with its numbers.
    pub fn verify(&self) -> Result<(), Violation> {
        let mut owners = Owners::new();
        let mut busy: BTreeMap<(SpaceId, VirtAddr), ()> = BTreeMap::new();
        for space in self.each_space() {
            let inner = space.lock();
            for region in inner.regions() {
                let mut at = region.range.start();
                while let Ok(page) = inner.next_touched(&region, at, region.range.end(), usize::MAX) {
                    let entry = inner.entry(&region, page);
                    check_entry(space.id, page, &entry)?;
                    if entry.busy {
                        busy.insert((space.id, page), ());
                    }
                    if let Some(frame) = entry.frame
                        && let Some(other) = owners.insert((entry.hnode, frame), (space.id, page))
                    {
                        return Err(Violation(format!("{}/{frame:?} belongs to {other:?} and to {}:{page}", entry.hnode, space.id)));
                    }
                    at = region.page(page).end();
                    if at >= region.range.end() {
                        break;
                    }
                }
            }
        }
        for hnode in self.each_hnode() {
            let mut wrong = None;
            let total = hnode.audit(|id, frame| {
                let owner = owners.remove(&(hnode.id, id));
                let fine = match owner {
                    Some(owner) => owner == (frame.space, frame.va) && frame.list != List::Quarantined,
                    None => frame.list == List::Quarantined || frame.list == List::Isolated && busy.contains_key(&(frame.space, frame.va)),
                };
                if !fine {
                    wrong = Some(format!(
                        "{}/{id:?} says it holds {}:{} ({:?}), the entries say {owner:?}",
                        hnode.id, frame.space, frame.va, frame.list
                    ));
                }
                let listed = owner.is_none() || frame.list != List::Isolated || busy.contains_key(&(frame.space, frame.va));
                if !listed {
                    wrong = Some(format!("{}/{id:?} of {}:{} is on no list: it can never be evicted", hnode.id, frame.space, frame.va));
                }
            });
            if let Some(wrong) = wrong {
                return Err(Violation(wrong));
            }
            let capacity = hnode.range.len().get();
            if hnode.allocator == Allocator::Core && total != Some(capacity) {
                return Err(Violation(format!("{}: used, free and quarantined are {total:?} bytes of {capacity}", hnode.id)));
            }
        }
        match owners.into_iter().next() {
            None => Ok(()),
            Some(((hnode, frame), (space, va))) => Err(Violation(format!("{space}:{va} is in {hnode}/{frame:?}, which is not in use"))),
        }
    }
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
