//! The driver's side of the MMU contract: what the device may touch after each call, and what it may not.

use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get, part, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, Device, DeviceError, FaultError};
use gmem::{Access, Prot, Region, State, VirtAddr, VirtRange};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "invalidated-translation-is-not-used",
        rule: "After an invalidation no access of the device uses a translation that it covered.",
        place: "gmem-hal `Mmu::tlb_invalidate`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER),
        run: invalidated_translation_is_not_used,
    },
    Check {
        name: "coalesced-invalidation-covers-every-range",
        rule: "One request for many ranges invalidates each of them.",
        place: "gmem-hal `Mmu::tlb_invalidate_coalesced`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: coalesced_invalidation_covers_every_range,
    },
    Check {
        name: "release-takes-every-page-of-the-range",
        rule: "A release removes every entry of its range, not only the first.",
        place: "gmem-hal `Mmu::pmap_release`",
        applies: Applies::OWN_TABLE,
        run: release_takes_every_page,
    },
    Check {
        name: "absent-pages-are-no-error",
        rule: "Releasing and protecting pages that are absent is no error, so no context is fenced for it.",
        place: "gmem-hal `Mmu::pmap_release`",
        applies: Applies::OWN_TABLE.once(),
        run: absent_pages_are_no_error,
    },
    Check {
        name: "page-tables-have-ids-of-their-own",
        rule: "Two page tables of a device have different ids, and each translates for its own address space.",
        place: "gmem-hal `Mmu::pmap_create`",
        applies: Applies::OWN_TABLE.once(),
        run: page_tables_have_ids_of_their_own,
    },
    Check {
        name: "destroyed-table-is-not-used",
        rule: "After a page table was destroyed the device uses neither it nor a frame it named, which ends a quarantine.",
        place: "gmem-hal `Mmu::pmap_destroy`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: destroyed_table_is_not_used,
    },
    Check {
        name: "entered-page-is-its-frame",
        rule: "The bytes of an entered page are those of the frame that was named, for each of many pages.",
        place: "gmem-hal `Mmu::pmap_enter`",
        applies: Applies::EXCLUSIVE,
        run: entered_page_is_its_frame,
    },
    Check {
        name: "nothing-beside-is-entered",
        rule: "Entering a page enters that page and no other.",
        place: "gmem-hal `Mmu::pmap_enter`",
        applies: Applies::OWN_TABLE,
        run: nothing_beside_is_entered,
    },
    Check {
        name: "read-only-page-refuses-stores",
        rule: "A page that was entered for reading faults when it is written, so the store is not lost with a clean copy.",
        place: "gmem-hal `Mapping::prot`",
        applies: Applies::EXCLUSIVE,
        run: read_only_page_refuses_stores,
    },
    Check {
        name: "upgrade-takes-effect",
        rule: "A page entered again with more access can be touched so, after one more fault at the most.",
        place: "gmem-hal `Mmu::pmap_enter`",
        applies: Applies::EXCLUSIVE,
        run: upgrade_takes_effect,
    },
    Check {
        name: "lowered-access-is-enforced",
        rule: "Access that was lowered is refused on every page of the range once the invalidation is answered, and comes back when it is raised.",
        place: "gmem-hal `Mmu::pmap_protect`",
        applies: Applies::OWN_TABLE,
        run: lowered_access_is_enforced,
    },
    Check {
        name: "accessed-marks-are-read-and-cleared",
        rule: "An accessed mark is set by an access and cleared by being read.",
        place: "gmem-hal `Mmu::harvest_accessed`",
        // Without replay the page is taken from the device when the launch ends, and the mark with it.
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE).without(Capabilities::PEER).once(),
        run: accessed_marks_are_read_and_cleared,
    },
];

/// The address of page `n`.
pub(super) fn page(world: &World, region: &Region, n: u64) -> u64 {
    at(region, n * world.page())
}

/// Where in a page a check looks: at its beginning, in its middle and at its end, which a driver that splits large pages may treat differently.
fn spots(world: &World) -> [u64; 3] {
    [0, world.page() / 2, world.page() - 8]
}

