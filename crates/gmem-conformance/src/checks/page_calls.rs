//! The calls on ranges of pages: map, unmap, protect, prefetch, discard, pin, and the two kinds of fault.

use super::refuse::refused;
use super::steps::only_memory;
use super::translation::{evict, expect_state, page, state};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::observe::Observed;
use crate::world::{World, at, eventually, get, get_bytes, part, pattern, same_bytes, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, DeviceId, FaultError, FaultHint, HostFault, PmapId, Upcalls};
use gmem::{Access, Error, Prot, RangeError, Region, State, VirtAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "map-takes-the-place-asked-for-or-none",
        rule: "A region lies where it was asked for and reads as zero; a taken, misaligned or outer place is refused and nothing moves.",
        place: "gmem-core `Core::map`",
        applies: Applies::EVERYWHERE,
        run: map_takes_the_place_asked_for_or_none,
    },
    Check {
        name: "unmap-takes-whole-pages-and-no-more",
        rule: "Unmapping a part frees its frames and leaves the pages at either side; an end inside a page is refused.",
        place: "gmem-core `Core::unmap`",
        applies: Applies::OWN_TABLE,
        run: unmap_takes_whole_pages_and_no_more,
    },
    Check {
        name: "protect-is-all-or-nothing",
        rule: "Changing the protection of a range with a hole is refused, and the old protection is in force everywhere.",
        place: "gmem `Region::protect`",
        applies: Applies::OWN_TABLE.once(),
        run: protect_is_all_or_nothing,
    },
    Check {
        name: "device-faults-are-checked",
        rule: "A device fault outside every region, against the protection, or of nobody's table or device is refused by name.",
        place: "gmem-hal `Upcalls::device_fault`",
        applies: Applies::OWN_TABLE.needs(Capabilities::REPLAYABLE).once(),
        run: device_faults_are_checked,
    },
    Check {
        name: "fault-on-a-present-page-moves-nothing",
        rule: "A device fault on a page that the device has is answered without a copy, with a hint and without.",
        place: "docs/page-entry.md \"Transitions\"",
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE),
        run: fault_on_a_present_page_moves_nothing,
    },
    Check {
        name: "host-faults-are-checked",
        rule: "A CPU fault outside every address space is the program's own; in a hole or against the protection it fails; else it is resolved.",
        place: "gmem-hal `Upcalls::host_fault`",
        applies: Applies::EVERYWHERE.once(),
        run: host_faults_are_checked,
    },
    Check {
        name: "prefetch-rounds-outward",
        rule: "A prefetch brings every page that its range touches, and no fault follows.",
        place: "gmem-core `Core::prefetch`",
        applies: Applies::EXCLUSIVE,
        run: prefetch_rounds_outward,
    },
    Check {
        name: "discard-rounds-inward",
        rule: "A discard gives up the whole pages inside its range and no byte of another.",
        place: "gmem-core `Core::discard`",
        applies: Applies::EVERYWHERE,
        run: discard_rounds_inward,
    },
    Check {
        name: "pins-are-counted",
        rule: "A pin lasts until as many unpins; the 256th is refused with nothing pinned, and so is an unpin without a pin.",
        place: "gmem-core `Core::pin`",
        applies: Applies::EXCLUSIVE.once(),
        run: pins_are_counted,
    },
    Check {
        name: "oldest-page-goes-first",
        rule: "Of pages that all must be copied the one longest unused is evicted first, and a fault with the hint hot is a use.",
        place: "docs/page-entry.md \"Frames and age\"",
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE).without(Capabilities::PEER).once(),
        run: oldest_page_goes_first,
    },
    Check {
        name: "wanted-page-is-not-evicted",
        rule: "A fault by the page's own device while it is being evicted calls the eviction off.",
        place: "ARCHITECTURE.md \"What orders two operations\"",
        applies: Applies::EXCLUSIVE.needs(Capabilities::REPLAYABLE).without(Capabilities::PEER).once(),
        run: wanted_page_is_not_evicted,
    },
];

