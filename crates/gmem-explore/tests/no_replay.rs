//! Devices that cannot replay faults, which see what their launches hold and nothing else: holds that meet unmap, protect, eviction and a fence.

use gmem_core::HoldRange;
use gmem_explore::CoreWorld;
use gmem_explore::worlds::{Kind, STANDARD};
use gmem_hal::{Access, Backing, Capabilities, DeviceError, EvictOutcome, Mode, Prot, Upcalls};
use gmem_sim::random::{Op, Outcome, PageRun, Spot};
use gmem_sim::{Callback, Injected, Reason, Scheduler, Sim, yield_point};
use std::cell::Cell;
use std::rc::Rc;

const EXCLUSIVE: &[Mode] = &[Mode::CoherentExclusive];
/// Which device is which.
const FRAMES: usize = 0;
const PEER: usize = 1;
const REPLAYS: usize = 2;
const UNSTOPPABLE: usize = 3;

const KIND: Kind = Kind {
    name: "no replay",
    devices: &[
        (EXCLUSIVE, |d| d.capabilities(Capabilities::empty())),
        (EXCLUSIVE, |d| d.capabilities(Capabilities::PEER)),
        (EXCLUSIVE, |d| d),
        (EXCLUSIVE, |d| d.without_fence()),
    ],
    ..STANDARD
};
const RUN: PageRun = PageRun { space: 0, first: 0, count: 2 };

/// Two mapped pages, and one of the devices attached.
fn begin(seed: u64, device: usize) -> CoreWorld {
    let mut world = KIND.make(&Sim::new(seed));
    world.interleaved = true;
    assert_eq!(world.perform(&Op::Map(RUN, Prot::RW, Backing::Shared)), Outcome::Done);
    assert_eq!(world.perform(&Op::Attach { space: 0, device, mode: Mode::CoherentExclusive, activate: true }), Outcome::Done);
    world
}

fn spot(page: u64) -> Spot {
    Spot { space: 0, page, offset: 0, len: 1 }
}

fn held(world: &CoreWorld, access: Access) -> [HoldRange; 1] {
    [HoldRange { range: world.shape.range(&RUN), access }]
}

fn hold(world: &CoreWorld, device: usize, access: Access) {
    world.core.hold(world.spaces[0], Some(world.members[device].id()), &held(world, access)).expect("the pages fit");
}

fn let_go(world: &CoreWorld, device: usize, access: Access) {
    world.core.unhold(world.spaces[0], Some(world.members[device].id()), &held(world, access)).expect("the address space is there");
}

/// What the device may do with a page by its table.
fn sight(world: &CoreWorld, device: usize, page: u64) -> Prot {
    let device = world.members[device].device();
    let pmap = device.pmap_for(world.spaces[0]).expect("it is attached");
    device.table_prot(pmap, world.shape.range(&PageRun { first: page, count: 1, ..RUN }).start())
}

/// Runs two or three threads of control on a world, which is whole afterwards.
fn meet(world: CoreWorld, seed: u64, controls: impl IntoIterator<Item = Box<dyn FnOnce(&CoreWorld)>>) -> CoreWorld {
    let world = Rc::new(world);
    let mut scheduler = Scheduler::new(seed);
    for (n, control) in controls.into_iter().enumerate() {
        let world = world.clone();
        scheduler.spawn(format!("control {n}"), move || control(&world));
    }
    scheduler.run();
    let world = Rc::into_inner(world).expect("every control has ended");
    world.core.verify().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    world
}

#[test]
fn what_ends_a_hold_or_prefetches_leaves_alone_what_is_being_unmapped() {
    for seed in 0..300 {
        for ends_a_hold in [true, false] {
            let world = begin(seed, FRAMES);
            if ends_a_hold {
                hold(&world, FRAMES, Access::Write);
            }
            let other = move |world: &CoreWorld| {
                if ends_a_hold {
                    let_go(world, FRAMES, Access::Write);
                } else {
                    // The pages may be gone already.
                    world.perform(&Op::Prefetch(RUN, Some(FRAMES)));
                }
            };
            let unmap = |world: &CoreWorld| assert_eq!(world.perform(&Op::Unmap(RUN)), Outcome::Done);
            meet(world, seed, [Box::new(other) as Box<dyn FnOnce(&CoreWorld)>, Box::new(unmap)]).tear_down();
        }
    }
}

#[test]
fn a_held_page_stays_in_sight_while_another_is_held_and_access_is_taken_away() {
    for seed in 0..200 {
        let world = begin(seed, FRAMES);
        hold(&world, FRAMES, Access::Read);
        let over = Rc::new(Cell::new(0));
        let (first, second, third) = (over.clone(), over.clone(), over);
        let protect = move |world: &CoreWorld| {
            assert_eq!(world.perform(&Op::Protect(RUN, Prot::READ)), Outcome::Done);
            first.set(first.get() + 1);
        };
        let again = move |world: &CoreWorld| {
            hold(world, FRAMES, Access::Read);
            let_go(world, FRAMES, Access::Read);
            second.set(second.get() + 1);
        };
        let launch = move |world: &CoreWorld| {
            while third.get() < 2 {
                for page in 0..RUN.count {
                    assert!(sight(world, FRAMES, page).contains(Prot::READ), "seed {seed}: page {page} is held and out of sight");
                }
                yield_point(Reason::Step);
            }
        };
        let world = meet(world, seed, [Box::new(protect) as Box<dyn FnOnce(&CoreWorld)>, Box::new(again), Box::new(launch)]);
        let_go(&world, FRAMES, Access::Read);
        world.tear_down();
    }
}