/// The addresses of these spots in page `n`.
fn spots_of(world: &World, region: &Region, n: u64) -> [u64; 3] {
    spots(world).map(|offset| page(world, region, n) + offset)
}

/// Has the driver's pages evicted until `want` went, again where an access was not over yet.
pub(super) fn evict(world: &World, want: usize) -> usize {
    let tries = 4 * want + 4;
    (0..tries).fold(0, |gone, _| if gone < want { gone + world.unit.device.evict(want - gone) } else { gone })
}

fn invalidated_translation_is_not_used(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    taken_from_the_device(&world, 2)
}

/// The CPU takes pages in turn from a device that has just stored to them, which must not find its own words there afterwards.
pub(super) fn taken_from_the_device(world: &World, pages: u64) -> Outcome {
    let region = world.region(pages)?;
    for round in 0..8 {
        let words = spots_of(world, &region, round % pages);
        for word in words {
            world.unit.store(word, 2 * round)?;
        }
        for word in words {
            set(word, 2 * round + 1);
        }
        // The last first: a fault for the first may bring the page to the frame that a stale translation names.
        for word in words.into_iter().rev() {
            ensure_eq!("the word that the CPU wrote after the device, as the device reads it", world.unit.load(word)?, 2 * round + 1);
        }
    }
    world.verify()
}

fn coalesced_invalidation_covers_every_range(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 12;
    let world = case.world(32)?;
    let region = world.region(PAGES)?;
    let words = |n| spots_of(&world, &region, n);
    for word in (0..PAGES).flat_map(words) {
        world.unit.store(word, 1)?;
    }
    let before = world.gmem.stats().coalesced_invalidations;
    let gone = evict(&world, PAGES as usize);
    ensure_eq!("pages evicted", gone, PAGES as usize);
    ensure!(world.gmem.stats().coalesced_invalidations > before, "twelve evictions were not made in one request");
    for n in 0..PAGES {
        words(n).into_iter().for_each(|word| set(word, 100 + n));
    }
    for n in 0..PAGES {
        for word in words(n).into_iter().rev() {
            ensure_eq!(format!("page {n}, written by the CPU after its eviction"), world.unit.load(word)?, 100 + n);
        }
    }
    world.verify()
}

fn release_takes_every_page(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 6;
    let world = case.world(8)?;
    let region = world.region(PAGES)?;
    for n in 0..PAGES {
        for word in spots_of(&world, &region, n) {
            set(word, n);
            world.unit.store(word, n)?;
        }
    }
    region.unmap(region.range())?;
    for n in 0..PAGES {
        for word in spots_of(&world, &region, n) {
            ensure_eq!(format!("page {n} of what was unmapped, at {word:#x}"), world.unit.load(word), Err(FaultError::NotMapped));
        }
    }
    world.verify()
}

fn absent_pages_are_no_error(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let untouched = world.region(4)?;
    // The core seldom asks for what it knows to be absent, but it may: nothing else is under way, so these are calls that it could make.
    if let Some(pmap) = world.unit.context.pmap().filter(|_| !world.unit.device.info().capabilities.contains(Capabilities::PEER)) {
        let (mmu, range) = (world.unit.observed.mmu(), untouched.range());
        let first = VirtRange::page(range.start(), world.size).ok_or(Stop::Failed("no page".into()))?;
        ensure_eq!("protecting a page that is absent", mmu.pmap_protect(pmap, first, Prot::READ), Ok(()));
        ensure_eq!("releasing a range that is absent", mmu.pmap_release(pmap, range), Ok(()));
        ensure_eq!("invalidating it", mmu.tlb_invalidate(pmap, range), Ok(()));
    }
    untouched.protect(untouched.range(), Prot::READ)?;
    untouched.unmap(untouched.range())?;
    let region = world.region(4)?;
    world.unit.store(page(&world, &region, 1), 5)?;
    region.protect(region.range(), Prot::empty())?;
    // The page is absent by now, and is revoked once more.
    region.discard(region.range())?;
    ensure!(!world.unit.context.is_fenced(), "the context was fenced");
    ensure_eq!("fences", world.gmem.stats().fences, 0);
    world.verify()
}

