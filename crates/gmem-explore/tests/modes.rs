//! What tells the three modes apart, and what each refusal is called: short scripts whose counters are known.

use gmem_core::{DetachError, DeviceCallError, RangeError};
use gmem_explore::CoreWorld;
use gmem_explore::worlds::{Kind, LARGE, MIDDLE, MIXED, POOLS, REPLICAS, STANDARD};
use gmem_hal::{Access, Backing, ByteLen, DeviceError, FaultError, HostError, Mode, Prot, VirtRange};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot, World};
use gmem_sim::{Callback, Injected, Sim};

const PAGES: u64 = 8;

fn spot(page: u64) -> Spot {
    Spot { space: 0, page, offset: 100, len: 8 }
}

fn done(world: &mut CoreWorld, op: Op) {
    let outcome = world.apply(&op);
    assert!(matches!(outcome, Outcome::Done | Outcome::Loaded(_)), "{op:?}: {outcome:?}");
    world.verify().unwrap_or_else(|why| panic!("after {op:?}, {why}"));
}

/// A world with some pages mapped that the CPU has written, and these devices attached afterwards.
fn begin(kind: &Kind, attached: &[(usize, Mode)]) -> CoreWorld {
    let mut world = kind.make(&Sim::new(1));
    done(&mut world, Op::Map(PageRun { space: 0, first: 0, count: PAGES }, Prot::RW, Backing::Shared));
    (0..PAGES).for_each(|page| done(&mut world, Op::CpuWrite(spot(page), 1)));
    for (device, mode) in attached {
        done(&mut world, Op::Attach { space: 0, device: *device, mode: *mode, activate: true });
    }
    world
}

fn moved(world: &CoreWorld) -> u64 {
    let s = world.core.stats();
    s.h2d_fault_bytes + s.h2d_prefetch_bytes + s.d2h_fault_bytes + s.d2h_evict_bytes + s.d2h_other_bytes + s.d2d_bytes
}

#[test]
fn replicas_see_every_page_without_a_fault_and_move_none() {
    let mut world = begin(&REPLICAS, &[(0, Mode::Replicate), (1, Mode::Replicate)]);
    for round in 2..6 {
        for page in 0..PAGES {
            done(&mut world, Op::DevWrite(0, spot(page), round));
            assert_eq!(world.apply(&Op::DevRead(1, spot(page))), Outcome::Loaded(spot(page).bytes(round)));
            assert_eq!(world.apply(&Op::CpuRead(spot(page))), Outcome::Loaded(spot(page).bytes(round)));
        }
    }
    assert_eq!((world.core.stats().device_faults, moved(&world)), (0, 0));
    world.tear_down();
}

#[test]
fn a_page_that_comes_home_is_a_replicas_at_once() {
    let mut world = begin(&MIXED, &[(0, Mode::CoherentExclusive), (2, Mode::Replicate)]);
    done(&mut world, Op::DevWrite(0, spot(0), 2));
    assert_eq!(world.apply(&Op::CpuRead(spot(0))), Outcome::Loaded(spot(0).bytes(2)));
    let faults = world.core.stats().device_faults;
    assert_eq!(world.apply(&Op::DevRead(2, spot(0))), Outcome::Loaded(spot(0).bytes(2)));
    assert_eq!(world.core.stats().device_faults, faults);
    world.tear_down();
}

#[test]
fn a_discard_gives_up_whole_pages_only() {
    let mut world = begin(&MIDDLE, &[]);
    let page = |n: u64| world.shape.range(&PageRun { space: 0, first: n, count: 1 });
    let inside = VirtRange::new(page(0).start(), page(0).start().checked_add(ByteLen(4096)).expect("in range")).expect("not empty");
    // From the middle of one page to the middle of another, with a whole one between.
    let across = VirtRange::new(inside.end(), page(2).start().checked_add(ByteLen(4096)).expect("in range")).expect("not empty");
    for range in [inside, across] {
        world.core.discard(world.spaces[0], range).expect("mapped");
    }
    for (page, left) in [(0, spot(0).bytes(1)), (1, vec![0; 8]), (2, spot(2).bytes(1))] {
        assert_eq!(world.apply(&Op::CpuRead(spot(page))), Outcome::Loaded(left), "page {page}");
    }
    world.tear_down();
}

#[test]
fn an_exclusive_page_moves_once_for_each_change_of_side() {
    for kind in [STANDARD, MIDDLE, LARGE] {
        let mut world = begin(&kind, &[(0, Mode::CoherentExclusive)]);
        let before = world.core.stats().migrations;
        for round in 0..4 {
            for _ in 0..3 {
                done(&mut world, Op::DevWrite(0, spot(0), round));
            }
            for _ in 0..3 {
                done(&mut world, Op::CpuWrite(spot(0), round));
            }
        }
        let size = kind.page_size.bytes();
        assert_eq!((world.core.stats().migrations - before, moved(&world)), (8, 8 * size), "{}", kind.name);
        world.tear_down();
    }
}

