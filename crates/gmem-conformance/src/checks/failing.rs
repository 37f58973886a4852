//! Callbacks that fail: nothing is lost, nothing leaks, and the next attempt succeeds.

use super::refuse::refused;
use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get, pattern, same_bytes, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, DeviceError, FaultError, PeerError};
use gmem::{Error, Gmem, RangeError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "failed-grant-loses-nothing",
        rule: "A callback that grants and fails changed nothing: the page is where it was with every byte, and the next access succeeds.",
        place: "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"",
        applies: Applies::EXCLUSIVE.once(),
        run: failed_grant_loses_nothing,
    },
    Check {
        name: "failed-copy-home-loses-nothing",
        rule: "A page that cannot be copied home stays on its device with every byte, and its frame is neither lost nor freed.",
        place: "gmem-hal `DeviceError::CopyFailed`",
        applies: Applies::EXCLUSIVE.once(),
        run: failed_copy_home_loses_nothing,
    },
    Check {
        name: "failed-blank-page-leaks-nothing",
        rule: "A fault on an untouched page that fails leaves no frame behind, and the page still reads as zero.",
        place: "ARCHITECTURE.md \"What always holds\" 5",
        applies: Applies::EXCLUSIVE.once(),
        run: failed_blank_page_leaks_nothing,
    },
    Check {
        name: "page-that-a-peer-cannot-have-is-not-taken-for-mapped",
        rule: "A peer that says it has, or is evicting, a page that it was not given is stopped, and the page stays where it was.",
        place: "gmem-hal `PeerError::Migrating`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: page_that_a_peer_cannot_have,
    },
    Check {
        name: "peer-conflict-tries-another-place",
        rule: "A region without a place of its own is tried at up to ten; one with a place is refused at the first conflict.",
        place: "gmem-core `Core::map`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: peer_conflict_tries_another_place,
    },
    Check {
        name: "refusing-peer-rolls-the-others-back",
        rule: "If one peer refuses a range, those that reserved it give it back.",
        place: "gmem-core `Core::map`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: refusing_peer_rolls_the_others_back,
    },
    Check {
        name: "peer-addresses-go-back",
        rule: "What is unmapped is given back to every peer, once its pages are gone.",
        place: "gmem-hal `Peer::va_free`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: peer_addresses_go_back,
    },
    Check {
        name: "hint-reaches-the-peer-and-none-does-not",
        rule: "A fault with the hint hot has the peer count a use of the page; a fault without a hint says none.",
        place: "gmem-hal `PeerMap::hot`",
        applies: Applies::EXCLUSIVE.needs(Capabilities::PEER).once(),
        run: hint_reaches_the_peer,
    },
    Check {
        name: "no-metadata-no-mapping",
        rule: "Without memory for metadata a mapping is refused by name, changes nothing, and succeeds when there is some.",
        place: "gmem-core `RangeError::OutOfMemory`",
        applies: Applies::EVERYWHERE.once(),
        run: no_metadata_no_mapping,
    },
];

fn is_peer(world: &World) -> bool {
    world.unit.device.info().capabilities.contains(Capabilities::PEER)
}

fn used(world: &World) -> u64 {
    world.unit.device.memory().iter().map(|h| h.used.get()).sum()
}

/// Waits until so many bytes of the device are used.
fn expect_used(world: &World, bytes: u64) -> Result<(), Stop> {
    eventually(
        || if used(world) == bytes { Ok(()) } else { Err(Stop::Failed(format!("{} bytes are used, expected {bytes}", used(world)))) },
    )
}

fn failed_grant_loses_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let bytes = pattern(3, world.page() as usize);
    let failures: &[(&str, DeviceError)] = match (is_peer(&world), world.unit.observed.has_frames()) {
        (true, _) => &[("map", DeviceError::NoMemory), ("map", DeviceError::CopyFailed)],
        (false, false) => &[("copy", DeviceError::CopyFailed), ("pmap_enter", DeviceError::NoMemory)],
        (false, true) => {
            &[("alloc_frame", DeviceError::Unsupported), ("copy", DeviceError::CopyFailed), ("pmap_enter", DeviceError::NoMemory)]
        }
    };
    for (name, error) in failures {
        set_bytes(at(&region, 0), &bytes);
        world.unit.observed.fail(name, 0, *error);
        let failed = world.unit.load(at(&region, 0));
        ensure_eq!(format!("a load while {name} fails"), failed, Err(FaultError::Device(*error)));
        ensure_eq!(format!("failures of {name} that did not come to pass"), world.unit.observed.cancel_failures(), 0);
        same_bytes("the page, as the CPU reads it", &crate::world::get_bytes(at(&region, 0), bytes.len()), &bytes)?;
        expect_used(&world, 0)?;
        // What the CPU writes now must not be lost either.
        set(at(&region, 0), 77);
        ensure_eq!("the word, as the device reads it when nothing fails", world.unit.load(at(&region, 0))?, 77);
    }
    let enter = if is_peer(&world) { "map" } else { "pmap_enter" };
    failed_upgrade(&world, enter)?;
    failed_move(case, &world, enter)?;
    ensure!(!world.unit.context.is_fenced(), "a grant failed, and the context was fenced");
    world.verify()
}

