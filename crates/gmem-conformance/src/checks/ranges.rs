//! Parts of regions that go away or are looked at, while a device has them.

use super::steps::{both_read, refused, settle, written_by_device};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{at, get, part, pattern, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::FaultError;
use gmem::{Mode, Prot, State};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "unmap-while-the-device-reads",
        rule: "A device that reads a range while it is unmapped gets the right bytes or a clean fault, and the other half of the region stays right.",
        place: "ARCHITECTURE.md \"What orders two operations\"",
        applies: Applies::EVERYWHERE,
        run: unmap_while_the_device_reads,
    },
    Check {
        name: "unmap-a-part-on-the-device",
        rule: "A part of a region that is on the device can be unmapped at either end or in the middle: the rest keeps its bytes, and the part cannot be touched.",
        place: "gmem `Region::unmap`",
        applies: Applies::EVERYWHERE,
        run: unmap_a_part_on_the_device,
    },
    Check {
        name: "residency-says-where-each-page-is",
        rule: "The residency of a range gives the state of every page exactly, leaves holes out, and brings nothing in.",
        place: "gmem `AddressSpace::residency`",
        applies: Applies::EVERYWHERE,
        run: residency_says_where_each_page_is,
    },
    Check {
        name: "residency-of-a-byte-is-its-page",
        rule: "The residency of a few bytes is that of the whole page that they lie in, whatever its size.",
        place: "gmem-core `Residence::range`",
        applies: Applies::EVERYWHERE,
        run: residency_of_a_byte_is_its_page,
    },
    Check {
        name: "atomics-of-both-sides-add-up",
        rule: "No addition is lost when the CPU and the device add to the same words at the same time.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: atomics_of_both_sides_add_up,
    },
    Check {
        name: "lowered-protection-takes-the-mapping-back",
        rule: "A device that is writing a page cannot write it any more once the protection was lowered to reading, and no write that was made before is lost.",
        place: "gmem-hal `Mmu::pmap_protect`",
        applies: Applies::EVERYWHERE,
        run: lowered_protection_takes_the_mapping_back,
    },
];

fn unmap_while_the_device_reads(case: &Case<'_>) -> Outcome {
    if case.mode() == Mode::Share {
        return unmap_while_the_shared_table_is_read(case);
    }
    let world = case.world(5)?;
    for round in 0..5 {
        let region = world.region(4)?;
        let expected = pattern(round, region.range().len().get() as usize);
        set_bytes(at(&region, 0), &expected);
        let word = |offset: u64| u64::from_ne_bytes(expected[offset as usize..][..8].try_into().expect("eight bytes"));
        let (first, second) = (world.page() - 8, 3 * world.page() - 8);
        let gone = AtomicBool::new(false);
        std::thread::scope(|threads| -> Outcome {
            let reader = threads.spawn(|| -> Outcome {
                for read in 0.. {
                    let last = gone.load(Ordering::SeqCst);
                    ensure_eq!("the half that stays", world.unit.load(at(&region, first)), Ok(word(first)));
                    let seen = world.unit.load(at(&region, second));
                    let clean = seen == Ok(word(second)) && !last || seen == Err(FaultError::NotMapped);
                    ensure!(clean, "read {read} of the half that goes: {seen:?}, unmapped: {last}");
                    if last {
                        break;
                    }
                }
                Ok(())
            });
            let unmapped = region.unmap(part(&region, 2 * world.page(), 2 * world.page()));
            gone.store(true, Ordering::SeqCst);
            let read = reader.join().unwrap_or_else(|_| Err(Stop::Failed("the reader panicked".to_owned())));
            unmapped?;
            read
        })?;
        both_read(&world, &region, 0, &expected[..2 * world.page() as usize])?;
    }
    world.verify()
}

