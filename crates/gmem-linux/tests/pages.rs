//! What every scheme must do with pages, by the tiny pager.

mod common;

use common::{At, GARBAGE, Rig, attrs, triples, watchdog};
use gmem_hal::{Backing, ByteLen, Delivery, Host, HostError, PageSize, Pages, Prot, VirtAddr, VirtRange};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::*};

#[test]
fn fresh_pages_are_zero_and_bytes_travel_both_ways() {
    let _w = watchdog(60);
    for attrs in triples() {
        let rig = Rig::new(attrs, 4);
        let last = rig.page_bytes() - 8;
        for page in 0..4 {
            assert_eq!((rig.word(page, 0).load(SeqCst), rig.word(page, last).load(SeqCst)), (0, 0), "fresh, {attrs:?}");
            rig.word(page, last).store(page as u64 + 1, SeqCst);
        }
        for round in 0..3u64 {
            for page in 0..4 {
                rig.threads.run(|| rig.pager.host.cpu_unmap(&rig.pager.space, &rig.pager.page(page))).expect("unmap");
                *rig.pager.state[page].lock() = At::Home;
                assert_eq!(rig.home_word(page, last).load(SeqCst), page as u64 + 1 + round * 10, "home, {attrs:?}");
                rig.home_word(page, last).store(page as u64 + 1 + (round + 1) * 10, SeqCst);
                let faults = rig.pager.faults.load(SeqCst);
                assert_eq!(rig.word(page, last).load(SeqCst), page as u64 + 1 + (round + 1) * 10, "cpu, {attrs:?}");
                assert_eq!(rig.pager.faults.load(SeqCst), faults + 1, "one fault, {attrs:?}");
                assert_eq!(rig.word(page, 0).load(SeqCst), 0, "the rest of the page, {attrs:?}");
                assert_eq!(rig.pager.faults.load(SeqCst), faults + 1, "no second fault, {attrs:?}");
            }
        }
    }
}

#[test]
fn calls_on_runs_of_pages_and_in_wrong_states_do_no_harm() {
    let _w = watchdog(60);
    for attrs in triples() {
        let rig = Rig::new(attrs, 8);
        let all = rig.pager.region;
        let (host, space) = (&rig.pager.host, &rig.pager.space);
        for page in 0..8 {
            rig.word(page, 16).store(page as u64, SeqCst);
        }
        rig.threads.run(|| {
            host.cpu_map(space, &all).expect("mapped already");
            host.cpu_unmap(space, &all).expect("a run");
            host.cpu_unmap(space, &all).expect("not mapped");
        });
        for page in 0..8 {
            assert_eq!(rig.home_word(page, 16).load(SeqCst), page as u64, "{attrs:?}");
        }
        rig.threads.run(|| {
            host.populate(space, &all).expect("populated already");
            host.cpu_map(space, &rig.pager.page(3)).expect("one");
            host.cpu_map(space, &all).expect("a run, one mapped already");
            host.wake(space, &all);
        });
        let faults = rig.pager.faults.load(SeqCst);
        for page in 0..8 {
            assert_eq!(rig.word(page, 16).load(SeqCst), page as u64, "{attrs:?}");
        }
        assert_eq!(rig.pager.faults.load(SeqCst), faults, "mapped pages do not fault, {attrs:?}");
        rig.threads.run(|| {
            host.cpu_unmap(space, &rig.pager.page(5)).expect("one");
            host.cpu_unmap(space, &all).expect("a run, one unmapped already");
            host.discard(space, &all);
            host.populate(space, &all).expect("again");
            host.cpu_map(space, &all).expect("a run");
        });
        for page in 0..8 {
            assert_eq!(rig.word(page, 16).load(SeqCst), 0, "discarded pages read as zero, {attrs:?}");
        }
    }
}