fn map_takes_the_place_asked_for_or_none(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (size, len) = (world.size, world.page());
    let map = |at: u64, len: u64| world.space.region().page_size(size).at(VirtAddr::new(at)).map(len);
    let start = world.space.range().start().get() + (64 << 20);
    let region = map(start, 3 * len)?;
    ensure_eq!("where the region lies", region.range().start().get(), start);
    set(start + len, 1);
    refused!("a taken place", map(start, len), Error::Range(RangeError::NoAddressSpace));
    refused!("a place half taken", map(start + 2 * len, 2 * len), Error::Range(RangeError::NoAddressSpace));
    refused!("a place inside a page", map(start + (1 << 30) + 512, len), Error::Range(RangeError::Misaligned(s)) if s == size);
    refused!("a place behind the last", map(world.space.range().end().get(), len), Error::Range(RangeError::NoAddressSpace));
    refused!("nothing", map(start + (1 << 30), 0), Error::Length);
    refused!("more than there is", world.space.region().page_size(size).map(u64::MAX), Error::Length);
    ensure_eq!("the region that was there", (get(start), get(start + len)), (0, 1));
    ensure_eq!("its last page, as the device reads it", world.unit.load(start + 2 * len)?, 0);
    world.verify()
}

fn used(world: &World) -> u64 {
    world.unit.device.memory().iter().map(|h| h.used.get()).sum()
}

fn unmap_takes_whole_pages_and_no_more(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let region = world.region(4)?;
    for n in 0..4 {
        world.unit.store(page(&world, &region, n), 80 + n)?;
    }
    let before = used(&world);
    let inside = region.unmap(part(&region, world.page(), world.page() + 512));
    refused!("an end inside a page", inside, Error::Range(RangeError::Misaligned(size)) if size == world.size);
    ensure_eq!("bytes used after the refusal", used(&world), before);
    let middle = part(&region, world.page(), 2 * world.page());
    region.unmap(middle)?;
    let freed = if before == 0 { 0 } else { 2 * world.page() };
    ensure_eq!("bytes used after two pages went", used(&world), before - freed);
    ensure_eq!("the page before, the page after", (world.unit.load(page(&world, &region, 0))?, get(page(&world, &region, 3))), (80, 83));
    ensure_eq!("the first page that went", world.unit.load(middle.start().get()), Err(FaultError::NotMapped));
    region.unmap(region.range())?;
    let again = world.space.region().page_size(world.size).at(region.range().start()).map(4 * world.page())?;
    ensure_eq!("the same place, mapped anew", (world.unit.load(at(&again, 0))?, get(page(&world, &again, 2))), (0, 0));
    drop(again);
    ensure_eq!("bytes used in the end", used(&world), 0);
    world.verify()
}

fn protect_is_all_or_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let region = world.region(4)?;
    for n in 0..4 {
        world.unit.store(page(&world, &region, n), n)?;
    }
    region.unmap(part(&region, 2 * world.page(), world.page()))?;
    let hole = page(&world, &region, 2);
    let whole = region.protect(region.range(), Prot::READ);
    refused!("a range with a hole", whole, Error::Range(RangeError::NotMapped(va)) if va.get() == hole);
    for n in [0, 1, 3] {
        world.unit.store(page(&world, &region, n), 10 + n)?;
        set(page(&world, &region, n), 20 + n);
        ensure_eq!(format!("page {n}"), world.unit.load(page(&world, &region, n))?, 20 + n);
    }
    world.verify()
}

/// What a driver needs to report a fault.
pub(super) struct Line {
    observed: Arc<Observed>,
    pmap: PmapId,
}

impl Line {
    pub(super) fn new(world: &World) -> Result<Self, Stop> {
        let pmap = world.unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
        Ok(Self { observed: world.unit.observed.clone(), pmap })
    }

    /// The device could not touch `va`.
    pub(super) fn fault(&self, va: u64, access: Access, hint: Option<FaultHint>) -> Result<(), FaultError> {
        self.fault_as(None, self.pmap, va, access, hint)
    }

    fn fault_as(&self, device: Option<DeviceId>, pmap: PmapId, va: u64, access: Access, hint: Option<FaultHint>) -> Result<(), FaultError> {
        let call = move |id, core: &dyn Upcalls| core.device_fault(device.unwrap_or(id), pmap, VirtAddr::new(va), access, hint);
        self.observed.call(call).unwrap_or(Err(FaultError::NotAttached))
    }
}

