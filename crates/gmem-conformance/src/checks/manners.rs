//! How either side behaves inside a callback.

use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::observe::Event;
use crate::world::{Unit, World, at, get, part, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Access, Capabilities, FaultError, VirtAddr};
use gmem::{Mode, Prot};
use std::cell::Cell;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
        name: "fault-in-a-callback-passes-a-protect",
        rule: "A fault from inside a callback waits for nobody who waits for that callback, such as a protect of a page that was mapped with it.",
        place: "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"",
        applies: Applies::OWN_TABLE.needs(Capabilities::REPLAYABLE).once(),
        run: fault_in_a_callback_passes_a_protect,
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

/// The callbacks during which the core was called, and what it said.
type Answers = Arc<Mutex<Vec<(&'static str, Result<(), FaultError>)>>>;

fn callbacks_may_call_the_core(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let other = world.region(1)?;
    world.unit.store(at(&other, 0), 1)?;
    let (id, core) = world.unit.observed.upcalls().ok_or(Stop::Failed("the device was not started".into()))?;
    let pmap = world.unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
    let answers = Answers::default();
    let (seen, va) = (answers.clone(), other.range().start());
    let hook = move |event: &Event| {
        // A callback for that very page would wait for itself, and what the fault itself causes is not asked again.
        if !event.page.is_some_and(|(_, range)| range.contains(va)) && !INSIDE.replace(true) {
            let answer = core.device_fault(id, pmap, va, Access::Read, None);
            seen.lock().expect("no hook panics").push((event.name, answer));
            INSIDE.set(false);
        }
    };
    // The whole life of another device; and then the same device's other pages.
    let again = hook.clone();
    let second = case.unit_watched(&world.gmem, &world.space, 8, |observed| observed.on_call(hook))?;
    use_every_call(&world, &second)?;
    let observed = second.observed.clone();
    let crate::Unit { context, device, .. } = second;
    context.detach()?;
    drop(device);
    observed.on_call(|_| {});
    world.unit.observed.on_call(again);
    use_every_call(&world, &world.unit)?;
    world.unit.observed.on_call(|_| {});
    let answers = answers.lock().expect("no hook panics");
    if let Some((name, error)) = answers.iter().find_map(|(name, answer)| answer.err().map(|e| (name, e))) {
        return Err(Stop::Failed(format!("a fault for another page from inside {name}: {error}")));
    }
    let expected = expected_calls(case, observed.has_frames());
    let missing: Vec<_> = expected.iter().filter(|name| !answers.iter().any(|(seen, _)| seen == *name)).collect();
    ensure!(missing.is_empty(), "the core was never called from inside {missing:?}, which were not made");
    world.verify()
}

/// While the device's first callback for one page is under way, somebody else begins to change what a third page allows, and waits for that callback.
fn fault_in_a_callback_passes_a_protect(case: &Case<'_>) -> Outcome {
    let world = case.world(8)?;
    let region = world.region(3)?;
    world.unit.store(at(&region, world.page()), 1)?;
    let (id, core) = world.unit.observed.upcalls().ok_or(Stop::Failed("the device was not started".into()))?;
    let pmap = world.unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
    let (pages, answers) = ([0, 1].map(|page| VirtAddr::new(at(&region, page * world.page()))), Answers::default());
    let (begin, begun) = channel();
    let seen = answers.clone();
    world.unit.observed.on_call(move |event: &Event| {
        if event.page.is_some_and(|(_, range)| range.contains(pages[0])) && begin.send(()).is_ok() {
            // Whoever protects does not say when it waits.
            std::thread::sleep(Duration::from_millis(50));
            let answer = core.device_fault(id, pmap, pages[1], Access::Read, None);
            seen.lock().expect("no hook panics").push((event.name, answer));
        }
    });
    std::thread::scope(|threads| -> Outcome {
        let (region, page) = (&region, world.page());
        let protects = threads.spawn(move || -> Outcome {
            let first = begun.recv();
            // The hook asks once.
            drop(begun);
            first.map_err(|_| Stop::Failed("no callback for a page was made".to_owned()))?;
            Ok(region.protect(part(region, 2 * page, page), Prot::READ)?)
        });
        world.unit.store(at(region, 0), 2)?;
        world.unit.observed.on_call(|_| {});
        protects.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })?;
    let answers = answers.lock().expect("no hook panics");
    ensure!(
        !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_ok()),
        "a fault from inside a callback, beside a protect: {answers:?}"
    );
    ensure_eq!("the words", [get(at(&region, 0)), get(at(&region, world.page()))], [2, 1]);
    world.verify()
}

/// What gmem calls in the life of a device that is used so.
fn expected_calls(case: &Case<'_>, frames: bool) -> Vec<&'static str> {
    let mut names = vec!["memory_registered", "memory_unregistered", "pmap_create", "switch_context", "pmap_protect", "pmap_destroy"];
    let peer = case.target().info().capabilities.contains(Capabilities::PEER);
    names.extend_from_slice(match case.mode() {
        Mode::CoherentExclusive if peer => &["va_alloc_fixed", "map", "unmap", "va_free"],
        Mode::CoherentExclusive => {
            &["zero", "copy", "copy home", "pmap_enter", "pmap_release", "tlb_invalidate", "tlb_invalidate_coalesced"]
        }
        _ => &["pmap_enter", "pmap_release"],
    });
    names.extend_from_slice(if frames && case.mode() == Mode::CoherentExclusive { &["alloc_frame", "free_frame"] } else { &[] });
    names
}

fn use_every_call(world: &World, unit: &Unit) -> Outcome {
    let region = world.region(4)?;
    for n in 0..4 {
        set(page(world, &region, n), n);
        unit.add(page(world, &region, n), 1)?;
        ensure_eq!("the word", get(page(world, &region, n)), n + 1);
    }
    region.discard(region.range())?;
    for n in 0..4 {
        unit.store(page(world, &region, n), n)?;
    }
    // Several at once are invalidated in one request.
    unit.device.evict(3);
    for n in 0..4 {
        unit.store(page(world, &region, n), n)?;
    }
    region.protect(region.range(), Prot::READ)?;
    region.unmap(region.range())?;
    Ok(())
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
