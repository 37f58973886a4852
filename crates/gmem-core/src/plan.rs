//! What to do about a page, as a short list of steps: a pure function from where the page is and who wants it.
//!
//! The order inside a plan is what keeps writes from being lost: whoever could write is cut off before the copy, the new mapping is entered after it,
//! and the old frame is given up last.

use crate::entry::{PageEvent, State, transition};
use arrayvec::ArrayVec;

/// One step. Steps that can fail can be undone; those that cannot be undone cannot fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Step {
    /// Make the home hold bytes.
    Populate,
    /// Get a frame in the requester's memory, evicting if need be.
    AllocFrame,
    /// Take the page from the CPU.
    CpuUnmap,
    /// Take the page from every context in REPLICATE mode, and wait until none can touch it.
    ReplicasRevoke,
    /// Take the page from the device that has it, and wait until it cannot touch it.
    Revoke,
    /// Copy the old frame to the home.
    CopyOut,
    /// Copy the home to the new frame.
    CopyIn,
    /// Copy the old frame to the new one.
    CopyAcross,
    /// Fill the new frame with zeros.
    Zero,
    /// Map the new frame in the requester's table.
    Enter { write: bool },
    /// Map the frame the requester has already, again or with more access.
    Reenter { write: bool },
    /// Have the peer map the page, copied from the home or zeroed.
    PeerMap { copy: bool, write: bool },
    /// Have the peer unmap the page, copied to the home or dropped.
    PeerUnmap { copy: bool },
    /// Let the CPU touch the home. Fails only if it is the CPU that asks; else the CPU's mapping can wait for its fault.
    CpuMap,
    /// Let every context in REPLICATE mode touch the home.
    ReplicasEnter,
    /// Let the requesting context, which is in REPLICATE mode, touch the home.
    ReplicaEnter,
    /// Free the old frame, or quarantine it if its device could not be stopped.
    FreeOld,
    /// Free the home's bytes.
    DiscardHome,
}

/// Who has the page's bytes besides the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Owner {
    Nobody,
    /// A device whose frames the core manages.
    Frames,
    /// A peer.
    Peer,
}

/// Who wants what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Wish {
    /// The CPU touches it, or it is wanted home.
    Home,
    /// A context in REPLICATE mode touches it.
    Replica,
    /// A device with frames that the core manages touches it.
    Frame { write: bool },
    /// A peer touches it.
    Peer { write: bool },
    /// Its memory is wanted.
    Evict,
    /// Nobody wants its bytes any more.
    Discard,
}

/// What a plan is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Facts {
    pub(crate) state: State,
    /// The home is populated.
    pub(crate) home: bool,
    pub(crate) owner: Owner,
    /// The requester is the owner.
    pub(crate) own: bool,
    /// The requester's copy engine reaches the owner's memory.
    pub(crate) direct: bool,
}

pub(crate) type Steps = ArrayVec<Step, 8>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Steps,
    pub(crate) event: PageEvent,
    pub(crate) next: State,
}

/// The plan for `wish`.
pub(crate) fn plan(facts: &Facts, wish: Wish) -> Plan {
    let mut steps = Steps::new();
    match wish {
        Wish::Home | Wish::Replica | Wish::Evict => home_steps(facts, wish, &mut steps),
        Wish::Frame { write } | Wish::Peer { write } if facts.own => own_steps(wish, facts, write, &mut steps),
        Wish::Frame { write } => frame_steps(facts, write, &mut steps),
        Wish::Peer { write } => peer_steps(facts, write, &mut steps),
        Wish::Discard => discard_steps(facts, &mut steps),
    }
    let event = event(facts, wish);
    let next =
        transition(facts.state, event).unwrap_or_else(|| panic!("a page in state {:?} cannot meet {event:?} ({facts:?})", facts.state));
    Plan { steps, event, next }
}

fn event(facts: &Facts, wish: Wish) -> PageEvent {
    match wish {
        Wish::Home | Wish::Replica => PageEvent::HostTouch,
        Wish::Frame { write } | Wish::Peer { write } if write => PageEvent::DeviceWrite,
        Wish::Frame { .. } | Wish::Peer { .. } => PageEvent::DeviceRead,
        Wish::Evict if facts.state == State::Duplicated && !facts.home => PageEvent::EvictZero,
        Wish::Evict => PageEvent::Evict,
        Wish::Discard => PageEvent::Discard,
    }
}

