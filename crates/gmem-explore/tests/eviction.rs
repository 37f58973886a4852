//! Which pages go when memory is short, and which memory may be used again.

use gmem_explore::CoreWorld;
use gmem_explore::worlds::STANDARD;
use gmem_hal::{Backing, ByteLen, DeviceError, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Spot, World};
use gmem_sim::{Callback, Injected, Sim};

const PAGES: u64 = 64;
/// What each device of the standard world has room for.
const FRAMES: u64 = STANDARD.frames;

fn spot(page: u64) -> Spot {
    Spot { space: 0, page, offset: 100, len: 8 }
}

fn done(world: &mut CoreWorld, op: Op) {
    let outcome = world.apply(&op);
    assert!(matches!(outcome, Outcome::Done | Outcome::Loaded(_)), "{op:?}: {outcome:?}");
    world.verify().unwrap_or_else(|why| panic!("after {op:?}, {why}"));
}

/// The standard world with `device` attached.
fn begin(device: usize) -> CoreWorld {
    let mut world = STANDARD.make(&Sim::new(1));
    done(&mut world, Op::Map(PageRun { space: 0, first: 0, count: PAGES }, Prot::RW, Backing::Shared));
    done(&mut world, Op::Attach { space: 0, device, mode: Mode::CoherentExclusive, activate: true });
    world
}

fn memory(world: &CoreWorld, device: usize) -> gmem_core::HnodeStats {
    let hnode = world.core.hnodes_of(world.members[device].id())[0];
    world.core.hnode_stats(hnode).expect("registered")
}

#[test]
fn the_background_keeps_a_frame_free() {
    let mut world = begin(0);
    for page in 0..FRAMES {
        done(&mut world, Op::DevWrite(0, spot(page), 1));
    }
    // An operation of the world ends with what the service thread does.
    assert!(world.core.stats().background_reclaims > 0);
    assert!(memory(&world, 0).free >= ByteLen(4096), "{:?}", memory(&world, 0));
    let direct = world.core.stats().direct_reclaims;
    done(&mut world, Op::DevWrite(0, spot(FRAMES), 1));
    assert_eq!(world.core.stats().direct_reclaims, direct, "a fault had to evict by itself");
    world.tear_down();
}

#[test]
fn pinned_pages_stay() {
    let mut world = begin(0);
    (0..4).for_each(|page| done(&mut world, Op::DevWrite(0, spot(page), 1)));
    done(&mut world, Op::Pin(PageRun { space: 0, first: 0, count: 4 }));
    (4..PAGES).for_each(|page| done(&mut world, Op::DevWrite(0, spot(page), 1)));
    done(&mut world, Op::Evict(0, FRAMES as usize));
    assert_eq!(resident(&world, 0), [0, 1, 2, 3]);
    done(&mut world, Op::Unpin(PageRun { space: 0, first: 0, count: 4 }));
    done(&mut world, Op::Evict(0, FRAMES as usize));
    assert_eq!(resident(&world, 0), []);
    world.tear_down();
}

/// The standard world with every frame of the device that reports accesses in use, and each page asked once whether it is used.
fn asked() -> CoreWorld {
    let mut world = begin(1);
    (0..FRAMES).for_each(|page| done(&mut world, Op::DevWrite(1, spot(page), 1)));
    evict_one(&world);
    world
}

/// Evicts one page; those that were used since they were last asked get a second chance, once.
fn evict_one(world: &CoreWorld) {
    assert_eq!(world.core.evict(world.core.hnodes_of(world.members[1].id())[0], 1), 1);
}

/// The pages that a device has.
fn resident(world: &CoreWorld, device: usize) -> Vec<u64> {
    let device = &world.members[device].device();
    let pmap = device.pmap_for(world.spaces[0]).expect("attached");
    (0..PAGES).filter(|page| device.table_entry(pmap, world.shape.va(&spot(*page))).is_some()).collect()
}

#[test]
fn a_page_that_was_used_since_it_was_asked_is_not_the_next_to_go() {
    let world = asked();
    let before = resident(&world, 1);
    evict_one(&world);
    let after = resident(&world, 1);
    let next = *before.iter().find(|page| !after.contains(page)).expect("one went");
    world.tear_down();
    // The same again, but the page in question is used.
    let mut world = asked();
    assert_eq!(resident(&world, 1), before);
    done(&mut world, Op::DevRead(1, spot(next)));
    evict_one(&world);
    assert!(resident(&world, 1).contains(&next), "page {next} was evicted although it is in use");
    world.tear_down();
}

#[test]
fn a_device_that_uses_all_of_its_pages_gets_another() {
    let mut world = begin(1);
    for page in 0..PAGES {
        done(&mut world, Op::DevWrite(1, spot(page), 1));
    }
    world.tear_down();
}

/// A world in which the device without a fence was asked for a page and did not answer: it may have the page.
fn unanswered() -> CoreWorld {
    let mut world = begin(2);
    world.sim.fail_nth_on(world.members[2].device().number(), Callback::PmapEnter, 1, Injected::Device(DeviceError::NoAnswer));
    let outcome = world.apply(&Op::DevWrite(2, spot(0), 1));
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    world
}

#[test]
fn what_a_device_that_did_not_answer_was_given_is_held_back() {
    let world = unanswered();
    assert_eq!((memory(&world, 2).used, memory(&world, 2).quarantined), (ByteLen(0), ByteLen(4096)));
    world.tear_down();
}

#[test]
fn a_limit_counts_what_is_held_back() {
    let mut world = unanswered();
    // Another address space, whose context is in order.
    done(&mut world, Op::Map(PageRun { space: 1, first: 0, count: 8 }, Prot::RW, Backing::Shared));
    done(&mut world, Op::Attach { space: 1, device: 2, mode: Mode::CoherentExclusive, activate: true });
    done(&mut world, Op::Limit(2, 3));
    for page in 0..8 {
        done(&mut world, Op::DevWrite(2, Spot { space: 1, ..spot(page) }, 1));
        let memory = memory(&world, 2);
        assert!(memory.used.get() + memory.quarantined.get() <= 3 * 4096, "more than the limit: {memory:?}");
    }
    world.tear_down();
}
