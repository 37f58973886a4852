//! Memory that is short, or wanted by somebody else.

use super::steps::{both_read, settle, states};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{at, get, get_bytes, part, pattern, same_bytes, set, set_bytes};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, FaultError};
use gmem::{Access, Error, Mode, RangeError, State};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "full-device-refuses-and-loses-nothing",
        rule: "When the device's memory is full of pinned pages, sending another page there fails with NoDeviceMemory, the page stays home, and every byte is as it was.",
        place: "gmem-hal `FaultError::NoDeviceMemory`",
        applies: Applies::EXCLUSIVE,
        run: full_device_refuses_and_loses_nothing,
    },
    Check {
        name: "full-device-refuses-an-untouched-page",
        rule: "When the device's memory is full of pinned pages, it cannot have a page that nobody touched either; the page is still zero, and goes when there is room.",
        place: "gmem-hal `Frames::alloc_frame`",
        applies: Applies::EXCLUSIVE,
        run: full_device_refuses_an_untouched_page,
    },
    Check {
        name: "pages-pinned-for-io-stay-home",
        rule: "Memory that is pinned for the kernel's I/O comes home with its bytes and stays; the device has to wait for it where it would have to move.",
        place: "gmem `Region::pin_for_io`",
        applies: Applies::EVERYWHERE,
        run: pages_pinned_for_io_stay_home,
    },
];

/// The device holds exactly the first four pages of the region, all of them pinned there.
fn fill(case: &Case<'_>, pages: u64) -> Result<(crate::World, gmem::Region, Vec<u8>), Stop> {
    let world = case.world(4)?;
    let region = world.region(pages)?;
    let expected = pattern(1, 4 * world.page() as usize);
    set_bytes(at(&region, 0), &expected);
    let full = part(&region, 0, 4 * world.page());
    world.space.prefetch(full, Some(&world.unit.device), Access::Write)?;
    world.space.pin(full)?;
    Ok((world, region, expected))
}

fn full_device_refuses_and_loses_nothing(case: &Case<'_>) -> Outcome {
    let (world, region, mut expected) = fill(case, 5)?;
    let extra = pattern(2, world.page() as usize);
    set_bytes(at(&region, 4 * world.page()), &extra);
    let refused = world.unit.store(at(&region, 4 * world.page()), 0);
    ensure_eq!("a write to a page that does not fit", refused, Err(FaultError::NoDeviceMemory));
    let last = part(&region, 4 * world.page(), world.page());
    let refused = world.space.prefetch(last, Some(&world.unit.device), Access::Read);
    let no_memory = RangeError::Fault(last.start(), FaultError::NoDeviceMemory);
    ensure!(matches!(refused, Err(Error::Range(e)) if e == no_memory), "a prefetch of a page that does not fit: {refused:?}");
    let there = [State::Device, State::Device, State::Device, State::Device, State::Host];
    settle("where the pages are", &world, &region, &there)?;
    same_bytes("the page that did not fit", &get_bytes(at(&region, 4 * world.page()), extra.len()), &extra)?;
    // The device goes on with what it has.
    world.unit.store(at(&region, 0), 7)?;
    expected[..8].copy_from_slice(&7u64.to_ne_bytes());
    world.space.unpin(part(&region, 0, 4 * world.page()))?;
    world.unit.store(at(&region, 4 * world.page()), 8)?;
    ensure_eq!("the word of the page that fits now", get(at(&region, 4 * world.page())), 8);
    same_bytes("the others", &get_bytes(at(&region, 0), expected.len()), &expected)?;
    world.verify()
}

fn full_device_refuses_an_untouched_page(case: &Case<'_>) -> Outcome {
    let (world, region, expected) = fill(case, 6)?;
    ensure_eq!("a read of an untouched page", world.unit.load(at(&region, 4 * world.page())), Err(FaultError::NoDeviceMemory));
    ensure_eq!("a write to an untouched page", world.unit.store(at(&region, 5 * world.page()), 1), Err(FaultError::NoDeviceMemory));
    ensure_eq!("where they are", states(&world, &region)?[4..], [State::Unmapped; 2]);
    world.space.unpin(part(&region, 0, 4 * world.page()))?;
    world.unit.store(at(&region, 4 * world.page() + 8), 1)?;
    ensure_eq!("the words beside the one written", [0, 16].map(|offset| get(at(&region, 4 * world.page() + offset))), [0, 0]);
    ensure_eq!("the word of the other page", get(at(&region, 5 * world.page())), 0);
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}

fn pages_pinned_for_io_stay_home(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let expected = pattern(1, region.range().len().get() as usize);
    world.unit.write(at(&region, 0), &expected)?;
    let middle = part(&region, world.page(), world.page());
    let pin = region.pin_for_io(middle)?;
    let held: Vec<_> = world.residency(&region)?.into_iter().filter(|run| run.pinned).map(|run| (run.range, run.state)).collect();
    ensure_eq!("what is pinned, and where", held, [(middle, State::Host)]);
    // The kernel takes the bytes from there, and puts others.
    let (mut from, mut to) = std::io::pipe()?;
    let mut bytes = [0; 4096];
    let start = world.page() as usize;
    to.write_all(&get_bytes(middle.start().get(), 4096))?;
    from.read_exact(&mut bytes)?;
    same_bytes("the page that came home", &bytes, &expected[start..start + 4096])?;
    let moves = case.mode() == Mode::CoherentExclusive;
    let (let_go, word) = (AtomicBool::new(false), middle.start().get() + 8);
    std::thread::scope(|threads| -> Outcome {
        let device = threads.spawn(|| -> Outcome {
            world.unit.add(word, 1)?;
            ensure!(let_go.load(Ordering::SeqCst) || !moves, "the device took a page that is pinned for I/O");
            Ok(())
        });
        std::thread::sleep(std::time::Duration::from_millis(10));
        // The CPU need not wait, and neighbours come and go.
        set(middle.start().get(), 70);
        if case.target().info().capabilities.contains(Capabilities::REPLAYABLE) && !moves {
            world.unit.load(at(&region, 0))?;
        }
        let_go.store(true, Ordering::SeqCst);
        drop(pin);
        device.join().unwrap_or_else(|_| Err(Stop::Failed("the device's thread panicked".to_owned())))
    })?;
    let old = u64::from_ne_bytes(expected[start + 8..][..8].try_into().expect("eight bytes"));
    ensure_eq!("what either side did to it", [get(middle.start().get()), get(word)], [70, old.wrapping_add(1)]);
    world.verify()
}
