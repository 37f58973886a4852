//! Devices that die: while they hold pages, while they run, and in the middle of a callback.

use super::stopping::Ending;
use super::translation::page;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{Unit, World, at, eventually, get, part, pattern, same_bytes, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, DeviceError};
use gmem::{Access, Error, Mode, Prot, RangeError, Region, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "device-lost-while-it-holds-pages",
        rule: "When a device dies that holds pages, whoever reads them next has their bytes or an error, never zeros; other contexts go on, and another attach uses the memory again.",
        place: "gmem-hal `Upcalls::device_lost`",
        applies: Applies::OWN_TABLE,
        run: device_lost_while_it_holds_pages,
    },
    Check {
        name: "device-lost-while-it-runs",
        rule: "When a device dies in the middle of its work the work ends with an error, what it stored is kept and no other value appears, and others who wait for its pages go on.",
        place: "gmem-hal `Upcalls::device_lost`",
        applies: Applies::OWN_TABLE.once(),
        run: device_lost_while_it_runs,
    },
    Check {
        name: "device-that-dies-in-a-callback",
        rule: "When a device dies in any callback no byte is lost, nobody waits, and its frames are free; once its driver answers Dead the core takes it for dead.",
        place: "gmem-hal `DeviceError::Dead`",
        applies: Applies::OWN_TABLE.once(),
        run: device_that_dies_in_a_callback,
    },
];

/// Has the device die in the context of `unit`, and waits until the core knows.
fn kill(unit: &Unit) -> Outcome {
    if !unit.specimen.kill(&unit.context) {
        let pmap = unit.context.pmap().ok_or(Stop::Failed("a context with a table of its own has none".into()))?;
        stop_by_force(unit)?;
        unit.observed.call(move |id, core| core.device_lost(id, pmap));
    }
    eventually(|| if unit.context.is_fenced() { Ok(()) } else { Err(Stop::Failed("the device died, and the core goes on with it".into())) })
}

fn stop_by_force(unit: &Unit) -> Outcome {
    let Some(pmap) = unit.context.pmap() else { return Ok(()) };
    match unit.observed.stop_by_force(pmap) {
        Err(DeviceError::Unsupported) => Err(Stop::NotApplicable("the device cannot be made to die, nor be stopped by force".into())),
        answer => Ok(answer?),
    }
}

/// A peer may deal its memory out in large blocks, of which two contexts need one each.
fn memory(case: &Case<'_>, pages: u64) -> u64 {
    let peer = case.target().info().capabilities.contains(Capabilities::PEER);
    if peer { (96 << 20) / case.size().bytes() } else { pages }
}

/// The CPU finds `expected` at the beginning of page `n`, or the page cannot be brought home and stays where it is.
fn bytes_or_an_error(world: &World, region: &Region, n: u64, expected: &[u8]) -> Outcome {
    let whole = part(region, n * world.page(), world.page());
    match world.space.prefetch(whole, None, Access::Read) {
        Ok(_) => same_bytes(
            &format!("page {n}, as the CPU reads it"),
            &crate::world::get_bytes(page(world, region, n), expected.len()),
            expected,
        ),
        // To touch it would end the program, which is an error too. Nobody may take it for blank.
        Err(Error::Range(RangeError::Fault(..))) => {
            let state = super::translation::state(world, page(world, region, n))?;
            ensure!(![State::Unmapped, State::Host].contains(&state), "page {n} cannot be brought home, and its state is {state:?}");
            Ok(())
        }
        Err(other) => Err(other.into()),
    }
}