fn page_tables_have_ids_of_their_own(case: &Case<'_>) -> Outcome {
    // Memory for both: a peer may deal it out in blocks.
    let world = case.world((8 << 20) / case.size().bytes())?;
    let second = world.gmem.address_space().create()?;
    let context = case.attach(&second, &world.unit.device)?;
    ensure!(context.pmap() != world.unit.context.pmap(), "both page tables are {:?}", context.pmap());
    let (here, there) = (world.region(1)?, second.region().page_size(world.size).map(world.page())?);
    let specimen = &world.unit.specimen;
    let mut word = [0; 8];
    for value in 1..4_u64 {
        world.unit.store(at(&here, 0), value)?;
        specimen.write(&context, there.range().start(), &(value << 32).to_ne_bytes())?;
        ensure_eq!("the first address space's word", (get(at(&here, 0)), world.unit.load(at(&here, 0))?), (value, value));
        specimen.read(&context, there.range().start(), &mut word)?;
        ensure_eq!("the second's", (get(at(&there, 0)), u64::from_ne_bytes(word)), (value << 32, value << 32));
    }
    let stranger = specimen.read(&context, here.range().start(), &mut word);
    ensure!(stranger.is_err(), "the second context reads an address of the first one's address space");
    drop((there, context));
    world.verify()
}

fn destroyed_table_is_not_used(case: &Case<'_>) -> Outcome {
    let World { unit, space, gmem, size } = case.world(4)?;
    let region = space.region().page_size(size).map(size.bytes())?;
    unit.store(at(&region, 0), 7)?;
    let pmap = unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
    // The device does not answer, and cannot be stopped: its frame is held back until its page table is destroyed.
    unit.observed.fail("tlb_invalidate", 0, DeviceError::NoAnswer);
    unit.observed.fail("fence", 0, DeviceError::Unsupported);
    ensure_eq!("the word at home", get(at(&region, 0)), 7);
    let held = || unit.device.memory()[0].quarantined;
    // The access goes on a moment before the frame is put aside.
    let expect = || if held() == size.len() { Ok(()) } else { Err(held()) };
    let seen = eventually(expect).err().unwrap_or(size.len());
    ensure_eq!("bytes held back while the device may still use them", seen, size.len());
    unit.context.detach()?;
    ensure_eq!("bytes held back after the page table was destroyed", unit.device.memory()[0].quarantined.get(), 0);
    let mut word = [0; 8];
    let seen = unit.specimen.read_by(pmap, VirtAddr::new(at(&region, 0)), &mut word);
    let Some(seen) = seen else {
        return Err(Stop::NotApplicable("the subject cannot have its device use a table that is gone".into()));
    };
    ensure!(seen.is_err(), "the device read {:#x} through a table that was destroyed", u64::from_ne_bytes(word));
    gmem.verify().map_err(Stop::Failed)
}

fn entered_page_is_its_frame(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 8;
    let world = case.world(PAGES)?;
    let region = world.region(PAGES)?;
    for n in 0..PAGES {
        set(page(&world, &region, n), 10 + n);
    }
    // For stores at once: what a device does with less access is the rule of other checks.
    world.space.prefetch(region.range(), Some(&world.unit.device), Access::Write)?;
    for n in 0..PAGES {
        ensure_eq!(format!("page {n} as the device reads it"), world.unit.load(page(&world, &region, n))?, 10 + n);
    }
    for n in 0..PAGES {
        world.unit.store(page(&world, &region, n), 20 + n)?;
    }
    for n in (0..PAGES).rev() {
        ensure_eq!(format!("page {n} as the CPU reads it"), get(page(&world, &region, n)), 20 + n);
    }
    world.verify()
}

