//! What the kernel's own tables look like, and what happens at their limits.

mod common;

use common::{At, Rig, attrs, child, is_child, triple_of_param, triples, watchdog};
use gmem_hal::{Backing, Delivery, Host, PageSize};
use std::sync::atomic::Ordering::*;

/// The mappings of the region, and how many KiB of it are mapped by huge page table entries.
fn mappings(rig: &Rig) -> (usize, u64) {
    let (start, end) = (rig.pager.region.range.start().get(), rig.pager.region.range.end().get());
    let (mut count, mut huge, mut inside) = (0, 0, false);
    for line in std::fs::read_to_string("/proc/self/smaps").expect("smaps").lines() {
        let bounds = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let bounds = bounds.and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)));
        if let Some((from, to)) = bounds {
            inside = from < end && start < to;
            count += usize::from(inside);
        } else if let Some(rest) = line.strip_prefix("ShmemPmdMapped:").or_else(|| line.strip_prefix("AnonHugePages:"))
            && inside
        {
            huge += rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        }
    }
    (count, huge)
}

#[test]
fn huge_pages_are_mapped_huge_and_neighbours_merge() {
    let _w = watchdog(60);
    for attrs in triples().into_iter().filter(|a| a.page_size == PageSize::Size2M) {
        const PAGES: usize = 32;
        let rig = Rig::new(attrs, PAGES as u64);
        // In an order in which no page touches the one before.
        let order = || (0..PAGES).map(|i| i * 11 % PAGES);
        for round in 0..3 {
            order().for_each(|p| assert_eq!(rig.word(p, 0).fetch_add(1, SeqCst), round, "{attrs:?}"));
            let (count, huge) = mappings(&rig);
            // The region, and its neighbours where they merged with it.
            assert!(count <= 2, "{count} mappings with all pages on the CPU, {attrs:?}");
            assert_eq!(huge, PAGES as u64 * 2048, "KiB mapped huge, {attrs:?}");
            order().for_each(|p| rig.to_device(p).expect("to the device"));
            let (count, huge) = mappings(&rig);
            assert!(count <= 2, "{count} mappings with all pages on the device, {attrs:?}");
            // Taking access away keeps the entry; taking the page away does not.
            let kept = if attrs.delivery == Delivery::InThread { PAGES as u64 * 2048 } else { 0 };
            assert_eq!(huge, kept, "KiB mapped huge with all pages on the device, {attrs:?}");
        }
    }
}

/// Uses up the mappings of this process.
fn exhaust() {
    let mut made = 0u64;
    loop {
        // Every second page readable: no two merge.
        let prot = if made.is_multiple_of(2) { libc::PROT_NONE } else { libc::PROT_READ };
        // SAFETY: fresh memory that nobody uses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if at == libc::MAP_FAILED {
            return;
        }
        made += 1;
        assert!(made < 2_000_000, "no limit on mappings");
    }
}

#[test]
fn at_the_limit_on_mappings_pages_still_travel_by_service() {
    const NAME: &str = "at_the_limit_on_mappings_pages_still_travel_by_service";
    let _w = watchdog(100);
    if !is_child(NAME) {
        for (i, attrs) in triples().into_iter().enumerate().filter(|(_, a)| a.delivery == Delivery::Service) {
            let status = child(NAME, &i.to_string());
            assert!(status.success(), "{attrs:?}: {status}");
        }
        return;
    }
    let rig = Rig::new(triple_of_param(), 8);
    (0..8).for_each(|p| rig.word(p, 0).store(p as u64 + 1, SeqCst));
    // All workers there, all page tables made.
    (0..8).for_each(|p| rig.to_device(p).expect("to the device"));
    (0..8).for_each(|p| assert_eq!(rig.word(p, 0).load(SeqCst), p as u64 + 1));
    exhaust();
    for round in 0..3 {
        for page in [3, 5, 1, 7] {
            rig.to_device(page).expect("to the device without a mapping to spare");
        }
        for page in 0..8 {
            assert_eq!(rig.word(page, 0).fetch_add(1, SeqCst), page as u64 + 1 + round);
        }
    }
}

#[test]
fn locked_memory_of_the_program_is_no_obstacle_on_shared_backing() {
    let _w = watchdog(60);
    for attrs in triples().into_iter().filter(|a| a.backing == Backing::Shared) {
        let rig = Rig::new(attrs, 2);
        rig.word(0, 0).store(3, SeqCst);
        // SAFETY: locks memory of the rig. On absent pages the kernel would fault them in, so only the one that is there.
        let locked = unsafe { libc::mlock(rig.va(0, 0) as *const _, rig.page_bytes() as usize) };
        if locked != 0 {
            eprintln!("skipped: no memory may be locked here");
            return;
        }
        rig.to_device(0).expect("to the device");
        assert_eq!(rig.word(0, 0).load(SeqCst), 3, "{attrs:?}");
    }
}

#[test]
fn a_thread_that_waits_when_its_region_goes_away_dies_cleanly() {
    const NAME: &str = "a_thread_that_waits_when_its_region_goes_away_dies_cleanly";
    let _w = watchdog(60);
    if !is_child(NAME) {
        for (i, attrs) in triples().into_iter().enumerate().filter(|(_, a)| a.delivery == Delivery::Service) {
            common::assert_signal(child(NAME, &i.to_string()), libc::SIGSEGV, &format!("{attrs:?}"));
        }
        return;
    }
    let rig = Rig::new(triple_of_param(), 1);
    let at = rig.va(0, 0);
    // The pager holds the page while the reader comes, so the reader waits in the kernel.
    let held = rig.pager.state[0].lock();
    // SAFETY: this is meant to die.
    std::thread::spawn(move || unsafe { (at as *const u64).read_volatile() });
    while rig.pager.faults.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    rig.threads.run(|| rig.pager.host.region_unmap(&rig.pager.space, &rig.pager.region));
    std::thread::sleep(std::time::Duration::from_secs(5));
    drop(held);
}

#[test]
fn several_hosts_in_one_process_do_not_mix() {
    let _w = watchdog(60);
    let rigs: Vec<_> = (0..3).flat_map(|_| triples()).map(|attrs| Rig::new(attrs, 1)).collect();
    for (i, rig) in rigs.iter().enumerate() {
        rig.word(0, 0).store(i as u64, SeqCst);
        rig.to_device(0).expect("to the device");
    }
    for (i, rig) in rigs.iter().enumerate() {
        assert_eq!(rig.word(0, 0).load(SeqCst), i as u64);
        assert_eq!((rig.pager.faults.load(SeqCst), *rig.pager.state[0].lock()), (2, At::Cpu));
    }
    // One goes, the others go on.
    let mut rigs = rigs;
    rigs.truncate(5);
    for (i, rig) in rigs.iter().enumerate() {
        rig.to_device(0).expect("to the device");
        assert_eq!(rig.word(0, 0).load(SeqCst), i as u64);
    }
}

#[test]
fn without_userfaultfd_in_thread_delivery_still_works() {
    let _w = watchdog(60);
    let rig = Rig::on(common::host_without_uffd(), attrs(Backing::Shared, Delivery::InThread, PageSize::Size2M), 2);
    rig.word(1, 0).store(9, SeqCst);
    rig.to_device(1).expect("to the device");
    assert_eq!(rig.word(1, 0).load(SeqCst), 9);
}
