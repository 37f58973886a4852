//! The calls on address spaces: create and destroy, attach and detach.

use super::refuse::refused;
use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, DeviceError, FaultError, Modes, PeerError};
use gmem::{AttachError, Backing, DetachError, Error, Gmem, Mode, RangeError, SpaceError, State, VirtAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "address-spaces-of-the-cpu-are-disjoint",
        rule: "Address spaces that the CPU sees are disjoint and lie on 2 MiB; those of devices alone may overlap; a place is free again after the end.",
        place: "gmem-core `Core::space_create`",
        applies: Applies::EVERYWHERE.once(),
        run: address_spaces_of_the_cpu_are_disjoint,
    },
    Check {
        name: "end-of-an-address-space-returns-everything",
        rule: "The end of an address space detaches its devices, destroys their page tables and frees every frame.",
        place: "gmem-core `Core::space_destroy`",
        applies: Applies::EVERYWHERE.once(),
        run: end_of_an_address_space_returns_everything,
    },
    Check {
        name: "device-is-attached-once",
        rule: "A device is attached to an address space once, in a mode that it has, and to another one as well.",
        place: "gmem-core `AttachError`",
        applies: Applies::EVERYWHERE.once(),
        run: device_is_attached_once,
    },
    Check {
        name: "replicate-refuses-private-backing",
        rule: "REPLICATE and private backing refuse each other, whichever comes first, and before a page table is made.",
        place: "gmem-core `AttachError::PrivateBacking`",
        applies: Applies::OWN_TABLE.modes(Modes::REPLICATE).once(),
        run: replicate_refuses_private_backing,
    },
    Check {
        name: "exclusive-needs-memory",
        rule: "A device without memory is not attached in a mode that moves pages there.",
        place: "gmem-core `AttachError::NoDeviceMemory`",
        applies: Applies::EXCLUSIVE.once(),
        run: exclusive_needs_memory,
    },
    Check {
        name: "share-needs-a-table-to-share",
        rule: "SHARE is refused where neither the CPU nor an attached device has a page table of the device's format.",
        place: "gmem-core `AttachError::NothingToShare`",
        applies: Applies::EVERYWHERE.modes(Modes::SHARE).once(),
        run: share_needs_a_table_to_share,
    },
    Check {
        name: "attach-hands-over-what-is-mapped",
        rule: "What was mapped and written before a device was attached is the device's too.",
        place: "gmem `AddressSpace::attach`",
        applies: Applies::EVERYWHERE,
        run: attach_hands_over_what_is_mapped,
    },
    Check {
        name: "failed-attach-leaves-nothing",
        rule: "An attach that fails at any of its callbacks changed nothing, and the next one succeeds.",
        place: "gmem-core `Core::attach`",
        applies: Applies::OWN_TABLE.once(),
        run: failed_attach_leaves_nothing,
    },
    Check {
        name: "detach-that-would-lose-data-is-refused",
        rule: "A detach that cannot bring a page home is refused with its address, and nothing is lost.",
        place: "gmem-core `DetachError::DataStranded`",
        applies: Applies::EXCLUSIVE.once(),
        run: detach_that_would_lose_data_is_refused,
    },
];

fn address_spaces_of_the_cpu_are_disjoint(_: &Case<'_>) -> Outcome {
    const LEN: u64 = 64 << 20;
    let gmem = Gmem::new()?;
    let space = gmem.address_space().len(LEN).create()?;
    let at = space.range().start();
    let again = |at: VirtAddr| gmem.address_space().len(LEN).at(at);
    refused!("the same place", again(at).create(), Error::Space(SpaceError::Clash(id)) if id == space.id());
    let half = VirtAddr::new(at.get() + LEN / 2);
    refused!("half of it", again(half).create(), Error::Space(SpaceError::Clash(_)));
    let odd = VirtAddr::new(at.get() + 4096);
    refused!("a place that is not on 2 MiB", again(odd).devices_only().create(), Error::Space(SpaceError::Misaligned));
    refused!("no addresses", gmem.address_space().len(0).create(), Error::Length);
    refused!("addresses past the last", again(VirtAddr::new(u64::MAX - 4095)).create(), Error::Length);
    let unseen = [again(at).devices_only().create()?, again(at).devices_only().create()?];
    ensure!(unseen[0].id() != unseen[1].id(), "two address spaces are both {}", unseen[0].id());
    drop(space);
    let after = again(at).create()?;
    ensure_eq!("the place of the next one", after.range().start(), at);
    Ok(())
}

