//! Launches: what one holds, and how a driver answers for what it cannot run.

use super::stopping::Ending;
use super::translation::{evict, page, state};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, Device, LaunchError, LaunchRequest, Ticket};
use gmem::{Mode, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "launch-holds-what-it-names",
        rule: "A launch on a device that cannot replay holds what it names and nothing else: those pages stay, the CPU waits for the launch, and others come and go.",
        place: "ARCHITECTURE.md \"What orders two operations\"",
        applies: Applies::EXCLUSIVE.without(Capabilities::REPLAYABLE),
        run: launch_holds_what_it_names,
    },
    Check {
        name: "launches-that-cannot-be-are-refused",
        rule: "A kernel that the device does not know, and a launch that was never started, are refused by name; nothing waits.",
        place: "gmem-hal `LaunchError`",
        applies: Applies::EVERYWHERE.once(),
        run: launches_that_cannot_be_are_refused,
    },
];

fn launch_holds_what_it_names(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    world.unit.store(page(&world, &region, 1), 9)?;
    let storing = Ending(Arc::default());
    std::thread::scope(|threads| {
        // Ends before the threads are waited for.
        let storing = Ending(storing.0.clone());
        let kernel = threads.spawn({
            let (storing, unit, word) = (storing.0.clone(), &world.unit, at(&region, 8));
            move || unit.store_on(word, &storing)
        });
        eventually(|| if storing.0.stored() > 0 || kernel.is_finished() { Ok(()) } else { Err(()) })
            .map_err(|()| Stop::Failed("the device stores nothing".into()))?;
        if storing.0.is_in_pieces() {
            return Err(Stop::NotApplicable("the subject's store_on is one launch after another, so none of them lasts".into()));
        }
        ensure!(!kernel.is_finished(), "the launch ended: {:?}", kernel.join());
        let seen = others_wait(&world, &region, &storing)?;
        kernel.join().map_err(|_| Stop::Failed("the launching thread panicked".into()))??;
        ensure_eq!("what the CPU reads after the launch, and what the launch stored last", seen, storing.0.stored());
        Outcome::Ok(())
    })?;
    world.verify()
}

/// While the launch holds page 0; and then it ends. Answers what the CPU then reads.
fn others_wait(world: &World, region: &Region, storing: &Ending) -> Result<u64, Stop> {
    evict(world, 4);
    ensure!(state(world, page(world, region, 0))?.on_device(), "a page that a launch holds was evicted");
    ensure_eq!("a page beside, which nobody holds", get(page(world, region, 1)), 9);
    let (begun, through) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| {
            begun.store(true, Ordering::SeqCst);
            let seen = get(at(region, 8));
            through.store(true, Ordering::SeqCst);
            seen
        });
        let before = storing.0.stored();
        eventually(|| if begun.load(Ordering::SeqCst) && storing.0.stored() > before { Ok(()) } else { Err(()) })
            .map_err(|()| Stop::Failed("the launch does not go on while the CPU waits for its page".into()))?;
        std::thread::sleep(Duration::from_millis(20));
        let early = through.load(Ordering::SeqCst);
        storing.0.end();
        let seen = waiting.join().map_err(|_| Stop::Failed("the CPU's thread panicked".into()))?;
        ensure!(!early, "the CPU read {seen} from a page that a launch holds");
        Ok(seen)
    })
}

fn launches_that_cannot_be_are_refused(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let observed = world.unit.observed.clone();
    if observed.compute().is_none() {
        return Err(Stop::NotApplicable("the driver offers no launches through gmem".into()));
    }
    let (pmap, replay) = (world.unit.context.pmap(), case.mode() == Mode::Share);
    let driver = observed.clone();
    let answers = observed.call(move |_, _| {
        let compute = driver.compute()?;
        let unknown = LaunchRequest { pmap, kernel: "gmem-conformance: a kernel that nobody has", args: &[], replay };
        Some((compute.start(&unknown), compute.wait(Ticket(u64::MAX))))
    });
    let (unknown, never) = answers.flatten().ok_or(Stop::Failed("the device was not started".into()))?;
    ensure_eq!("a launch of a kernel that nobody has", unknown, Err(LaunchError::UnknownKernel));
    ensure_eq!("a wait for a launch that was never started", never, Err(LaunchError::BadRequest));
    let region = world.region(1)?;
    world.unit.store(at(&region, 0), 3)?;
    ensure_eq!("the word that the device stores afterwards", get(at(&region, 0)), 3);
    world.verify()
}
