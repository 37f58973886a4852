//! Two or three operations that meet on the same pages, in every order that a seed draws: what one must wait for in the other, and who must be woken.
//!
//! `interleaved.rs` and `chaos.rs` draw what meets; here it is chosen, so that the meeting happens in every run and its outcome is known.

use gmem_explore::worlds::{Kind, MIDDLE, MIXED, POOLS, STANDARD};
use gmem_explore::{CoreWorld, seeds};
use gmem_hal::{Backing, DeviceError, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot, World};
use gmem_sim::{Callback, Injected, Reason, Scheduler, Sim, yield_point};
use std::cell::Cell;
use std::rc::Rc;

const PAGES: u64 = 4;
const RUN: PageRun = PageRun { space: 0, first: 0, count: PAGES };

/// Everybody has bytes of its own in a page, so that nobody overwrites what another's lost write was.
fn spot(page: u64, who: u64) -> Spot {
    Spot { space: 0, page, offset: 64 * who, len: 1 }
}

fn done(world: &CoreWorld, op: Op) {
    let outcome = world.perform(&op);
    assert_eq!(outcome, Outcome::Done, "{op:?}");
}

fn loads(world: &CoreWorld, op: Op, fill: u8) {
    let (Op::CpuRead(spot) | Op::DevRead(_, spot)) = op else { panic!("{op:?} is no load") };
    assert_eq!(world.perform(&op), Outcome::Loaded(spot.bytes(fill)), "{op:?}");
}

/// A world with four pages that the CPU has written 1 into, and these devices.
fn begin(kind: &Kind, seed: u64, attached: &[(usize, Mode)]) -> CoreWorld {
    let mut world = kind.make(&Sim::new(seed));
    world.interleaved = true;
    done(&world, Op::Map(RUN, Prot::RW, Backing::Shared));
    (0..PAGES).for_each(|page| done(&world, Op::CpuWrite(spot(page, 0), 1)));
    for (device, mode) in attached {
        done(&world, Op::Attach { space: 0, device: *device, mode: *mode, activate: true });
    }
    world
}

type Control = Box<dyn FnOnce(&CoreWorld)>;

/// Does all of this at once, and gives the world back, in which every invariant holds.
fn meet(world: CoreWorld, seed: u64, controls: Vec<Control>) -> CoreWorld {
    let world = Rc::new(world);
    let mut scheduler = Scheduler::new(seed);
    if seed % 4 == 3 {
        // Long stretches: who only tries again and again, instead of waiting, finds the others where they were.
        scheduler = scheduler.stay_per_mille(995);
    }
    for (n, control) in controls.into_iter().enumerate() {
        let world = world.clone();
        scheduler.spawn(format!("control {n}"), move || control(&world));
    }
    scheduler.run();
    let mut world = Rc::into_inner(world).expect("all have ended");
    world.verify().unwrap_or_else(|why| panic!("seed {seed}: afterwards, {why}"));
    world.check_tables().unwrap_or_else(|why| panic!("seed {seed}: afterwards, {why}"));
    world
}

#[test]
fn an_eviction_is_called_off_for_the_device_that_wants_its_page() {
    let mut called_off = 0;
    for seed in seeds(200) {
        let world = begin(&STANDARD, seed, &[(0, Mode::CoherentExclusive)]);
        done(&world, Op::DevWrite(0, spot(0, 0), 2));
        let writes = seed % 2 == 0;
        let evicts: Control = Box::new(|world| done(world, Op::Evict(0, 1)));
        let wants: Control = Box::new(move |world| {
            loads(world, Op::DevRead(0, spot(0, 0)), 2);
            if writes {
                done(world, Op::DevWrite(0, spot(0, 0), 3));
            }
        });
        let world = meet(world, seed, vec![evicts, wants]);
        called_off += world.core.stats().evictions_cancelled;
        // What was called off after the copy left two copies. Now the device's goes, and what it wrote meanwhile must not go with it.
        done(&world, Op::Evict(0, 1));
        loads(&world, Op::CpuRead(spot(0, 0)), if writes { 3 } else { 2 });
        world.tear_down();
    }
    assert!(called_off > 0, "no eviction was called off");
}

