//! Loads and stores: either side sees what the other wrote, and nobody does what the protection forbids.

use super::steps::{both_read, refused, settle, written_by_device};
use crate::check::{Applies, Check, Outcome};
use crate::world::{at, get, get_bytes, part, pattern, same_bytes, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, FaultError};
use gmem::{Backing, Delivery, Mode, Prot, State, VirtAddr};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "device-comes-and-goes",
        rule: "A device can be added, attached, used, detached and destroyed any number of times, and leaves no memory pool and no context behind.",
        place: "gmem-hal `Device::stop`",
        applies: Applies::EVERYWHERE.once(),
        run: device_comes_and_goes,
    },
    Check {
        name: "device-reads-what-the-cpu-wrote",
        rule: "A load by a device sees every earlier store of the CPU.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: device_reads_what_the_cpu_wrote,
    },
    Check {
        name: "cpu-reads-what-the-device-wrote",
        rule: "A load by the CPU sees every earlier store and every atomic addition of a device.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: cpu_reads_what_the_device_wrote,
    },
    Check {
        name: "untouched-memory-reads-zero-for-a-fault-a-page",
        rule: "Memory that nobody wrote reads as zero on the device, and a page costs it one fault, however much of it is read, and one more where its translation was cached as absent.",
        place: "gmem-hal `Upcalls::device_fault`",
        applies: Applies::EVERYWHERE,
        run: untouched_memory_reads_zero,
    },
    Check {
        name: "forbidden-read-is-refused",
        rule: "A device cannot read a range whose protection allows nothing; the bytes are there again when it allows reading.",
        place: "gmem-hal `FaultError::Protection`",
        applies: Applies::EVERYWHERE,
        run: forbidden_read_is_refused,
    },
    Check {
        name: "forbidden-write-is-refused",
        rule: "A device can read a read-only range and cannot write it, not even once it has read it; it can after the protection was raised.",
        place: "gmem-hal `Mapping::prot`",
        applies: Applies::EVERYWHERE,
        run: forbidden_write_is_refused,
    },
    Check {
        name: "write-stays-inside-its-bytes",
        rule: "A write across the border of two pages changes those bytes and no other, wherever the pages are.",
        place: "ARCHITECTURE.md \"What always holds\" 3",
        applies: Applies::EVERYWHERE,
        run: write_stays_inside_its_bytes,
    },
    Check {
        name: "faults-in-the-faulting-thread-bring-the-page",
        rule: "In a region whose faults are resolved in the faulting thread either side sees what the other wrote, and what is discarded is zero.",
        place: "gmem-hal `Delivery::InThread`",
        applies: Applies::EVERYWHERE,
        run: faults_in_the_faulting_thread,
    },
    Check {
        name: "contexts-of-one-device-are-apart",
        rule: "Two address spaces on one device have each their own bytes at the same address, and when one ends the other goes on.",
        place: "gmem-hal `Mmu::pmap_create`",
        applies: Applies::OWN_TABLE,
        run: contexts_of_one_device_are_apart,
    },
];

fn device_comes_and_goes(case: &Case<'_>) -> Outcome {
    let gmem = gmem::Gmem::new()?;
    for round in 1..=5 {
        let space = gmem.address_space().create()?;
        let unit = case.unit(&gmem, &space, 2)?;
        let region = space.region().page_size(case.size()).map(case.size().bytes())?;
        unit.store(at(&region, 8), round)?;
        ensure_eq!("the word the device wrote", get(at(&region, 8)), round);
        if round % 2 == 0 {
            // Mapped memory outlives the context; what is dropped first makes no difference.
            unit.context.detach()?;
            ensure_eq!("the word after the device left", get(at(&region, 8)), round);
        }
    }
    ensure_eq!("memory pools of devices that are gone", gmem.stats().hnodes, Vec::new());
    gmem.verify().map_err(crate::Stop::Failed)
}