/// The device's read is the CPU's, which nothing but a signal can refuse.
fn unmap_while_the_shared_table_is_read(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(4)?;
    let expected = pattern(1, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    let ending = case.doomed("reading on", |brink| {
        brink.reached();
        std::thread::scope(|threads| {
            threads.spawn(|| while world.unit.load(at(&region, 2 * world.page())).is_ok() {});
            let _ = region.unmap(part(&region, 2 * world.page(), 2 * world.page()));
        });
    })?;
    ending.by_signal(libc::SIGSEGV)?;
    region.unmap(part(&region, 2 * world.page(), 2 * world.page()))?;
    both_read(&world, &region, 0, &expected[..2 * world.page() as usize])?;
    world.verify()
}

fn unmap_a_part_on_the_device(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    for gone in [0, 1, 2, 3] {
        let region = world.region(4)?;
        let expected = pattern(gone, region.range().len().get() as usize);
        world.unit.write(at(&region, 0), &expected)?;
        region.unmap(part(&region, gone * world.page(), world.page()))?;
        settle("where the rest is", &world, &region, &[written_by_device(case); 3])?;
        let step = format!("a read of page {gone}, which is gone");
        refused(case, &step, FaultError::NotMapped, || world.unit.load(at(&region, gone * world.page())).map(drop))?;
        for page in (0..4).filter(|page| *page != gone) {
            let offset = page * world.page();
            both_read(&world, &region, offset, &expected[offset as usize..][..world.page() as usize])?;
        }
        world.verify()?;
    }
    Ok(())
}

fn residency_says_where_each_page_is(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(7)?;
    let page = |number: u64| number * world.page();
    let whole = |number: u64| part(&region, page(number), world.page());
    // A hole, a page that nobody may touch, one nobody did, one the CPU wrote, one the device read, one the device wrote, one that is pinned.
    region.unmap(whole(0))?;
    set(at(&region, page(1)), 1);
    region.protect(whole(1), Prot::empty())?;
    set(at(&region, page(3)), 3);
    set(at(&region, page(4)), 4);
    world.unit.load(at(&region, page(4)))?;
    world.unit.store(at(&region, page(5)), 5)?;
    set(at(&region, page(6)), 6);
    world.space.pin(whole(6))?;
    let exclusive = case.mode() == Mode::CoherentExclusive;
    let on_device = |state: State| if exclusive { state } else { State::Host };
    let expected = [
        (1, State::Host, false),
        (2, State::Unmapped, false),
        (3, State::Host, false),
        (4, on_device(State::Duplicated), false),
        (5, on_device(State::Device), false),
        (6, State::Host, true),
    ];
    let before = crate::world::eventually(|| quiet(&world.gmem))
        .map(|()| world.gmem.stats())
        .map_err(|()| Stop::Failed("the counters do not come to rest".to_owned()))?;
    let mut seen = Vec::new();
    for number in 0..7 {
        for run in world.space.residency(whole(number))? {
            ensure_eq!("the range of a page's residency", run.range, whole(number));
            let device = run.state.on_device().then(|| world.unit.device.id());
            ensure_eq!("the device of a page", run.device, device);
            seen.push((number, run.state, run.pinned));
        }
    }
    ensure_eq!("page, state, pinned", seen, expected);
    ensure_eq!("the counters after looking", world.gmem.stats(), before);
    world.space.unpin(whole(6))?;
    world.verify()
}

/// Whether the counters of gmem are at rest: a fault is counted just after the thread that faulted goes on.
fn quiet(gmem: &gmem::Gmem) -> Result<(), ()> {
    let before = gmem.stats();
    std::thread::sleep(std::time::Duration::from_millis(5));
    if gmem.stats() == before { Ok(()) } else { Err(()) }
}

fn residency_of_a_byte_is_its_page(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    world.unit.store(at(&region, world.page()), 1)?;
    settle("where the pages are", &world, &region, &[State::Unmapped, written_by_device(case), State::Unmapped])?;
    let seen = world.space.residency(part(&region, 2 * world.page() - 9, 1))?;
    let seen: Vec<_> = seen.iter().map(|run| (run.range, run.state)).collect();
    ensure_eq!("the residency of one byte", seen, [(part(&region, world.page(), world.page()), written_by_device(case))]);
    let across = world.space.residency(part(&region, world.page() - 1, 2))?;
    let expected = [(0, State::Unmapped), (1, written_by_device(case))];
    let expected = expected.map(|(page, state)| (part(&region, page * world.page(), world.page()), state));
    let across: Vec<_> = across.iter().map(|run| (run.range, run.state)).collect();
    ensure_eq!("the residency of two bytes across a border", across, expected);
    Ok(())
}

fn atomics_of_both_sides_add_up(case: &Case<'_>) -> Outcome {
    const ROUNDS: u64 = 60;
    let world = case.world(3)?;
    let region = world.region(2)?;
    // Two words of one page and one of another.
    let words = [8, 64, world.page()].map(|offset| at(&region, offset));
    std::thread::scope(|threads| -> Outcome {
        let device = threads.spawn(|| -> Outcome {
            for round in 0..ROUNDS {
                world.unit.add(words[round as usize % 3], 1)?;
            }
            Ok(())
        });
        for round in 0..ROUNDS {
            // SAFETY: an aligned word of a region that lives, touched only by atomics meanwhile.
            let word = unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(words[round as usize % 3] as usize)) };
            word.fetch_add(1000, Ordering::SeqCst);
            std::thread::yield_now();
        }
        device.join().unwrap_or_else(|_| Err(Stop::Failed("the device's thread panicked".to_owned())))
    })?;
    ensure_eq!("the sums", words.map(get), [1001 * ROUNDS / 3; 3]);
    world.verify()
}

fn lowered_protection_takes_the_mapping_back(case: &Case<'_>) -> Outcome {
    let world = case.world(3)?;
    let region = world.region(2)?;
    let expected = pattern(1, region.range().len().get() as usize);
    // The device has both pages, and has just written through its mapping of them.
    world.unit.write(at(&region, 0), &expected)?;
    region.protect(part(&region, 0, world.page()), Prot::READ)?;
    refused(case, "a write after the protection was lowered", FaultError::Protection, || world.unit.store(at(&region, 8), 0))?;
    world.unit.add(at(&region, world.page()), 0)?;
    both_read(&world, &region, 0, &expected)?;
    region.protect(region.range(), Prot::RW)?;
    world.unit.store(at(&region, 8), 9)?;
    ensure_eq!("what the device writes when it may again", get(at(&region, 8)), 9);
    world.verify()
}