#[test]
fn a_fault_gets_the_frame_that_another_gives_up() {
    for seed in seeds(200) {
        // A device of a few pages has no watermark: nothing is evicted in the background.
        let world = begin(&MIDDLE, seed, &[(1, Mode::CoherentExclusive)]);
        done(&world, Op::Limit(1, 1));
        done(&world, Op::DevWrite(1, spot(0, 0), 2));
        // The only frame is on its way home, or is evicted, or given from one fault to the next: whoever waits gets it.
        let controls = vec![
            Box::new(|world: &CoreWorld| done(world, Op::CpuWrite(spot(0, 1), 3))) as Control,
            Box::new(|world: &CoreWorld| done(world, Op::DevWrite(1, spot(1, 0), 4))),
            Box::new(|world: &CoreWorld| done(world, Op::DevWrite(1, spot(2, 0), 5))),
        ];
        let world = meet(world, seed, controls);
        let stores = [(spot(0, 0), 2), (spot(0, 1), 3), (spot(1, 0), 4), (spot(2, 0), 5)];
        stores.into_iter().for_each(|(spot, fill)| loads(&world, Op::CpuRead(spot), fill));
        world.tear_down();
    }
}

#[test]
fn no_access_outlives_its_protection() {
    for seed in seeds(400) {
        let attached = [(0, Mode::CoherentExclusive), (2, Mode::Replicate), (3, Mode::CoherentExclusive)];
        let world = begin(&MIXED, seed, &attached);
        done(&world, Op::DevWrite(3, spot(0, 0), 1));
        let accesses = |op: fn(u64) -> Op| -> Control {
            Box::new(move |world| {
                for page in 0..PAGES {
                    let outcome = world.perform(&op(page));
                    assert!(matches!(outcome, Outcome::Done | Outcome::Loaded(_) | Outcome::Refused(Refusal::Invalid)), "{outcome:?}");
                }
            })
        };
        let protects: Control = Box::new(|world| {
            done(world, Op::Protect(RUN, Prot::READ));
            let space = world.spaces[0];
            for page in world.shape.range(&RUN).pages(world.shape.page_size) {
                let tables = world.members.iter().filter_map(|m| Some(m.device().table_prot(m.device().pmap_for(space)?, page.start())));
                let most = tables.fold(world.host.cpu_prot(page.start()), |all, prot| all | prot);
                assert!(!most.contains(Prot::WRITE), "{page} can be written after it was made read-only");
            }
        });
        let controls = vec![
            protects,
            accesses(|page| Op::DevWrite(0, spot(page, 1), 2)),
            accesses(|page| Op::CpuWrite(spot(page, 2), 3)),
            accesses(|page| Op::DevWrite(2, spot(page, 3), 4)),
            accesses(|page| Op::DevRead(3, spot(page, 0))),
        ];
        let world = meet(world, seed, controls);
        (0..PAGES).for_each(|page| loads(&world, Op::CpuRead(spot(page, 0)), 1));
        world.tear_down();
    }
}

#[test]
fn nothing_stays_of_a_region_that_goes_while_it_is_used() {
    for seed in seeds(200) {
        let world = begin(&MIXED, seed, &[(0, Mode::CoherentExclusive), (2, Mode::Replicate), (5, Mode::CoherentExclusive)]);
        let accesses = |op: fn(u64) -> Op| -> Control {
            Box::new(move |world| {
                for page in 0..PAGES {
                    let outcome = world.perform(&op(page));
                    assert!(matches!(outcome, Outcome::Done | Outcome::Refused(Refusal::Invalid)), "{outcome:?}");
                }
            })
        };
        let controls = vec![
            Box::new(|world: &CoreWorld| done(world, Op::Unmap(RUN))) as Control,
            accesses(|page| Op::DevWrite(0, spot(page, 1), 2)),
            accesses(|page| Op::CpuWrite(spot(page, 2), 3)),
            accesses(|page| Op::DevWrite(5, spot(page, 3), 4)),
        ];
        let world = meet(world, seed, controls);
        done(&world, Op::Map(RUN, Prot::RW, Backing::Shared));
        for page in 0..PAGES {
            (0..4).for_each(|who| assert_eq!(world.perform(&Op::CpuRead(spot(page, who))), Outcome::Loaded(vec![0])));
        }
        world.tear_down();
    }
}

