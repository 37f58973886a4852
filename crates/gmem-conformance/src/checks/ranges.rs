//! Parts of regions that go away or are looked at, while a device has them.

use super::meet::{Meetings, until_met};
use super::steps::{both_read, refused, settle, written_by_device};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, get, part, pattern, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, FaultError};
use gmem::{Mode, Prot, Region, State};
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
        name: "additions-of-one-device-add-up",
        rule: "No addition is lost when several launches of one device add to the same word at the same time.",
        place: "gmem-conformance `Subject::add`",
        applies: Applies::EVERYWHERE,
        run: additions_of_one_device_add_up,
    },
    Check {
        name: "lowered-protection-takes-the-mapping-back",
        rule: "A device that is writing a page cannot write it any more once the protection was lowered to reading, and no write that was made before is lost.",
        place: "gmem-hal `Mmu::pmap_protect`",
        applies: Applies::EVERYWHERE,
        run: lowered_protection_takes_the_mapping_back,
    },
];

/// How often what races has to meet.
const MEETINGS: u64 = 5;

fn unmap_while_the_device_reads(case: &Case<'_>) -> Outcome {
    if case.mode() == Mode::Share {
        return unmap_while_the_shared_table_is_read(case);
    }
    let world = case.world(5)?;
    let meetings = Meetings::new();
    until_met(case, MEETINGS, || meetings.met(), |round| unmap_once_while_it_reads(&world, round, &meetings))?;
    world.verify()
}

fn unmap_once_while_it_reads(world: &World, round: u64, meetings: &Meetings) -> Outcome {
    let region = world.region(4)?;
    let expected = pattern(round, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    let word = |offset: u64| u64::from_ne_bytes(expected[offset as usize..][..8].try_into().expect("eight bytes"));
    let (first, second) = (world.page() - 8, 3 * world.page() - 8);
    let (reads, gone) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|threads| -> Outcome {
        let reader = threads.spawn(|| -> Outcome {
            for read in 0.. {
                let last = gone.load(Ordering::SeqCst);
                ensure_eq!("the half that stays", world.unit.load(at(&region, first)), Ok(word(first)));
                let seen = meetings.fly(|| world.unit.load(at(&region, second)));
                let clean = seen == Ok(word(second)) && !last || seen == Err(FaultError::NotMapped);
                ensure!(clean, "read {read} of the half that goes: {seen:?}, unmapped: {last}");
                reads.fetch_add(1, Ordering::SeqCst);
                if last {
                    break;
                }
            }
            Ok(())
        });
        // It has the pages, and is reading on.
        while reads.load(Ordering::SeqCst) <= round % 3 && !reader.is_finished() {
            std::thread::yield_now();
        }
        let unmapped = meetings.meet(|| region.unmap(part(&region, 2 * world.page(), 2 * world.page())));
        gone.store(true, Ordering::SeqCst);
        let read = reader.join().unwrap_or_else(|_| Err(Stop::Failed("the reader panicked".to_owned())));
        unmapped?;
        read
    })?;
    both_read(world, &region, 0, &expected[..2 * world.page() as usize])
}