fn device_faults_are_checked(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (region, line) = (world.region(2)?, Line::new(&world)?);
    let hole = region.range().end().get();
    let before = region.range().start().get() - 1;
    ensure_eq!("a fault before the region", line.fault(before, Access::Read, None), Err(FaultError::NotMapped));
    ensure_eq!("a fault behind the region", line.fault(hole, Access::Read, None), Err(FaultError::NotMapped));
    ensure_eq!("a fault outside the address space", line.fault(64, Access::Read, None), Err(FaultError::NotMapped));
    region.protect(region.range(), Prot::READ)?;
    ensure_eq!("a store where only loads are allowed", line.fault(at(&region, 8), Access::Write, None), Err(FaultError::Protection));
    ensure_eq!("a load there", line.fault(at(&region, 8), Access::Read, None), Ok(()));
    let stranger = line.fault_as(None, PmapId(u64::MAX), at(&region, 0), Access::Read, None);
    ensure_eq!("a fault in nobody's page table", stranger, Err(FaultError::NotAttached));
    let nobody = line.fault_as(Some(DeviceId(u32::MAX)), line.pmap, at(&region, 0), Access::Read, None);
    ensure_eq!("a fault of nobody's", nobody, Err(FaultError::NotAttached));
    world.verify()
}

fn fault_on_a_present_page_moves_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (region, line) = (world.region(1)?, Line::new(&world)?);
    world.unit.store(at(&region, 0), 31)?;
    let moved = || {
        let s = world.gmem.stats();
        (s.h2d_fault_bytes, s.d2h_fault_bytes, s.d2h_other_bytes, s.zeroed_bytes, s.migrations, used(&world))
    };
    let before = moved();
    for hint in [None, Some(FaultHint::MarkHot)] {
        for access in [Access::Read, Access::Write] {
            ensure_eq!(format!("{access:?} {hint:?}"), line.fault(at(&region, world.page() - 8), access, hint), Ok(()));
        }
    }
    ensure_eq!("what moved", moved(), before);
    ensure_eq!("the word", (world.unit.load(at(&region, 0))?, get(at(&region, 0))), (31, 31));
    world.verify()
}

fn host_faults_are_checked(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let observed = &world.unit.observed;
    let fault = |va: u64, access| {
        let answer = observed.call(move |_, core| core.host_fault(VirtAddr::new(va), access, true));
        answer.unwrap_or(HostFault::NotOurs)
    };
    ensure_eq!("a fault outside every address space", fault(4096, Access::Read), HostFault::NotOurs);
    ensure_eq!("a fault in a hole", fault(region.range().end().get(), Access::Read), HostFault::Failed(FaultError::NotMapped));
    region.protect(part(&region, 0, world.page()), Prot::READ)?;
    ensure_eq!("a store where only loads are allowed", fault(at(&region, 0), Access::Write), HostFault::Failed(FaultError::Protection));
    ensure_eq!("a load there", fault(at(&region, 0), Access::Read), HostFault::Resolved);
    let second = page(&world, &region, 1);
    world.unit.store(second, 3)?;
    ensure_eq!("a fault for a page of the device", fault(second + 9, Access::Write), HostFault::Resolved);
    ensure_eq!("its word", get(second), 3);
    expect_state(&world, second, State::Host)?;
    world.verify()
}

fn prefetch_rounds_outward(case: &Case<'_>) -> Outcome {
    let world = case.world(6)?;
    let region = world.region(4)?;
    for n in 0..4 {
        set(page(&world, &region, n), 40 + n);
    }
    let device = &world.unit.device;
    // From the last byte of one page to the first of the next but one.
    let touched = part(&region, world.page() - 1, world.page() + 2);
    let moved = world.space.prefetch(touched, Some(device), Access::Write)?;
    ensure_eq!("pages that moved", moved, 3);
    expect_state(&world, page(&world, &region, 3), State::Host)?;
    let before = world.gmem.stats();
    for n in 0..3 {
        world.unit.add(page(&world, &region, n), 1)?;
    }
    let after = world.gmem.stats();
    ensure_eq!("faults of the device afterwards", after.device_faults, before.device_faults);
    ensure_eq!("pages that moved again", world.space.prefetch(touched, Some(device), Access::Write)?, 0);
    ensure_eq!("pages that came home", world.space.prefetch(region.range(), None, Access::Read)?, 3);
    ensure_eq!("the words", [0, 1, 2, 3].map(|n| get(page(&world, &region, n))), [41, 42, 43, 43]);
    world.verify()
}

