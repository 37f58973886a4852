//! The core called by several threads of control at once, interleaved by a seed.
//!
//! Each thread of control has its own bytes of every page, and knows what they must be; the pages they fight over. That keeps the model as simple as that of
//! one thread, and any write lost or seen by the wrong one still shows.

use gmem_explore::{CoreWorld, seeds};
use gmem_hal::{Backing, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Spot, World};
use gmem_sim::{Canary, Reason, Rng, Scheduler, yield_point};
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of a page that belong to one thread of control: a quarter, so that they lie in both halves of a copy.
const STRIPE: u64 = 1024;
const PAGES: u64 = 80;

/// One thread of control: accesses, and calls that move pages but change no byte.
fn worker(world: &CoreWorld, me: u64, seed: u64, steps: u32) {
    let mut rng = Rng::stream(seed, 0x3000 + me);
    let mut mine = vec![0u8; PAGES as usize];
    for _ in 0..steps {
        // Few pages, so that they meet.
        let page = if rng.coin() { rng.below(4) } else { rng.below(PAGES) };
        let spot = Spot { space: 0, page, offset: me * STRIPE + 7, len: 1 };
        let device = rng.index(world.members.len());
        let value = rng.draw() as u8;
        let run = PageRun { space: 0, first: page, count: 1 + rng.below((PAGES - page).min(6)) };
        let op = match rng.weighted(&[20, 20, 20, 20, 5, 3, 4]) {
            0 => Op::CpuRead(spot),
            1 => Op::CpuWrite(spot, value),
            2 => Op::DevRead(device, spot),
            3 => Op::DevWrite(device, spot, value),
            4 => Op::Prefetch(run, rng.coin().then_some(device)),
            5 => Op::Evict(device, 1 + rng.index(4)),
            // The same protection again: everything is taken and given back, and no access becomes wrong.
            _ => Op::Protect(run, Prot::RW),
        };
        match (op, world.perform(&op)) {
            (Op::CpuRead(_) | Op::DevRead(..), Outcome::Loaded(bytes)) => {
                assert_eq!(bytes[0], mine[page as usize], "control {me} loaded what it did not store, by {op:?}");
            }
            (Op::CpuWrite(..) | Op::DevWrite(..), Outcome::Done) => mine[page as usize] = spot.bytes(value)[0],
            (_, Outcome::Refused(why)) => assert!(may_be_refused(&op), "{op:?} was refused: {why:?}"),
            _ => {}
        }
    }
}

/// Threads that together want more pages than a device has may find no room; an access may then be made again later.
fn may_be_refused(op: &Op) -> bool {
    matches!(op, Op::DevRead(..) | Op::DevWrite(..) | Op::Prefetch(..))
}

/// Changes other regions of the same address space meanwhile, and the contexts of another.
fn changer(world: &CoreWorld, seed: u64, steps: u32) {
    let mut rng = Rng::stream(seed, 0x4000);
    for _ in 0..steps {
        let run = PageRun { space: 0, first: PAGES + rng.below(8), count: 1 + rng.below(8) };
        let spot = Spot { space: 0, page: run.first, offset: 0, len: 16 };
        let device = rng.index(world.members.len());
        let op = match rng.weighted(&[3, 2, 2, 2, 2, 1, 1, 1]) {
            0 => Op::Map(run, Prot::RW, Backing::Shared),
            1 => Op::Unmap(run),
            2 => Op::DevWrite(device, spot, 1),
            3 => Op::CpuWrite(spot, 2),
            4 => Op::Discard(run),
            5 => Op::Attach { space: 1, device, mode: Mode::CoherentExclusive, activate: true },
            6 => Op::Detach(1, device),
            _ => Op::Protect(run, Prot::READ),
        };
        world.perform(&op);
        yield_point(Reason::Step);
    }
}

fn interleave(seed: u64, canary: Option<Canary>) {
    let mut world = CoreWorld::with_canary(seed, canary);
    world.interleaved = true;
    let map = PageRun { space: 0, first: 0, count: PAGES };
    assert_eq!(world.apply(&Op::Map(map, Prot::RW, Backing::Shared)), Outcome::Done);
    for device in 0..world.members.len() {
        let attach = Op::Attach { space: 0, device, mode: Mode::CoherentExclusive, activate: true };
        assert_eq!(world.apply(&attach), Outcome::Done);
    }
    let world = Rc::new(RefCell::new(Some(world)));
    let mut scheduler = Scheduler::new(seed);
    for me in 0..4 {
        let world = world.clone();
        scheduler
            .spawn(format!("worker {me}"), move || worker(world.borrow().as_ref().expect("it is taken apart at the end"), me, seed, 60));
    }
    let other = world.clone();
    scheduler.spawn("changer", move || changer(other.borrow().as_ref().expect("it is taken apart at the end"), seed, 60));
    scheduler.run();
    let mut world = world.take().expect("nobody took it");
    world.verify().unwrap_or_else(|why| panic!("afterwards, {why}"));
    world.check_tables().unwrap_or_else(|why| panic!("afterwards, {why}"));
    world.tear_down();
}

#[test]
fn no_write_is_lost_however_threads_interleave() {
    for seed in seeds(50) {
        let run = std::panic::catch_unwind(|| interleave(seed, None));
        assert!(run.is_ok(), "seed {seed} failed");
    }
}

#[test]
fn canaries_are_noticed_whichever_way_threads_interleave() {
    for canary in [Canary::KeepsTranslations, Canary::TearsCopies] {
        let noticed = (0..4).filter(|seed| std::panic::catch_unwind(|| interleave(*seed, Some(canary))).is_err()).count();
        assert_ne!(noticed, 0, "{canary:?} was not noticed");
    }
}