/// Writers add to a counter in every page while a mover takes the pages away. Answers how many increments were made and how many are there.
fn count(rig: &Rig, rounds: usize) -> (u64, u64) {
    let (stop, writing, pages) = (AtomicBool::new(false), Barrier::new(3 + 2), rig.pages());
    let made: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|w| {
                let (stop, writing) = (&stop, &writing);
                scope.spawn(move || {
                    writing.wait();
                    let mut made = 0;
                    // Once in any case: the movers may be done before this thread runs again.
                    loop {
                        for page in 0..pages {
                            for _ in 0..50 {
                                rig.word(page, (made * 520 + w * 8) % rig.page_bytes()).fetch_add(1, Relaxed);
                                made += 1;
                            }
                        }
                        if stop.load(Relaxed) {
                            return made;
                        }
                    }
                })
            })
            .collect();
        // Two movers, so that different pages move at the same time.
        std::thread::scope(|movers| {
            for mover in 0..2 {
                let writing = &writing;
                movers.spawn(move || {
                    writing.wait();
                    (0..rounds).for_each(|r| rig.to_device((r * 2 + mover) % pages).expect("nothing is pinned"));
                });
            }
        });
        stop.store(true, Relaxed);
        writers.into_iter().map(|w| w.join().expect("no panic")).sum()
    });
    let there = (0..pages).flat_map(|p| (0..rig.page_bytes() / 8).map(move |i| (p, i * 8)));
    (made, there.map(|(page, offset)| rig.word(page, offset).load(Relaxed)).sum())
}

#[test]
fn no_write_is_lost() {
    let _w = watchdog(120);
    for attrs in triples() {
        let rounds = if attrs.page_size == PageSize::Size2M { 150 } else { 600 };
        let rig = Rig::new(attrs, 3);
        let (made, there) = count(&rig, rounds);
        assert!(made > 0);
        assert_eq!(made, there, "{} lost with {attrs:?}", made.wrapping_sub(there));
    }
}

/// The canary: with the copy before the unmapping, [`no_write_is_lost`] must see losses, or it proves nothing.
#[test]
fn copying_before_unmapping_loses_writes_and_the_test_sees_it() {
    let _w = watchdog(60);
    let rig = Rig::new(attrs(Backing::Shared, Delivery::Service, PageSize::Size2M), 3);
    rig.pager.copy_first.store(true, Relaxed);
    let lost = (0..20).any(|_| {
        let (made, there) = count(&rig, 50);
        made != there
    });
    assert!(lost, "a thousand wrong takings lost nothing");
}

#[test]
fn protection_is_what_was_asked_and_data_survives_it() {
    let _w = watchdog(60);
    for attrs in triples() {
        let rig = Rig::new(attrs, 4);
        let (host, space) = (&rig.pager.host, &rig.pager.space);
        for page in 0..4 {
            rig.word(page, 8).store(7 + page as u64, SeqCst);
        }
        rig.to_device(1).expect("to the device");
        let read_only = Pages { attrs: gmem_hal::RegionAttrs { prot: Prot::READ, ..attrs }, ..rig.pager.region };
        rig.threads.run(|| {
            for page in [0, 2, 3] {
                host.cpu_unmap(space, &rig.pager.page(page)).expect("unmapped");
            }
            host.region_protect(space, &rig.pager.region, Prot::READ).expect("read only");
            // As a core would: what it thinks is on the CPU or home can be mapped again, with the new protection.
            for page in [0, 2, 3] {
                host.cpu_map(space, &Pages { range: rig.pager.page(page).range, ..read_only }).expect("mapped read only");
            }
        });
        for page in [0, 2, 3] {
            assert_eq!(rig.word(page, 8).load(SeqCst), 7 + page as u64, "read-only, {attrs:?}");
        }
        // The kernel, writing for us, is refused without a signal.
        let pipe = rustix::pipe::pipe().expect("a pipe");
        rustix::io::write(&pipe.1, &[1]).expect("a byte");
        // SAFETY: a raw system call into memory of the rig; it fails or writes one byte there.
        let n = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&pipe.0), rig.va(2, 8) as *mut _, 1) };
        assert_eq!(n, -1, "read-only memory was written, {attrs:?}");
        rig.threads.run(|| {
            for page in [0, 2, 3] {
                host.cpu_unmap(space, &Pages { range: rig.pager.page(page).range, ..read_only }).expect("unmapped");
            }
            host.region_protect(space, &read_only, rig.pager.region.attrs.prot).expect("writable");
            for page in [0, 2, 3] {
                host.cpu_map(space, &rig.pager.page(page)).expect("mapped");
            }
        });
        for page in 0..4 {
            assert_eq!(rig.word(page, 8).fetch_add(1, SeqCst), 7 + page as u64, "writable again, {attrs:?}");
        }
    }
}