fn device_lost_while_it_holds_pages(case: &Case<'_>) -> Outcome {
    let World { unit, space, gmem, size } = case.world(memory(case, 8))?;
    let mut world = World { unit, space, gmem, size };
    let (second, beside) = (case.unit(&world.gmem, &world.space, memory(case, 8))?, world.gmem.address_space().create()?);
    let neighbour = case.attach(&beside, &world.unit.device)?;
    let (region, theirs) = (world.region(5)?, beside.region().page_size(case.size()).map(world.page())?);
    world.unit.specimen.write(&neighbour, theirs.range().start(), &7u64.to_ne_bytes())?;
    let len = world.page() as usize;
    let mut expected: Vec<_> = (0..4).map(|n| pattern(n, len)).collect();
    // By the CPU; by the device; by the CPU, and the device reads it; by the device after the CPU; and nobody touched the last.
    set_bytes(page(&world, &region, 0), &expected[0]);
    world.unit.write(page(&world, &region, 1), &expected[1])?;
    set_bytes(page(&world, &region, 2), &expected[2]);
    world.unit.load(page(&world, &region, 2))?;
    set_bytes(page(&world, &region, 3), &expected[3]);
    world.unit.store(page(&world, &region, 3), 33)?;
    expected[3][..8].copy_from_slice(&33u64.to_ne_bytes());
    expected.push(vec![0; len]);
    kill(&world.unit)?;
    ensure!(world.unit.load(page(&world, &region, 1)).is_err(), "a device that died loads");
    ensure!(world.unit.store(page(&world, &region, 4), 1).is_err(), "a device that died stores");
    // The other device is the first to read some, and the CPU others.
    for n in [1, 2] {
        let mut seen = vec![1; len];
        if second.read(page(&world, &region, n), &mut seen).is_ok() {
            same_bytes(&format!("page {n}, as the other device reads it"), &seen, &expected[n as usize])?;
        }
    }
    (0..5).try_for_each(|n| bytes_or_an_error(&world, &region, n, &expected[n as usize]))?;
    second.store(page(&world, &region, 4), 44)?;
    ensure_eq!("what the other device stores", get(page(&world, &region, 4)), 44);
    expected[4][..8].copy_from_slice(&44u64.to_ne_bytes());
    world.unit.specimen.write(&neighbour, theirs.range().start(), &8u64.to_ne_bytes())?;
    ensure_eq!("what the device stores in another address space", get(theirs.range().start().get()), 8);
    // It can come again.
    let device = world.unit.device.clone();
    world.unit.context.detach()?;
    let held: u64 = device.memory().iter().map(|memory| memory.quarantined.get()).sum();
    ensure_eq!("bytes held back for a device that is certain to be dead", held, 0);
    world.unit.context = case.attach(&world.space, &device)?;
    for n in 0..5 {
        let mut seen = vec![1; len];
        world.unit.read(page(&world, &region, n), &mut seen)?;
        same_bytes(&format!("page {n}, as the device reads it after another attach"), &seen, &expected[n as usize])?;
    }
    world.verify()
}

fn device_lost_while_it_runs(case: &Case<'_>) -> Outcome {
    let world = case.world(memory(case, 4))?;
    let second = case.unit(&world.gmem, &world.space, memory(case, 4))?;
    let region = world.region(2)?;
    let (word, storing) = (at(&region, 8), Ending(Arc::default()));
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let read = std::thread::scope(|threads| -> Result<u64, Stop> {
        let storing = Ending(storing.0.clone());
        let kernel = threads.spawn({
            let (storing, unit) = (storing.0.clone(), &world.unit);
            move || unit.store_on(word, &storing)
        });
        eventually(|| if storing.0.stored() > 0 || kernel.is_finished() { Ok(()) } else { Err(()) })
            .map_err(|()| Stop::Failed("the device stores nothing".into()))?;
        ensure!(!kernel.is_finished(), "the device could not store: {:?}", kernel.join());
        // Another device wants the page all the time: it sees it go up, or has an error.
        let reader = threads.spawn(|| -> Result<u64, Stop> {
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                if let Ok(now) = second.load(word) {
                    ensure!(now >= last, "another device reads {now} after {last}");
                    last = now;
                }
                reads.fetch_add(1, Ordering::SeqCst);
            }
            Ok(last)
        });
        let killed = kill(&world.unit);
        // It reads on when the first is dead, whatever it waited for.
        let until = reads.load(Ordering::SeqCst) + 2;
        let reads_on = eventually(|| if reads.load(Ordering::SeqCst) >= until || reader.is_finished() { Ok(()) } else { Err(()) });
        done.store(true, Ordering::SeqCst);
        if killed.is_err() {
            storing.0.end();
        }
        let read = reader.join().unwrap_or_else(|_| Err(Stop::Failed("the reader panicked".into())));
        killed?;
        let read = read?;
        ensure!(reads_on.is_ok(), "whoever waits for a page of a device that died waits on");
        let ended = kernel.join().map_err(|_| Stop::Failed("the launching thread panicked".into()))?;
        ensure!(ended.is_err(), "the device died in its work, which ended as if it had been done");
        Ok(read)
    })?;
    let (stored, most) = (storing.0.stored(), storing.0.most());
    ensure!(read <= most, "another device read {read}, and the first had stored {stored} when it died, and no more than {most}");
    let whole = part(&region, 0, world.page());
    if world.space.prefetch(whole, None, Access::Read).is_ok() {
        let seen = get(word);
        ensure!(seen >= stored, "the word is {seen}, and the device said that it had stored {stored} before it died");
        ensure!(seen <= most, "the word is {seen}, and the device had stored {stored} when it died, and no more than {most}");
        ensure!(seen >= read, "the word is {seen}, and another device has read {read}");
        ensure_eq!("the word beside", get(word + 8), 0);
        second.store(word, 5)?;
        ensure_eq!("what another device stores", get(word), 5);
        std::thread::sleep(std::time::Duration::from_millis(10));
        ensure_eq!("the same, a little later", get(word), 5);
    }
    world.verify()
}

