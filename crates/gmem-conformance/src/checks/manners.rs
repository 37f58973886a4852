//! How either side behaves inside a callback.

use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{at, get, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Access, Capabilities};
use std::cell::Cell;
use std::sync::{Arc, Mutex};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "callbacks-answer-in-time",
        rule: "A callback blocks for a bounded time.",
        place: "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"",
        applies: Applies::OWN_TABLE.once(),
        run: callbacks_answer_in_time,
    },
    Check {
        name: "callbacks-may-call-the-core",
        rule: "The core holds no lock of its own over a callback: from inside any, a fault for another page is resolved.",
        place: "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"",
        applies: Applies::OWN_TABLE.needs(Capabilities::REPLAYABLE).once(),
        run: callbacks_may_call_the_core,
    },
    Check {
        name: "callbacks-wait-for-nothing-of-their-own",
        rule: "A driver does not call the core for the page that it was called for.",
        place: "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"",
        applies: Applies::OWN_TABLE.once(),
        run: callbacks_wait_for_nothing_of_their_own,
    },
];

fn callbacks_answer_in_time(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    world.unit.store(at(&region, 0), 1)?;
    ensure_eq!("the word", get(at(&region, 0)), 1);
    // How long each took is the observer's business.
    region.unmap(region.range())?;
    world.verify()
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn callbacks_may_call_the_core(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let (region, other) = (world.region(4)?, world.region(1)?);
    world.unit.store(at(&other, 0), 1)?;
    let (id, core) = world.unit.observed.upcalls().ok_or(Stop::Failed("the device was not started".into()))?;
    let pmap = world.unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (seen, va) = (answers.clone(), other.range().start());
    world.unit.observed.on_call(move |event| {
        // What the fault itself causes is not asked again.
        if !INSIDE.replace(true) {
            let answer = core.device_fault(id, pmap, va, Access::Read, None);
            seen.lock().expect("no hook panics").push((event.name, answer));
            INSIDE.set(false);
        }
    });
    for n in 0..4 {
        set(page(&world, &region, n), n);
        world.unit.add(page(&world, &region, n), 1)?;
        ensure_eq!("the word", get(page(&world, &region, n)), n + 1);
    }
    region.unmap(region.range())?;
    world.unit.observed.on_call(|_| {});
    let answers = answers.lock().expect("no hook panics");
    ensure!(!answers.is_empty(), "no callback was made");
    if let Some((name, error)) = answers.iter().find_map(|(name, answer)| answer.err().map(|e| (name, e))) {
        return Err(Stop::Failed(format!("a fault for another page from inside {name}: {error}")));
    }
    world.verify()
}

fn callbacks_wait_for_nothing_of_their_own(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    for n in 0..2 {
        set(page(&world, &region, n), 1);
        world.unit.add(page(&world, &region, n), 1)?;
        // Whether a callback called for its own page is the observer's business; it answers such a call, so that nothing hangs.
        ensure_eq!("the word", get(page(&world, &region, n)), 2);
    }
    world.verify()
}
