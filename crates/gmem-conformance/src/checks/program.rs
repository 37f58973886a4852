//! What the program does to unified memory without asking gmem.

use super::steps::both_read;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, get, pattern, set, touch};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::FaultError;
use gmem::{Backing, Mode, Region};

pub(super) const CHECKS: &[Check] = &[Check {
    name: "memory-moved-by-mremap-is-never-zero-or-stale",
    rule: "Memory that the program moves by mremap is at its new place as it was, or cannot be touched there; the device has the right bytes of it or a fault.",
    place: "gmem-hal `HostError::Displaced`",
    applies: Applies::EVERYWHERE,
    run: memory_moved_by_mremap_is_never_zero_or_stale,
}];

/// A place and the word that belongs there.
#[derive(Clone, Copy)]
struct Word {
    page: u64,
    value: u64,
}

/// Page 0 was written by the CPU, page 1 by the device after the CPU, page 2 by the device alone.
const WORDS: [Word; 3] = [Word { page: 0, value: 10 }, Word { page: 1, value: 111 }, Word { page: 2, value: 12 }];

fn memory_moved_by_mremap_is_never_zero_or_stale(case: &Case<'_>) -> Outcome {
    // No device in REPLICATE mode can reach private backing.
    let both = [Backing::Shared, Backing::Private];
    let backings = if case.mode() == Mode::Replicate { &both[..1] } else { &both };
    for backing in backings {
        for word in WORDS {
            new_place(case, *backing, word, 0)?;
            new_place(case, *backing, word, libc::MREMAP_DONTUNMAP)?;
            let step = format!("the old place of page {} of {backing:?} backing", word.page);
            let ending = case.doomed(&step, || {
                let (world, region) = make(case, *backing).expect("a world");
                let old = at(&region, word.page * world.page());
                remap(&world, old, 0);
                touch(old);
            })?;
            ending.by_signal(libc::SIGSEGV)?;
        }
    }
    for backing in backings {
        WORDS.into_iter().try_for_each(|word| stays_right(case, *backing, word))?;
    }
    Ok(())
}

/// The new place of a page reads as the old one did, or the access ends the program.
fn new_place(case: &Case<'_>, backing: Backing, word: Word, flags: i32) -> Outcome {
    let step = format!("page {} of {backing:?} backing, moved with flags {flags:#x}", word.page);
    let ending = case.doomed(&step, || {
        let (world, region) = make(case, backing).expect("a world");
        let seen = get(remap(&world, at(&region, word.page * world.page()), flags));
        if seen != word.value {
            eprintln!("{step}: the new place reads {seen}, where {} was", word.value);
            std::process::abort();
        }
    })?;
    ending.alive_or_by(&[libc::SIGSEGV, libc::SIGBUS])
}

fn make(case: &Case<'_>, backing: Backing) -> Result<(World, Region), Stop> {
    let world = case.world(5)?;
    let region = world.space.region().page_size(case.size()).backing(backing).map(4 * world.page())?;
    set(at(&region, 0), 10);
    set(at(&region, world.page()), 11);
    world.unit.add(at(&region, world.page()), 100)?;
    world.unit.store(at(&region, 2 * world.page()), 12)?;
    Ok((world, region))
}

/// Moves the page of `word` away. The rest goes on as before, and what the device gets of the page is right if it gets it.
fn stays_right(case: &Case<'_>, backing: Backing, word: Word) -> Outcome {
    let (world, region) = &make(case, backing)?;
    let old = at(region, word.page * world.page());
    if case.mode() == Mode::Share {
        // The device would touch the old place as the CPU does.
        return Ok(());
    }
    let to = remap(world, old, 0);
    let seen = world.unit.load(old);
    ensure!(seen == Ok(word.value) || matches!(seen, Err(FaultError::Host(_))), "the device reads {seen:?} where {} was", word.value);
    let expected = pattern(1, world.page() as usize);
    world.unit.write(at(region, 3 * world.page()), &expected)?;
    both_read(world, region, 3 * world.page(), &expected)?;
    for other in WORDS.iter().filter(|other| other.page != word.page) {
        ensure_eq!(format!("page {}", other.page), get(at(region, other.page * world.page())), other.value);
    }
    // SAFETY: what was moved there is nobody's but ours.
    ensure_eq!("unmapping the new place", unsafe { libc::munmap(to as *mut _, world.page() as usize) }, 0);
    Ok(())
}

/// Moves a page to a place that is free, and beside which nothing lies that it could be merged with.
fn remap(world: &World, va: u64, flags: i32) -> u64 {
    let page = world.page() as usize;
    // SAFETY: reserves addresses and moves a page there; the check is about what follows.
    unsafe {
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = libc::mmap(std::ptr::null_mut(), 3 * page, libc::PROT_NONE, reserve, -1, 0);
        assert_ne!(room, libc::MAP_FAILED, "no addresses: {}", std::io::Error::last_os_error());
        let to = (room as usize + page).next_multiple_of(page) as *mut libc::c_void;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | flags;
        let moved = libc::mremap(va as *mut _, page, page, flags, to);
        assert_ne!(moved, libc::MAP_FAILED, "not moved: {}", std::io::Error::last_os_error());
        moved as u64
    }
}
