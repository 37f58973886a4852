//! Every callback made to fail once, at every point of a list of operations: a refusal needs its reason, and no byte is ever wrong.
//!
//! The list is run once with everything working, which counts the calls. Then it is run again for each callback, each of its calls and each error it may
//! answer with. An error that leaves the device working excuses the operation it hits and no other. After one that does not (a revoke that is not
//! answered, a death) the device's contexts may refuse, until they are detached; then everything must work again, with every byte there, because the
//! simulated memory of these devices outlives them.

use gmem_explore::worlds::{BACKINGS, Kind, MIXED, POOLS, REPLICAS, STANDARD};
use gmem_explore::{Judged, Point, injected, scripts, text};
use gmem_hal::{DeviceError, Mode};
use gmem_sim::random::{Generator, Op, Outcome, Tolerance, Weights, explore};
use gmem_sim::{Callback, Injected, Sim};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// What is done to which kind of world.
struct Script {
    kind: Kind,
    seed: u64,
    ops: Vec<Op>,
}

/// Runs a script with these failures. Answers how many of them came, and how often each callback was called.
fn run(script: &Script, points: &[Point]) -> Result<(usize, BTreeMap<Callback, u64>), String> {
    let sim = Sim::new(script.seed);
    for point in points {
        sim.fail_nth(point.callback, point.n, point.error);
    }
    let mut run = Judged::new(script.kind.make(&sim));
    let breaks = points.iter().any(|point| !point.leaves_it_working());
    for (at, op) in script.ops.iter().enumerate() {
        let broken = breaks && injected(&sim) > 0;
        run.step(op, broken).map_err(|why| format!("operation {at}, {why}"))?;
    }
    let calls = Callback::ALL.iter().map(|callback| (*callback, sim.coverage(*callback).calls)).collect();
    let came = injected(&sim) as usize;
    run.recover().map_err(|why| format!("at the end, {why}"))?;
    run.world.tear_down();
    Ok((came, calls))
}

/// Every call of every callback, with every error.
fn points(calls: &BTreeMap<Callback, u64>) -> Vec<Vec<Point>> {
    let mut all = Vec::new();
    for (&callback, &count) in calls {
        for n in 1..=count {
            for &error in callback.errors() {
                let point = Point { callback, n, error };
                all.push(vec![point]);
                // Only after a failed revoke is a context stopped by force.
                if point.answers(DeviceError::NoAnswer) {
                    for &error in Callback::Fence.errors() {
                        all.push(vec![point, Point { callback: Callback::Fence, n: 1, error }]);
                    }
                }
            }
        }
    }
    all
}

/// Runs a script with each of its points failing, on as many cores as there are.
fn fail_everywhere(script: &Script) {
    let (_, calls) = run(script, &[]).unwrap_or_else(|why| panic!("with nothing failing: {why}"));
    let all = points(&calls);
    let next = AtomicUsize::new(0);
    let covered: Mutex<BTreeMap<Callback, (u64, u64)>> = Mutex::default();
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some(points) = all.get(next.fetch_add(1, Relaxed)) {
            let answer = catch_unwind(AssertUnwindSafe(|| run(script, points))).unwrap_or_else(|panic| Err(text(&*panic)));
            match answer {
                Ok((came, _)) => {
                    let mut covered = covered.lock().expect("nobody panics with it");
                    for point in &points[..came.min(points.len())] {
                        covered.entry(point.callback).or_default().0 += 1;
                    }
                    covered.entry(points[0].callback).or_default().1 += 1;
                }
                Err(why) => wrong.lock().expect("nobody panics with it").push(format!("{points:?}: {why}")),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    let covered = covered.into_inner().expect("nobody panicked with it");
    eprintln!("{}: {} operations, {} runs", script.kind.name, script.ops.len(), all.len());
    for callback in Callback::ALL {
        let (came, runs) = covered.get(callback).copied().unwrap_or_default();
        eprintln!("  {:<26} called {:>5} times, failed in {came:>5} of {runs:>5} runs", callback.name(), calls[callback]);
    }
    let wrong = wrong.into_inner().expect("nobody panicked with it");
    assert!(wrong.is_empty(), "{} of {} runs went wrong, such as\n{}", wrong.len(), all.len(), wrong[..wrong.len().min(8)].join("\n"));
    let missed: Vec<_> = covered.iter().filter(|(_, (came, _))| *came == 0).map(|(callback, _)| callback.name()).collect();
    assert!(missed.is_empty(), "{missed:?} never failed");
}

/// The operations of a seed on a kind of world.
fn drawn(kind: Kind, seed: u64, steps: usize) -> Script {
    let mut ops = Vec::new();
    let sim: Arc<Sim> = Sim::new(seed);
    let mut generator = Generator::new(seed, Weights::everything());
    explore(&mut kind.make(&sim), &kind.shape(), &mut generator, steps, Tolerance::default(), &mut ops).expect("this seed is fine");
    ops.truncate(steps);
    Script { kind, seed, ops }
}

#[test]
fn in_a_tour_of_exclusive_devices() {
    let script = Script { kind: STANDARD, seed: 1, ops: scripts::exclusive() };
    let (_, calls) = run(&script, &[]).expect("nothing fails");
    let never: Vec<_> = calls.iter().filter(|(_, count)| **count == 0).map(|(callback, _)| *callback).collect();
    assert_eq!(never, [Callback::Fence], "only a failure makes the core fence a context");
    fail_everywhere(&script);
}

#[test]
fn in_a_tour_of_all_modes() {
    fail_everywhere(&Script { kind: MIXED, seed: 1, ops: scripts::all_modes() });
}

/// Seed by seed, as many operations as asked for; `GMEM_SIM_LONG` makes the lists several times as long, for more seeds.
fn fail_everywhere_in_random_operations(kind: Kind, first: u64) {
    let (seeds, steps) = if std::env::var_os("GMEM_SIM_LONG").is_some() { (4, 1000) } else { (1, 300) };
    for seed in first..first + seeds {
        fail_everywhere(&drawn(kind, seed, steps));
    }
}

#[test]
fn in_random_operations_on_exclusive_devices() {
    fail_everywhere_in_random_operations(STANDARD, 2);
}

#[test]
fn in_random_operations_in_all_modes() {
    fail_everywhere_in_random_operations(MIXED, 3);
}

#[test]
fn in_random_operations_on_replicas() {
    fail_everywhere_in_random_operations(REPLICAS, 1);
}

#[test]
fn in_random_operations_on_devices_with_several_pools() {
    fail_everywhere_in_random_operations(POOLS, 1);
}

#[test]
fn in_random_operations_on_both_backings() {
    fail_everywhere_in_random_operations(BACKINGS, 1);
}

#[test]
fn a_refusal_without_a_reason_is_noticed() {
    // An operation after the one that was hit may not be refused for it.
    let mut run = Judged::new(STANDARD.make(&Sim::new(1)));
    let attach = Op::Attach { space: 0, device: 0, mode: Mode::CoherentExclusive, activate: true };
    run.world.sim.fail_nth(Callback::PmapCreate, 1, Injected::Device(DeviceError::NoMemory));
    run.step(&attach, false).expect("this refusal has a reason");
    run.step(&attach, false).expect("nothing stands in its way now");
    let refused = Outcome::Refused(gmem_sim::random::Refusal::Failed);
    assert!(run.model.judge(&Op::Detach(0, 0), &refused, Tolerance::default()).is_err());
}
