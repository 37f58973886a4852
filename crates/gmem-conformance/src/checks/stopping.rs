//! The end of a context while its device is at work: stopped by force, or dead of itself.

use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, eventually, get, part, set};
use crate::{Case, Storing, ensure, ensure_eq};
use gmem::hal::{Access, Capabilities, DeviceError};
use gmem::{Mode, Prot, VirtAddr};
use std::sync::Arc;
use std::time::Duration;

pub(super) const CHECKS: &[Check] = &[Check {
    name: "fenced-context-touches-nothing",
    rule: "After a fence the context touches no memory, not even by what was under way; what it had is not lost, and its frames are another's.",
    place: "gmem-hal `Device::fence`",
    applies: Applies::OWN_TABLE.once(),
    run: fenced_context_touches_nothing,
}];

/// Has a device that stores in a loop come to an end, whatever becomes of the check.
pub(super) struct Ending(pub(super) Arc<Storing>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn fenced_context_touches_nothing(case: &Case<'_>) -> Outcome {
    // Memory for a second context too, since a peer may deal it out in blocks.
    let peer = case.target().info().capabilities.contains(Capabilities::PEER);
    let world = case.world(if peer { (8 << 20) / case.size().bytes() } else { 4 })?;
    let region = world.region(2)?;
    let (word, other) = (at(&region, 8), page(&world, &region, 1));
    world.unit.store(other, 11)?;
    let storing = Ending(Arc::default());
    std::thread::scope(|threads| {
        // Ends before the threads are waited for.
        let storing = Ending(storing.0.clone());
        let kernel = threads.spawn({
            let (storing, unit) = (storing.0.clone(), &world.unit);
            move || unit.store_on(word, &storing)
        });
        eventually(|| if storing.0.stored() > 0 || kernel.is_finished() { Ok(()) } else { Err(()) })
            .map_err(|()| Stop::Failed("the device stores nothing".into()))?;
        let before = storing.0.stored();
        ensure!(before > 0, "the device could not store: {:?}", kernel.join());
        // A page beside is wanted, and the device does not answer.
        let revoke = match case.mode() {
            Mode::Replicate => "pmap_protect",
            _ if peer => "unmap",
            _ => "tlb_invalidate",
        };
        world.unit.observed.fail(revoke, 0, DeviceError::NoAnswer);
        match case.mode() {
            Mode::Replicate => region.protect(part(&region, world.page(), world.page()), Prot::READ)?,
            _ => ensure_eq!("what the CPU reads while the device does not answer", get(other), 11),
        }
        ensure!(world.unit.context.is_fenced(), "a revoke was not answered, and the context goes on");
        let confirmed = world.unit.observed.is_stopped(world.unit.context.pmap());
        if case.mode() == Mode::Replicate && !confirmed {
            return Err(Stop::NotApplicable("the driver cannot stop its device, which then goes on writing the host's memory".into()));
        }
        // Once a device that was stopped has come to its end, all that it told is there, and nothing that it did not store.
        let ended = confirmed && eventually(|| if kernel.is_finished() { Ok(()) } else { Err(()) }).is_ok();
        let stored = if confirmed { storing.0.stored() } else { before };
        let most = if ended { storing.0.most() } else { u64::MAX };
        silent("the word that it was storing to", &storing.0, || get(word), |now| (stored..=most).contains(&now))?;
        // A device that could not be stopped may use what it has, which is nobody's, and gets nothing new.
        ensure!(!confirmed || world.unit.store(word, 12).is_err(), "the device stores after it was fenced");
        ensure!(world.unit.load(other).is_err(), "the device loads after it was fenced");
        ensure_eq!("the other word", get(other), 11);
        if case.mode() == Mode::CoherentExclusive && confirmed {
            used_again(case, &world, &storing.0)?;
        }
        Ok(())
    })?;
    world.verify()
}

/// How often a word is looked at that nobody writes, and how long between.
const LOOKS: (u32, Duration) = (4, Duration::from_millis(5));

/// A word has a good value, and keeps it although a device was storing there.
fn silent(what: &str, storing: &Storing, look: impl Fn() -> u64, good: impl Fn(u64) -> bool) -> Outcome {
    let first = look();
    ensure!(good(first), "{what}: it is {first:#x}, the device said that it had stored {}", storing.stored());
    for _ in 0..LOOKS.0 {
        std::thread::sleep(LOOKS.1);
        ensure_eq!(format!("{what}, which nobody writes"), look(), first);
    }
    Ok(())
}

/// The frames that a stopped context had are used by another one, and are its alone.
fn used_again(case: &Case<'_>, world: &World, storing: &Storing) -> Outcome {
    const WORD: u64 = 0x5ca1_ab1e_0ddb_a115;
    let space = world.gmem.address_space().create()?;
    let context = case.attach(&space, &world.unit.device)?;
    let region = space.region().page_size(world.size).map(4 * world.page())?;
    let words: Vec<_> = (0..4).map(|n| page(world, &region, n) + 8).collect();
    words.iter().for_each(|word| set(*word, WORD));
    for round in 0..2 {
        // All of its memory, so the frame that was stored to is among them.
        space.prefetch(region.range(), Some(&world.unit.device), Access::Write)?;
        let look = |word: u64| {
            let mut bytes = [0; 8];
            world.unit.specimen.read(&context, VirtAddr::new(word), &mut bytes).map(|()| u64::from_ne_bytes(bytes))
        };
        for word in &words {
            ensure_eq!(format!("round {round}: a word of another context"), look(*word)?, WORD);
        }
        std::thread::sleep(LOOKS.1);
        for word in &words {
            silent("a word of another context", storing, || look(*word).unwrap_or(0), |now| now == WORD)?;
        }
        words.iter().try_for_each(|word| {
            ensure_eq!(format!("round {round}: a word of another context, at home"), get(*word), WORD);
            Outcome::Ok(())
        })?;
    }
    Ok(())
}
