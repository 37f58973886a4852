//! The kernel works on unified memory from many threads, and holds pages of it, while devices take and evict them.

mod common;
#[path = "kernel_io/ring.rs"]
mod ring;

use common::*;
use gmem::hal::{FaultError, HostError};
use gmem::{Backing, Delivery, Error, Mode, PageSize, accel};
use ring::Ring;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many rounds of a test: few, or as many as the environment says.
fn rounds(few: u64) -> u64 {
    std::env::var("GMEM_CAMPAIGN").map_or(few, |n| n.parse().expect("a number of rounds"))
}

/// A file without a name beside what is built, where direct I/O is possible.
fn temporary(flags: i32) -> Option<std::fs::File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("kernel-io-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).custom_flags(flags).open(&path);
    let _ = std::fs::remove_file(path);
    match file {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            eprintln!("skipped: the file system of the build folder has no direct I/O");
            None
        }
        file => Some(file.unwrap()),
    }
}

fn word_of(round: u64, page: u64, word: u64) -> u64 {
    round << 40 | page << 20 | word | 1 << 63
}

/// A world whose region is three times as large as the device, of a kind with service delivery.
fn crowded(size: PageSize, backing: Backing) -> (World, gmem::Region, u64) {
    let world = World::new(accel::Discrete::builder().memory(4 * size.bytes()).cores(1), Mode::CoherentExclusive);
    let region = region_of(&world, size, (backing, Delivery::Service), 12);
    (world, region, size.bytes())
}

/// Adds 1 to the second word of every page but those of `held`, on the device, which is too small for them all.
fn sweep(world: &World, region: &gmem::Region, size: u64, held: &[u64]) {
    for page in (0..12).filter(|page| !held.contains(page)) {
        world.run(&ADD, &[at(region, page * size + 8), 1]).unwrap();
    }
}

#[test]
fn registered_buffers_stay_while_everything_around_them_is_evicted() {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        for backing in [Backing::Private, Backing::Shared] {
            watched(|| exchange(size, backing, rounds(10)));
        }
    }
}

/// Pages that the kernel holds as registered buffers; one is written to a file, from which the other is read.
const HELD: [u64; 2] = [1, 6];

fn exchange(size: PageSize, backing: Backing, rounds: u64) {
    let (world, region, bytes) = crowded(size, backing);
    let other = world.space.attach(&discrete(&world.gmem, 8 * PAGE), Mode::CoherentExclusive).unwrap();
    let Some(file) = temporary(libc::O_DIRECT) else { return };
    (0..12).for_each(|page| set(at(&region, page * bytes + 8), 0));
    std::thread::scope(|threads| {
        // On shared backing the program has to say what it gives away; on private backing the kernel says so.
        let pinned = HELD.iter().filter(|_| backing == Backing::Shared);
        let pins: Vec<_> = pinned.map(|page| region.pin_for_io(part(&region, page * bytes, bytes)).unwrap()).collect();
        let Some(mut ring) = Ring::with_buffers(&HELD.map(|page| (at(&region, page * bytes), 4096))) else { return };
        let waiter = (backing == Backing::Shared).then(|| threads.spawn(|| run(&other, &ADD, &[at(&region, HELD[0] * bytes), 1])));
        for round in 1..=rounds {
            for (index, page) in HELD.into_iter().enumerate() {
                (2..512).for_each(|word| set(at(&region, page * bytes + 8 * word), word_of(round, page, word)));
                // Both are in flight while the device sweeps.
                ring.write(&file, index, 0);
                std::thread::scope(|threads| {
                    threads.spawn(|| sweep(&world, &region, bytes, &HELD));
                    assert_eq!(ring.wait(), 4096);
                    ring.read(&file, 1 - index, 0);
                    if backing == Backing::Private {
                        let refused = fault(world.run(&ADD, &[at(&region, page * bytes), 1]));
                        assert_eq!(refused.1, FaultError::Host(HostError::Pinned), "{size}");
                    }
                    assert_eq!(ring.wait(), 4096);
                });
                for word in 2..512 {
                    let seen = get(at(&region, HELD[1 - index] * bytes + 8 * word));
                    assert_eq!(seen, word_of(round, page, word), "{size} {backing:?}, round {round}, word {word}");
                }
            }
        }
        if let Some(waiter) = &waiter {
            assert!(!waiter.is_finished(), "a device got a page that is pinned");
        }
        drop((ring, pins));
        if let Some(waiter) = waiter {
            waiter.join().unwrap().expect("the pins are gone");
        }
    });
    (0..12).filter(|page| !HELD.contains(page)).for_each(|page| assert_eq!(get(at(&region, page * bytes + 8)), 2 * rounds));
    assert!(world.gmem.stats().evictions > 0);
    eventually("the device can have it again", || world.run(&ADD, &[at(&region, bytes), 1]).is_ok());
    verify(&world.gmem);
}