#[test]
fn a_page_held_on_a_peer_is_in_sight_though_it_was_being_evicted() {
    for seed in 0..200 {
        let world = begin(seed, PEER);
        hold(&world, PEER, Access::Write);
        let_go(&world, PEER, Access::Write);
        let evict = |world: &CoreWorld| {
            world.members[PEER].device().peer_evict(1);
        };
        let again = move |world: &CoreWorld| {
            hold(world, PEER, Access::Write);
            for page in 0..RUN.count {
                assert!(sight(world, PEER, page).contains(Prot::RW), "seed {seed}: page {page} is held and out of sight");
            }
            let_go(world, PEER, Access::Write);
        };
        meet(world, seed, [Box::new(evict) as Box<dyn FnOnce(&CoreWorld)>, Box::new(again)]).tear_down();
    }
}

#[test]
fn a_page_that_nobody_holds_is_not_seen_after_an_eviction_that_failed() {
    let world = begin(1, FRAMES);
    hold(&world, FRAMES, Access::Write);
    let_go(&world, FRAMES, Access::Write);
    assert_eq!(sight(&world, FRAMES, 0), Prot::empty());
    world.sim.fail_nth(Callback::Copy, 1, Injected::Device(DeviceError::CopyFailed));
    assert_eq!(world.perform(&Op::Evict(FRAMES, 1)), Outcome::Done);
    assert_eq!([0, 1].map(|page| sight(&world, FRAMES, page)), [Prot::empty(); 2]);
    world.tear_down();
}

#[test]
fn a_peer_is_told_of_its_pages_behind_a_hole() {
    let world = begin(1, PEER);
    hold(&world, PEER, Access::Write);
    let_go(&world, PEER, Access::Write);
    assert_eq!(world.perform(&Op::Unmap(PageRun { count: 1, ..RUN })), Outcome::Done);
    let peer = &world.members[PEER];
    let pmap = peer.device().pmap_for(world.spaces[0]).expect("it is attached");
    assert_eq!(peer.device().peer_pages(), 1);
    let outcome = world.core.device_evict(peer.id(), pmap, world.shape.range(&RUN));
    assert_eq!((outcome, peer.device().peer_pages()), (EvictOutcome::Evicted, 0));
    world.tear_down();
}

#[test]
fn a_protect_waits_for_a_fence_that_is_under_way() {
    for seed in 0..300 {
        let world = begin(seed, REPLAYS);
        for page in 0..RUN.count {
            assert_eq!(world.perform(&Op::DevWrite(REPLAYS, spot(page), 1)), Outcome::Done);
        }
        world.sim.fail_nth(Callback::TlbInvalidate, 1, Injected::Device(DeviceError::NoAnswer));
        let world = Rc::new(world);
        // Long stretches: a fence is short.
        let mut scheduler = Scheduler::new(seed).stay_per_mille(980);
        let cpu = world.clone();
        scheduler.spawn("cpu", move || {
            cpu.perform(&Op::CpuRead(spot(0)));
        });
        let protecting = world.clone();
        scheduler.spawn("protect", move || {
            assert_eq!(protecting.perform(&Op::Protect(PageRun { first: 1, count: 1, ..RUN }, Prot::READ)), Outcome::Done);
            let device = protecting.members[REPLAYS].device();
            let pmap = device.pmap_for(protecting.spaces[0]).expect("it is attached");
            let writes = sight(&protecting, REPLAYS, 1).contains(Prot::WRITE) && !device.is_given_up(pmap);
            assert!(!writes, "seed {seed}: protect returned while the device could write");
        });
        scheduler.run();
    }
}

#[test]
fn when_a_detach_is_over_its_frames_are_free() {
    for seed in 0..1500 {
        for fails in [true, false] {
            let world = begin(seed, UNSTOPPABLE);
            assert_eq!(world.perform(&Op::DevWrite(UNSTOPPABLE, spot(0), 1)), Outcome::Done);
            if fails {
                world.sim.fail_nth(Callback::TlbInvalidate, 1, Injected::Device(DeviceError::NoAnswer));
            }
            let memory = |world: &CoreWorld| {
                let hnode = world.core.hnodes_of(world.members[UNSTOPPABLE].id())[0];
                let stats = world.core.hnode_stats(hnode).expect("it is registered");
                (stats.used.get(), stats.quarantined.get())
            };
            let cpu = |world: &CoreWorld| {
                world.perform(&Op::CpuRead(spot(0)));
            };
            let detach = move |world: &CoreWorld| {
                assert_eq!(world.perform(&Op::Detach(0, UNSTOPPABLE)), Outcome::Done);
                assert_eq!(memory(world), (0, 0), "seed {seed}: bytes in use and in quarantine");
            };
            meet(world, seed, [Box::new(cpu) as Box<dyn FnOnce(&CoreWorld)>, Box::new(detach)]).tear_down();
        }
    }
}

#[test]
fn a_whole_region_is_unmapped_without_memory_for_a_cut() {
    let world = KIND.make(&Sim::new(1));
    assert_eq!(world.perform(&Op::Map(RUN, Prot::RW, Backing::Shared)), Outcome::Done);
    world.sim.fail_chance(Callback::Charge, 1000, Injected::OutOfMemory);
    assert_eq!(world.perform(&Op::Protect(RUN, Prot::READ)), Outcome::Done);
    assert_eq!(world.perform(&Op::Unmap(RUN)), Outcome::Done);
    world.sim.clear_failures();
    world.tear_down();
}
