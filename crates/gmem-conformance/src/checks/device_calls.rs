//! The calls on devices: create and destroy, memory, the current context.

use super::refuse::{Claims, refused};
use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, Device, DeviceError, HnodeId, MAX_MEMORIES, Modes, PageSizes, PhysRange};
use gmem::{Access, ByteLen, DeviceCallError, Error, Gmem, RangeError, SpaceError};
use std::sync::Arc;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "contradicting-facts-are-refused",
        rule: "A device whose facts contradict each other is refused before it is started.",
        place: "gmem-core `DeviceCallError::Malformed`",
        applies: Applies::EVERYWHERE.once(),
        run: contradicting_facts_are_refused,
    },
    Check {
        name: "device-that-does-not-start-is-gone",
        rule: "A device that refuses to start leaves nothing behind, and another takes its place.",
        place: "gmem-core `Core::device_create`",
        applies: Applies::EVERYWHERE.once(),
        run: device_that_does_not_start_is_gone,
    },
    Check {
        name: "driver-is-started-once",
        rule: "A driver that was started already answers that it was, and goes on.",
        place: "gmem-hal `Device::start`",
        applies: Applies::EVERYWHERE.once(),
        run: driver_is_started_once,
    },
    Check {
        name: "device-lives-as-long-as-its-contexts",
        rule: "A device is stopped, once, when the last handle and the last context of it are gone.",
        place: "gmem `Device`",
        applies: Applies::EVERYWHERE.once(),
        run: device_lives_as_long_as_its_contexts,
    },
    Check {
        name: "off-refuses-what-is-new",
        rule: "Switched off, gmem makes, maps and attaches nothing, says so, and what exists goes on.",
        place: "gmem `Gmem::set_enabled`",
        applies: Applies::EVERYWHERE.once(),
        run: off_refuses_what_is_new,
    },
    Check {
        name: "memory-ranges-are-checked",
        rule: "A memory range that is empty, reversed, misaligned, too long, or registered already is refused by name.",
        place: "gmem `Device::register_memory`",
        applies: Applies::OWN_TABLE.once(),
        run: memory_ranges_are_checked,
    },
    Check {
        name: "memory-the-device-has-not-is-refused",
        rule: "A driver refuses memory that its device has not, and goes on with what it has.",
        place: "gmem-hal `Device::memory_registered`",
        applies: Applies::OWN_TABLE.once(),
        run: memory_the_device_has_not_is_refused,
    },
    Check {
        name: "memory-goes-back-when-nothing-is-in-it",
        rule: "Memory is taken back when no page is in it, not before, and can be given again.",
        place: "gmem `Device::unregister_memory`",
        applies: Applies::EXCLUSIVE.once(),
        run: memory_goes_back_when_nothing_is_in_it,
    },
    Check {
        name: "memory-limit-is-kept",
        rule: "No more than the limit is ever used, and a limit below what is used or above what there is is refused.",
        place: "gmem `Device::set_memory_limit`",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: memory_limit_is_kept,
    },
    Check {
        name: "one-context-is-current",
        rule: "The current context of a device is the one last switched to; a switch that the driver refuses changes nothing.",
        place: "gmem `Device::switch`",
        applies: Applies::EVERYWHERE.once(),
        run: one_context_is_current,
    },
];

fn contradicting_facts_are_refused(case: &Case<'_>) -> Outcome {
    let gmem = Gmem::new()?;
    let is_peer = case.target().info().capabilities.contains(Capabilities::PEER);
    type Change = fn(&mut gmem::hal::DeviceInfo);
    let lies: [(&str, Change); 4] = [
        ("a capability that does not exist", |info| info.capabilities |= Capabilities::from_bits_retain(0x4000)),
        ("PEER or not, against its functions", |info| info.capabilities.toggle(Capabilities::PEER)),
        ("no page size that gmem has", |info| info.page_sizes = PageSizes::from_bitmap(1 << 30)),
        ("no mode", |info| info.modes = Modes::empty()),
    ];
    for (what, lie) in lies {
        let claims = Claims::new(case.make(4)?, lie);
        let observed = case.observe(Arc::new(claims));
        refused!(what, gmem.add_device(observed.clone()), Error::Device(DeviceCallError::Malformed(_)));
        ensure_eq!(format!("{what}: started, stopped"), observed.life(), (false, false));
    }
    let honest = case.add(&gmem, 4)?;
    ensure_eq!("PEER", honest.info().capabilities.contains(Capabilities::PEER), is_peer);
    Ok(())
}

