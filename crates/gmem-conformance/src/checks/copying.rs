//! The driver's side of the copy engine's contract, and of its memory's.

use super::translation::{evict, page};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{Unit, World, at, get, get_bytes, part, pattern, same_bytes, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, Device, DeviceError, FaultError};
use gmem::{Access, Prot, Residence, State, VirtAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "copies-are-whole",
        rule: "A copy has moved every byte of the page when it returns, in both directions.",
        place: "gmem-hal `CopyEngine::copy`",
        applies: Applies::EXCLUSIVE,
        run: copies_are_whole,
    },
    Check {
        name: "direct-copies-are-whole",
        rule: "A copy from the memory of another device, which the engine says it reaches, brings every byte of the page that was named.",
        place: "gmem-hal `CopyEngine::reaches`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER),
        run: direct_copies_are_whole,
    },
    Check {
        name: "failed-direct-copy-loses-nothing",
        rule: "When a copy from another device's memory fails the access ends with an error, the page stays where it was, and another try brings it.",
        place: "gmem-hal `CopyEngine::reaches`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER),
        run: failed_direct_copy_loses_nothing,
    },
    Check {
        name: "every-copy-is-made-or-refused",
        rule: "Of many copies each was made, or was answered with an error.",
        place: "gmem-hal `DeviceError::CopyFailed`",
        applies: Applies::EXCLUSIVE.once(),
        run: every_copy_is_made_or_refused,
    },
    Check {
        name: "blank-pages-are-zeroed",
        rule: "A page that nobody wrote reads as zero in memory that was used before.",
        place: "gmem-hal `CopyEngine::zero`",
        applies: Applies::EXCLUSIVE,
        run: blank_pages_are_zeroed,
    },
    Check {
        name: "writers-are-cut-off-before-the-copy",
        rule: "Whoever could write a page is cut off before it is copied, so no update of two sides that fight for it is lost.",
        place: "gmem-hal `Mmu`",
        applies: Applies::EXCLUSIVE.once(),
        run: writers_are_cut_off_before_the_copy,
    },
    Check {
        name: "stores-reach-every-page",
        rule: "What a device stores is in the page's memory, in each page of many.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::OWN_TABLE.once(),
        run: stores_reach_every_page,
    },
    Check {
        name: "access-into-a-hole-ends-with-its-fault",
        rule: "An access whose fault the core answers with an error has not happened there, and ends with that error.",
        place: "gmem-hal `Upcalls::device_fault`",
        applies: Applies::OWN_TABLE.once(),
        run: access_into_a_hole_ends_with_its_fault,
    },
    Check {
        name: "allocator-hands-out-free-frames",
        rule: "A driver's own allocator hands out frames that are free, so no two pages ever share one.",
        place: "gmem-hal `Frames::alloc_frame`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: allocator_hands_out_free_frames,
    },
    Check {
        name: "replica-is-the-hosts-memory",
        rule: "In REPLICATE mode device and CPU touch the same memory, and neither waits for the other's fault.",
        place: "gmem-hal `HostWindow`",
        applies: Applies::OWN_TABLE.modes(gmem::hal::Modes::REPLICATE),
        run: replica_is_the_hosts_memory,
    },
];

fn copies_are_whole(case: &Case<'_>) -> Outcome {
    let world = case.world(2)?;
    let region = world.region(2)?;
    let len = world.page() as usize;
    for n in 0..2 {
        let (down, up) = (pattern(50 + n, len), pattern(60 + n, len));
        set_bytes(page(&world, &region, n), &down);
        // For stores at once: what a device does with less access is the rule of other checks.
        world.space.prefetch(part(&region, n * world.page(), world.page()), Some(&world.unit.device), Access::Write)?;
        let mut seen = vec![0; len];
        world.unit.read(page(&world, &region, n), &mut seen)?;
        same_bytes("a page after the copy to the device", &seen, &down)?;
        world.unit.write(page(&world, &region, n), &up)?;
        evict(&world, 1);
        same_bytes("a page after the copy to its home", &get_bytes(page(&world, &region, n), len), &up)?;
    }
    world.verify()
}

