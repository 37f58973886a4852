//! What a call that was refused leaves behind: nothing. No byte is wrong, which other tests see to; and nobody pays for it later either.

use gmem_core::{DeviceCallError, HoldRange, RangeError};
use gmem_explore::CoreWorld;
use gmem_explore::worlds::{Kind, MIXED, STANDARD};
use gmem_hal::{Access, Backing, ByteLen, DeviceError, FaultError, HostError, Mode, PhysRange, Prot, VirtRange};
use gmem_sim::random::{Op, Outcome, PageRun, Spot, World};
use gmem_sim::{Callback, Injected, Sim};

const PAGES: u64 = 64;

fn spot(page: u64) -> Spot {
    Spot { space: 0, page, offset: 100, len: 8 }
}

fn pages(world: &CoreWorld, first: u64, count: u64) -> VirtRange {
    world.shape.range(&PageRun { space: 0, first, count })
}

fn done(world: &mut CoreWorld, op: Op) {
    let outcome = world.apply(&op);
    assert!(matches!(outcome, Outcome::Done | Outcome::Loaded(_)), "{op:?}: {outcome:?}");
    world.verify().unwrap_or_else(|why| panic!("after {op:?}, {why}"));
}

/// Does `op` while the next call of `callback` fails.
fn refused(world: &mut CoreWorld, callback: Callback, error: Injected, op: Op) {
    world.sim.fail_nth(callback, 1, error);
    let outcome = world.apply(&op);
    world.sim.clear_failures();
    assert!(matches!(outcome, Outcome::Refused(_)), "{op:?}: {outcome:?}");
    world.verify().unwrap_or_else(|why| panic!("after {op:?}, {why}"));
}

/// A world with pages that the CPU has written, and these devices.
fn begin(kind: &Kind, attached: &[(usize, Mode)]) -> CoreWorld {
    let mut world = kind.make(&Sim::new(1));
    done(&mut world, Op::Map(PageRun { space: 0, first: 0, count: PAGES }, Prot::RW, Backing::Shared));
    (0..PAGES).for_each(|page| done(&mut world, Op::CpuWrite(spot(page), 1)));
    for (device, mode) in attached {
        done(&mut world, Op::Attach { space: 0, device: *device, mode: *mode, activate: true });
    }
    world
}

fn faults(world: &CoreWorld) -> u64 {
    let stats = world.core.stats();
    stats.cpu_faults + stats.device_faults
}

#[test]
fn who_had_a_page_that_could_not_be_moved_has_it_still() {
    let mut world = begin(&MIXED, &[(0, Mode::CoherentExclusive), (2, Mode::Replicate), (3, Mode::CoherentExclusive)]);
    let lost = Injected::Device(DeviceError::CopyFailed);
    // From the CPU and a replica to a device.
    refused(&mut world, Callback::Copy, lost, Op::DevWrite(0, spot(0), 2));
    let before = faults(&world);
    done(&mut world, Op::CpuWrite(spot(0), 3));
    done(&mut world, Op::DevWrite(2, spot(0), 4));
    assert_eq!(faults(&world), before, "the CPU and the replica had the page");
    // From a device to the CPU, and to another device that reaches its memory.
    done(&mut world, Op::DevWrite(0, spot(0), 5));
    for op in [Op::CpuRead(spot(0)), Op::DevWrite(3, spot(0), 6)] {
        refused(&mut world, Callback::Copy, lost, op);
        let before = faults(&world);
        done(&mut world, Op::DevWrite(0, spot(0), 7));
        assert_eq!(faults(&world), before, "the device had the page, before {op:?}");
    }
    // A page that its device could only read is given back for reading only, or nobody would learn that it was written.
    done(&mut world, Op::DevRead(0, spot(1)));
    refused(&mut world, Callback::Copy, lost, Op::DevWrite(3, spot(1), 8));
    let before = faults(&world);
    done(&mut world, Op::DevRead(0, spot(1)));
    assert_eq!(faults(&world), before, "the device had the page for reading");
    done(&mut world, Op::DevWrite(0, spot(1), 9));
    assert_eq!(faults(&world), before + 1, "but not for writing");
    assert_eq!(world.apply(&Op::CpuRead(spot(1))), Outcome::Loaded(spot(1).bytes(9)));
    world.tear_down();
}

