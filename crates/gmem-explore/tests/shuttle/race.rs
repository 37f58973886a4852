//! Several verbs at once, and what must hold afterwards.

use super::arena::{Arena, PAGES, spot};
use super::driver::{Shuttle, forget};
use super::racer::{Racer, check};
use super::verb::Verb;
use gmem_explore::CoreWorld;
use gmem_hal::PageSize;
use gmem_sim::random::{Op, Outcome};
use gmem_sim::{Canary, Rng, drive};
use shuttle::rand::RngCore;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner, UngracefulShutdownConfig};

/// How often each race runs under each scheduler.
const RUNS: usize = 24;
/// How many changes of priority the schedules of PCT may need: bugs of one, two or three ordered events are found with a known chance.
const DEPTH: usize = 3;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// Runs these verbs at once, often.
pub(crate) fn race(verbs: &'static [Verb]) {
    let (runs, seed) = (number("GMEM_SHUTTLE_RUNS", RUNS as u64) as usize, number("GMEM_SHUTTLE_SEED", 0));
    run(RandomScheduler::new_from_seed(seed, runs), verbs, None);
    run(PctScheduler::new_from_seed(seed, DEPTH, runs), verbs, None);
}

/// Runs them as `scheduler` says, on devices with a defect or none.
pub(crate) fn run(scheduler: impl Scheduler + 'static, verbs: &'static [Verb], canary: Option<Canary>) {
    let mut config = Config::new();
    config.stack_size = 1 << 19;
    config.max_steps = MaxSteps::FailAfter(100_000);
    let mut shutdown = UngracefulShutdownConfig::new();
    shutdown.immediately_return_on_panic = true;
    config.ungraceful_shutdown_config = shutdown;
    Runner::new(scheduler, config).run(move || once(verbs, canary));
}

/// One race. The world is made and taken apart by one thread, which needs no schedule.
fn once(verbs: &'static [Verb], canary: Option<Canary>) {
    // A run that failed left its driver, and its sleepers.
    drive(None);
    forget();
    let seed = shuttle::rand::thread_rng().next_u64();
    let arena = Arena::new(verbs, &mut Rng::stream(seed, 0x6000), canary);
    drive(Some(&Shuttle));
    let racer = |me: usize| {
        let arena = &arena;
        move || Racer::new(arena, me as u64, seed).run(verbs[me])
    };
    let mine: Vec<_> = shuttle::thread::scope(|scope| {
        let racers: Vec<_> = (0..verbs.len()).map(|me| scope.spawn(racer(me))).collect();
        racers.into_iter().map(|racer| racer.join().expect("a panic ends the run")).collect()
    });
    drive(None);
    settle(arena, mine);
}

fn settle(arena: Arena, mut mine: Vec<[Option<u8>; PAGES as usize]>) {
    let world = &arena.world;
    world.sim.clear_failures();
    world.background();
    world.core.verify().unwrap_or_else(|why| panic!("afterwards, {why}"));
    world.check_tables().unwrap_or_else(|why| panic!("afterwards, {why}"));
    for (me, mine) in mine.iter_mut().enumerate() {
        for (page, mine) in mine.iter_mut().enumerate() {
            match world.perform(&Op::CpuRead(spot(me as u64, page as u64))) {
                Outcome::Loaded(bytes) => check(&arena, me as u64, page as u64, mine, &bytes),
                Outcome::Refused(why) => {
                    let gone = arena.is_given_up(page as u64) && [Verb::Unmap, Verb::Destroy].iter().any(|verb| arena.verbs.contains(verb));
                    assert!(gone, "afterwards page {page} cannot be read: {why:?}");
                }
                Outcome::Done => unreachable!("a load loads or is refused"),
            }
        }
    }
    let mut world = arena.world;
    revive(&mut world);
    world.tear_down();
}

/// Makes an address space in the place of one that was destroyed.
fn revive(world: &mut CoreWorld) {
    if world.core.space_range(world.spaces[0]).is_none() {
        let range = world.shape.space_range(0).align_outward(PageSize::Size2M).expect("it does not wrap");
        world.spaces[0] = world.core.space_create(range, true).expect("its addresses are free");
    }
}