/// Another device in the same world, whose copy engine reaches the memory of the first.
fn connected(case: &Case<'_>, world: &World, pages: u64) -> Result<Unit, Stop> {
    let second = case.unit(&world.gmem, &world.space, pages)?;
    let reached = world.unit.device.hnodes().into_iter().all(|hnode| second.observed.copy_engine().reaches(hnode));
    if reached { Ok(second) } else { Err(Stop::NotApplicable("its copy engine reaches no other device's memory".into())) }
}

fn direct_copies_are_whole(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 4;
    let world = case.world(PAGES)?;
    let second = connected(case, &world, PAGES)?;
    let region = world.region(PAGES)?;
    let len = world.page() as usize;
    for (n, round) in (0..PAGES).zip(1..) {
        world.unit.write(page(&world, &region, n), &pattern(80 + n, len))?;
        ensure_eq!("pages copied from device to device before", world.gmem.stats().d2d_bytes, (round - 1) * world.page());
        let mut seen = vec![0; len];
        second.read(page(&world, &region, n), &mut seen)?;
        same_bytes("a page after the copy from the first device", &seen, &pattern(80 + n, len))?;
        ensure_eq!("bytes copied from device to device", world.gmem.stats().d2d_bytes, round * world.page());
    }
    for n in 0..PAGES {
        same_bytes("a page that came by way of two devices", &get_bytes(page(&world, &region, n), len), &pattern(80 + n, len))?;
    }
    world.verify()
}

fn failed_direct_copy_loses_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let second = connected(case, &world, 4)?;
    let region = world.region(1)?;
    let len = world.page() as usize;
    let mut seen = vec![0; len];
    for (round, error) in (1..).zip([DeviceError::Unsupported, DeviceError::CopyFailed, DeviceError::NoMemory]) {
        let bytes = pattern(90 + round, len);
        world.unit.write(at(&region, 0), &bytes)?;
        second.observed.fail("copy", 0, error);
        let failed = second.read(at(&region, 0), &mut seen[..8]);
        ensure_eq!("failures that did not come to pass", second.observed.cancel_failures(), 0);
        ensure!(failed.is_err(), "a page is read whose copy failed with {error:?}");
        ensure!(!second.context.is_fenced() && !world.unit.context.is_fenced(), "a context was fenced for a copy that failed");
        world.unit.read(at(&region, 0), &mut seen)?;
        same_bytes("the page as the first device reads it after the failure", &seen, &bytes)?;
        second.read(at(&region, 0), &mut seen)?;
        same_bytes("the page as the second device reads it at last", &seen, &bytes)?;
        second.add(at(&region, 0), 1)?;
        let first = u64::from_ne_bytes(bytes[..8].try_into().map_err(|_| Stop::Failed("a page is longer than a word".into()))?);
        ensure_eq!("its first word, added to", get(at(&region, 0)), first.wrapping_add(1));
    }
    world.verify()
}

fn every_copy_is_made_or_refused(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 24;
    let world = case.world(8)?;
    let region = world.region(PAGES)?;
    for round in 1..4 {
        for n in 0..PAGES {
            world.unit.store(page(&world, &region, n), round << 8 | n)?;
        }
        for n in 0..PAGES {
            ensure_eq!(format!("page {n} in round {round}"), get(page(&world, &region, n)), round << 8 | n);
        }
    }
    world.verify()
}

fn blank_pages_are_zeroed(case: &Case<'_>) -> Outcome {
    let world = case.world(3)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    world.unit.write(at(&region, 0), &pattern(70, len))?;
    region.discard(region.range())?;
    let mut seen = vec![1; len];
    world.unit.read(at(&region, 0), &mut seen)?;
    same_bytes("what was discarded, as the device reads it", &seen, &vec![0; len])?;
    world.verify()
}

