//! What the program does to unified memory without asking gmem.

use super::steps::both_read;
use super::translation::{evict, page};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{Unit, World, at, get, pattern, set, touch};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::FaultError;
use gmem::{Backing, Mode, Region};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "memory-moved-by-mremap-is-never-zero-or-stale",
        rule: "Memory that the program moves by mremap is at its new place as it was, or cannot be touched there; the device has the right bytes of it or a fault.",
        place: "gmem-hal `HostError::Displaced`",
        applies: Applies::EVERYWHERE,
        run: memory_moved_by_mremap_is_never_zero_or_stale,
    },
    Check {
        name: "memory-the-program-advises-away-is-old-or-zero",
        rule: "Memory that the program gives back to the kernel by MADV_FREE or MADV_DONTNEED reads as before or as zero on both sides, and keeps what is written to it next.",
        place: "gmem-hal `Backing`",
        applies: Applies::EVERYWHERE,
        run: memory_the_program_advises_away,
    },
    Check {
        name: "munmap-of-a-part-leaves-the-rest",
        rule: "After the program unmapped a part of a region by munmap the rest is right on both sides, and what the program puts there is left alone.",
        place: "gmem-hal `HostError::Displaced`",
        applies: Applies::EVERYWHERE,
        run: munmap_of_a_part_leaves_the_rest,
    },
    Check {
        name: "munmap-while-the-device-reads-shows-nothing-wrong",
        rule: "While the program unmaps half of a region by munmap a device that reads it has the right bytes or a fault, and of the other half the right bytes.",
        place: "gmem-hal `HostError::Displaced`",
        applies: Applies::OWN_TABLE,
        run: munmap_while_the_device_reads,
    },
];

