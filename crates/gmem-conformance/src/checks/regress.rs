//! What the original got wrong with one thread at a time.

use super::page_calls::Line;
use super::refuse::refused;
use super::steps::only_memory;
use super::translation::{expect_state, page, state};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get, get_bytes, part, pattern, same_bytes, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, PhysRange};
use gmem::{Access, ByteLen, DeviceCallError, Error, Prot, RangeError, State, VirtAddr, VirtRange};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "contexts-come-and-go-in-any-order",
        rule: "Several contexts of one device work, and go on working when one in the middle goes.",
        place: "gmem `AddressSpace::attach`",
        applies: Applies::EVERYWHERE.once(),
        run: contexts_come_and_go,
    },
    Check {
        name: "cpu-touch-anywhere-brings-the-page",
        rule: "A CPU access at any byte of a page brings all of that page home, and no other.",
        place: "docs/page-entry.md \"From a fault to a new state\"",
        applies: Applies::EXCLUSIVE,
        run: cpu_touch_anywhere_brings_the_page,
    },
    Check {
        name: "device-touch-anywhere-brings-the-page",
        rule: "Device faults at any bytes of a page are faults of one page, which has one frame.",
        place: "docs/page-entry.md \"From a fault to a new state\"",
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE),
        run: device_touch_anywhere_brings_the_page,
    },
    Check {
        name: "resolved-fault-has-resolved",
        rule: "After a device fault was answered with Ok, on an untouched page too, the device touches the page without another.",
        place: "gmem-hal `Upcalls::device_fault`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE),
        run: resolved_fault_has_resolved,
    },
    Check {
        name: "page-moves-from-device-to-device",
        rule: "A page that a second device touches moves there with its bytes, and the first one's frame is free.",
        place: "gmem-hal `Mode::CoherentExclusive`",
        applies: Applies::EXCLUSIVE,
        run: page_moves_from_device_to_device,
    },
    Check {
        name: "memory-pools-run-out-and-come-back",
        rule: "Each registered range is a pool with a name of its own; when there are no more names that is said, and names of pools that went are used again.",
        place: "gmem-core `DeviceCallError::TooManyMemories`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: memory_pools_run_out_and_come_back,
    },
    Check {
        name: "any-thread-uses-what-one-attached",
        rule: "A context belongs to the address space, not to the thread that attached it.",
        place: "gmem `AddressSpace::attach`",
        applies: Applies::EVERYWHERE.once(),
        run: any_thread_uses_what_one_attached,
    },
    Check {
        name: "range-past-the-end-is-refused",
        rule: "A range call on addresses outside what is mapped, up to the last address, is refused by name and never panics or loops.",
        place: "gmem-core `RangeError::NotMapped`",
        applies: Applies::EVERYWHERE.once(),
        run: range_past_the_end_is_refused,
    },
    Check {
        name: "background-eviction-works",
        rule: "When free memory falls under the watermark, a thread of gmem evicts without being asked.",
        place: "gmem-hal `Platform::pressure`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: background_eviction_works,
    },
];

fn contexts_come_and_go(case: &Case<'_>) -> Outcome {
    let world = case.world((16 << 20) / case.size().bytes())?;
    let World { unit, space, gmem, size } = world;
    let spaces = [space, gmem.address_space().create()?, gmem.address_space().create()?];
    let regions = spaces.each_ref().map(|space| space.region().page_size(size).map(size.bytes()));
    let [a, b, c] = regions;
    let regions = [a?, b?, c?];
    let crate::Unit { context, device, specimen, observed: _observed } = unit;
    let mut contexts = [Some(context), Some(case.attach(&spaces[1], &device)?), Some(case.attach(&spaces[2], &device)?)];
    // The middle one, the first, the middle one again, and so on.
    for (round, gone) in [1, 0, 1, 2, 0, 2].into_iter().enumerate() {
        for (n, region) in regions.iter().enumerate() {
            let value = (10 * round + n) as u64;
            if let Some(context) = &contexts[n] {
                specimen.write(context, region.range().start(), &value.to_ne_bytes())?;
                ensure_eq!(format!("address space {n}, round {round}"), get(at(region, 0)), value);
            }
        }
        match contexts[gone].take() {
            Some(context) => context.detach()?,
            None => contexts[gone] = Some(case.attach(&spaces[gone], &device)?),
        }
    }
    eventually(|| gmem.verify()).map_err(Stop::Failed)
}

