//! Everything at once: threads of control that access, launch, map, protect, attach and detach, on devices of every mode, while calls fail and devices die.
//!
//! As in `interleaved.rs`, each worker has bytes of its own in every page and knows what they must be. Here any call may be refused; no byte may be wrong.

use gmem_explore::worlds::{Kind, MIXED, REPLICAS, STANDARD};
use gmem_explore::{CoreWorld, Touched, seeds};
use gmem_hal::{Backing, DeviceError, Mode, PeerError, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot, World};
use gmem_sim::{Callback, Canary, Injected, Reason, Rng, Scheduler, Sim, yield_point};
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of a page that belong to one worker.
const STRIPE: u64 = 1024;
const WORKERS: u64 = 4;
/// The pages that workers fight over; the others come and go.
const PAGES: u64 = 64;

/// What goes wrong besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    /// Nothing.
    None,
    /// Grants are refused, copies fail.
    Refusals,
    /// Revokes are not answered.
    NoAnswer,
    /// Devices die.
    Deaths,
}

fn is(error: Injected, wanted: DeviceError) -> bool {
    error == Injected::Device(wanted) || error == Injected::Peer(PeerError::Device(wanted))
}

impl Trouble {
    fn prepare(self, sim: &Sim) {
        for &callback in Callback::ALL {
            for &error in callback.errors() {
                let (unanswered, dead) = (is(error, DeviceError::NoAnswer), is(error, DeviceError::Dead));
                let per_mille = match self {
                    Self::Refusals if !unanswered && !dead => 15,
                    Self::NoAnswer if unanswered => 5,
                    // Those who die are killed by `changer`, which revives them.
                    _ => continue,
                };
                sim.fail_chance(callback, per_mille, error);
            }
        }
    }
}

/// What each worker's byte of each page must be.
type Bytes = Rc<RefCell<Vec<Vec<Byte>>>>;

/// What a byte is. A store by a context that the core had given up is refused, and may have been made.
#[derive(Clone, Default, Debug)]
struct Byte {
    stored: u8,
    strays: Vec<u8>,
}

impl Byte {
    fn certain(stored: u8) -> Self {
        Self { stored, strays: Vec::new() }
    }

    fn may_be(&self, byte: u8) -> bool {
        self.stored == byte || self.strays.contains(&byte)
    }
}

fn spot(page: u64, me: u64) -> Spot {
    Spot { space: 0, page, offset: me * STRIPE + 7, len: 1 }
}

/// Accesses, launches, and calls that move pages but change no byte. Answers how many of its accesses were made.
fn worker(world: &CoreWorld, me: u64, seed: u64, steps: u32, bytes: &Bytes) {
    let mut rng = Rng::stream(seed, 0x5000 + me);
    for _ in 0..steps {
        let page = if rng.coin() { rng.below(4) } else { rng.below(PAGES) };
        let spot = spot(page, me);
        let device = rng.index(world.members.len());
        let fill = rng.draw() as u8;
        let run = PageRun { space: 0, first: page, count: 1 + rng.below((PAGES - page).min(4)) };
        let op = match rng.weighted(&[20, 20, 25, 25, 6, 4, 3]) {
            0 => Op::CpuRead(spot),
            1 => Op::CpuWrite(spot, fill),
            2 => Op::DevRead(device, spot),
            3 => Op::DevWrite(device, spot, fill),
            4 => Op::Launch(device, run, spot, fill),
            5 => Op::Prefetch(run, rng.coin().then_some(device)),
            _ => Op::Evict(device, 1 + rng.index(4)),
        };
        world.act(&op, &mut |touched| {
            let byte = &mut bytes.borrow_mut()[me as usize][page as usize];
            match touched {
                Touched::Loaded(_, loaded) => {
                    assert!(byte.may_be(loaded[0]), "worker {me} loaded {}, but it stored {byte:?}, by {op:?}", loaded[0]);
                    // Whether a store that strayed was made to the page has shown.
                    *byte = Byte::certain(loaded[0]);
                }
                Touched::Stored(..) => *byte = Byte::certain(spot.bytes(fill)[0]),
                Touched::Astray(..) => byte.strays.push(spot.bytes(fill)[0]),
            }
        });
        world.background();
    }
}

/// Takes access to the pages of the workers away and gives it back, and maps and unmaps others beside them.
fn mapper(world: &CoreWorld, seed: u64, steps: u32) {
    let mut rng = Rng::stream(seed, 0x6000);
    for _ in 0..steps {
        let run = PageRun { space: 0, first: PAGES + rng.below(8), count: 1 + rng.below(8) };
        let shared = PageRun { space: 0, first: rng.below(PAGES - 8), count: 1 + rng.below(8) };
        let device = rng.index(world.members.len());
        let beside = Spot { space: 0, page: run.first, offset: 0, len: 16 };
        let op = match rng.weighted(&[3, 2, 2, 2, 1, 2, 3]) {
            0 => Op::Map(run, Prot::RW, Backing::Shared),
            1 => Op::Unmap(run),
            2 => Op::DevWrite(device, beside, 1),
            3 => Op::CpuWrite(beside, 2),
            4 => Op::Discard(run),
            5 => Op::Protect(shared, Prot::READ),
            _ => Op::Protect(PageRun { space: 0, first: 0, count: PAGES }, Prot::RW),
        };
        world.perform(&op);
        yield_point(Reason::Step);
    }
}