/// Everything that ends with the bytes in the home, or nowhere if they are zeros nobody asked for.
fn home_steps(facts: &Facts, wish: Wish, steps: &mut Steps) {
    let zero_evicted = wish == Wish::Evict && facts.state == State::Duplicated && !facts.home;
    if facts.state == State::Host {
        // The host has it: some physical table only forgot.
        steps.push(if wish == Wish::Replica { Step::ReplicaEnter } else { Step::CpuMap });
        return;
    }
    if !facts.home && !zero_evicted {
        steps.push(Step::Populate);
    }
    let copy = facts.state == State::Device;
    match facts.owner {
        Owner::Nobody => {}
        Owner::Frames => {
            steps.push(Step::Revoke);
            if copy {
                steps.push(Step::CopyOut);
            }
        }
        Owner::Peer => steps.push(Step::PeerUnmap { copy }),
    }
    // Whoever can touch the home may write it, and then there is no way back: what can fail comes first, and only one thing can.
    if wish == Wish::Replica {
        steps.push(Step::ReplicaEnter);
    }
    if !zero_evicted {
        steps.push(Step::CpuMap);
        steps.push(Step::ReplicasEnter);
    }
    if facts.owner == Owner::Frames {
        steps.push(Step::FreeOld);
    }
}

/// The requester has the page already and lost its mapping, or wants to write what it could only read.
fn own_steps(wish: Wish, facts: &Facts, write: bool, steps: &mut Steps) {
    let write = write || facts.state == State::Device;
    steps.push(match wish {
        Wish::Peer { .. } => Step::PeerMap { copy: false, write },
        _ => Step::Reenter { write },
    });
}

/// A device with frames touches a page that is not its own.
fn frame_steps(facts: &Facts, write: bool, steps: &mut Steps) {
    let write = write || facts.state == State::Device;
    steps.push(Step::AllocFrame);
    match facts.owner {
        Owner::Nobody if facts.state == State::Unmapped => steps.push(Step::Zero),
        Owner::Nobody => steps.extend([Step::CpuUnmap, Step::ReplicasRevoke, Step::CopyIn]),
        Owner::Frames if facts.direct => steps.extend([Step::Revoke, Step::CopyAcross]),
        _ => by_way_of_home(facts, steps),
    }
    steps.push(Step::Enter { write });
    if facts.owner == Owner::Frames {
        steps.push(Step::FreeOld);
    }
}

/// From the owner to the home and from there into the new frame.
fn by_way_of_home(facts: &Facts, steps: &mut Steps) {
    let copy = facts.state == State::Device;
    if copy && !facts.home {
        steps.push(Step::Populate);
    }
    match facts.owner {
        Owner::Peer => steps.push(Step::PeerUnmap { copy }),
        _ => {
            steps.push(Step::Revoke);
            if copy {
                steps.push(Step::CopyOut);
            }
        }
    }
    steps.push(if copy || facts.home { Step::CopyIn } else { Step::Zero });
}

/// A peer touches a page that is not its own.
fn peer_steps(facts: &Facts, write: bool, steps: &mut Steps) {
    let write = write || facts.state == State::Device;
    let copy = facts.state == State::Device;
    if copy && !facts.home {
        steps.push(Step::Populate);
    }
    match facts.owner {
        Owner::Nobody if facts.state == State::Host => steps.extend([Step::CpuUnmap, Step::ReplicasRevoke]),
        Owner::Nobody => {}
        Owner::Frames => {
            steps.push(Step::Revoke);
            if copy {
                steps.push(Step::CopyOut);
            }
        }
        Owner::Peer => steps.push(Step::PeerUnmap { copy }),
    }
    steps.push(Step::PeerMap { copy: copy || facts.home, write });
    if facts.owner == Owner::Frames {
        steps.push(Step::FreeOld);
    }
}