/// Bytes of a page at which nothing begins.
fn offsets(len: u64) -> [u64; 5] {
    [1, 1023, len / 2 + 3, len - 4096 + 17, len - 1]
}

fn cpu_touch_anywhere_brings_the_page(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let len = world.page() as usize;
    for offset in offsets(world.page()) {
        let bytes = pattern(offset, 3 * len);
        world.unit.write(at(&region, 0), &bytes)?;
        let seen = get_bytes(page(&world, &region, 1) + offset, 1)[0];
        ensure_eq!(format!("byte {offset:#x} of the page"), seen, bytes[len + offset as usize]);
        expect_state(&world, page(&world, &region, 1), State::Host)?;
        for n in [0, 2] {
            ensure_eq!(format!("the state of page {n}"), state(&world, page(&world, &region, n))?, State::Device);
        }
        same_bytes("the page that came home", &get_bytes(page(&world, &region, 1), len), &bytes[len..2 * len])?;
    }
    world.verify()
}

fn used(world: &World) -> u64 {
    world.unit.device.memory().iter().map(|h| h.used.get()).sum()
}

fn device_touch_anywhere_brings_the_page(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (region, line) = (world.region(3)?, Line::new(&world)?);
    set(page(&world, &region, 1), 7);
    let before = world.gmem.stats().h2d_fault_bytes;
    for offset in offsets(world.page()) {
        line.fault(page(&world, &region, 1) + offset, Access::Write, None)?;
        ensure_eq!("bytes used on the device", used(&world), world.page());
    }
    ensure_eq!("bytes that were copied", world.gmem.stats().h2d_fault_bytes - before, world.page());
    ensure_eq!("the pages beside", [0, 2].map(|n| state(&world, page(&world, &region, n))), [Ok(State::Unmapped), Ok(State::Unmapped)]);
    ensure_eq!("the word", world.unit.load(page(&world, &region, 1))?, 7);
    world.verify()
}

fn resolved_fault_has_resolved(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (region, line) = (world.region(2)?, Line::new(&world)?);
    set(page(&world, &region, 1), 3);
    for (n, expected) in [(0, 0), (1, 3)] {
        line.fault(page(&world, &region, n), Access::Write, None)?;
        ensure!(state(&world, page(&world, &region, n))?.on_device(), "page {n} is not on the device after its fault was resolved");
        let faults = || world.gmem.stats().device_faults - world.unit.observed.needless_faults() - world.unit.observed.hinted_faults();
        let (before, needless) = (faults(), world.unit.observed.needless_faults());
        ensure_eq!(format!("page {n}"), world.unit.load(page(&world, &region, n))?, expected);
        world.unit.store(page(&world, &region, n), 4)?;
        // A translation cached as absent may cost one more, if its table has the page; whether it has is the observer's business too.
        ensure_eq!(format!("faults for page {n} after it was resolved, which its table had not"), faults() - before, 0);
        ensure!(world.unit.observed.needless_faults() - needless <= 1, "more than one fault for page {n}, which its table had");
    }
    world.verify()
}

fn page_moves_from_device_to_device(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let second = case.unit(&world.gmem, &world.space, 4)?;
    let region = world.region(2)?;
    let bytes = |unit: &crate::Unit| unit.device.memory().iter().map(|h| h.used.get()).sum::<u64>();
    for round in 1..5 {
        world.unit.store(at(&region, 0), round)?;
        ensure_eq!("what the second device reads", second.load(at(&region, 0))?, round);
        second.store(at(&region, 0), 10 * round)?;
        let moved = || if (bytes(&world.unit), bytes(&second)) == (0, world.page()) { Ok(()) } else { Err(()) };
        ensure!(
            eventually(moved).is_ok(),
            "the first device uses {} bytes, the second {}, for a page of {} that moved",
            bytes(&world.unit),
            bytes(&second),
            world.page()
        );
        ensure_eq!("what the first device reads", world.unit.load(at(&region, 0))?, 10 * round);
        world.unit.add(at(&region, 0), 1)?;
        ensure_eq!("what the CPU reads", get(at(&region, 0)), 10 * round + 1);
    }
    world.verify()
}

