//! What the original got wrong with several threads.

use super::meet::{Meetings, until_met};
use super::translation::{evict, page};
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, get, part, set};
use crate::{Case, ensure, ensure_eq};
use gmem::hal::{Capabilities, FaultError};
use gmem::{Access, Error, RangeError};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "attach-and-map-at-once",
        rule: "Devices come and go while regions do, and every region is every attached device's.",
        place: "ARCHITECTURE.md \"Locks\"",
        applies: Applies::EVERYWHERE.once(),
        run: attach_and_map_at_once,
    },
    Check {
        name: "evict-and-prefetch-at-once",
        rule: "A prefetch and an eviction of the same pages both end, and no byte is lost.",
        place: "ARCHITECTURE.md \"What orders two operations\"",
        applies: Applies::EXCLUSIVE.once(),
        run: evict_and_prefetch_at_once,
    },
    Check {
        name: "evict-and-unmap-at-once",
        rule: "An eviction and an unmap of the same pages both end, the pages are gone, and their frames are free.",
        place: "ARCHITECTURE.md \"What orders two operations\"",
        applies: Applies::EXCLUSIVE.without(Capabilities::PEER).once(),
        run: evict_and_unmap_at_once,
    },
    Check {
        name: "two-devices-fault-on-one-page-at-once",
        rule: "Two devices and the CPU that add to one word at the same time all come to have its page, and no addition is lost.",
        place: "ARCHITECTURE.md \"What always holds\" 2",
        applies: Applies::OWN_TABLE,
        run: two_devices_fault_on_one_page_at_once,
    },
    Check {
        name: "small-prefetches-of-many-threads-end",
        rule: "Prefetches of single bytes by several threads all end, and move no page twice that was not evicted meanwhile.",
        place: "gmem-core `Core::prefetch`",
        applies: Applies::EXCLUSIVE.once(),
        run: small_prefetches_of_many_threads_end,
    },
];

/// How often what races has to meet.
const MEETINGS: u64 = 5;

/// Between two attempts to be in the way.
const PAUSE: Duration = Duration::from_micros(300);