/// Whether a launch was refused because the kernel holds the page just now.
fn is_pinned(result: &Result<(), Error>) -> bool {
    let pinned = |e: &FaultError| *e == FaultError::Host(HostError::Pinned);
    matches!(result, Err(Error::Launch(gmem::hal::LaunchError::Fault { error, .. })) if pinned(error))
}

#[test]
fn direct_io_into_pages_that_the_device_takes_loses_nothing() {
    watched(|| {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            for backing in [Backing::Private, Backing::Shared] {
                let (world, region, bytes) = crowded(size, backing);
                let (world, region, done) = (&world, &region, &AtomicBool::new(false));
                let total = rounds(20);
                let refused = std::thread::scope(|threads| {
                    let end = AtEnd(|| done.store(true, Ordering::SeqCst));
                    let device = threads.spawn(move || {
                        let mut refused = 0;
                        while !done.load(Ordering::SeqCst) {
                            for page in 0..12 {
                                let result = world.run(&ADD, &[at(region, page * bytes + 8), 1]);
                                assert!(result.is_ok() || is_pinned(&result), "{result:?}");
                                refused += u64::from(result.is_err());
                            }
                        }
                        refused
                    });
                    // Each with the beginning of pages of its own but for the words that the device counts in.
                    let workers: Vec<_> =
                        (0..4).map(|n| threads.spawn(move || direct(region, bytes, backing, [n, n + 4, n + 8], total))).collect();
                    workers.into_iter().for_each(|worker| worker.join().unwrap());
                    drop(end);
                    device.join().unwrap()
                });
                println!("{size} {backing:?}: {} direct transfers, {refused} launches refused meanwhile", 24 * total);
                verify(&world.gmem);
            }
        }
    });
}

/// Writes pages to a file and reads them back with direct I/O: of large pages half, so that the kernel is at it for as long as a device needs to come for the page.
/// None of the bytes may be lost on the way.
fn direct(region: &gmem::Region, bytes: u64, backing: Backing, pages: [u64; 3], rounds: u64) {
    let Some(file) = temporary(libc::O_DIRECT) else { return };
    let file = file.as_raw_fd();
    let len = bytes.min(1 << 20) as usize;
    for round in 1..=rounds {
        for page in pages {
            let (va, range) = (at(region, page * bytes), part(region, page * bytes, bytes));
            let words = 2..len as u64 / 8;
            words.clone().for_each(|word| set(va + 8 * word, word_of(round, page, word)));
            let pin = (backing == Backing::Shared).then(|| region.pin_for_io(range).unwrap());
            // SAFETY: a system call on a page of a region that lives.
            assert_eq!(unsafe { libc::pwrite(file, va as *const _, len, 0) }, len as isize, "{:?}", std::io::Error::last_os_error());
            drop(pin);
            words.clone().for_each(|word| set(va + 8 * word, 0));
            let pin = (backing == Backing::Shared).then(|| region.pin_for_io(range).unwrap());
            // SAFETY: as above; the words that the device counts in are read too, so it may lose counts, which nobody checks.
            assert_eq!(unsafe { libc::pread(file, va as *mut _, len, 0) }, len as isize, "{:?}", std::io::Error::last_os_error());
            drop(pin);
            words.for_each(|word| assert_eq!(get(va + 8 * word), word_of(round, page, word), "round {round}, page {page}, word {word}"));
        }
    }
}