fn nothing_beside_is_entered(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    for n in 0..2 {
        set(page(&world, &region, n), 30 + n);
    }
    ensure_eq!("the page that was touched", world.unit.load(page(&world, &region, 0))?, 30);
    set(page(&world, &region, 1), 41);
    ensure_eq!("the page beside it, which is at home", world.unit.load(page(&world, &region, 1))?, 41);
    world.unit.store(page(&world, &region, 2), 1)?;
    let outside = world.unit.load(region.range().end().get());
    ensure_eq!("the page behind the region", outside, Err(FaultError::NotMapped));
    world.verify()
}

/// The state of the page at `va`.
pub(super) fn state(world: &World, va: u64) -> Result<State, Stop> {
    let range = VirtRange::page(VirtAddr::new(va), world.size).ok_or(Stop::Failed("no page".into()))?;
    let there = world.space.residency(range)?;
    there.first().map(|r| r.state).ok_or_else(|| Stop::Failed(format!("nothing is mapped at {va:#x}")))
}

/// Waits until the page at `va` is in this state, which it is a moment after the access that made it so.
pub(super) fn expect_state(world: &World, va: u64, expected: State) -> Result<(), Stop> {
    let look = || match state(world, va)? {
        now if now == expected => Ok(()),
        now => Err(Stop::Failed(format!("the page at {va:#x} is in state {now:?}, expected {expected:?}"))),
    };
    eventually(look)
}

fn read_only_page_refuses_stores(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let word = at(&region, 0);
    set(word, 3);
    ensure_eq!("what the device reads", world.unit.load(word)?, 3);
    expect_state(&world, word, State::Duplicated)?;
    world.unit.store(word, 4)?;
    expect_state(&world, word, State::Device)?;
    evict(&world, 1);
    ensure_eq!("the word after the page was evicted", get(word), 4);
    world.verify()
}

fn upgrade_takes_effect(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let word = at(&region, 0);
    world.unit.load(word)?;
    let before = world.gmem.stats().device_faults;
    world.unit.store(word, 9)?;
    let faults = world.gmem.stats().device_faults - before;
    ensure!(faults <= 2, "a store to a page that was read took {faults} faults");
    world.unit.store(word, 10)?;
    ensure_eq!("faults of a second store", world.gmem.stats().device_faults - before, faults);
    ensure_eq!("the word", get(word), 10);
    world.verify()
}

fn lowered_access_is_enforced(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 5;
    let world = case.world(8)?;
    let region = world.region(PAGES)?;
    for n in 0..PAGES {
        for word in spots_of(&world, &region, n) {
            world.unit.store(word, n)?;
        }
    }
    region.protect(part(&region, world.page(), 3 * world.page()), Prot::READ)?;
    for n in 0..PAGES {
        let refused = (1..4).contains(&n);
        for word in spots_of(&world, &region, n) {
            let stored = world.unit.store(word, 100 + n);
            ensure_eq!(format!("a store to page {n}, at {word:#x}"), stored, if refused { Err(FaultError::Protection) } else { Ok(()) });
            let kept = if refused { n } else { 100 + n };
            ensure_eq!(format!("page {n} as the device reads it"), world.unit.load(word)?, kept);
        }
    }
    region.protect(region.range(), Prot::RW)?;
    for n in 0..PAGES {
        world.unit.store(page(&world, &region, n), 200 + n)?;
        ensure_eq!(format!("page {n} as the CPU reads it"), get(page(&world, &region, n)), 200 + n);
    }
    world.verify()
}

fn accessed_marks_are_read_and_cleared(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let pmap = world.unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
    world.unit.store(at(&region, 0), 1)?;
    // Nothing else is under way, so this call is one that the core could make.
    let harvest = || world.unit.observed.mmu().harvest_accessed(pmap, region.range());
    let Some(first) = harvest() else {
        return Err(Stop::NotApplicable("the MMU keeps no accessed marks".into()));
    };
    ensure!(first, "a page that was just used is not marked");
    ensure_eq!("the mark after it was read", harvest(), Some(false));
    world.unit.load(at(&region, 0))?;
    ensure_eq!("the mark after another access", harvest(), Some(true));
    Ok(())
}