#[test]
fn a_device_shares_the_table_of_another_of_its_format() {
    let mut world = begin(&MIXED, &[(0, Mode::CoherentExclusive), (1, Mode::Share)]);
    done(&mut world, Op::DevWrite(1, spot(0), 2));
    let (bytes, faults) = (moved(&world), world.core.stats().device_faults);
    assert_eq!(world.apply(&Op::DevRead(0, spot(0))), Outcome::Loaded(spot(0).bytes(2)));
    assert_eq!((moved(&world), world.core.stats().device_faults), (bytes, faults), "what one faulted in is the other's too");
    assert_eq!(world.members[1].device().contexts(), 0, "a sharer has no table of its own");
    let ids = [world.members[0].id(), world.members[1].id()];
    assert_eq!(world.core.detach(world.spaces[0], ids[0]), Err(DetachError::Shared(ids[1])));
    world.tear_down();
}

#[test]
fn a_page_that_the_kernel_pins_stays_home() {
    let mut world = begin(&STANDARD, &[(0, Mode::CoherentExclusive), (3, Mode::CoherentExclusive)]);
    done(&mut world, Op::KernelPin(spot(0)));
    for device in [0, 3] {
        assert_eq!(world.apply(&Op::DevWrite(device, spot(0), 2)), Outcome::Refused(Refusal::Failed));
        let range = world.shape.range(&PageRun { space: 0, first: 0, count: 1 });
        let prefetched = world.core.prefetch(world.spaces[0], range, Some(world.members[device].id()), Access::Write);
        assert_eq!(prefetched, Err(RangeError::Fault(range.start(), FaultError::Host(HostError::Pinned))));
    }
    assert_eq!(world.apply(&Op::CpuRead(spot(0))), Outcome::Loaded(spot(0).bytes(1)), "the refusals changed nothing");
    done(&mut world, Op::KernelUnpin(spot(0)));
    done(&mut world, Op::DevWrite(0, spot(0), 3));
    assert_eq!(world.apply(&Op::CpuRead(spot(0))), Outcome::Loaded(spot(0).bytes(3)));
    world.tear_down();
}

#[test]
fn memory_in_use_is_neither_taken_back_nor_capped_below_what_is_used() {
    let mut world = begin(&POOLS, &[(0, Mode::CoherentExclusive)]);
    done(&mut world, Op::DevWrite(0, spot(0), 2));
    let (size, id) = (world.shape.page_size.bytes(), world.members[0].id());
    let first = world.members[0].pools()[0].1.expect("it is registered");
    assert_eq!(world.core.device_unregister_memory(id, first), Err(DeviceCallError::MemoryInUse(ByteLen(size))));
    assert_eq!(world.core.hnode_set_limit(first, ByteLen(0)), Err(DeviceCallError::MemoryInUse(ByteLen(size))));
    // The last pool holds nothing: it goes and comes, and the others go on.
    done(&mut world, Op::Memory(0));
    (0..PAGES).for_each(|page| done(&mut world, Op::DevWrite(0, spot(page), 3)));
    done(&mut world, Op::Memory(0));
    assert_eq!(world.apply(&Op::CpuRead(spot(0))), Outcome::Loaded(spot(0).bytes(3)));
    world.tear_down();
}

#[test]
fn a_device_that_died_loses_no_byte_and_can_be_attached_again() {
    for told in [false, true] {
        for device in [0, 3] {
            let mut world = begin(&STANDARD, &[(device, Mode::CoherentExclusive)]);
            (0..PAGES).for_each(|page| done(&mut world, Op::DevWrite(device, spot(page), 2)));
            done(&mut world, Op::Lose(device, told));
            assert_eq!(world.apply(&Op::DevWrite(device, spot(0), 3)), Outcome::Refused(Refusal::Failed), "its context is gone");
            assert_eq!(world.apply(&Op::CpuRead(spot(0))), Outcome::Loaded(spot(0).bytes(2)));
            done(&mut world, Op::Detach(0, device));
            done(&mut world, Op::Attach { space: 0, device, mode: Mode::CoherentExclusive, activate: true });
            (0..PAGES).for_each(|page| assert_eq!(world.apply(&Op::DevRead(device, spot(page))), Outcome::Loaded(spot(page).bytes(2))));
            world.tear_down();
        }
    }
}

#[test]
fn what_a_context_that_never_answered_may_reach_is_not_freed_with_a_later_one() {
    // This device cannot be stopped by force.
    let mut world = begin(&STANDARD, &[(2, Mode::CoherentExclusive)]);
    let no_answer = Injected::Device(DeviceError::NoAnswer);
    let quarantined = |world: &CoreWorld| {
        let hnode = world.members[2].pools()[0].1.expect("it is registered");
        world.core.hnode_stats(hnode).expect("it is there").quarantined.get() / world.shape.page_size.bytes()
    };
    (0..PAGES).for_each(|page| done(&mut world, Op::DevWrite(2, spot(page), 2)));
    world.sim.fail_nth(Callback::PmapRelease, 1, no_answer);
    (0..PAGES).for_each(|page| assert_eq!(world.apply(&Op::CpuRead(spot(page))), Outcome::Loaded(spot(page).bytes(2))));
    assert_eq!(quarantined(&world), PAGES);
    world.sim.fail_nth(Callback::PmapDestroy, 1, no_answer);
    done(&mut world, Op::Detach(0, 2));
    for _ in 0..2 {
        assert_eq!(quarantined(&world), PAGES, "nobody confirmed that these frames are not touched any more");
        done(&mut world, Op::Attach { space: 0, device: 2, mode: Mode::CoherentExclusive, activate: true });
        done(&mut world, Op::DevWrite(2, spot(0), 3));
        done(&mut world, Op::Detach(0, 2));
    }
    world.tear_down();
}