/// The device's read is the CPU's, which nothing but a signal can refuse.
fn unmap_while_the_shared_table_is_read(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(4)?;
    let expected = pattern(1, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    let ending = case.doomed("reading on", |brink| {
        let reads = AtomicU64::new(0);
        std::thread::scope(|threads| {
            let reads = &reads;
            let reader = threads.spawn(|| {
                while world.unit.load(at(&region, 2 * world.page())).is_ok() {
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
            while reads.load(Ordering::SeqCst) < 3 && !reader.is_finished() {
                std::thread::yield_now();
            }
            brink.reached();
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
    let world = case.world(3)?;
    let region = world.region(2)?;
    // Two words of one page and one of another.
    let words = [8, 64, world.page()].map(|offset| at(&region, offset));
    let (meetings, done, added) = (Meetings::new(), AtomicBool::new(false), AtomicU64::new(0));
    let rounds = std::thread::scope(|threads| {
        let device = threads.spawn(|| -> Outcome {
            while !done.load(Ordering::SeqCst) {
                let n = added.fetch_add(1, Ordering::SeqCst);
                meetings.fly(|| world.unit.add(words[n as usize % 3], 1))?;
            }
            Ok(())
        });
        let adding = until_met(
            case,
            10 * MEETINGS,
            || meetings.met(),
            |round| {
                // SAFETY: an aligned word of a region that lives, touched only by atomics meanwhile.
                let word = unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(words[round as usize % 3] as usize)) };
                meetings.meet(|| word.fetch_add(1 << 32, Ordering::SeqCst));
                // The device comes to have the page in between, every time.
                let before = added.load(Ordering::SeqCst);
                while added.load(Ordering::SeqCst) < before + 2 && !device.is_finished() {
                    std::thread::yield_now();
                }
                ensure!(!device.is_finished(), "the device's thread ended");
                Ok(())
            },
        );
        done.store(true, Ordering::SeqCst);
        let device = device.join().unwrap_or_else(|_| Err(Stop::Failed("the device's thread panicked".to_owned())));
        device.and(adding)
    })?;
    let added = added.into_inner();
    let share = |all: u64, n: u64| all / 3 + u64::from(n < all % 3);
    let expected = [0, 1, 2].map(|n| share(rounds, n) << 32 | share(added, n));
    ensure_eq!("the sums", words.map(get), expected);
    world.verify()
}

/// A device that does one launch at a time passes without having shown anything.
fn additions_of_one_device_add_up(case: &Case<'_>) -> Outcome {
    const THREADS: u64 = 4;
    const ADDITIONS: u64 = 200;
    let world = case.world(2)?;
    let region = world.region(1)?;
    let word = at(&region, 8);
    world.unit.add(word, 1 << 32)?;
    std::thread::scope(|threads| {
        let adders: Vec<_> = (0..THREADS).map(|_| threads.spawn(|| (0..ADDITIONS).try_for_each(|_| world.unit.add(word, 1)))).collect();
        let ended = adders.into_iter().map(|adder| adder.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)));
        ended.fold(Ok(()), Result::and)
    })?;
    ensure_eq!("the sum", get(word), (1 << 32) + THREADS * ADDITIONS);
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
    world.unit.store(at(&region, 8), 0)?;
    ensure_eq!("what the device writes when it may again", get(at(&region, 8)), 0);
    // A device that uses the CPU's table is refused by a signal, which was tried.
    if case.mode() != Mode::Share {
        let (meetings, mut sum) = (Meetings::new(), 0);
        until_met(case, MEETINGS, || meetings.met(), |_| lower_under_a_writer(&world, &region, &meetings, &mut sum))?;
    }
    world.verify()
}

/// The device adds to a word, which holds `sum`, until it is refused because the protection is lowered meanwhile.
fn lower_under_a_writer(world: &World, region: &Region, meetings: &Meetings, sum: &mut u64) -> Outcome {
    let (word, first, added) = (at(region, 8), part(region, 0, world.page()), AtomicU64::new(*sum));
    let replays = world.unit.device.info().capabilities.contains(Capabilities::REPLAYABLE);
    let (begun, is_low) = (*sum + 2, AtomicBool::new(false));
    let lowered = std::thread::scope(|threads| -> Result<u64, Stop> {
        let writer = threads.spawn(|| -> Outcome {
            loop {
                let late = is_low.load(Ordering::SeqCst);
                match meetings.fly(|| world.unit.add(word, 1)) {
                    Ok(()) if late => return Err(Stop::Failed("the device added after the protection was lowered".to_owned())),
                    Ok(()) => added.fetch_add(1, Ordering::SeqCst),
                    Err(FaultError::Protection) => return Ok(()),
                    // A device that reports no faults cannot be told why one is not resolved.
                    Err(FaultError::NotMapped) if !replays => return Ok(()),
                    Err(other) => return Err(other.into()),
                };
            }
        });
        while added.load(Ordering::SeqCst) < begun && !writer.is_finished() {
            std::thread::yield_now();
        }
        let lowered = meetings.meet(|| region.protect(first, Prot::READ));
        let after = get(word);
        is_low.store(true, Ordering::SeqCst);
        let written = writer.join().unwrap_or_else(|_| Err(Stop::Failed("the writer panicked".to_owned())));
        lowered?;
        written?;
        Ok(after)
    })?;
    let added = added.into_inner();
    ensure_eq!("the word just after the protection was lowered, and once the writer was refused", (lowered, get(word)), (added, added));
    *sum = added;
    Ok(region.protect(first, Prot::RW)?)
}