#[test]
fn a_terabyte_is_sparse_and_one_page_in_it_works() {
    let _w = watchdog(60);
    for attrs in triples() {
        let threads = std::sync::Arc::new(gmem_linux::Threads::start().expect("threads"));
        let host = gmem_linux::LinuxHost::open(threads.clone()).expect("a host");
        let range = common::fresh_range(1 << 40);
        threads.run(|| {
            let space = host.space_create(range, true).expect("a terabyte");
            let region = Pages { range, attrs };
            host.region_map(&space, &region).expect("a region of a terabyte");
            for at in [0, 1 << 39, (1 << 40) - attrs.page_size.bytes()] {
                let page = VirtRange::page(VirtAddr::new(range.start().get() + at), attrs.page_size).expect("in range");
                let page = Pages { range: page, attrs };
                host.populate(&space, &page).expect("populated");
                // SAFETY: the home is populated and not CPU-mapped.
                unsafe { *(host.home(&space, &page).addr as *mut u64) = at };
                host.cpu_map(&space, &page).expect("mapped");
                // SAFETY: the page is mapped, so this gmem thread may touch it.
                assert_eq!(unsafe { *(page.range.start().get() as *const u64) }, at, "{attrs:?}");
            }
            host.region_unmap(&space, &region);
            host.space_destroy(&space);
            // The addresses are free again.
            host.space_destroy(&host.space_create(range, true).expect("again"));
        });
    }
}

#[test]
fn refusals_are_typed() {
    let _w = watchdog(60);
    let host = common::host_without_uffd();
    let service = attrs(Backing::Shared, Delivery::Service, PageSize::Size2M);
    assert_eq!(host.supports(&service), Err(HostError::NotPermitted));
    assert_eq!(host.supports(&attrs(Backing::Private, Delivery::InThread, PageSize::Size4K)), Err(HostError::Unsupported));
    assert_eq!(host.supports(&attrs(Backing::Shared, Delivery::InThread, PageSize::Size4K)), Ok(()));
    let range = common::fresh_range(4 << 20);
    host.threads().run(|| {
        let space = host.space_create(range, true).expect("a space");
        assert_eq!(host.region_map(&space, &Pages { range, attrs: service }), Err(HostError::NotPermitted));
        assert_eq!(host.space_create(range, true).map(drop), Err(HostError::AddressInUse));
        // Devices alone may use the same addresses.
        let other = host.space_create(range, false).expect("not cpu visible");
        let page = Pages { range, attrs: service };
        host.populate(&other, &page).expect("homes");
        host.cpu_map(&other, &page).expect("nothing to do");
        let window = host.window(&other).expect("a window");
        // SAFETY: the home is populated.
        assert_eq!(unsafe { *(host.home(&other, &page).addr as *const u64) }, 0);
        assert_eq!(window.base, host.home(&other, &page));
    });
}

#[test]
fn a_space_that_begins_off_a_huge_page_works() {
    let _w = watchdog(60);
    let host = common::host_without_uffd();
    let base = common::fresh_range(1 << 40).start().get();
    let range = VirtRange::from_len(VirtAddr::new(base + 0x3000), ByteLen(8 << 20)).expect("in range");
    host.threads().run(|| {
        let space = host.space_create(range, true).expect("a space");
        let huge = VirtRange::from_len(VirtAddr::new(base + (2 << 20)), ByteLen(4 << 20)).expect("in range");
        let huge = Pages { range: huge, attrs: attrs(Backing::Shared, Delivery::InThread, PageSize::Size2M) };
        let small = VirtRange::from_len(range.start(), ByteLen(0x4000)).expect("in range");
        let small = Pages { range: small, attrs: attrs(Backing::Shared, Delivery::InThread, PageSize::Size4K) };
        for region in [huge, small] {
            host.region_map(&space, &region).expect("a region");
            host.populate(&space, &region).expect("populated");
            let (home, window) = (host.home(&space, &region), host.window(&space).expect("a window"));
            assert_eq!(home.addr - window.base.addr, region.range.start().get() - range.start().get());
            // SAFETY: populated, and then mapped.
            unsafe {
                *(home.addr as *mut u8) = GARBAGE;
                host.cpu_map(&space, &region).expect("mapped");
                assert_eq!(*(region.range.start().get() as *const u8), GARBAGE);
            }
            assert_eq!(region.range.start().get() % (2 << 20), home.addr % (2 << 20), "huge pages line up");
        }
    });
}