/// Detaches and attaches what the workers use, in both address spaces of the same addresses.
fn changer(world: &CoreWorld, seed: u64, steps: u32, trouble: Trouble) {
    let mut rng = Rng::stream(seed, 0x7000);
    for _ in 0..steps {
        let device = rng.index(world.members.len());
        let space = [0, 0, 2][rng.index(3)];
        let modes = &world.shape.devices[device];
        let mode = modes[rng.index(modes.len())];
        let op = match rng.weighted(&[2, 4, 1, u32::from(trouble == Trouble::Deaths)]) {
            0 => Op::Detach(space, device),
            1 => Op::Attach { space, device, mode, activate: rng.coin() },
            2 => Op::Switch(device, rng.coin().then_some(space)),
            _ => Op::Lose(device, rng.coin()),
        };
        world.perform(&op);
        yield_point(Reason::Step);
    }
}

fn begin(kind: &Kind, seed: u64, trouble: Trouble, canary: Option<Canary>) -> CoreWorld {
    let mut world = kind.make_with(&Sim::new(seed), canary);
    world.interleaved = true;
    let map = PageRun { space: 0, first: 0, count: PAGES };
    assert_eq!(world.apply(&Op::Map(map, Prot::RW, Backing::Shared)), Outcome::Done);
    for device in 0..world.members.len() {
        let mode = world.shape.devices[device][0];
        assert_eq!(world.apply(&Op::Attach { space: 0, device, mode, activate: true }), Outcome::Done);
    }
    trouble.prepare(&world.sim);
    world
}

/// Nothing fails any more: every byte must be there, and everything must come apart.
fn end(mut world: CoreWorld, bytes: &Bytes) {
    world.sim.clear_failures();
    world.verify().unwrap_or_else(|why| panic!("afterwards, {why}"));
    world.check_tables().unwrap_or_else(|why| panic!("afterwards, {why}"));
    for share in [true, false] {
        for device in 0..world.members.len() {
            if world.shape.devices[device].contains(&Mode::Share) == share {
                let detached = world.apply(&Op::Detach(0, device));
                assert!(matches!(detached, Outcome::Done | Outcome::Refused(Refusal::Invalid)), "device {device}: {detached:?}");
            }
        }
    }
    assert_eq!(world.apply(&Op::Protect(PageRun { space: 0, first: 0, count: PAGES }, Prot::RW)), Outcome::Done);
    for me in 0..WORKERS {
        for page in 0..PAGES {
            let right = &bytes.borrow()[me as usize][page as usize];
            let loaded = world.apply(&Op::CpuRead(spot(page, me)));
            assert!(
                matches!(&loaded, Outcome::Loaded(byte) if right.may_be(byte[0])),
                "page {page} of worker {me}: {loaded:?}, but it stored {right:?}"
            );
        }
    }
    world.tear_down();
}

fn interleave(kind: &Kind, seed: u64, trouble: Trouble, canary: Option<Canary>) {
    let world = Rc::new(RefCell::new(Some(begin(kind, seed, trouble, canary))));
    let bytes: Bytes = Rc::new(RefCell::new(vec![vec![Byte::default(); PAGES as usize]; WORKERS as usize]));
    let mut scheduler = Scheduler::new(seed);
    for me in 0..WORKERS {
        let (world, bytes) = (world.clone(), bytes.clone());
        scheduler.spawn(format!("worker {me}"), move || worker(world.borrow().as_ref().expect("not yet taken"), me, seed, 60, &bytes));
    }
    let mapping = world.clone();
    scheduler.spawn("mapper", move || mapper(mapping.borrow().as_ref().expect("not yet taken"), seed, 40));
    let changing = world.clone();
    scheduler.spawn("changer", move || changer(changing.borrow().as_ref().expect("not yet taken"), seed, 30, trouble));
    scheduler.run();
    end(world.take().expect("nobody took it"), &bytes);
}

fn every_seed(trouble: Trouble) {
    for kind in [STANDARD, MIXED, REPLICAS] {
        for seed in seeds(12) {
            let run = std::panic::catch_unwind(|| interleave(&kind, seed, trouble, None));
            assert!(run.is_ok(), "{} with {trouble:?}, seed {seed} failed", kind.name);
        }
    }
}

#[test]
fn contexts_come_and_go() {
    every_seed(Trouble::None);
}

#[test]
fn calls_are_refused() {
    every_seed(Trouble::Refusals);
}

#[test]
fn devices_do_not_answer() {
    every_seed(Trouble::NoAnswer);
}

#[test]
fn devices_die() {
    every_seed(Trouble::Deaths);
}

#[test]
fn canaries_are_noticed() {
    for canary in [Canary::KeepsTranslations, Canary::TearsCopies] {
        let noticed = |seed: &u64| std::panic::catch_unwind(|| interleave(&MIXED, *seed, Trouble::None, Some(canary))).is_err();
        assert_ne!((0..4).filter(noticed).count(), 0, "{canary:?} was not noticed");
    }
}