fn device_reads_what_the_cpu_wrote(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    let expected = pattern(1, len);
    set_bytes(at(&region, 0), &expected);
    let mut seen = vec![0; len];
    world.unit.read(at(&region, 0), &mut seen)?;
    same_bytes("what the device reads", &seen, &expected)?;
    // Again, where the device may still have what it read before.
    set_bytes(at(&region, 0), &expected[8..]);
    world.unit.read(at(&region, 0), &mut seen[8..])?;
    same_bytes("what the device reads after a change", &seen[8..], &expected[8..])?;
    world.verify()
}

fn cpu_reads_what_the_device_wrote(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = region.range().len().get() as usize;
    let expected = pattern(2, len);
    world.unit.write(at(&region, 0), &expected)?;
    same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len), &expected)?;
    world.unit.add(at(&region, 0), 5)?;
    let word = u64::from_ne_bytes(expected[..8].try_into().expect("eight bytes"));
    ensure_eq!("the word the device added to", get(at(&region, 0)), word.wrapping_add(5));
    world.verify()
}

fn untouched_memory_reads_zero(case: &Case<'_>) -> Outcome {
    // As a program's heap is, where the device can have it so.
    let backing = if case.mode() == Mode::Replicate { Backing::Shared } else { Backing::Private };
    let world = case.world(4)?;
    let region = world.space.region().page_size(case.size()).backing(backing).map(3 * world.page())?;
    let len = region.range().len().get() as usize;
    // The memory that the device gives it held something else before.
    let other = world.region(3)?;
    world.unit.write(at(&other, 0), &pattern(3, len))?;
    drop(other);
    let observed = &world.unit.observed;
    let faults = || (world.gmem.stats().device_faults - observed.hinted_faults(), observed.needless_faults());
    let before = faults();
    let mut seen = vec![1; len];
    world.unit.read(at(&region, 0), &mut seen)?;
    let (all, needless) = (faults().0 - before.0, faults().1 - before.1);
    same_bytes("what the device reads", &seen, &vec![0; len])?;
    let replays = case.target().info().capabilities.contains(Capabilities::REPLAYABLE);
    let most = if replays { 3 } else { 0 };
    ensure!(all - needless <= most, "{all} device faults for three pages, of which {needless} were for pages that it had");
    ensure!(needless <= most, "{needless} device faults for three pages that it had");
    same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len), &vec![0; len])
}

fn forbidden_read_is_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let expected = pattern(4, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    world.unit.load(at(&region, world.page()))?;
    let middle = part(&region, world.page(), world.page());
    region.protect(middle, Prot::empty())?;
    refused(case, "a read where nothing is allowed", FaultError::Protection, || world.unit.load(at(&region, world.page())).map(drop))?;
    refused(case, "a write where nothing is allowed", FaultError::Protection, || world.unit.store(at(&region, world.page()), 0))?;
    both_read(&world, &region, 0, &expected[..world.page() as usize])?;
    region.protect(middle, Prot::RW)?;
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}

fn forbidden_write_is_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let expected = pattern(5, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    region.protect(region.range(), Prot::READ)?;
    // The first page was read by the device when the write comes, the second was not.
    both_read(&world, &region, 0, &expected[..8])?;
    world.unit.load(at(&region, 0))?;
    for (step, page) in [("a write after a read", 0), ("a write before any read", 1)] {
        refused(case, step, FaultError::Protection, || world.unit.store(at(&region, page * world.page()), 0))?;
    }
    both_read(&world, &region, 0, &expected)?;
    region.protect(region.range(), Prot::RW)?;
    world.unit.store(at(&region, 0), 6)?;
    ensure_eq!("the word written once it was allowed", get(at(&region, 0)), 6);
    both_read(&world, &region, 8, &expected[8..])?;
    world.verify()
}

