//! Pages that travel: to the device and back, in part, over and over, and from device to device.

use super::steps::{both_read, settle, states, used, written_by_device};
use crate::check::{Applies, Check, Outcome};
use crate::observe::Copied;
use crate::world::{at, get, get_bytes, part, pattern, same_bytes, set, set_bytes, touch};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::FaultError;
use gmem::{Access, Backing, Error, Mode, Prot, RangeError, State};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "memory-freed-on-the-device-is-free",
        rule: "The frames of a region that is unmapped while it is on the device are free when the call returns.",
        place: "ARCHITECTURE.md \"What always holds\" 4",
        applies: Applies::EXCLUSIVE,
        run: memory_freed_on_the_device_is_free,
    },
    Check {
        name: "prefetch-moves-what-is-missing",
        rule: "A prefetch of a range of which a part is on the device moves the other part, says how much, and leaves the bytes right.",
        place: "gmem `AddressSpace::prefetch`",
        applies: Applies::EXCLUSIVE,
        run: prefetch_moves_what_is_missing,
    },
    Check {
        name: "detach-brings-everything-home",
        rule: "A device that leaves an address space loses nothing of what it had in its memory.",
        place: "gmem `Context::detach`",
        applies: Applies::EVERYWHERE,
        run: detach_brings_everything_home,
    },
    Check {
        name: "either-backing-goes-or-is-refused",
        rule: "Memory of shared and of private backing goes to the device and back; where a device cannot reach private backing, mapping and attaching say so.",
        place: "gmem-hal `Backing::Shared`",
        applies: Applies::EVERYWHERE,
        run: either_backing_goes_or_is_refused,
    },
    Check {
        name: "prefetch-of-mixed-pages",
        rule: "Untouched, read-only and writable pages go to the device in one prefetch; one that meets a hole moves nothing, and one that meets forbidden pages says which.",
        place: "gmem-core `Core::prefetch`",
        applies: Applies::EVERYWHERE,
        run: prefetch_of_mixed_pages,
    },
    Check {
        name: "ten-times-there-and-back",
        rule: "A page keeps its bytes however often it goes to the device and comes back, changed on each side.",
        place: "docs/page-entry.md \"Transitions\"",
        applies: Applies::EVERYWHERE,
        run: ten_times_there_and_back,
    },
    Check {
        name: "an-address-used-again-is-new-memory",
        rule: "Where a region was unmapped and another mapped, the device sees the new one's bytes, never a translation or a frame of the old one.",
        place: "gmem-hal `Mmu::tlb_invalidate`",
        applies: Applies::EVERYWHERE,
        run: an_address_used_again_is_new_memory,
    },
    Check {
        name: "two-devices-read-the-same",
        rule: "Two devices can read one range, and when its pages move to one of them the other still reads the right bytes.",
        place: "ARCHITECTURE.md \"What always holds\" 2",
        applies: Applies::EVERYWHERE,
        run: two_devices_read_the_same,
    },
    Check {
        name: "untouched-pages-go-as-zeros",
        rule: "A range that nobody touched can be sent to the device for reading and for writing by one request, after which no fault follows, and is zero on either side.",
        place: "docs/page-entry.md \"States\"",
        applies: Applies::EVERYWHERE,
        run: untouched_pages_go_as_zeros,
    },
    Check {
        name: "a-page-read-as-zero-is-a-page-of-its-own",
        rule: "Pages that the CPU read as zeros and then the device writes differ from each other afterwards: no two pages share a frame of zeros.",
        place: "ARCHITECTURE.md \"What always holds\" 1",
        applies: Applies::EVERYWHERE,
        run: a_page_read_as_zero_is_a_page_of_its_own,
    },
    Check {
        name: "each-byte-is-copied-once",
        rule: "Sending a range to the device and bringing it home copies each of its bytes once in each direction, whatever the page size; where data does not move, none is copied.",
        place: "gmem-core `Stats::h2d_prefetch_bytes`",
        applies: Applies::EVERYWHERE,
        run: each_byte_is_copied_once,
    },
    Check {
        name: "discard-on-the-device-reads-zero",
        rule: "What is discarded while it is on the device reads as zero on both sides, and its frames are free.",
        place: "gmem `Region::discard`",
        applies: Applies::EVERYWHERE,
        run: discard_on_the_device_reads_zero,
    },
];

fn memory_freed_on_the_device_is_free(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let idle = used(&world);
    for round in 0..3 {
        let region = world.region(4)?;
        let moved = world.space.prefetch(region.range(), Some(&world.unit.device), Access::Write)?;
        ensure_eq!("pages that went to the device", moved, 4);
        world.unit.write(at(&region, 0), &pattern(round, 4096))?;
        ensure_eq!("bytes in use with the region on the device", used(&world), idle + 4 * world.page());
        drop(region);
        ensure_eq!("bytes in use without it", used(&world), idle);
    }
    world.verify()
}