fn memory_pools_run_out_and_come_back(case: &Case<'_>) -> Outcome {
    // More pages than there are names.
    const PAGES: u64 = 1100;
    let world = case.world(PAGES)?;
    let device = &world.unit.device;
    let whole = only_memory(&world)?;
    device.unregister_memory(device.hnodes()[0])?;
    let slice = |n: u64| PhysRange { begin: whole.begin + n * world.page(), end: whole.begin + (n + 1) * world.page() };
    let mut made = Vec::new();
    let refusal = (0..PAGES).map(|n| device.register_memory(slice(n))).find_map(|made_one| match made_one {
        Ok(hnode) => {
            made.push(hnode);
            None
        }
        Err(e) => Some(e),
    });
    refused!("more pools than there are names", refusal.map_or(Ok(()), Err), Error::Device(DeviceCallError::TooManyMemories));
    made.sort_unstable();
    made.dedup();
    ensure_eq!("names", made.len(), device.hnodes().len());
    let region = world.region(2)?;
    world.unit.store(at(&region, 0), 5)?;
    world.space.prefetch(region.range(), None, Access::Read)?;
    made.iter().try_for_each(|hnode| device.unregister_memory(*hnode))?;
    device.register_memory(whole)?;
    world.unit.add(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 6);
    world.verify()
}

fn any_thread_uses_what_one_attached(case: &Case<'_>) -> Outcome {
    let World { unit, space, size, gmem } = case.world(4)?;
    let crate::Unit { context, device, specimen, observed: _observed } = unit;
    context.detach()?;
    let mode = case.mode();
    let panicked = |_| Stop::Failed("a thread panicked".into());
    let context = std::thread::scope(|threads| threads.spawn(|| space.attach(&device, mode)).join().map_err(panicked))??;
    let region = space.region().page_size(size).map(2 * size.bytes())?;
    let store = || specimen.write(&context, region.range().start(), &8_u64.to_ne_bytes());
    std::thread::scope(|threads| threads.spawn(store).join().map_err(panicked))??;
    ensure_eq!("the word", get(at(&region, 0)), 8);
    eventually(|| gmem.verify()).map_err(Stop::Failed)
}

fn range_past_the_end_is_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (region, device) = (world.region(2)?, &world.unit.device);
    world.unit.store(at(&region, 0), 1)?;
    let range = |start: u64, len: u64| VirtRange::from_len(VirtAddr::new(start), ByteLen(len)).ok_or(Stop::Failed("no range".into()));
    let ranges = [
        range(region.range().end().get(), 4096)?,
        range(at(&region, 8), 4 * world.page())?,
        range(1, u64::MAX - 1)?,
        range(u64::MAX - 1, 1)?,
        range(world.space.range().start().get(), world.space.range().len().get())?,
    ];
    ensure!(range(u64::MAX, 2).is_err(), "a range may wrap around");
    for bad in ranges {
        for to in [Some(device), None] {
            refused!(format!("a prefetch of {bad}"), world.space.prefetch(bad, to, Access::Read), Error::Range(RangeError::NotMapped(_)));
        }
        refused!(format!("a pin of {bad}"), world.space.pin(bad), Error::Range(RangeError::NotMapped(_)));
        refused!(format!("a discard of {bad}"), region.discard(bad), Error::Range(RangeError::NotMapped(_)));
        refused!(format!("an unmap of {bad}"), region.unmap(bad), Error::Range(RangeError::NotMapped(_)));
        refused!(format!("a protect of {bad}"), region.protect(bad, Prot::READ), Error::Range(RangeError::NotMapped(_)));
        // A question has an answer: nothing, or what lies inside.
        world.space.residency(bad)?;
    }
    world.unit.add(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 2);
    world.verify()
}

fn background_eviction_works(case: &Case<'_>) -> Outcome {
    const PAGES: u64 = 256;
    let world = case.world(PAGES)?;
    let region = world.region(PAGES)?;
    for n in 0..PAGES {
        world.unit.store(page(&world, &region, n), n)?;
    }
    // Less than the watermark is free now. A page that was just used has a second chance, so it may take some more allocations.
    let last = page(&world, &region, PAGES - 1);
    let evicted = || {
        region.discard(part(&region, (PAGES - 1) * world.page(), world.page()))?;
        world.unit.store(last, PAGES - 1)?;
        ensure!(world.gmem.stats().evictions > 0, "the memory is full, and nothing was evicted");
        Ok::<(), Stop>(())
    };
    eventually(evicted)?;
    let stats = world.gmem.stats();
    ensure!(stats.background_reclaims > 0, "no round of background eviction was made");
    for n in 0..PAGES {
        ensure_eq!(format!("page {n}"), get(page(&world, &region, n)), n);
    }
    world.verify()
}