fn device_that_does_not_start_is_gone(case: &Case<'_>) -> Outcome {
    let gmem = Gmem::new()?;
    let mut claims = Claims::new(case.make(4)?, |_| {});
    claims.start = Err(DeviceError::NoMemory);
    let refusing = gmem.add_device(Arc::new(claims));
    refused!("a device that does not start", refusing, Error::Device(DeviceCallError::Device(DeviceError::NoMemory)));
    ensure_eq!("pools of memory", gmem.stats().hnodes.len(), 0);
    let space = gmem.address_space().create()?;
    let unit = case.unit(&gmem, &space, 4)?;
    let region = space.region().page_size(case.size()).map(case.size().bytes())?;
    unit.store(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 1);
    Ok(())
}

fn driver_is_started_once(case: &Case<'_>) -> Outcome {
    let world = case.world(2)?;
    let region = world.region(1)?;
    world.unit.store(at(&region, 0), 1)?;
    ensure_eq!("what a second start answers", world.unit.observed.start_again(), Some(Err(DeviceError::AlreadyStarted)));
    world.unit.store(at(&region, 8), 2)?;
    ensure_eq!("the words", [get(at(&region, 0)), get(at(&region, 8))], [1, 2]);
    world.verify()
}

fn device_lives_as_long_as_its_contexts(case: &Case<'_>) -> Outcome {
    let World { unit, space, gmem, size } = case.world(4)?;
    let region = space.region().page_size(size).map(size.bytes())?;
    let crate::Unit { context, device, observed, specimen } = unit;
    drop(device);
    specimen.write(&context, region.range().start(), &[5; 8])?;
    ensure_eq!("started, stopped, while a context is there", observed.life(), (true, false));
    drop(context);
    ensure_eq!("started, stopped, after the last context", observed.life(), (true, true));
    ensure_eq!("the word at home", get(at(&region, 0)), u64::from_ne_bytes([5; 8]));
    ensure_eq!("pools of memory", gmem.stats().hnodes.len(), 0);
    Ok(())
}

fn off_refuses_what_is_new(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(1)?;
    let second = world.gmem.address_space().create()?;
    world.gmem.set_enabled(false);
    refused!("a device", world.gmem.add_device(case.observe(case.make(4)?)), Error::Device(DeviceCallError::Disabled));
    refused!("an address space", world.gmem.address_space().create(), Error::Space(SpaceError::Disabled));
    refused!("a context", case.attach(&second, &world.unit.device), Error::Attach(gmem::AttachError::Disabled));
    refused!("a region", world.region(1), Error::Range(RangeError::Disabled));
    let more = PhysRange { begin: 1 << 40, end: (1 << 40) + (2 << 20) };
    refused!("memory", world.unit.device.register_memory(more), Error::Device(DeviceCallError::Disabled));
    world.unit.store(at(&region, 0), 4)?;
    ensure_eq!("what exists goes on: the word", get(at(&region, 0)), 4);
    world.gmem.set_enabled(true);
    drop(case.attach(&second, &world.unit.device)?);
    drop(world.region(1)?);
    world.verify()
}

fn memory_ranges_are_checked(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let device = &world.unit.device;
    let (far, page) = (1 << 40, 2 << 20);
    let range = |begin: u64, end: u64| PhysRange { begin, end };
    refused!("an empty range", device.register_memory(range(far, far)), Error::Device(DeviceCallError::EmptyRange));
    refused!("a reversed range", device.register_memory(range(far + page, far)), Error::Device(DeviceCallError::EmptyRange));
    refused!("a misaligned begin", device.register_memory(range(far + 1, far + page)), Error::Device(DeviceCallError::Misaligned(_)));
    refused!("a misaligned end", device.register_memory(range(far, far + page - 1)), Error::Device(DeviceCallError::Misaligned(_)));
    refused!("an endless range", device.register_memory(range(far, 1 << 62)), Error::Device(DeviceCallError::Overflow));
    for known in world.unit.observed.registered_memory() {
        let twice = device.register_memory(known);
        refused!("memory that is registered", twice, Error::Device(DeviceCallError::Overlap));
    }
    refused!("memory of nobody", device.unregister_memory(HnodeId(9999)), Error::Device(DeviceCallError::NoSuchHnode));
    world.verify()
}