fn discard_steps(facts: &Facts, steps: &mut Steps) {
    match facts.owner {
        Owner::Nobody if facts.state == State::Host => steps.extend([Step::CpuUnmap, Step::ReplicasRevoke]),
        Owner::Nobody => {}
        Owner::Frames => steps.push(Step::Revoke),
        Owner::Peer => steps.push(Step::PeerUnmap { copy: false }),
    }
    if facts.home {
        steps.push(Step::DiscardHome);
    }
    if facts.owner == Owner::Frames {
        steps.push(Step::FreeOld);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn every_facts() -> Vec<Facts> {
        let mut all = Vec::new();
        for state in State::ALL {
            let owners: &[Owner] = if state.on_device() { &[Owner::Frames, Owner::Peer] } else { &[Owner::Nobody] };
            let homes: &[bool] = match state {
                State::Unmapped => &[false],
                State::Host => &[true],
                _ => &[false, true],
            };
            for owner in owners {
                for home in homes {
                    for own in [false, true] {
                        for direct in [false, true] {
                            if (own || direct) && !state.on_device() || direct && *owner == Owner::Peer {
                                continue;
                            }
                            all.push(Facts { state, home: *home, owner: *owner, own, direct });
                        }
                    }
                }
            }
        }
        all
    }

    fn wishes(facts: &Facts) -> Vec<Wish> {
        let mut all = Vec::from([Wish::Home, Wish::Replica, Wish::Discard]);
        for write in [false, true] {
            if !facts.own || facts.owner == Owner::Frames {
                all.push(Wish::Frame { write });
            }
            if !facts.own || facts.owner == Owner::Peer {
                all.push(Wish::Peer { write });
            }
        }
        if facts.state.on_device() {
            all.push(Wish::Evict);
        }
        all
    }

    fn at(plan: &Plan, step: Step) -> Option<usize> {
        plan.steps.iter().position(|s| *s == step)
    }

    #[test]
    fn no_plan_copies_before_it_cuts_off_the_writer_or_maps_before_it_copied() {
        for facts in every_facts() {
            for wish in wishes(&facts) {
                let plan = plan(&facts, wish);
                let case = std::format!("{facts:?} {wish:?}: {plan:?}");
                for copy in [Step::CopyOut, Step::CopyAcross] {
                    if let Some(copy) = at(&plan, copy) {
                        assert!(at(&plan, Step::Revoke).is_some_and(|cut| cut < copy), "{case}");
                    }
                }
                if let Some(copy) = at(&plan, Step::CopyIn) {
                    let cut = if facts.state == State::Host { at(&plan, Step::CpuUnmap) } else { Some(0) };
                    assert!(cut.is_some_and(|cut| cut < copy), "{case}");
                    assert!(facts.home || at(&plan, Step::Populate).is_some(), "the source of a copy holds bytes: {case}");
                }
                let enters = plan.steps.iter().position(|s| matches!(s, Step::Enter { .. } | Step::PeerMap { .. } | Step::CpuMap));
                let fills = plan.steps.iter().rposition(|s| {
                    matches!(s, Step::CopyIn | Step::CopyOut | Step::CopyAcross | Step::Zero | Step::Revoke | Step::PeerUnmap { .. })
                });
                if let (Some(enters), Some(fills)) = (enters, fills) {
                    assert!(fills < enters, "{case}");
                }
                if let Some(free) = at(&plan, Step::FreeOld) {
                    assert_eq!(free, plan.steps.len() - 1, "{case}");
                    assert!(at(&plan, Step::Revoke).is_some(), "{case}");
                }
            }
        }
    }

    #[test]
    fn nothing_that_can_fail_comes_after_somebody_can_touch_the_home() {
        for facts in every_facts() {
            for wish in wishes(&facts) {
                let plan = plan(&facts, wish);
                let first = plan.steps.iter().position(|s| matches!(s, Step::CpuMap | Step::ReplicasEnter | Step::ReplicaEnter));
                let Some(first) = first else { continue };
                // The CPU's mapping can fail if nobody else asks for the page.
                let harmless = |s: &Step| matches!(s, Step::ReplicasEnter | Step::FreeOld) || *s == Step::CpuMap && wish == Wish::Replica;
                assert!(plan.steps[first + 1..].iter().all(harmless), "{facts:?} {wish:?}: {plan:?}");
            }
        }
    }

    #[test]
    fn dirty_bytes_are_copied_exactly_once_each_way_or_discarded() {
        for facts in every_facts().into_iter().filter(|f| f.state == State::Device && !f.own) {
            for wish in wishes(&facts).into_iter().filter(|w| *w != Wish::Discard) {
                let plan = plan(&facts, wish);
                let out =
                    plan.steps.iter().filter(|s| matches!(s, Step::CopyOut | Step::CopyAcross | Step::PeerUnmap { copy: true })).count();
                assert_eq!(out, 1, "{facts:?} {wish:?}: {plan:?}");
            }
        }
    }

    #[test]
    fn clean_pages_are_dropped_without_a_copy() {
        for facts in every_facts().into_iter().filter(|f| f.state == State::Duplicated) {
            for wish in [Wish::Home, Wish::Evict, Wish::Discard] {
                let plan = plan(&facts, wish);
                assert!(!plan.steps.iter().any(|s| matches!(s, Step::CopyOut | Step::PeerUnmap { copy: true })), "{facts:?}: {plan:?}");
            }
        }
    }

    #[test]
    fn a_readable_page_is_never_entered_writable_while_the_home_counts_as_current() {
        for facts in every_facts() {
            for wish in wishes(&facts) {
                let plan = plan(&facts, wish);
                let writable = plan
                    .steps
                    .iter()
                    .any(|s| matches!(s, Step::Enter { write: true } | Step::Reenter { write: true } | Step::PeerMap { write: true, .. }));
                assert_eq!(writable, plan.next == State::Device, "{facts:?} {wish:?}: {plan:?}");
            }
        }
    }
}