fn end_of_an_address_space_returns_everything(case: &Case<'_>) -> Outcome {
    let World { unit, space, gmem, size } = case.world(8)?;
    let place = space.range();
    let region = space.region().page_size(size).map(4 * size.bytes())?;
    for n in 0..4 {
        unit.store(at(&region, n * size.bytes()), n)?;
    }
    let crate::Unit { context, device, .. } = unit;
    drop(space);
    drop(region);
    // The last one that keeps it alive: it ends with the context attached.
    drop(context);
    for hnode in device.memory() {
        ensure_eq!(format!("bytes used and held back in {}", hnode.hnode), (hnode.used.get(), hnode.quarantined.get()), (0, 0));
    }
    let next = gmem.address_space().at(place.start()).len(place.len().get()).create()?;
    let context = case.attach(&next, &device)?;
    drop(context);
    gmem.verify().map_err(Stop::Failed)
}

fn device_is_attached_once(case: &Case<'_>) -> Outcome {
    let world = case.world((8 << 20) / case.size().bytes())?;
    let device = &world.unit.device;
    refused!("a second attach", case.attach(&world.space, device), Error::Attach(AttachError::AlreadyAttached));
    let second = world.gmem.address_space().create()?;
    for mode in [Mode::Share, Mode::CoherentExclusive, Mode::Replicate] {
        if !device.info().modes.contains(mode.as_set()) {
            let modes = device.info().modes;
            refused!("a mode that it has not", second.attach(device, mode), Error::Attach(AttachError::ModeUnsupported(m)) if m == modes);
        }
    }
    let context = case.attach(&second, device)?;
    ensure_eq!("the mode of the context", context.mode(), case.mode());
    let region = world.region(1)?;
    world.unit.store(at(&region, 0), 8)?;
    ensure_eq!("the word", get(at(&region, 0)), 8);
    Ok(())
}

fn replicate_refuses_private_backing(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let private = |space: &gmem::AddressSpace| space.region().backing(Backing::Private).page_size(case.size()).map(case.size().bytes());
    refused!("a private region under a replica", private(&world.space), Error::Range(RangeError::PrivateBacking));
    let second = world.gmem.address_space().create()?;
    let region = private(&second)?;
    let made = Arc::new(AtomicBool::new(false));
    let seen = made.clone();
    world.unit.observed.on_call(move |event| {
        seen.fetch_or(event.name == "pmap_create", Ordering::SeqCst);
    });
    let late = case.attach(&second, &world.unit.device);
    world.unit.observed.on_call(|_| {});
    ensure!(!made.load(Ordering::SeqCst), "a page table was made for an attach that was refused");
    refused!("a replica of a private region", late, Error::Attach(AttachError::PrivateBacking(range)) if range == region.range());
    set(at(&region, 0), 3);
    ensure_eq!("the word there", get(at(&region, 0)), 3);
    drop(region);
    drop(case.attach(&second, &world.unit.device)?);
    Ok(())
}

fn exclusive_needs_memory(case: &Case<'_>) -> Outcome {
    let gmem = Gmem::new()?;
    let device = case.add(&gmem, 4)?;
    for hnode in device.hnodes() {
        device.unregister_memory(hnode)?;
    }
    let space = gmem.address_space().create()?;
    refused!("a device without memory", case.attach(&space, &device), Error::Attach(AttachError::NoDeviceMemory));
    Ok(())
}

fn share_needs_a_table_to_share(case: &Case<'_>) -> Outcome {
    let gmem = Gmem::new()?;
    let device = case.add(&gmem, 4)?;
    let unseen = gmem.address_space().devices_only().create()?;
    refused!("an address space without a table", case.attach(&unseen, &device), Error::Attach(AttachError::NothingToShare));
    Ok(())
}