fn memory_the_device_has_not_is_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let known = world.unit.device.hnodes();
    if known.len() >= MAX_MEMORIES {
        return Err(Stop::NotApplicable("the device has as many pools of memory as it can have, so the core does not ask".into()));
    }
    // Far behind what it has now: there may be more to plug in right behind it.
    let memory = [world.unit.observed.physical_memory(), world.unit.observed.registered_memory()].concat();
    let Some(end) = memory.iter().map(|range| range.end).max() else {
        return Err(Stop::NotApplicable("the device has no memory of its own".into()));
    };
    let far = end.checked_next_multiple_of(2 << 20).and_then(|end| end.checked_add(1 << 40));
    let Some(past) = far.and_then(|begin| Some(PhysRange { begin, end: begin.checked_add(2 << 20)? })) else {
        return Err(Stop::NotApplicable("the device has memory at the end of all addresses".into()));
    };
    refused!("memory that nobody has", world.unit.device.register_memory(past), Error::Device(DeviceCallError::NoSuchMemory(_)));
    ensure_eq!("pools of memory", world.unit.device.hnodes(), known);
    let region = world.region(1)?;
    world.unit.store(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 1);
    world.verify()
}

fn memory_goes_back_when_nothing_is_in_it(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let (device, region) = (&world.unit.device, world.region(2)?);
    let (hnodes, memory) = (device.hnodes(), world.unit.observed.registered_memory());
    world.unit.store(at(&region, 0), 6)?;
    let Some(hnode) = device.memory().iter().find(|memory| memory.used.get() > 0).map(|memory| memory.hnode) else {
        return Err(Stop::Failed("a page is on the device, and none of its memory is in use".into()));
    };
    if device.info().capabilities.contains(Capabilities::PEER) {
        // Only the peer knows what it uses.
        refused!("an attached peer's memory", device.unregister_memory(hnode), Error::Device(DeviceCallError::InUse { contexts: 1 }));
        return world.verify();
    }
    refused!("memory in use", device.unregister_memory(hnode), Error::Device(DeviceCallError::MemoryInUse(len)) if len == world.size.len());
    world.space.prefetch(region.range(), None, Access::Read)?;
    for hnode in hnodes {
        eventually(|| device.unregister_memory(hnode))?;
    }
    ensure!(world.unit.store(at(&region, 0), 7).is_err(), "the device stores with no memory to have the page in");
    refused!("memory that is gone", device.unregister_memory(hnode), Error::Device(DeviceCallError::NoSuchHnode));
    for range in memory {
        device.register_memory(range)?;
    }
    world.unit.add(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 7);
    world.verify()
}

fn memory_limit_is_kept(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let (device, region) = (&world.unit.device, world.region(8)?);
    let limit = ByteLen(4 * world.page());
    device.set_memory_limit(limit)?;
    for n in 0..8 {
        world.unit.store(page(&world, &region, n), n)?;
    }
    let stats = device.memory();
    ensure!(stats.iter().all(|h| h.peak <= limit), "{limit} were allowed: {stats:?}");
    let below = device.set_memory_limit(ByteLen(0));
    refused!("a limit below what is used", below, Error::Device(DeviceCallError::MemoryInUse(_)));
    let above = device.set_memory_limit(ByteLen(1 << 50));
    refused!("a limit above what there is", above, Error::Device(DeviceCallError::LimitTooHigh(_)));
    for n in 0..8 {
        ensure_eq!(format!("page {n}"), get(page(&world, &region, n)), n);
    }
    world.verify()
}

fn one_context_is_current(case: &Case<'_>) -> Outcome {
    let world = case.world((8 << 20) / case.size().bytes())?;
    let device = &world.unit.device;
    let second = world.gmem.address_space().create()?;
    let first = Some(world.space.id());
    ensure_eq!("the current context after attach", device.current(), first);
    let told = || world.unit.observed.current();
    ensure_eq!("the page table that the driver was told to switch to by attach", told(), world.unit.context.pmap());
    let other = second.attach_inactive(device, case.mode())?;
    ensure_eq!("the current context after another one was attached inactive", device.current(), first);
    device.switch(Some(&other))?;
    ensure_eq!("the current context after a switch", device.current(), Some(second.id()));
    ensure_eq!("the page table that the driver was told to switch to", told(), other.pmap());
    world.unit.observed.fail("switch_context", 0, DeviceError::NoAnswer);
    let refusal = device.switch(Some(&world.unit.context));
    refused!("a switch that the driver refuses", refusal, Error::Device(DeviceCallError::Device(DeviceError::NoAnswer)));
    ensure_eq!("the current context after the refusal", device.current(), Some(second.id()));
    device.switch(None)?;
    ensure_eq!("the current context after a switch to none", device.current(), None);
    ensure_eq!("the page table that the driver was told to switch to then", told(), None);
    device.switch(Some(&other))?;
    drop(other);
    ensure_eq!("the current context after it was detached", device.current(), None);
    Ok(())
}