/// A page that the device has for reading and cannot get for writing is there still, and is written when it can.
fn failed_upgrade(world: &World, enter: &'static str) -> Outcome {
    let region = world.region(1)?;
    let word = at(&region, 0);
    set(word, 30);
    ensure_eq!("the word, as the device reads it", world.unit.load(word)?, 30);
    world.unit.observed.fail(enter, 0, DeviceError::NoMemory);
    let failed = world.unit.store(word, 31);
    ensure_eq!(format!("a store to a page that was read, while {enter} fails"), failed, Err(FaultError::Device(DeviceError::NoMemory)));
    ensure_eq!("failures of an upgrade that did not come to pass", world.unit.observed.cancel_failures(), 0);
    ensure_eq!("the word after the failure, as either side reads it", (world.unit.load(word)?, get(word)), (30, 30));
    world.unit.store(word, 32)?;
    ensure_eq!("the word that was stored when nothing failed", get(word), 32);
    Ok(())
}

/// A page that another device cannot have stays with the one that wrote it.
fn failed_move(case: &Case<'_>, world: &World, enter: &'static str) -> Outcome {
    let second = case.unit(&world.gmem, &world.space, 4)?;
    let region = world.region(1)?;
    let bytes = pattern(4, world.page() as usize);
    world.unit.write(at(&region, 0), &bytes)?;
    second.observed.fail(enter, 0, DeviceError::NoMemory);
    let mut seen = vec![0; bytes.len()];
    let failed = second.read(at(&region, 0), &mut seen);
    ensure_eq!("a load by another device that cannot have the page", failed, Err(FaultError::Device(DeviceError::NoMemory)));
    ensure_eq!("failures of a move that did not come to pass", second.observed.cancel_failures(), 0);
    world.unit.read(at(&region, 0), &mut seen)?;
    same_bytes("the page, as the device that wrote it reads it", &seen, &bytes)?;
    second.read(at(&region, 0), &mut seen)?;
    same_bytes("the page, as the other device reads it when nothing fails", &seen, &bytes)
}

fn failed_copy_home_loses_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let word = page(&world, &region, 1);
    let name = if is_peer(&world) { "unmap" } else { "copy" };
    for round in 0..4 {
        world.unit.store(word, 90 + round)?;
        world.unit.observed.fail(name, 0, DeviceError::CopyFailed);
        let home = world.space.prefetch(region.range(), None, gmem::Access::Read);
        let failed = FaultError::Device(DeviceError::CopyFailed);
        refused!("a page that cannot be copied", home, Error::Range(RangeError::Fault(va, e)) if va.get() == word && e == failed);
        expect_used(&world, world.page())?;
        ensure_eq!("the word, as the device reads it", world.unit.load(word)?, 90 + round);
        if round % 2 == 0 {
            ensure_eq!("the word, as the CPU reads it", get(word), 90 + round);
        }
    }
    world.verify()
}

fn failed_blank_page_leaks_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let names: &[&str] = if is_peer(&world) { &["map"] } else { &["zero", "pmap_enter"] };
    for name in names {
        for _ in 0..8 {
            world.unit.observed.fail(name, 0, DeviceError::NoMemory);
            let failed = world.unit.store(at(&region, 0), 1);
            ensure_eq!(format!("a store while {name} fails"), failed, Err(FaultError::Device(DeviceError::NoMemory)));
        }
        expect_used(&world, 0)?;
    }
    ensure_eq!("the page, as the device reads it", world.unit.load(at(&region, 0))?, 0);
    world.verify()
}

fn page_that_a_peer_cannot_have(case: &Case<'_>) -> Outcome {
    for lie in [PeerError::Migrating, PeerError::PageExists] {
        let world = case.world(4)?;
        let region = world.region(1)?;
        set(at(&region, 0), 12);
        world.unit.observed.fail("map", 0, lie);
        let seen = world.unit.load(at(&region, 0));
        ensure!(seen.is_err(), "the device loads a page of which the peer says {lie:?}");
        ensure!(world.unit.context.is_fenced(), "the peer said {lie:?} of a page that it was not given, and goes on");
        ensure_eq!("the word", get(at(&region, 0)), 12);
        expect_used(&world, 0)?;
        world.verify()?;
    }
    Ok(())
}