fn device_that_dies_in_a_callback(case: &Case<'_>) -> Outcome {
    let peer = case.target().info().capabilities.contains(Capabilities::PEER);
    let names: &[&'static str] = match case.mode() {
        Mode::Replicate => &["pmap_enter", "pmap_release", "pmap_protect", "tlb_invalidate"],
        _ if peer => &["map", "unmap"],
        _ => &["pmap_enter", "zero", "copy", "pmap_release", "tlb_invalidate", "copy home"],
    };
    for name in names {
        ensure!(dies_in(case, name)?, "the callback {name} was never made");
    }
    Ok(())
}

/// The device dies when the callback of this name is made next; says whether one was.
fn dies_in(case: &Case<'_>, name: &'static str) -> Result<bool, Stop> {
    let world = case.world(memory(case, 8))?;
    let second = case.unit(&world.gmem, &world.space, memory(case, 8))?;
    let region = world.region(4)?;
    for n in 0..2 {
        world.unit.store(page(&world, &region, n), 50 + n)?;
    }
    crate::world::set(page(&world, &region, 2), 52);
    let died = Arc::new(AtomicBool::new(false));
    let (observed, pmap, dead) = (Arc::downgrade(&world.unit.observed), world.unit.context.pmap(), died.clone());
    let unable = Arc::new(AtomicBool::new(false));
    let cannot = unable.clone();
    world.unit.observed.on_call(move |event| {
        if event.name == name
            && !dead.swap(true, Ordering::SeqCst)
            && let (Some(observed), Some(pmap)) = (observed.upgrade(), pmap)
        {
            cannot.store(observed.stop_by_force(pmap).is_err(), Ordering::SeqCst);
        }
    });
    // What causes each of them, and ends with an error at worst.
    let _ = world.unit.load(page(&world, &region, 2));
    let _ = world.unit.store(page(&world, &region, 3), 0);
    let second_page = part(&region, world.page(), world.page());
    region.protect(second_page, Prot::READ)?;
    region.protect(second_page, Prot::RW)?;
    region.discard(part(&region, 3 * world.page(), world.page()))?;
    let _ = world.space.prefetch(region.range(), None, Access::Write);
    world.unit.observed.on_call(|_| {});
    if unable.load(Ordering::SeqCst) {
        return Err(Stop::NotApplicable("the device cannot be stopped by force".into()));
    }
    let died = died.load(Ordering::SeqCst);
    // What grants may fail and be asked for again; of what revokes it is the last answer.
    let revoked = world.unit.observed.answered_dead(pmap);
    ensure!(!revoked || world.unit.context.is_fenced(), "the driver said Dead after its end in {name}, and the core goes on with it");
    for n in 0..4 {
        let expected = if n == 3 { 0 } else { 50 + n };
        bytes_or_an_error(&world, &region, n, &expected.to_ne_bytes())?;
        ensure_eq!(
            format!("page {n}, as another device reads it; the first died in {name}"),
            second.load(page(&world, &region, n))?,
            expected
        );
    }
    ensure!(!died || world.unit.store(page(&world, &region, 0), 1).is_err(), "a device that died in {name} stores");
    world.verify()?;
    let device = world.unit.device.clone();
    world.unit.context.detach()?;
    let rest: u64 = device.memory().iter().map(|memory| memory.used.get() + memory.quarantined.get()).sum();
    ensure_eq!(format!("bytes of the device that died in {name}, after its detach"), rest, 0);
    Ok(died)
}
