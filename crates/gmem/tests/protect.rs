//! What pages allow changes while threads fault on them, and at the limit of mappings, where the kernel refuses half-way.

mod common;

use common::*;
use gmem::{Access, Backing, Delivery, Mode, PageSize, Prot, accel};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// Protects a region back and forth while another thread reads it, and compares what CPU and device find.
fn under_a_reader(size: PageSize, kind: (Backing, Delivery), pages: u64, rounds: u64) {
    let world = World::new(accel::Discrete::builder().memory(64 << 20).cores(1), Mode::CoherentExclusive);
    let region = region_of(&world, size, kind, pages);
    let out = world.pages(1);
    let word = |page: u64| at(&region, page * size.bytes());
    let sum = || {
        world.run(&SUM, &[at(&out, 0), word(0), size.bytes(), pages]).unwrap();
        get(at(&out, 0))
    };
    let (stop, reading) = (AtomicBool::new(false), AtomicBool::new(false));
    let protect = |prot| {
        reading.store(true, Ordering::Release);
        region.protect(region.range(), prot).unwrap();
        while reading.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let _end = AtEnd(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if reading.load(Ordering::Acquire) {
                    (0..pages).for_each(|page| _ = black_box(get(word(page))));
                    reading.store(false, Ordering::Release);
                }
                std::thread::yield_now();
            }
        });
        for round in 1..=rounds {
            (0..pages).for_each(|page| set(word(page), round * 1000 + page));
            let want: u64 = (0..pages).map(|page| round * 1000 + page).sum();
            protect(Prot::READ);
            (0..pages).for_each(|page| assert_eq!(get(word(page)), round * 1000 + page, "{kind:?}, round {round}, read-only"));
            assert_eq!(sum(), want, "{kind:?}, round {round}: the device, read-only");
            protect(Prot::RW);
            (0..pages).for_each(|page| set(word(page), round * 1000 + page + 7));
            assert_eq!(sum(), want + 7 * pages, "{kind:?}, round {round}: the device, writable again");
        }
    });
    verify(&world.gmem);
}

#[test]
fn no_write_is_lost_while_what_small_pages_allow_changes_under_a_reader() {
    alone("no_write_is_lost_while_what_small_pages_allow_changes_under_a_reader", || {
        kinds().into_iter().for_each(|kind| under_a_reader(PageSize::Size4K, kind, 256, 30));
    });
}

#[test]
fn no_write_is_lost_while_what_large_pages_allow_changes_under_a_reader() {
    alone("no_write_is_lost_while_what_large_pages_allow_changes_under_a_reader", || {
        kinds().into_iter().for_each(|kind| under_a_reader(PageSize::Size2M, kind, 4, 60));
    });
}

#[test]
fn a_page_that_is_first_touched_while_it_becomes_writable_can_be_written() {
    alone("a_page_that_is_first_touched_while_it_becomes_writable_can_be_written", || {
        for kind in kinds() {
            let world = World::small();
            let mut spins = 0;
            for _ in 0..12 {
                let (backing, delivery) = kind;
                let region = world.space.region().backing(backing).delivery(delivery).prot(Prot::READ).map(8 * PAGE).unwrap();
                for page in 0..8 {
                    let (word, go) = (at(&region, page * PAGE), Barrier::new(2));
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            go.wait();
                            black_box(get(word));
                        });
                        go.wait();
                        // Earlier and later in the time that the touch takes.
                        spins = (spins + 7919) % 60_000;
                        (0..spins).for_each(|n| _ = black_box(n));
                        region.protect(part(&region, page * PAGE, PAGE), Prot::RW).unwrap();
                    });
                    set(word, 1);
                    assert_eq!(get(word), 1);
                }
            }
        }
    });
}

/// Threads fault on one page at the same time, so that the second message is read before the first is answered. What is done to the page after that is no
/// reason to let the second thread die.
#[test]
fn a_thread_that_went_on_is_not_judged_by_a_later_protection() {
    alone("a_thread_that_went_on_is_not_judged_by_a_later_protection", || {
        for backing in [Backing::Shared, Backing::Private] {
            let world = World::small();
            let region = world.space.region().backing(backing).map(2 * PAGE).unwrap();
            for round in 0..100 {
                region.protect(region.range(), Prot::RW).unwrap();
                world.run(&STORE, &[at(&region, 0), round]).unwrap();
                world.run(&STORE, &[at(&region, PAGE), round]).unwrap();
                let go = Barrier::new(3);
                std::thread::scope(|scope| {
                    for offset in [PAGE + 4096, 8192] {
                        let (go, word) = (&go, at(&region, offset));
                        scope.spawn(move || {
                            go.wait();
                            black_box(get(word));
                        });
                    }
                    go.wait();
                    set(at(&region, 0), round + 1);
                    region.protect(part(&region, 0, PAGE), Prot::READ).unwrap();
                    world.space.prefetch(part(&region, 0, PAGE), Some(&world.device), Access::Read).unwrap();
                });
                assert_eq!((get(at(&region, 0)), get(at(&region, 8192))), (round + 1, 0), "{backing:?}");
            }
        }
    });
}