#[test]
fn thirty_two_threads_make_system_calls_on_pages_that_devices_take() {
    watched(|| {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            for backing in [Backing::Shared, Backing::Private] {
                let (world, region, bytes) = crowded(size, backing);
                let (world, region, done, sweeps) = (&world, &region, &AtomicBool::new(false), &AtomicU64::new(0));
                let slot = bytes / 64;
                let total = rounds(12);
                std::thread::scope(|threads| {
                    let end = AtEnd(|| done.store(true, Ordering::SeqCst));
                    let device = threads.spawn(move || {
                        while !done.load(Ordering::SeqCst) {
                            sweep(world, region, bytes, &[]);
                            sweeps.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                    // Each thread has a place of its own in every page.
                    let rounds_of = move |n| {
                        for round in 0..total {
                            transfer(region, bytes, bytes / 2 + n * (slot & !7), n, round);
                            // The second sweep from here on begins after this, and takes every page.
                            let before = sweeps.load(Ordering::SeqCst);
                            eventually("the device had every page", || sweeps.load(Ordering::SeqCst) >= before + 2);
                        }
                    };
                    let workers: Vec<_> = (0..32).map(|n| threads.spawn(move || rounds_of(n))).collect();
                    workers.into_iter().for_each(|worker| worker.join().unwrap());
                    drop(end);
                    device.join().unwrap();
                });
                println!("{size} {backing:?}: {} system calls on pages that came and went", 32 * total * 12 * 6);
                verify(&world.gmem);
            }
        }
    });
}

/// Sends one word per page through a pipe and a file, by every pair of calls, and checks what arrives.
fn transfer(region: &gmem::Region, bytes: u64, offset: u64, thread: u64, round: u64) {
    let file = temporary(0).expect("a plain file");
    let (from, to) = std::io::pipe().unwrap();
    let (file, from, to) = (file.as_raw_fd(), from.as_raw_fd(), to.as_raw_fd());
    // What the last round left, which devices have had meanwhile.
    for page in (0..12).filter(|_| round > 0) {
        let left = word_of(round - 1, if page == 0 { 11 } else { page }, thread);
        assert_eq!(get(at(region, page * bytes + offset)), left, "what round {} left in page {page}", round - 1);
    }
    for page in 0..12 {
        let va = at(region, page * bytes + offset);
        let next = at(region, (page + 1) % 12 * bytes + offset);
        let iovec = |va: u64| libc::iovec { iov_base: va as *mut _, iov_len: 8 };
        let value = word_of(round, page, thread);
        set(va, value);
        // SAFETY: system calls on words of a region that lives, which are this thread's.
        unsafe {
            assert_eq!(libc::write(to, va as *const _, 8), 8, "{:?}", std::io::Error::last_os_error());
            assert_eq!(libc::read(from, next as *mut _, 8), 8, "{:?}", std::io::Error::last_os_error());
            assert_eq!(get(next), value, "by read");
            set(next, 0);
            assert_eq!(libc::pwrite(file, va as *const _, 8, 0), 8, "{:?}", std::io::Error::last_os_error());
            assert_eq!(libc::pread(file, next as *mut _, 8, 0), 8, "{:?}", std::io::Error::last_os_error());
            assert_eq!(get(next), value, "by pread");
            set(next, 0);
            let (out, back) = ([iovec(va), iovec(va)], [iovec(next), iovec(va)]);
            assert_eq!(libc::writev(to, out.as_ptr(), 2), 16, "{:?}", std::io::Error::last_os_error());
            assert_eq!(libc::readv(from, back.as_ptr(), 2), 16, "{:?}", std::io::Error::last_os_error());
            assert_eq!((get(next), get(va)), (value, value), "by readv");
        }
    }
}