fn discard_rounds_inward(case: &Case<'_>) -> Outcome {
    let world = case.world(6)?;
    let region = world.region(4)?;
    let len = world.page();
    let bytes = pattern(90, 4 * len as usize);
    set_bytes(at(&region, 0), &bytes);
    world.unit.add(page(&world, &region, 1), 0)?;
    region.discard(part(&region, len + 1, len - 1))?;
    region.discard(part(&region, 2 * len, 1))?;
    same_bytes("after two discards of less than a page", &get_bytes(at(&region, 0), bytes.len()), &bytes)?;
    world.unit.add(page(&world, &region, 2), 0)?;
    // From inside the first page to inside the last.
    region.discard(part(&region, len - 1, 2 * len + 2))?;
    let mut expected = bytes.clone();
    expected[len as usize..3 * len as usize].fill(0);
    let mut seen = vec![1; len as usize];
    world.unit.read(page(&world, &region, 2), &mut seen)?;
    same_bytes("a page that was given up, as the device reads it", &seen, &vec![0; len as usize])?;
    same_bytes("all four pages", &get_bytes(at(&region, 0), bytes.len()), &expected)?;
    world.verify()
}

fn on_device(world: &World, region: &Region, n: u64) -> Result<bool, Stop> {
    Ok(state(world, page(world, region, n))?.on_device())
}

fn pins_are_counted(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(8)?;
    world.unit.store(at(&region, 0), 1)?;
    let first = part(&region, 0, 1);
    refused!("an unpin without a pin", world.space.unpin(first), Error::Range(RangeError::NotPinned(_)));
    world.space.pin(first)?;
    world.space.pin(first)?;
    for _ in 0..2 {
        for n in 1..8 {
            world.unit.store(page(&world, &region, n), n)?;
        }
        ensure!(on_device(&world, &region, 0)?, "a pinned page was evicted");
        world.space.unpin(first)?;
    }
    refused!("a third unpin", world.space.unpin(first), Error::Range(RangeError::NotPinned(_)));
    let second = part(&region, world.page(), 1);
    (0..255).try_for_each(|_| world.space.pin(second))?;
    let both = part(&region, 0, 2 * world.page());
    refused!("a pin too many", world.space.pin(both), Error::Range(RangeError::TooManyPins(_)));
    refused!("an unpin of what was not pinned then", world.space.unpin(first), Error::Range(RangeError::NotPinned(_)));
    (0..255).try_for_each(|_| world.space.unpin(second))?;
    world.verify()
}

fn oldest_page_goes_first(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    only_memory(&world)?;
    let (region, line) = (world.region(4)?, Line::new(&world)?);
    for n in 0..4 {
        world.unit.store(page(&world, &region, n), n)?;
    }
    line.fault(page(&world, &region, 0), Access::Write, Some(FaultHint::MarkHot))?;
    let mut order = Vec::new();
    for _ in 0..4 {
        ensure_eq!("pages evicted", evict(&world, 1), 1);
        let gone = (0..4).filter(|n| !order.contains(n)).find(|n| on_device(&world, &region, *n) == Ok(false));
        order.extend(gone);
    }
    ensure_eq!("the order in which pages went", order, [1, 2, 3, 0]);
    world.verify()
}

fn wanted_page_is_not_evicted(case: &Case<'_>) -> Outcome {
    const ROUNDS: u64 = 50;
    let world = case.world(4)?;
    let (region, line) = (world.region(1)?, Arc::new(Line::new(&world)?));
    let va = at(&region, 0);
    let mut rounds = 0;
    // Called off is one that began to copy, after which the page is there without another copy, whatever the core says of it.
    let mut called_off = false;
    while !called_off {
        ensure!(rounds < ROUNDS, "none of {ROUNDS} evictions was called off, though the device wanted the page");
        rounds += 1;
        world.unit.store(va, rounds)?;
        let wanting = line.clone();
        let faults = Arc::new(Mutex::new(Vec::new()));
        let begun = faults.clone();
        world.unit.observed.on_call(move |event| {
            if event.name == "copy home" {
                let wanting = wanting.clone();
                let fault = std::thread::spawn(move || wanting.fault(va, Access::Write, None));
                begun.lock().expect("no hook panics").push(fault);
                // Long enough to come to the page and find it busy.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let before = world.unit.observed.copied();
        world.unit.device.evict(1);
        world.unit.observed.on_call(|_| {});
        for fault in faults.lock().expect("no hook panics").drain(..) {
            fault.join().map_err(|_| Stop::Failed("a faulting thread panicked".into()))??;
        }
        let copied = world.unit.observed.copied() - before;
        called_off = copied.home > 0 && copied.down == 0 && on_device(&world, &region, 0)?;
        ensure_eq!("the word, as the device reads it", world.unit.load(va)?, rounds);
        ensure_eq!("the word", get(va), rounds);
    }
    ensure!(world.gmem.stats().evictions_cancelled > 0, "an eviction was called off, and the statistics do not say so");
    eventually(|| world.gmem.verify()).map_err(Stop::Failed)
}