fn write_stays_inside_its_bytes(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let mut expected = pattern(6, region.range().len().get() as usize);
    set_bytes(at(&region, 0), &expected);
    // One page is on the device when the write comes, and one on the CPU.
    world.unit.load(at(&region, 0))?;
    set(at(&region, world.page()), 7);
    expected[world.page() as usize..][..8].copy_from_slice(&7u64.to_ne_bytes());
    for (seed, (border, before)) in [(world.page(), 13), (2 * world.page(), 5)].into_iter().enumerate() {
        let bytes = pattern(7 + seed as u64, 21);
        world.unit.write(at(&region, border - before), &bytes)?;
        expected[(border - before) as usize..][..21].copy_from_slice(&bytes);
    }
    let written = written_by_device(case);
    settle("where the pages are", &world, &region, &[written; 3])?;
    // Every page of the smallest size is written once more, so that one that is mapped to the wrong memory shows.
    for offset in (0..region.range().len().get()).step_by(4096) {
        world.unit.write(at(&region, offset + 64), &offset.to_ne_bytes())?;
        expected[offset as usize + 64..][..8].copy_from_slice(&offset.to_ne_bytes());
        if world.page() > 4096 && offset >= 32 << 12 {
            break;
        }
    }
    both_read(&world, &region, 0, &expected)?;
    settle("where the pages are once the CPU read them", &world, &region, &[State::Host; 3])?;
    world.verify()
}

fn faults_in_the_faulting_thread(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.space.region().page_size(case.size()).delivery(Delivery::InThread).map(3 * world.page())?;
    let len = region.range().len().get() as usize;
    for round in 0..3 {
        let (mine, theirs) = (pattern(20 + 2 * round, len), pattern(21 + 2 * round, len));
        set_bytes(at(&region, 0), &mine);
        both_read(&world, &region, 0, &mine)?;
        world.unit.write(at(&region, 0), &theirs)?;
        same_bytes("what the CPU reads", &get_bytes(at(&region, 0), len), &theirs)?;
        world.unit.add(at(&region, world.page()), 1)?;
        let word = u64::from_ne_bytes(theirs[world.page() as usize..][..8].try_into().expect("eight bytes"));
        ensure_eq!("the word the device added to", get(at(&region, world.page())), word.wrapping_add(1));
    }
    world.unit.store(at(&region, 0), 1)?;
    region.discard(part(&region, 0, 2 * world.page()))?;
    ensure_eq!("what was discarded on the device, and at home", (get(at(&region, 0)), get(at(&region, world.page()))), (0, 0));
    world.verify()
}

fn contexts_of_one_device_are_apart(case: &Case<'_>) -> Outcome {
    // A peer may hand its memory to contexts in large pieces, and the rule is not about those.
    let peer = case.target().info().capabilities.contains(Capabilities::PEER);
    let spare = if peer { (96 << 20) / case.size().bytes() } else { 0 };
    let mut world = case.world(6 + spare)?;
    // Only devices see them, so they may lie over each other.
    let place = VirtAddr::new(0x2000_0000_0000);
    let make = || world.gmem.address_space().at(place).len(1 << 30).devices_only().create();
    let (one, two) = (make()?, make()?);
    let mut contexts = Vec::new();
    let mut regions = Vec::new();
    for space in [&one, &two] {
        contexts.push(case.attach(space, &world.unit.device)?);
        regions.push(space.region().page_size(case.size()).at(place).map(2 * world.page())?);
    }
    let two = contexts.pop().expect("two were made");
    let one = std::mem::replace(&mut world.unit.context, contexts.pop().expect("two were made"));
    // The device in the first, in the second, and in the first again; often, because what one of its cores remembers of a context may be asked of another.
    const ROUNDS: u64 = 24;
    let va = place.get() + world.page() - 2048;
    let (mut first, mut second) = (Vec::new(), vec![0; 4096]);
    let (mut two, mut seen) = (two, vec![1; 4096]);
    for round in 0..ROUNDS {
        first = pattern(2 * round + 1, 4096);
        world.unit.write(va, &first)?;
        let other = std::mem::replace(&mut world.unit.context, two);
        world.unit.read(va, &mut seen)?;
        same_bytes("what the device reads in an address space after it wrote in another", &seen, &second)?;
        second = pattern(2 * round + 2, 4096);
        world.unit.write(va, &second)?;
        two = std::mem::replace(&mut world.unit.context, other);
        world.unit.read(va, &mut seen)?;
        same_bytes("what it reads in the other", &seen, &first)?;
    }
    two.detach()?;
    world.unit.write(va + 8, &first[8..16])?;
    world.unit.read(va, &mut seen)?;
    same_bytes("what it reads there when one has ended", &seen, &first)?;
    drop(one);
    world.verify()
}