/// As many mappings as the kernel allows the process. What is there on drop goes.
struct Crowd(usize);

impl Crowd {
    const PAGES: usize = 140_000;

    fn new() -> Self {
        let (flags, len) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, Self::PAGES * 4096);
        // SAFETY: an anonymous mapping where the kernel likes, and protection of pages of it, which nobody uses.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let split = |page| libc::mprotect(base.byte_add(page * 4096), 4096, libc::PROT_READ) == 0;
            assert!(!(1..Self::PAGES).step_by(2).all(split), "this machine allows more mappings than the test makes");
            Self(base as usize)
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's.
        unsafe { libc::munmap(self.0 as *mut libc::c_void, Self::PAGES * 4096) };
    }
}

/// Whether the machine lets a test reach the limit.
fn can_reach_the_limit() -> bool {
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > Crowd::PAGES - 20_000 {
        eprintln!("skipped: this machine allows {limit} mappings");
    }
    limit <= Crowd::PAGES - 20_000
}

#[test]
fn a_protect_that_is_refused_half_way_leaves_all_as_it_was() {
    alone("a_protect_that_is_refused_half_way_leaves_all_as_it_was", || {
        if !can_reach_the_limit() {
            return;
        }
        for ((kind, size), from) in
            kinds().into_iter().flat_map(|k| [(k, PageSize::Size4K), (k, PageSize::Size2M)]).flat_map(|k| [(k, Prot::RW), (k, Prot::READ)])
        {
            let case = format!("{kind:?}, {size}, from {from:?}");
            let world = World::small();
            let region = region_of(&world, size, kind, 8);
            let word = |page: u64| at(&region, page * size.bytes());
            (0..8).for_each(|page| set(word(page), page + 1));
            // A page on the device, one that came back, and a worker's mappings made before there is no room.
            world.run(&ADD, &[word(1), 1]).unwrap();
            world.run(&ADD, &[word(2), 1]).unwrap();
            assert_eq!(get(word(2)), 4);
            let to = if from == Prot::RW { Prot::READ } else { Prot::RW };
            region.protect(region.range(), from).unwrap();
            let crowd = Crowd::new();
            let refused = region.protect(part(&region, size.bytes(), 3 * size.bytes()), to);
            drop(crowd);
            if refused.is_ok() {
                // Absent is as inaccessible as the neighbours, so this needed no mapping.
                assert_eq!(kind.1, Delivery::InThread, "{case}: there was room");
                continue;
            }
            (0..8).for_each(|page| assert_eq!(get(word(page)), page + 1 + u64::from(page == 1 || page == 2), "{case}, page {page}"));
            if from == Prot::RW {
                (0..8).for_each(|page| set(word(page), 100 + page));
                world.run(&ADD, &[word(3), 1]).unwrap();
                (0..8).for_each(|page| assert_eq!(get(word(page)), 100 + page + u64::from(page == 3), "{case}: a write is lost"));
            } else {
                assert!(world.run(&ADD, &[word(3), 1]).is_err(), "{case}: the device can write");
            }
            verify(&world.gmem);
        }
    });
}

#[test]
fn what_is_unmapped_at_the_limit_of_mappings_is_gone_and_its_addresses_come_back() {
    const NAME: &str = "what_is_unmapped_at_the_limit_of_mappings_is_gone_and_its_addresses_come_back";
    let cases: Vec<_> = kinds().into_iter().flat_map(|kind| [(kind, PageSize::Size4K), (kind, PageSize::Size2M)]).collect();
    let unmapped = |(kind, size): ((Backing, Delivery), PageSize)| {
        let world = World::small();
        let region = region_of(&world, size, kind, 3);
        (0..3).for_each(|page| set(at(&region, page * size.bytes()), page + 1));
        let crowd = Crowd::new();
        region.unmap(part(&region, size.bytes(), size.bytes())).unwrap();
        (world, region, crowd)
    };
    if is_child(NAME) {
        let case = cases[param().parse::<usize>().unwrap()];
        let (_world, region, _crowd) = unmapped(case);
        println!("a load gave {}", get(at(&region, case.1.bytes())));
        return;
    }
    watched(|| {
        if !can_reach_the_limit() {
            return;
        }
        for (number, case) in cases.iter().enumerate() {
            let output = child(NAME, &number.to_string());
            let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert!(signal.is_some(), "{case:?}: {}", String::from_utf8_lossy(&output.stdout));
            let ((backing, delivery), size) = *case;
            let (world, region, crowd) = unmapped(*case);
            drop(crowd);
            let again = world.space.region().page_size(size).backing(backing).delivery(delivery).map(size.bytes()).unwrap();
            assert_eq!(again.range(), part(&region, size.bytes(), size.bytes()), "{case:?}: the hole is used");
            assert_eq!(get(at(&again, 0)), 0, "{case:?}: what was unmapped is seen again");
            set(at(&again, 0), 5);
            world.run(&ADD, &[at(&again, 0), 1]).unwrap();
            assert_eq!((get(at(&region, 0)), get(at(&again, 0)), get(at(&region, 2 * size.bytes()))), (1, 6, 3), "{case:?}");
            verify(&world.gmem);
        }
    });
}