fn peer_conflict_tries_another_place(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let observed = &world.unit.observed;
    (0..9).for_each(|_| observed.fail("va_alloc_fixed", 0, PeerError::Conflict));
    let region = world.region(1)?;
    ensure_eq!("conflicts that did not come to pass", observed.cancel_failures(), 0);
    let passed_over = (region.range().start().get() - world.space.range().start().get()) / world.page();
    ensure_eq!("pages passed over", passed_over, 9);
    (0..10).for_each(|_| observed.fail("va_alloc_fixed", 0, PeerError::Conflict));
    refused!("ten conflicts", world.region(1), Error::Range(RangeError::AddressConflict));
    ensure_eq!("conflicts that did not come to pass", observed.cancel_failures(), 0);
    let place = world.space.range().start();
    let there = || world.space.region().page_size(world.size).at(place).map(world.page());
    observed.fail("va_alloc_fixed", 0, PeerError::Conflict);
    refused!("a conflict at the place asked for", there(), Error::Range(RangeError::AddressConflict));
    let second = there()?;
    ensure_eq!("where the region lies", second.range().start(), place);
    world.unit.store(at(&second, 0), 1)?;
    ensure_eq!("the word", get(at(&second, 0)), 1);
    world.verify()
}

fn refusing_peer_rolls_the_others_back(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let second = case.unit(&world.gmem, &world.space, 4)?;
    let given_back = Arc::new(AtomicU64::new(0));
    let count = given_back.clone();
    world.unit.observed.on_call(move |event| {
        count.fetch_add(u64::from(event.name == "va_free"), Ordering::Relaxed);
    });
    let place = world.space.range().start();
    let there = || world.space.region().page_size(world.size).at(place).map(world.page());
    for (error, n) in [(PeerError::Conflict, 1), (PeerError::NoMemory, 2)] {
        second.observed.fail("va_alloc_fixed", 0, error);
        ensure!(there().is_err(), "the second peer said {error:?}, and the region was mapped");
        ensure_eq!("ranges that the first peer was given back", given_back.load(Ordering::Relaxed), n);
    }
    world.unit.observed.on_call(|_| {});
    let region = there()?;
    second.store(at(&region, 0), 5)?;
    world.unit.add(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 6);
    world.verify()
}

fn peer_addresses_go_back(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let region = world.region(6)?;
    for n in 0..3 {
        world.unit.store(page(&world, &region, 2 * n), n)?;
    }
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = calls.clone();
    world.unit.observed.on_call(move |event| {
        if matches!(event.name, "unmap" | "va_free") {
            seen.lock().expect("no hook panics").push(event.name);
        }
    });
    region.unmap(region.range())?;
    world.unit.observed.on_call(|_| {});
    ensure_eq!("what the peer was told", *calls.lock().expect("no hook panics"), ["unmap", "unmap", "unmap", "va_free"]);
    expect_used(&world, 0)?;
    world.verify()
}

fn hint_reaches_the_peer(case: &Case<'_>) -> Outcome {
    use gmem::hal::FaultHint::MarkHot;
    let world = case.world(4)?;
    let (region, line) = (world.region(1)?, super::page_calls::Line::new(&world)?);
    world.unit.store(at(&region, 0), 1)?;
    let hints = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = hints.clone();
    world.unit.observed.on_call(move |event| {
        if event.name.starts_with("map") {
            seen.lock().expect("no hook panics").push(event.name);
        }
    });
    line.fault(at(&region, 0), gmem::Access::Write, None)?;
    line.fault(at(&region, 0), gmem::Access::Write, Some(MarkHot))?;
    world.unit.observed.on_call(|_| {});
    ensure_eq!("what the peer was told", *hints.lock().expect("no hook panics"), ["map", "map hot"]);
    world.verify()
}

fn no_metadata_no_mapping(case: &Case<'_>) -> Outcome {
    const LIMIT: usize = 1 << 20;
    let gmem = Gmem::builder().metadata_limit(LIMIT).start()?;
    let space = gmem.address_space().create()?;
    let unit = case.unit(&gmem, &space, 4)?;
    let before = gmem.metadata_charged();
    // Eight bytes an entry: one entry more than there is room for.
    let pages = (LIMIT / 8) as u64 + 1;
    let map = |pages: u64| space.region().page_size(case.size()).map(pages * case.size().bytes());
    refused!("a mapping with more entries than there is room for", map(pages), Error::Range(RangeError::OutOfMemory(_)));
    ensure_eq!("bytes of metadata after the refusal", gmem.metadata_charged(), before);
    let region = map(4)?;
    unit.store(at(&region, 0), 2)?;
    ensure_eq!("the word", get(at(&region, 0)), 2);
    drop(region);
    ensure_eq!("bytes of metadata in the end", gmem.metadata_charged(), before);
    Ok(())
}