#[test]
fn a_replica_that_is_being_stopped_loses_no_write_that_it_made() {
    for seed in seeds(400) {
        let world = begin(&MIXED, seed, &[(0, Mode::CoherentExclusive), (2, Mode::Replicate)]);
        let replica = world.members[2].device();
        world.sim.fail_nth_on(replica.number(), Callback::TlbInvalidate, 1, Injected::Device(DeviceError::NoAnswer));
        let last = Rc::new(Cell::new(0));
        let kernel: Control = {
            let last = last.clone();
            Box::new(move |world| {
                let pmap = replica.pmap_for(world.spaces[0]).expect("attached");
                for n in 2..30 {
                    // No fault is resolved: it goes on for as long as the replica has the page.
                    if replica.write(pmap, world.shape.va(&spot(1, 1)), &[n]).is_err() {
                        return;
                    }
                    last.set(n);
                    yield_point(Reason::Step);
                }
            })
        };
        // The first takes its page from the replica, which does not answer and is stopped; the second comes while that goes on.
        let controls = vec![
            kernel,
            Box::new(|world: &CoreWorld| done(world, Op::DevWrite(0, spot(0, 0), 5))) as Control,
            Box::new(|world: &CoreWorld| done(world, Op::DevWrite(0, spot(1, 0), 6))),
        ];
        let world = meet(world, seed, controls);
        assert_eq!(world.perform(&Op::CpuRead(spot(1, 1))), Outcome::Loaded(vec![last.get()]), "seed {seed}: the replica's last write");
        world.tear_down();
    }
}

#[test]
fn new_memory_is_used_when_its_driver_knows_it() {
    for seed in seeds(200) {
        let world = begin(&POOLS, seed, &[(0, Mode::CoherentExclusive)]);
        // The last pool is taken back, and the others are filled.
        done(&world, Op::Memory(0));
        done(&world, Op::Map(PageRun { space: 0, first: PAGES, count: 2 * POOLS.frames }, Prot::RW, Backing::Shared));
        (0..POOLS.frames).for_each(|page| done(&world, Op::DevWrite(0, spot(PAGES + page, 0), 2)));
        let controls = vec![
            Box::new(|world: &CoreWorld| done(world, Op::Memory(0))) as Control,
            Box::new(|world: &CoreWorld| {
                (POOLS.frames..2 * POOLS.frames).for_each(|page| done(world, Op::DevWrite(0, spot(PAGES + page, 0), 3)))
            }),
        ];
        meet(world, seed, controls).tear_down();
    }
}

#[test]
fn a_replica_that_leaves_is_entered_no_more() {
    for seed in seeds(600) {
        let world = begin(&MIXED, seed, &[(0, Mode::CoherentExclusive), (2, Mode::Replicate)]);
        (0..PAGES).for_each(|page| done(&world, Op::DevWrite(0, spot(page, 1), 2)));
        // Each page that comes home goes into the replicas. A table that is destroyed with an entry is a defect, which the machine notices.
        let controls = vec![
            Box::new(|world: &CoreWorld| (0..PAGES).for_each(|page| done(world, Op::CpuWrite(spot(page, 2), 3)))) as Control,
            Box::new(|world: &CoreWorld| done(world, Op::Detach(0, 2))),
        ];
        meet(world, seed, controls).tear_down();
    }
}