fn writers_are_cut_off_before_the_copy(case: &Case<'_>) -> Outcome {
    const ROUNDS: u64 = 40;
    let world = case.world(4)?;
    let region = world.region(1)?;
    let word = at(&region, 0);
    let (done, added) = (AtomicBool::new(false), AtomicU64::new(0));
    let device = || {
        while !done.load(Ordering::Acquire) {
            world.unit.add(word, 1)?;
            added.fetch_add(1, Ordering::AcqRel);
        }
        Ok::<(), FaultError>(())
    };
    std::thread::scope(|threads| {
        let device = threads.spawn(device);
        // SAFETY: the word is aligned and its region outlives the threads; everybody touches it by atomic adds.
        let own = unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(word as usize)) };
        for _ in 0..ROUNDS {
            // The page is taken from a device that is in the middle of it.
            let before = added.load(Ordering::Acquire);
            while added.load(Ordering::Acquire) < before + 2 && !device.is_finished() {
                std::thread::yield_now();
            }
            own.fetch_add(1, Ordering::AcqRel);
        }
        done.store(true, Ordering::Release);
        device.join().map_err(|_| Stop::Failed("the device's thread panicked".into()))?.map_err(Stop::from)
    })?;
    ensure_eq!("the sum of what device and CPU added", get(word), added.into_inner() + ROUNDS);
    world.verify()
}

fn stores_reach_every_page(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 48;
    let world = case.world(64)?;
    let region = world.region(PAGES)?;
    for n in 0..PAGES {
        world.unit.store(page(&world, &region, n), 500 + n)?;
    }
    for n in 0..PAGES {
        ensure_eq!(format!("page {n} of {PAGES}"), get(page(&world, &region, n)), 500 + n);
    }
    world.verify()
}

fn access_into_a_hole_ends_with_its_fault(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let (edge, hole) = (page(&world, &region, 1) - 8, page(&world, &region, 1));
    world.unit.store(edge, 13)?;
    world.unit.store(hole, 14)?;
    region.unmap(part(&region, world.page(), world.page()))?;
    let across = world.unit.write(edge, &[0x77; 16]);
    ensure_eq!("a store of 16 bytes that ends in a hole", across, Err(FaultError::NotMapped));
    let mut seen = [0; 16];
    let across = world.unit.read(edge, &mut seen);
    ensure_eq!("a load of 16 bytes that ends in a hole", across, Err(FaultError::NotMapped));
    // What lies before the hole was stored or not.
    let word = get(edge);
    ensure!([13, 0x7777_7777_7777_7777].contains(&word), "the word before the hole is {word:#x}");
    let again = world.space.region().page_size(world.size).at(VirtAddr::new(hole)).map(world.page())?;
    ensure_eq!("the hole, mapped anew", (world.unit.load(hole)?, get(at(&again, 0))), (0, 0));
    world.verify()
}

fn allocator_hands_out_free_frames(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 12;
    let world = case.world(6)?;
    if world.unit.observed.frames().is_none() {
        return Err(Stop::NotApplicable("the driver leaves its frames to the core".into()));
    }
    let region = world.region(PAGES)?;
    for round in 1..4 {
        for n in 0..PAGES {
            world.unit.store(page(&world, &region, n), round << 8 | n)?;
        }
        for n in 0..PAGES {
            ensure_eq!(format!("page {n} in round {round}"), world.unit.load(page(&world, &region, n))?, round << 8 | n);
        }
        region.discard(region.range())?;
    }
    // A page that nobody may touch has its frame still.
    let (kept, other) = (world.region(2)?, world.region(4)?);
    for n in 0..2 {
        world.unit.store(page(&world, &kept, n), 40 + n)?;
    }
    kept.protect(kept.range(), Prot::empty())?;
    for n in 0..4 {
        world.unit.store(page(&world, &other, n), 50 + n)?;
    }
    kept.protect(kept.range(), Prot::RW)?;
    for n in 0..2 {
        ensure_eq!(format!("page {n} of the region that was closed"), get(page(&world, &kept, n)), 40 + n);
    }
    world.verify()
}

fn replica_is_the_hosts_memory(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let word = page(&world, &region, 1);
    for round in 0..4 {
        world.unit.store(word, 2 * round)?;
        ensure_eq!("the device's store, as the CPU reads it", get(word), 2 * round);
        crate::world::set(word, 2 * round + 1);
        ensure_eq!("the CPU's store, as the device reads it", world.unit.load(word)?, 2 * round + 1);
    }
    let home: Vec<Residence> = world.residency(&region)?;
    ensure!(home.iter().all(|r| r.state != State::Device), "data moved: {home:?}");
    world.verify()
}