fn attach_hands_over_what_is_mapped(case: &Case<'_>) -> Outcome {
    let gmem = Gmem::new()?;
    let space = gmem.address_space().create()?;
    let region = space.region().page_size(case.size()).map(3 * case.size().bytes())?;
    for n in 0..2 {
        set(at(&region, n * case.size().bytes()), 60 + n);
    }
    let unit = case.unit(&gmem, &space, 4)?;
    for (n, expected) in [60, 61, 0].into_iter().enumerate() {
        ensure_eq!(format!("page {n} of an older region"), unit.load(at(&region, n as u64 * case.size().bytes()))?, expected);
    }
    unit.store(at(&region, 0), 70)?;
    ensure_eq!("the word", get(at(&region, 0)), 70);
    Ok(())
}

fn failed_attach_leaves_nothing(case: &Case<'_>) -> Outcome {
    let world = case.world((8 << 20) / case.size().bytes())?;
    let second = world.gmem.address_space().create()?;
    let region = second.region().page_size(case.size()).map(case.size().bytes())?;
    set(at(&region, 0), 5);
    let peer = world.unit.device.info().capabilities.contains(Capabilities::PEER);
    let mut failures = vec![("pmap_create", PeerError::from(DeviceError::NoMemory)), ("switch_context", DeviceError::NoAnswer.into())];
    if peer {
        failures.extend([("va_alloc_fixed", PeerError::Conflict), ("va_alloc_fixed", PeerError::NoMemory)]);
    }
    for (name, error) in failures {
        world.unit.observed.fail(name, 0, error);
        let failed = case.attach(&second, &world.unit.device);
        ensure!(failed.is_err(), "{name} answered {error:?}, and the device was attached");
        ensure_eq!(format!("failures of {name} that did not come to pass"), world.unit.observed.cancel_failures(), 0);
        ensure_eq!("the word", get(at(&region, 0)), 5);
    }
    // A page that cannot be handed over at once is the device's when it asks for it: then nothing failed.
    if case.mode() == Mode::Replicate {
        // The fault that brought it is over a moment after the store; until then it hands the page over itself.
        eventually(|| {
            let states: Vec<_> = second.residency(region.range())?.iter().map(|run| run.state).collect();
            ensure_eq!("the state of the page", states, [State::Host]);
            Outcome::Ok(())
        })?;
        world.unit.observed.fail("pmap_enter", 0, DeviceError::NoMemory);
    }
    let context = case.attach(&second, &world.unit.device)?;
    ensure_eq!("failures of pmap_enter that did not come to pass", world.unit.observed.cancel_failures(), 0);
    let mut word = [0; 8];
    world.unit.specimen.read(&context, region.range().start(), &mut word)?;
    ensure_eq!("the word, as the device reads it", u64::from_ne_bytes(word), 5);
    world.unit.specimen.write(&context, region.range().start(), &9_u64.to_ne_bytes())?;
    ensure_eq!("the word", get(at(&region, 0)), 9);
    drop(region);
    drop(context);
    world.verify()
}

fn detach_that_would_lose_data_is_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    let word = page(&world, &region, 1);
    world.unit.store(word, 21)?;
    let peer = world.unit.device.info().capabilities.contains(Capabilities::PEER);
    world.unit.observed.fail(if peer { "unmap" } else { "copy" }, 0, DeviceError::CopyFailed);
    let World { unit, space, gmem, .. } = world;
    let crate::Unit { context, device, .. } = unit;
    let stranded = FaultError::Device(DeviceError::CopyFailed);
    let expected = |va: VirtAddr, error: FaultError| va.get() == word && error == stranded;
    let Err(failed) = context.detach() else { return Err(Stop::Failed("a detach that cannot copy was not refused".into())) };
    let (_context, refusal) = (failed.context, Err::<(), _>(failed.error));
    refused!("a detach that cannot copy", refusal, Error::Detach(DetachError::DataStranded(va, e)) if expected(va, e));
    refused!("the device, which is attached still", case.attach(&space, &device), Error::Attach(AttachError::AlreadyAttached));
    ensure_eq!("the word", get(word), 21);
    eventually(|| gmem.verify()).map_err(Stop::Failed)
}