#[test]
fn a_refused_region_costs_no_metadata_and_no_addresses() {
    let mut world = begin(&STANDARD, &[(0, Mode::CoherentExclusive), (3, Mode::CoherentExclusive)]);
    let charged = world.account.charged();
    let map = Op::Map(PageRun { space: 0, first: PAGES, count: 8 }, Prot::RW, Backing::Shared);
    refused(&mut world, Callback::RegionMap, Injected::Host(HostError::NoMemory), map);
    assert_eq!(world.account.charged(), charged);
    // The peer has the addresses free again, or it would refuse them now.
    done(&mut world, map);
    world.tear_down();
}

/// Takes back the memory of the first device.
fn take_memory(world: &CoreWorld) -> PhysRange {
    let member = &world.members[0];
    let (range, hnode) = member.pools()[0];
    let hnode = hnode.expect("registered");
    world.core.device_unregister_memory(member.id(), hnode).expect("nothing is in it");
    range
}

#[test]
fn memory_that_was_taken_back_costs_nothing() {
    let world = begin(&STANDARD, &[]);
    let charged = world.account.charged();
    let member = &world.members[0];
    for _ in 0..3 {
        let range = take_memory(&world);
        assert!(world.account.charged() < charged);
        let again = world.core.device_register_memory(member.id(), range).expect("it was free");
        member.pools()[0] = (range, Some(again));
        assert_eq!(world.account.charged(), charged);
    }
    world.tear_down();
}

#[test]
fn a_hold_that_does_not_fit_holds_nothing() {
    let world = begin(&STANDARD, &[(0, Mode::CoherentExclusive)]);
    let device = world.members[0].id();
    let hold = |first, count| HoldRange { range: pages(&world, first, count), access: Access::Write };
    // Forty pages in 32 frames; the first range fits, the second does not.
    let refused = world.core.hold(world.spaces[0], Some(device), &[hold(20, 20), hold(0, 20)]);
    let page = pages(&world, 0, 1).len().get();
    let (most, room) = (ByteLen(40 * page), ByteLen(32 * page));
    assert_eq!(refused, Err(RangeError::DoesNotFit { asked: most, room }));
    // Eight of the frames are pinned: it is found half way that there are none for all.
    let pinned = pages(&world, 40, 8);
    world.core.prefetch(world.spaces[0], pinned, Some(device), Access::Write).expect("there is room");
    world.core.pin(world.spaces[0], pinned).expect("they are mapped");
    let refused = world.core.hold(world.spaces[0], Some(device), &[hold(20, 20), hold(0, 10)]);
    assert!(matches!(refused, Err(RangeError::Fault(_, FaultError::NoDeviceMemory))), "{refused:?}");
    let residence = world.core.residency(world.spaces[0], pages(&world, 0, 40)).expect("mapped");
    assert!(residence.iter().all(|run| !run.pinned), "{residence:?}");
    world.core.unpin(world.spaces[0], pinned).expect("they are pinned");
    world.core.hold(world.spaces[0], Some(device), &[hold(32, 32)]).expect("all frames can be had");
    world.core.unhold(world.spaces[0], Some(device), &[hold(32, 32)]).expect("held");
    world.tear_down();
}

#[test]
fn a_pin_that_fails_half_way_pins_nothing() {
    let world = begin(&STANDARD, &[]);
    let (core, space) = (&world.core, world.spaces[0]);
    (0..255).for_each(|_| core.pin(space, pages(&world, 4, 1)).expect("255 pins"));
    let full = pages(&world, 4, 1).start();
    assert_eq!(core.pin(space, pages(&world, 0, 8)), Err(RangeError::TooManyPins(full)));
    for page in [0, 3, 5, 7] {
        assert_eq!(core.unpin(space, pages(&world, page, 1)), Err(RangeError::NotPinned(pages(&world, page, 1).start())));
    }
    (0..255).for_each(|_| core.unpin(space, pages(&world, 4, 1)).expect("255 pins"));
    world.tear_down();
}

#[test]
fn while_it_is_off_a_device_gets_no_memory() {
    let world = begin(&STANDARD, &[]);
    let member = &world.members[0];
    world.core.set_enabled(false);
    // Giving back is always possible.
    let range = take_memory(&world);
    assert_eq!(world.core.device_register_memory(member.id(), range), Err(DeviceCallError::Disabled));
    world.core.set_enabled(true);
    let half = PhysRange { end: range.begin + range.len().get() / 2, ..range };
    world.core.device_register_memory(member.id(), half).expect("on again");
    world.tear_down();
}