/// Repeats `work` in a thread until `done`.
fn repeat<'scope, E: Send + 'scope>(
    threads: &'scope Scope<'scope, '_>,
    done: &'scope AtomicBool,
    mut work: impl FnMut() -> Result<(), E> + Send + 'scope,
) -> ScopedJoinHandle<'scope, Result<(), E>> {
    threads.spawn(move || {
        while !done.load(Ordering::Acquire) {
            work()?;
            // Somebody who takes pages away without a pause leaves nobody the time to touch them.
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

fn joined<E: Into<Stop>>(thread: ScopedJoinHandle<'_, Result<(), E>>) -> Outcome {
    thread.join().map_err(|_| Stop::Failed("a thread panicked".into()))?.map_err(Into::into)
}

fn attach_and_map_at_once(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    // Memory for every round, since a peer may deal it out in blocks.
    let other = case.add(&world.gmem, (8 << 20) / case.size().bytes())?;
    let (done, meetings) = (AtomicBool::new(false), Meetings::new());
    std::thread::scope(|threads| {
        let (space, mode, flying) = (&world.space, case.mode(), meetings.clone());
        let comes_and_goes = repeat(threads, &done, move || flying.fly(|| space.attach(&other, mode)?.detach().map_err(gmem::Error::from)));
        let mapped = until_met(
            case,
            MEETINGS,
            || meetings.met(),
            |round| {
                ensure!(!comes_and_goes.is_finished(), "the device that comes and goes stays away");
                let region = meetings.meet(|| world.region(2))?;
                set(at(&region, 0), round);
                world.unit.add(at(&region, 0), 1)?;
                ensure_eq!("the word", get(at(&region, 0)), round + 1);
                ensure_eq!("the page behind", world.unit.load(page(&world, &region, 1))?, 0);
                Ok(())
            },
        );
        done.store(true, Ordering::Release);
        joined(comes_and_goes).and(mapped)
    })?;
    world.verify()
}

/// A prefetch may find the device's memory full of pages that others have in hand for longer than it tries.
fn tolerate(result: Result<usize, Error>) -> Result<(), Error> {
    match result {
        Ok(_) | Err(Error::Range(RangeError::Fault(_, FaultError::NoDeviceMemory))) => Ok(()),
        Err(e) => Err(e),
    }
}

fn evict_and_prefetch_at_once(case: &Case<'_>) -> Outcome {
    let world = case.world(6)?;
    let region = world.region(4)?;
    let (done, meetings) = (AtomicBool::new(false), Meetings::new());
    meetings.watch(&world.unit.observed, copy_home(case));
    let rounds = std::thread::scope(|threads| {
        let device = &world.unit.device;
        let evicting = repeat(threads, &done, || {
            device.evict(2);
            world.space.prefetch(part(&region, 0, world.page()), None, Access::Write).map(drop)
        });
        let moved = until_met(
            case,
            MEETINGS,
            || meetings.met(),
            |round| {
                meetings.fly(|| tolerate(world.space.prefetch(region.range(), Some(device), Access::Write)))?;
                for n in 0..4 {
                    world.unit.add(page(&world, &region, n), 1)?;
                }
                ensure_eq!("the last page", get(page(&world, &region, 3)), round + 1);
                Ok(())
            },
        );
        done.store(true, Ordering::Release);
        joined(evicting).and(moved)
    })?;
    for n in 0..4 {
        ensure_eq!(format!("page {n}"), get(page(&world, &region, n)), rounds);
    }
    world.verify()
}

/// The callback that takes a page home.
fn copy_home(case: &Case<'_>) -> &'static str {
    if case.target().info().capabilities.contains(Capabilities::PEER) { "unmap" } else { "copy home" }
}

fn evict_and_unmap_at_once(case: &Case<'_>) -> Outcome {
    let world: World = case.world(6)?;
    let (done, meetings) = (AtomicBool::new(false), Meetings::new());
    meetings.watch(&world.unit.observed, copy_home(case));
    std::thread::scope(|threads| {
        let evicting = repeat(threads, &done, || {
            evict(&world, 4);
            Ok::<(), Error>(())
        });
        let mapped = until_met(
            case,
            MEETINGS,
            || meetings.met(),
            |round| {
                let region = world.region(4)?;
                for n in 0..4 {
                    ensure_eq!("a new page", world.unit.load(page(&world, &region, n))?, 0);
                    world.unit.store(page(&world, &region, n), round)?;
                }
                meetings.fly(|| region.unmap(region.range()))?;
                Ok(())
            },
        );
        done.store(true, Ordering::Release);
        joined(evicting).and(mapped)
    })?;
    let used: u64 = world.unit.device.memory().iter().map(|h| h.used.get()).sum();
    ensure_eq!("bytes used when everything is unmapped", used, 0);
    world.verify()
}

fn two_devices_fault_on_one_page_at_once(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let second = case.unit(&world.gmem, &world.space, 4)?;
    let region = world.region(1)?;
    let (word, done, meetings, added) = (at(&region, 64), AtomicBool::new(false), Meetings::new(), AtomicU64::new(0));
    let rounds = std::thread::scope(|threads| {
        let first = threads.spawn(|| -> Outcome {
            while !done.load(Ordering::Acquire) {
                meetings.fly(|| world.unit.add(word, 1))?;
                added.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let rounds = until_met(
            case,
            10 * MEETINGS,
            || meetings.met(),
            |round| {
                ensure!(!first.is_finished(), "the first device stopped");
                meetings.meet(|| second.add(word, 1 << 32))?;
                if round % 4 == 0 {
                    // SAFETY: an aligned word of a region that lives, touched only by atomics meanwhile.
                    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(word as usize)) }
                        .fetch_add(1 << 48, Ordering::SeqCst);
                }
                Ok(())
            },
        );
        done.store(true, Ordering::Release);
        first.join().map_err(|_| Stop::Failed("a thread panicked".into()))?.and(rounds)
    })?;
    let expected = added.into_inner() + (rounds << 32) + (rounds.div_ceil(4) << 48);
    ensure_eq!("the sum of what two devices and the CPU added", get(word), expected);
    world.verify()
}

fn small_prefetches_of_many_threads_end(case: &Case<'_>) -> Outcome {
    let met = AtomicU64::new(0);
    until_met(case, MEETINGS, || met.load(Ordering::SeqCst), |_| small_prefetches(case, &met))?;
    Ok(())
}

/// Sixteen prefetches of single bytes of four pages. Counts itself as met if two were under way at a time.
fn small_prefetches(case: &Case<'_>, met: &AtomicU64) -> Outcome {
    const THREADS: u64 = 16;
    let world = case.world(8)?;
    let region = world.region(4)?;
    (0..4).for_each(|n| set(page(&world, &region, n), n + 1));
    let (start, under_way, most) = (Barrier::new(THREADS as usize), AtomicU64::new(0), AtomicU64::new(0));
    let moved: Vec<_> = std::thread::scope(|threads| {
        let prefetch = |n: u64| {
            let byte = part(&region, (n % 4) * world.page() + n, 1);
            let (space, device) = (&world.space, &world.unit.device);
            let (start, under_way, most) = (&start, &under_way, &most);
            threads.spawn(move || {
                start.wait();
                most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let moved = space.prefetch(byte, Some(device), Access::Write);
                under_way.fetch_sub(1, Ordering::SeqCst);
                moved
            })
        };
        let all: Vec<_> = (0..THREADS).map(prefetch).collect();
        all.into_iter().map(|thread| thread.join()).collect()
    });
    let mut sum = 0;
    for one in moved {
        sum += one.map_err(|_| Stop::Failed("a thread panicked".into()))??;
    }
    // A peer may evict a page of its own accord, which then moves again.
    let again = world.gmem.stats().evictions as usize;
    ensure!((4..=4 + again).contains(&sum), "{sum} pages moved, expected 4 and at the most {again} that were evicted meanwhile");
    ensure!((0..4).all(|n| get(page(&world, &region, n)) == n + 1), "a page has other bytes than before");
    met.fetch_add(u64::from(most.into_inner() > 1), Ordering::SeqCst);
    world.verify()
}
