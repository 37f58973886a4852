//! The core against random operations while callbacks fail: a refusal is always excused, wrong bytes never are.

use gmem_explore::{CoreWorld, Hunt, seeds};
use gmem_hal::DeviceError;
use gmem_sim::random::Tolerance;
use gmem_sim::{Callback, Injected, Rng};

const TOLERANCE: Tolerance = Tolerance { failures: true };

fn is(error: &Injected, wanted: DeviceError) -> bool {
    *error == Injected::Device(wanted) || *error == Injected::Peer(gmem_hal::PeerError::Device(wanted))
}

/// Errors after which the device goes on: those leave every byte where it was.
fn harmless(callback: Callback) -> impl Iterator<Item = &'static Injected> {
    callback.errors().iter().filter(|error| !is(error, DeviceError::Dead) && !is(error, DeviceError::NoAnswer))
}

#[test]
fn each_callback_may_fail_by_itself() {
    for &callback in Callback::ALL {
        if matches!(callback, Callback::DeviceStart | Callback::SpaceCreate | Callback::Fence) {
            continue;
        }
        for &error in harmless(callback) {
            for seed in seeds(2) {
                eprintln!("{} answers {error:?}, seed {seed}", callback.name());
                let prepare = move |world: &CoreWorld, _: u64| world.sim.fail_chance(callback, 100, error);
                Hunt { steps: 800, tolerance: TOLERANCE, prepare: Box::new(prepare), ..Hunt::default() }.run(seed..seed + 1);
            }
        }
    }
}

#[test]
fn every_callback_may_fail_at_once() {
    let prepare = |world: &CoreWorld, seed| {
        let mut rng = Rng::stream(seed, 0xfa11);
        for &callback in Callback::ALL {
            for &error in harmless(callback) {
                world.sim.fail_chance(callback, rng.below(40) as u16, error);
            }
        }
    };
    Hunt { tolerance: TOLERANCE, prepare: Box::new(prepare), ..Hunt::default() }.run(seeds(10));
}

#[test]
fn a_device_may_not_answer() {
    let prepare = |world: &CoreWorld, seed| {
        let mut rng = Rng::stream(seed, 0xfa12);
        for &callback in Callback::ALL {
            for &error in callback.errors().iter().filter(|error| is(error, DeviceError::NoAnswer)) {
                world.sim.fail_chance(callback, rng.below(4) as u16, error);
            }
        }
    };
    Hunt { tolerance: TOLERANCE, prepare: Box::new(prepare), ..Hunt::default() }.run(seeds(10));
}

/// A protect of several regions that the host refuses half-way is undone, and the host cannot refuse that: the old protection is in force everywhere.
#[test]
fn a_protect_refused_half_way_is_undone() {
    let error = Injected::Host(gmem_hal::HostError::NoMemory);
    let prepare = move |world: &CoreWorld, _: u64| world.sim.fail_chance(Callback::RegionProtect, 100, error);
    Hunt { steps: 800, tolerance: TOLERANCE, prepare: Box::new(prepare), ..Hunt::default() }.run(seeds(10));
    // The seed that found the undoing refused.
    Hunt { steps: 800, tolerance: TOLERANCE, prepare: Box::new(prepare), ..Hunt::default() }.run(143..144);
}
