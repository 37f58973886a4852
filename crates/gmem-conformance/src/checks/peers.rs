//! A PEER device's side of its contract.

use super::translation::{page, taken_from_the_device};
use crate::check::{Applies, Check, Outcome};
use crate::world::{at, get, part};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, FaultError};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "peer-unmap-ends-access",
        rule: "After a peer unmapped a page its device does not touch it, and its memory is free.",
        place: "gmem-hal `Peer::unmap`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER),
        run: peer_unmap_ends_access,
    },
    Check {
        name: "peer-keeps-what-the-core-refuses",
        rule: "A peer that may not evict a page keeps it, and chooses another or says that it has no memory.",
        place: "gmem-hal `Peer`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: peer_keeps_what_the_core_refuses,
    },
    Check {
        name: "peer-has-what-it-says",
        rule: "A peer says that a page exists only if it was mapped.",
        place: "gmem-hal `PeerError::PageExists`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: peer_has_what_it_says,
    },
];

fn peer_unmap_ends_access(case: &Case<'_>) -> Outcome {
    // Less memory than pages, so that its memory goes from page to page.
    let world = case.world(2)?;
    taken_from_the_device(&world, 4)
}

fn peer_keeps_what_the_core_refuses(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(8)?;
    for n in 0..4 {
        world.unit.store(page(&world, &region, n), n)?;
    }
    let two = part(&region, 0, 2 * world.page());
    world.space.pin(two)?;
    for n in 4..8 {
        world.unit.store(page(&world, &region, n), n)?;
    }
    let on_device = |n: u64| super::translation::state(&world, page(&world, &region, n)).map(|state| state.on_device());
    ensure!(on_device(0)? && on_device(1)?, "a pinned page went");
    let rest = part(&region, 6 * world.page(), 2 * world.page());
    world.space.pin(rest)?;
    let full = world.unit.store(page(&world, &region, 2), 100);
    ensure_eq!("a store when everything is pinned", full, Err(FaultError::NoDeviceMemory));
    world.space.unpin(rest)?;
    world.space.unpin(two)?;
    world.unit.store(page(&world, &region, 2), 2)?;
    for n in 0..8 {
        ensure_eq!(format!("page {n}"), get(page(&world, &region, n)), n);
    }
    world.verify()
}

fn peer_has_what_it_says(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    for n in 0..2 {
        let stored = world.unit.store(page(&world, &region, n), n);
        ensure_eq!(format!("the first store to page {n}"), stored, Ok(()));
    }
    ensure!(!world.unit.context.is_fenced(), "the peer said that it has a page that it has not, and was fenced");
    ensure_eq!("the second page", get(at(&region, world.page())), 1);
    world.verify()
}