/// The backings that a device in this mode can use: none in REPLICATE mode reaches private backing.
fn backings(case: &Case<'_>) -> &'static [Backing] {
    if case.mode() == Mode::Replicate { &[Backing::Shared] } else { &[Backing::Shared, Backing::Private] }
}

/// A place and the word that belongs there.
#[derive(Clone, Copy)]
struct Word {
    page: u64,
    value: u64,
}

/// Page 0 was written by the CPU, page 1 by the device after the CPU, page 2 by the device alone.
const WORDS: [Word; 3] = [Word { page: 0, value: 10 }, Word { page: 1, value: 111 }, Word { page: 2, value: 12 }];

fn memory_moved_by_mremap_is_never_zero_or_stale(case: &Case<'_>) -> Outcome {
    let backings = backings(case);
    for backing in backings {
        for word in WORDS {
            new_place(case, *backing, word, 0)?;
            new_place(case, *backing, word, libc::MREMAP_DONTUNMAP)?;
            old_place(case, *backing, word)?;
            let step = format!("the old place of page {} of {backing:?} backing", word.page);
            let ending = case.doomed(&step, |brink| {
                let (world, region) = make(case, *backing).expect("a world");
                let old = at(&region, word.page * world.page());
                remap(&world, old, 0);
                brink.reached();
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
    let ending = case.doomed(&step, |brink| {
        let (world, region) = make(case, backing).expect("a world");
        let new = remap(&world, at(&region, word.page * world.page()), flags);
        brink.reached();
        let seen = get(new);
        if seen != word.value {
            eprintln!("{step}: the new place reads {seen}, where {} was", word.value);
            std::process::abort();
        }
    })?;
    ending.alive_or_by(&[libc::SIGSEGV, libc::SIGBUS])
}

/// The old place of a page that was moved with MREMAP_DONTUNMAP reads as before, or is empty because the bytes are at the new place, or the access ends the program.
fn old_place(case: &Case<'_>, backing: Backing, word: Word) -> Outcome {
    let step = format!("the old place of page {} of {backing:?} backing, which is kept", word.page);
    let ending = case.doomed(&step, |brink| {
        let (world, region) = make(case, backing).expect("a world");
        let old = at(&region, word.page * world.page());
        let new = remap(&world, old, libc::MREMAP_DONTUNMAP);
        brink.reached();
        let seen = get(old);
        // What is lost there must be somewhere: an access to the new place that ends the program now would hide that it is nowhere.
        if seen != word.value && (seen != 0 || peek(new) != Some(word.value)) {
            eprintln!("{step}: it reads {seen}, the new place {:?}, where {} was", peek(new), word.value);
            std::process::abort();
        }
    })?;
    ending.alive_or_by(&[libc::SIGSEGV, libc::SIGBUS])
}

/// The word at `va`, if the kernel finds one there.
fn peek(va: u64) -> Option<u64> {
    let mut word = 0u64;
    let len = size_of::<u64>();
    let here = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: len };
    let there = libc::iovec { iov_base: va as *mut _, iov_len: len };
    // SAFETY: reads into `word`, and answers with an error where nothing can be read.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const here, 1, &raw const there, 1, 0) };
    (read == len as isize).then_some(word)
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

fn memory_the_program_advises_away(case: &Case<'_>) -> Outcome {
    for backing in backings(case) {
        for advice in [libc::MADV_FREE, libc::MADV_DONTNEED] {
            [true, false].into_iter().try_for_each(|cpu_first| advised_away(case, *backing, advice, cpu_first))?;
        }
    }
    Ok(())
}

fn advised_away(case: &Case<'_>, backing: Backing, advice: i32, cpu_first: bool) -> Outcome {
    let (world, region) = make(case, backing)?;
    // SAFETY: the check is about what follows; it touches nothing there by a reference.
    let done = unsafe { libc::madvise(at(&region, 0) as *mut _, 3 * world.page() as usize, advice) };
    // The kernel takes MADV_FREE for private memory alone.
    ensure!(done == 0 || backing == Backing::Shared, "advice {advice}: {}", std::io::Error::last_os_error());
    for word in WORDS {
        let what = format!("page {} of {backing:?} backing after advice {advice}", word.page);
        let va = at(&region, word.page * world.page());
        let early = cpu_first.then(|| get(va));
        let by_device = world.unit.load(va)?;
        let (first, second) = early.map_or((by_device, get(va)), |early| (early, by_device));
        // What is gone stays gone.
        let fine = [0, word.value].contains(&first) && [0, first].contains(&second);
        ensure!(fine, "{what}, the CPU first: {cpu_first}: {first} is read, and then {second}, where {} was", word.value);
        ensure_eq!(format!("the word beside, {what}"), get(va + 8), 0);
        world.unit.store(va, 70)?;
        ensure_eq!(format!("what the device writes next, {what}"), get(va), 70);
        set(va, 71);
        ensure_eq!(format!("what the CPU writes next, {what}"), world.unit.load(va)?, 71);
    }
    both_read(&world, &region, 3 * world.page(), &vec![0; 4096])?;
    world.verify()
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

/// How many pages the regions have that lose a part.
const PAGES: u64 = 4;

fn munmap_of_a_part_leaves_the_rest(case: &Case<'_>) -> Outcome {
    for backing in backings(case) {
        // At the beginning, at a quarter, and at half.
        for (from, count) in [(0, 1), (1, 1), (2, 2)] {
            for device_last in [true, false] {
                without_part(case, *backing, from..from + count, device_last)?;
            }
        }
    }
    Ok(())
}

/// Unmaps the pages `gone` of a region that the device wrote, and the CPU after it unless the device was the last.
fn without_part(case: &Case<'_>, backing: Backing, gone: std::ops::Range<u64>, device_last: bool) -> Outcome {
    let world = case.world(PAGES + 1)?;
    let region = world.space.region().page_size(case.size()).backing(backing).map(PAGES * world.page())?;
    let len = world.page() as usize;
    for n in 0..PAGES {
        world.unit.write(page(&world, &region, n), &pattern(n, len))?;
        if !device_last {
            touch(page(&world, &region, n));
        }
    }
    let (hole, bytes) = (page(&world, &region, gone.start), (gone.end - gone.start) * world.page());
    munmap(hole, bytes)?;
    // The device of SHARE mode touches the hole as the CPU does.
    for n in gone.clone().filter(|_| case.mode() != Mode::Share) {
        right_or_refused(&world.unit, page(&world, &region, n), &pattern(n, 8))?;
    }
    let mine = put_there(hole, bytes)?;
    let rest = || (0..PAGES).filter(|n| !gone.contains(n));
    for round in [0, 10] {
        for n in rest() {
            both_read(&world, &region, n * world.page(), &pattern(round + n, len))?;
            world.unit.write(page(&world, &region, n), &pattern(10 + n, len))?;
        }
        if case.mode() == Mode::CoherentExclusive {
            evict(&world, PAGES as usize);
        }
    }
    mine.kept("after evictions")?;
    world.verify()?;
    drop(region);
    mine.kept("after the region was unmapped")?;
    munmap(hole, bytes)
}

fn munmap_while_the_device_reads(case: &Case<'_>) -> Outcome {
    /// Loads before and after, so that the call falls among them.
    const LOADS: u64 = 50;
    for backing in backings(case) {
        let world = case.world(PAGES + 1)?;
        let region = world.space.region().page_size(case.size()).backing(*backing).map(PAGES * world.page())?;
        for n in 0..PAGES {
            world.unit.store(page(&world, &region, n), 100 + n)?;
        }
        let (rounds, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let reader = || {
            while !done.load(Ordering::Acquire) {
                for n in 0..PAGES {
                    let (va, expected) = (page(&world, &region, n), (100 + n).to_ne_bytes());
                    if n < PAGES / 2 {
                        ensure_eq!("a word that stays", world.unit.load(va)?, 100 + n)
                    } else {
                        right_or_refused(&world.unit, va, &expected)?
                    }
                }
                rounds.fetch_add(1, Ordering::AcqRel);
            }
            Outcome::Ok(())
        };
        std::thread::scope(|threads| {
            let reader = threads.spawn(reader);
            let pass = |more: u64| {
                let until = rounds.load(Ordering::Acquire) + more;
                while rounds.load(Ordering::Acquire) < until && !reader.is_finished() {
                    std::thread::yield_now();
                }
            };
            for _ in 0..LOADS {
                pass(1);
                // Pages go to and fro, so that some are at home, and must be refused, when the call comes.
                (0..PAGES).for_each(|n| touch(page(&world, &region, n)));
            }
            let unmapped = munmap(page(&world, &region, PAGES / 2), PAGES / 2 * world.page());
            pass(LOADS);
            done.store(true, Ordering::Release);
            let read = reader.join().map_err(|_| Stop::Failed("the reader panicked".into()))?;
            unmapped.and(read)
        })?;
        for n in 0..PAGES / 2 {
            ensure_eq!(format!("page {n}"), get(page(&world, &region, n)), 100 + n);
        }
        world.verify()?;
    }
    Ok(())
}

/// The device reads these bytes, or is told that the host does not have the page.
fn right_or_refused(unit: &Unit, va: u64, expected: &[u8]) -> Outcome {
    let mut seen = vec![0; expected.len()];
    match unit.read(va, &mut seen) {
        Ok(()) => ensure_eq!(format!("what the device reads at {va:#x}"), seen, expected),
        Err(FaultError::Host(_) | FaultError::NotMapped) => {}
        Err(other) => return Err(other.into()),
    }
    Ok(())
}

/// Memory of the program's own.
struct Own {
    va: u64,
    bytes: u64,
}

/// What the program keeps in it.
const KEPT: u64 = 0x0a11_0fa1_50fa_11e7;

/// The program puts memory of its own where a part of a region was.
fn put_there(va: u64, bytes: u64) -> Result<Own, Stop> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the kernel places it only where nothing is mapped.
    let there = unsafe { libc::mmap(va as *mut _, bytes as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    ensure!(there as u64 == va, "nothing can be mapped at {va:#x}: {}", std::io::Error::last_os_error());
    let own = Own { va, bytes };
    own.words().for_each(|word| set(word, KEPT));
    Ok(own)
}

impl Own {
    fn words(&self) -> impl Iterator<Item = u64> {
        (self.va..self.va + self.bytes).step_by(4096)
    }

    fn kept(&self, when: &str) -> Outcome {
        for word in self.words() {
            ensure_eq!(format!("the program's own word at {word:#x} {when}"), get(word), KEPT);
        }
        Ok(())
    }
}

fn munmap(va: u64, bytes: u64) -> Outcome {
    // SAFETY: the check is about what follows; it touches nothing there by a reference.
    let done = unsafe { libc::munmap(va as *mut _, bytes as usize) };
    ensure!(done == 0, "munmap of {bytes:#x} bytes at {va:#x}: {}", std::io::Error::last_os_error());
    Ok(())
}