fn prefetch_moves_what_is_missing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(4)?;
    let mut expected = pattern(1, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    let prefetch = || world.space.prefetch(region.range(), Some(&world.unit.device), Access::Write);
    ensure_eq!("pages that went at first", prefetch()?, 4);
    settle("where they are", &world, &region, &[State::Device; 4])?;
    for page in [1, 3] {
        let offset = page * world.page();
        set(at(&region, offset), page);
        expected[offset as usize..][..8].copy_from_slice(&page.to_ne_bytes());
    }
    settle("where the mix is", &world, &region, &[State::Device, State::Host, State::Device, State::Host])?;
    ensure_eq!("pages that went of the mix", prefetch()?, 2);
    ensure_eq!("pages that went when all were there", prefetch()?, 0);
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}

fn detach_brings_everything_home(case: &Case<'_>) -> Outcome {
    let mut world = case.world(4)?;
    let region = world.region(3)?;
    let expected = pattern(1, region.range().len().get() as usize);
    world.unit.write(at(&region, 0), &expected)?;
    let device = world.unit.device.clone();
    world.unit.context.detach()?;
    ensure_eq!("where the pages are", states_of(&world.space, &region)?, vec![State::Host]);
    same_bytes("what the CPU reads", &get_bytes(at(&region, 0), expected.len()), &expected)?;
    // And it can come again.
    world.unit.context = case.attach(&world.space, &device)?;
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}

fn states_of(space: &gmem::AddressSpace, region: &gmem::Region) -> Result<Vec<State>, Error> {
    Ok(space.residency(region.range())?.iter().map(|run| run.state).collect())
}

fn either_backing_goes_or_is_refused(case: &Case<'_>) -> Outcome {
    for backing in [Backing::Shared, Backing::Private] {
        let world = case.world(4)?;
        let mapped = world.space.region().page_size(case.size()).backing(backing).map(2 * world.page());
        if case.mode() == Mode::Replicate && backing == Backing::Private {
            ensure!(matches!(mapped, Err(Error::Range(RangeError::PrivateBacking))), "mapping private backing: {mapped:?}");
            continue;
        }
        let region = mapped?;
        let mut expected = pattern(1, region.range().len().get() as usize);
        set_bytes(at(&region, 0), &expected);
        world.unit.write(at(&region, 100), &pattern(2, 1000))?;
        expected[100..1100].copy_from_slice(&pattern(2, 1000));
        settle(&format!("where the pages of {backing:?} backing are"), &world, &region, &[written_by_device(case), State::Host])?;
        both_read(&world, &region, 0, &expected)?;
        world.verify()?;
    }
    Ok(())
}

fn prefetch_of_mixed_pages(case: &Case<'_>) -> Outcome {
    let world = case.world(6)?;
    let region = world.region(5)?;
    let page = |number: u64| part(&region, number * world.page(), world.page());
    set(at(&region, world.page()), 1);
    set(at(&region, 2 * world.page()), 2);
    region.protect(page(1), Prot::READ)?;
    region.protect(page(3), Prot::empty())?;
    region.unmap(page(4))?;
    let device = Some(&world.unit.device);
    let before = [State::Unmapped, State::Host, State::Host, State::Unmapped];
    settle("where the pages are", &world, &region, &before)?;
    let hole = world.space.prefetch(region.range(), device, Access::Read);
    ensure!(matches!(hole, Err(Error::Range(RangeError::NotMapped(va))) if va == page(4).start()), "a prefetch over a hole: {hole:?}");
    ensure_eq!("where the pages are after it", states(&world, &region)?, before);
    let forbidden = world.space.prefetch(part(&region, 2 * world.page(), 2 * world.page()), device, Access::Read);
    let expected = RangeError::Fault(page(3).start(), FaultError::Protection);
    ensure!(matches!(forbidden, Err(Error::Range(e)) if e == expected), "a prefetch over forbidden pages: {forbidden:?}");
    let together = part(&region, 0, 3 * world.page());
    world.space.prefetch(together, device, Access::Read)?;
    let faults = world.gmem.stats().device_faults;
    let words = [0, 1, 2].map(|page| world.unit.load(at(&region, page * world.page())));
    ensure_eq!("what the device reads", words, [Ok(0), Ok(1), Ok(2)]);
    ensure_eq!("device faults after a prefetch", world.gmem.stats().device_faults - faults, 0);
    world.verify()
}

fn ten_times_there_and_back(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    for round in 0..10 {
        let on_cpu = pattern(2 * round, len);
        set_bytes(at(&region, 0), &on_cpu);
        for page in 0..3 {
            world.unit.add(at(&region, page * world.page() + 8), round)?;
        }
        let mut expected = on_cpu;
        for page in 0..3 {
            let word = &mut expected[(page * world.page()) as usize + 8..][..8];
            let sum = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")).wrapping_add(round);
            word.copy_from_slice(&sum.to_ne_bytes());
        }
        same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len), &expected)?;
    }
    world.verify()
}

fn an_address_used_again_is_new_memory(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let mut place = None;
    for round in 0..10 {
        let mut builder = world.space.region().page_size(case.size());
        if let Some(start) = place {
            builder = builder.at(start);
        }
        let region = builder.map(2 * world.page())?;
        place = Some(region.range().start());
        // In turn the CPU is first and the device is; what it finds is never the last round's.
        if round % 2 == 0 {
            ensure_eq!("the device's first look", world.unit.load(at(&region, 16)), Ok(0));
            let expected = pattern(round, (2 * world.page()) as usize);
            set_bytes(at(&region, 0), &expected);
            both_read(&world, &region, 0, &expected)?;
        } else {
            world.unit.store(at(&region, 8), round)?;
            ensure_eq!("the word beside what the device wrote", get(at(&region, 16)), 0);
            ensure_eq!("what the device wrote", get(at(&region, 8)), round);
            world.unit.store(at(&region, world.page()), round)?;
        }
    }
    world.verify()
}

fn two_devices_read_the_same(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let other = case.unit(&world.gmem, &world.space, 4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    let expected = pattern(1, len);
    set_bytes(at(&region, 0), &expected);
    region.protect(region.range(), Prot::READ)?;
    let both = || -> Outcome {
        for unit in [&world.unit, &other, &world.unit] {
            let mut seen = vec![0; len];
            unit.read(at(&region, 0), &mut seen)?;
            same_bytes("what a device reads", &seen, &expected)?;
        }
        Ok(())
    };
    both()?;
    world.space.prefetch(region.range(), Some(&other.device), Access::Read)?;
    both()?;
    // A page that one device wrote is read, and written on, by the other.
    region.protect(region.range(), Prot::RW)?;
    world.unit.store(at(&region, 8), 70)?;
    ensure_eq!("what the other device reads", other.load(at(&region, 8)), Ok(70));
    other.add(at(&region, 8), 1)?;
    ensure_eq!("what the first device reads", world.unit.load(at(&region, 8)), Ok(71));
    ensure_eq!("what the CPU reads", get(at(&region, 8)), 71);
    world.verify()
}

fn untouched_pages_go_as_zeros(case: &Case<'_>) -> Outcome {
    for access in [Access::Read, Access::Write] {
        let world = case.world(4)?;
        let region = world.region(3)?;
        let len = region.range().len().get() as usize;
        // What the frames held before.
        let other = world.region(4)?;
        world.unit.write(at(&other, 0), &pattern(1, 4 * world.page() as usize))?;
        drop(other);
        world.space.prefetch(region.range(), Some(&world.unit.device), access)?;
        let before = world.gmem.stats().device_faults;
        let mut seen = vec![1; len];
        world.unit.read(at(&region, 0), &mut seen)?;
        ensure_eq!("device faults where everything was brought by one request", world.gmem.stats().device_faults - before, 0);
        same_bytes("what the device reads", &seen, &vec![0; len])?;
        both_read(&world, &region, 0, &vec![0; len])?;
        world.verify()?;
    }
    Ok(())
}

fn a_page_read_as_zero_is_a_page_of_its_own(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(4)?;
    (0..4).for_each(|page| touch(at(&region, page * world.page())));
    for page in 0..3 {
        world.unit.store(at(&region, page * world.page() + 8), page + 1)?;
    }
    let words = [0, 1, 2, 3].map(|page| get(at(&region, page * world.page() + 8)));
    ensure_eq!("what the CPU reads", words, [1, 2, 3, 0]);
    let mut seen = Vec::new();
    for page in 0..4 {
        seen.push(world.unit.load(at(&region, page * world.page() + 8))?);
    }
    ensure_eq!("what the device reads", seen, [1, 2, 3, 0]);
    world.verify()
}

fn each_byte_is_copied_once(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let region = world.region(8)?;
    let len = region.range().len().get();
    let expected = pattern(1, len as usize);
    set_bytes(at(&region, 0), &expected);
    let (before, calls) = (world.gmem.stats(), world.unit.observed.copied());
    world.space.prefetch(region.range(), Some(&world.unit.device), Access::Write)?;
    world.space.prefetch(region.range(), None, Access::Read)?;
    let after = world.gmem.stats();
    let bytes = if case.mode() == Mode::CoherentExclusive { len } else { 0 };
    ensure_eq!("what the driver was asked to copy", world.unit.observed.copied() - calls, Copied { down: bytes, home: bytes, across: 0 });
    let there = after.h2d_prefetch_bytes - before.h2d_prefetch_bytes;
    let back = after.d2h_other_bytes - before.d2h_other_bytes;
    ensure_eq!("bytes copied to the device and back, as the statistics have it", (there, back), (bytes, bytes));
    same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len as usize), &expected)
}

fn discard_on_the_device_reads_zero(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let mut expected = pattern(1, region.range().len().get() as usize);
    world.unit.write(at(&region, 0), &expected)?;
    let full = used(&world);
    region.discard(part(&region, world.page(), world.page()))?;
    let freed = if case.mode() == Mode::CoherentExclusive { world.page() } else { 0 };
    ensure_eq!("bytes that became free", full - used(&world), freed);
    ensure_eq!("the state of what was discarded", states(&world, &region)?[1], State::Unmapped);
    expected[world.page() as usize..2 * world.page() as usize].fill(0);
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}
