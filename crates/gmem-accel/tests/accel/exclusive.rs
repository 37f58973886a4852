//! The discrete device in exclusive mode.

use crate::common::*;
use gmem_accel::Discrete;
use gmem_hal::*;
use std::sync::Arc;

fn small() -> gmem_accel::Builder {
    Discrete::builder().memory(8 * PAGE).cores(2)
}

/// Fills three vectors over the whole buffer, adds two on the device, and checks the third.
fn vector_add(pager: &Arc<Pager>) {
    let len = pager.range.len().get() / 8 / 3;
    for i in 0..len {
        pager.set(i, i * 3);
        pager.set(len + i, i ^ 0x5555);
    }
    let at = |i: u64| pager.start() + i * 8;
    pager.launch("vector-add", &[at(0), at(len), at(2 * len), len]).unwrap();
    pager.bring_home();
    for i in 0..len {
        assert_eq!(pager.get(2 * len + i), (i * 3).wrapping_add(i ^ 0x5555), "item {i} of {len}");
    }
}

#[test]
fn vector_add_over_four_times_the_device_memory() {
    let _dog = watchdog("vector add");
    let pager = Pager::new(small(), PAGE, 32, |_| {});
    vector_add(&pager);
    let state = pager.state.lock().unwrap();
    assert!(state.moved_out >= 32, "only {} pages were evicted", state.moved_out);
    assert_eq!(state.free.len(), 8);
    drop(state);
    assert!(pager.device.resident(pager.pmap()).unwrap().get() < 8 * PAGE + (64 << 20));
    pager.destroy();
}

#[test]
fn vector_add_with_small_pages() {
    let _dog = watchdog("vector add, 4 KiB");
    let pager = Pager::new(Discrete::builder().memory(64 * 4096).cores(2), 4096, 256, |_| {});
    vector_add(&pager);
    pager.destroy();
}

#[test]
fn loads_and_stores_fault_as_what_they_are() {
    let _dog = watchdog("loads and stores");
    let pager = Pager::new(small(), PAGE, 4, |p| p.upgrade = true);
    pager.launch("load", &[pager.start() + 16]).unwrap();
    pager.launch("load", &[pager.start() + 24]).unwrap();
    pager.launch("store", &[pager.start() + 32, 7]).unwrap();
    pager.launch("store", &[pager.start() + PAGE + 8, 9]).unwrap();
    let faults = pager.state.lock().unwrap().faults.clone();
    let s = pager.start();
    // Page 0: a load, then an upgrade by a store; the second load finds the page. Page 1: a store at once.
    assert_eq!(faults, [(s + 16, Access::Read), (s + 32, Access::Write), (s + PAGE + 8, Access::Write)]);
    pager.bring_home();
    assert_eq!((pager.get(4), pager.get(PAGE / 8 + 1)), (7, 9));
    pager.destroy();
}

#[test]
fn what_was_released_faults_again_and_what_was_protected_faults_on_stores() {
    let _dog = watchdog("release and protect");
    let pager = Pager::new(small(), PAGE, 4, |_| {});
    pager.launch("store", &[pager.start(), 1]).unwrap();
    let (pmap, page) = (pager.pmap(), pager.page_range(0));
    let faults = || pager.state.lock().unwrap().faults.len();
    assert_eq!(faults(), 1);

    // Lowered to loads: a load goes through, a store faults.
    pager.mmu().pmap_protect(pmap, page, Prot::READ).unwrap();
    pager.mmu().tlb_invalidate(pmap, page).unwrap();
    pager.launch("load", &[pager.start()]).unwrap();
    assert_eq!(faults(), 1);
    pager.launch("store", &[pager.start(), 2]).unwrap();
    assert_eq!(faults(), 2);

    // No access at all, the frame kept; then raised again without a fault, and the absent neighbour stays absent.
    let both = VirtRange::new(page.start(), pager.page_range(1).end()).unwrap();
    pager.mmu().pmap_protect(pmap, page, Prot::empty()).unwrap();
    pager.mmu().tlb_invalidate(pmap, page).unwrap();
    pager.mmu().pmap_protect(pmap, both, Prot::RW).unwrap();
    pager.mmu().tlb_invalidate(pmap, both).unwrap();
    pager.launch("increment", &[pager.start(), 40]).unwrap();
    assert_eq!(faults(), 2);
    pager.launch("load", &[pager.start() + PAGE]).unwrap();
    assert_eq!(faults(), 3, "raising the access of a range made an absent page appear");

    pager.bring_home();
    assert_eq!(pager.get(0), 42);
    pager.launch("load", &[pager.start()]).unwrap();
    assert_eq!(faults(), 4, "a released page was still there");
    pager.destroy();
}

#[test]
fn coalesced_invalidation_covers_every_range() {
    let _dog = watchdog("coalesced");
    let pager = Pager::new(small(), PAGE, 8, |_| {});
    pager.launch("touch", &[pager.start(), 8, PAGE]).unwrap();
    assert_eq!(pager.state.lock().unwrap().resident.len(), 8);
    let ranges: Vec<_> = (0..8).step_by(2).map(|i| pager.page_range(i)).collect();
    ranges.iter().for_each(|r| pager.mmu().pmap_release(pager.pmap(), *r).unwrap());
    pager.mmu().tlb_invalidate_coalesced(pager.pmap(), &ranges).unwrap();
    pager.state.lock().unwrap().faults.clear();
    pager.launch("touch", &[pager.start(), 8, PAGE]).unwrap();
    let mut faults: Vec<_> = pager.state.lock().unwrap().faults.iter().map(|(va, _)| (va - pager.start()) / PAGE).collect();
    faults.sort_unstable();
    assert_eq!(faults, [0, 2, 4, 6]);
    pager.destroy();
}

#[test]
fn a_bad_access_ends_the_launch_and_the_context_goes_on() {
    let _dog = watchdog("bad access");
    let pager = Pager::new(small(), PAGE, 4, |_| {});
    let unmapped = pager.range.end().get() + 0x1238;
    for _ in 0..3 {
        let error = pager.launch("store", &[unmapped, 1]).unwrap_err();
        assert_eq!(error, LaunchError::Fault { va: VirtAddr::new(unmapped), error: FaultError::NotMapped });
        // Outside the address space altogether, and not an address at all.
        assert_eq!(pager.launch("load", &[0x1000]).unwrap_err(), LaunchError::Crashed(Crash::Access(VirtAddr::new(0x1000))));
        assert_eq!(pager.launch("load", &[0x8000_0000_0000_0000]).unwrap_err(), LaunchError::Crashed(Crash::NoAddress));
        assert_eq!(pager.launch("undefined", &[]).unwrap_err(), LaunchError::Crashed(Crash::Instruction));
        assert_eq!(pager.launch("recurse", &[u64::MAX]).unwrap_err(), LaunchError::Crashed(Crash::StackOverflow));
        #[cfg(target_arch = "x86_64")]
        assert_eq!(pager.launch("divide", &[0]).unwrap_err(), LaunchError::Crashed(Crash::Arithmetic));
        assert_eq!(pager.launch("panic", &[7]).unwrap_err(), LaunchError::Panicked("a kernel panics, as the test wants: 7".into()));
        assert_eq!(pager.launch("panic-with", &[]).unwrap_err(), LaunchError::Panicked(String::new()));
        pager.launch("increment", &[pager.start(), 5]).unwrap();
    }
    pager.bring_home();
    assert_eq!(pager.get(0), 15);
    let pid = pager.device.process(pager.pmap()).unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    assert!(tasks <= 4 + 1, "ended workers stay: {tasks} threads");
    assert!(pager.state.lock().unwrap().lost.is_empty());
    pager.destroy();
}

#[test]
fn a_refused_fault_names_the_reason() {
    let _dog = watchdog("refused");
    let pager = Pager::new(small(), PAGE, 4, |p| p.refuse = Some(FaultError::Host(HostError::Pinned)));
    let error = pager.launch("load", &[pager.start() + 8]).unwrap_err();
    assert_eq!(error, LaunchError::Fault { va: VirtAddr::new(pager.start() + 8), error: FaultError::Host(HostError::Pinned) });
    pager.destroy();
}

#[test]
fn without_replay_only_what_was_entered_can_be_touched() {
    let _dog = watchdog("no replay");
    let pager = Pager::new(small().replay(false), PAGE, 4, |_| {});
    assert!(!pager.device.info().capabilities.contains(Capabilities::REPLAYABLE));
    pager.enter(1, 0, Prot::RW).unwrap();
    pager.launch("store", &[pager.start() + PAGE, 5]).unwrap();
    let fault = |at| Err(LaunchError::Fault { va: VirtAddr::new(at), error: FaultError::NotNamed });
    assert_eq!(pager.launch("store", &[pager.start(), 5]), fault(pager.start()));
    pager.launch("increment", &[pager.start() + PAGE, 5]).unwrap();
    assert!(pager.state.lock().unwrap().faults.is_empty(), "a fault reached the core");
    pager.destroy();

    let pager = Pager::new(small(), PAGE, 4, |_| {});
    let at = pager.start();
    assert_eq!(pager.launch_with("store", &[at, 5], false), fault(at), "one launch without replay");
    pager.launch("store", &[at, 5]).unwrap();
    pager.destroy();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let _dog = watchdog("requests");
    let pager = Pager::new(small(), PAGE, 4, |_| {});
    let bad = |r: Result<(), DeviceError>| assert_eq!(r, Err(DeviceError::BadRequest));
    assert_eq!(pager.launch("no such kernel", &[]), Err(LaunchError::UnknownKernel));
    assert_eq!(pager.launch("nothing", &[0; 17]), Err(LaunchError::TooManyArgs { given: 17, most: 16 }));
    pager.launch("nothing", &[0; 16]).unwrap();
    assert_eq!(pager.device.compute().unwrap().wait(Ticket(77)), Err(LaunchError::BadRequest));
    bad(pager.enter(0, 8 * PAGE, Prot::RW));
    bad(pager.enter(0, 8 * PAGE - 4096, Prot::RW));
    bad(pager.enter(8, 0, Prot::RW));
    bad(pager.mmu().pmap_release(PmapId(99), pager.page_range(0)));
    bad(pager.mmu().pmap_release(pager.pmap(), pager.page_range(9)));
    assert_eq!(pager.device.mmu().pmap_create(&PmapRequest { mode: Mode::Share, ..pager.request() }), Err(DeviceError::Unsupported));
    assert_eq!(pager.device.mmu().pmap_create(&PmapRequest { mode: Mode::Replicate, ..pager.request() }), Err(DeviceError::BadRequest));
    let taken = VirtRange::new(VirtAddr::new(START), VirtAddr::new(0x7fff_ffff_f000)).unwrap();
    assert_eq!(pager.device.mmu().pmap_create(&PmapRequest { range: taken, ..pager.request() }), Err(DeviceError::BadRequest));
    pager.destroy();
    bad(pager.mmu().pmap_destroy(pager.pmap()));
    bad(pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(0)));
}

#[test]
fn launches_run_in_order_and_many_can_be_under_way() {
    let _dog = watchdog("order");
    let pager = Pager::new(small(), PAGE, 4, |_| {});
    // Each doubles as a check of order: a store of i, then an increment, a hundred times.
    let mut tickets = Vec::new();
    for i in 0..100 {
        tickets.push(pager.start_launch("store", &[pager.start(), i], true).unwrap());
        tickets.push(pager.start_launch("increment", &[pager.start(), 1000], true).unwrap());
    }
    let compute = pager.device.compute().unwrap();
    tickets.iter().for_each(|t| compute.wait(*t).unwrap());
    assert_eq!(compute.wait(tickets[0]), Err(LaunchError::BadRequest), "a ticket is good once");
    pager.bring_home();
    assert_eq!(pager.get(0), 1099);
    // More than there are records for: what has ended gives its own back, how it ended is kept, and one that is not waited for is in nobody's way.
    let outside = pager.window().end().get() - 8;
    let all: Vec<_> =
        (0..2000).map(|i| pager.start_launch("store", &[if i % 7 == 3 { outside } else { pager.start() }, i], true).unwrap()).collect();
    for i in (0..2000).rev() {
        let ended = compute.wait(all[i]);
        assert_eq!(matches!(ended, Err(LaunchError::Fault { va, .. }) if va.get() == outside), i % 7 == 3, "launch {i}: {ended:?}");
        assert_eq!(compute.wait(all[i]), Err(LaunchError::BadRequest), "a ticket is good once");
    }
    pager.bring_home();
    assert_eq!(pager.get(0), 1999);
    pager.destroy();
}

/// More callers at once than commands can be under way: an answer that its caller has not read yet is in nobody's way and is not lost.
#[test]
fn many_callers_at_once_each_get_their_answer() {
    const CALLERS: u64 = 600;
    let _dog = watchdog("callers");
    let pager = Pager::new(Discrete::builder().memory(CALLERS * 4096).cores(1), 4096, CALLERS, |_| {});
    let begin = std::sync::Barrier::new(CALLERS as usize);
    std::thread::scope(|threads| {
        for page in 0..CALLERS {
            let (pager, begin) = (&pager, &begin);
            let call = move || {
                begin.wait();
                for _ in 0..10 {
                    pager.enter(page, page * 4096, Prot::RW).unwrap();
                    pager.mmu().pmap_release(pager.pmap(), pager.page_range(page)).unwrap();
                    pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(page)).unwrap();
                }
            };
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(threads, call).unwrap();
        }
    });
    pager.launch("store", &[pager.start(), 7]).unwrap();
    pager.bring_home();
    assert_eq!(pager.get(0), 7);
    pager.destroy();
}

#[test]
fn contexts_of_one_device_are_apart() {
    let _dog = watchdog("contexts");
    let pager = Pager::new(small(), PAGE, 4, |_| {});
    let other = pager.mmu().pmap_create(&pager.request()).unwrap();
    assert_ne!(pager.device.process(other), pager.device.process(pager.pmap()));
    pager.enter(0, 0, Prot::RW).unwrap();
    pager.launch_with("store", &[pager.start(), 5], false).unwrap();
    let args = [pager.start()];
    let request = LaunchRequest { pmap: Some(other), kernel: "load", args: &args, replay: false };
    let compute = pager.device.compute().unwrap();
    let result = compute.wait(compute.start(&request).unwrap());
    assert!(matches!(result, Err(LaunchError::Fault { .. })), "the other context sees the page: {result:?}");
    pager.mmu().pmap_destroy(other).unwrap();
    pager.launch_with("load", &[pager.start()], false).unwrap();
    pager.destroy();
}

#[test]
fn more_mappings_than_the_kernel_allows_are_refused_early() {
    let _dog = watchdog("mappings");
    // Frames in reverse order never merge: every page is a mapping of its own.
    let pages = 70_000;
    let pager = Pager::new(Discrete::builder().memory(pages * 4096).cores(1), 4096, pages, |_| {});
    let mut entered = 0;
    let error = loop {
        if let Err(e) = pager.enter(entered, (pages - 1 - entered) * 4096, Prot::RW) {
            break e;
        }
        entered += 1;
    };
    assert_eq!(error, DeviceError::TooManyMappings);
    assert!((20_000..65_530).contains(&entered), "{entered} pages were entered");
    // What is there still works, and can be taken away.
    pager.launch_with("touch", &[pager.start(), entered, 4096], false).unwrap();
    (0..entered).for_each(|i| pager.mmu().pmap_release(pager.pmap(), pager.page_range(i)).unwrap());
    pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(0)).unwrap();
    pager.enter(0, 0, Prot::RW).unwrap();
    pager.destroy();
}

#[test]
fn several_host_threads_use_one_context_while_its_kernels_fault() {
    let _dog = watchdog("many threads");
    // Pages 0..8 belong to the kernels, 8..12 to a host thread each; frames 8..12 likewise.
    let pager = Pager::new(Discrete::builder().memory(12 * PAGE).cores(2).time_limit(std::time::Duration::from_secs(20)), PAGE, 16, |p| {
        p.no_copy = true;
        p.state.get_mut().unwrap().free.retain(|frame| *frame < 4 * PAGE);
    });
    std::thread::scope(|scope| {
        for page in 8..12 {
            let pager = &pager;
            scope.spawn(move || {
                for round in 0..300 {
                    let prot = if round % 2 == 0 { Prot::READ } else { Prot::RW };
                    pager.enter(page, page * PAGE, prot).unwrap();
                    pager.enter(page, page * PAGE, Prot::RW).unwrap();
                    pager.mmu().pmap_protect(pager.pmap(), pager.page_range(page), Prot::READ).unwrap();
                    pager.mmu().pmap_release(pager.pmap(), pager.page_range(page)).unwrap();
                    pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(page)).unwrap();
                }
            });
        }
        for _ in 0..30 {
            pager.launch("touch", &[pager.start(), 8, PAGE]).unwrap();
        }
    });
    for page in 8..12 {
        assert!(pager.launch_with("load", &[pager.start() + page * PAGE], false).is_err(), "page {page} is still there");
    }
    pager.destroy();
}

#[test]
fn odd_sizes_of_memory_and_pages_work() {
    let _dog = watchdog("odd sizes");
    // 64 KiB pages over a memory that is not a multiple of 2 MiB, and hardly any.
    let pager = Pager::new(Discrete::builder().memory(PAGE + 5 * 65536).cores(1), 65536, 96, |_| {});
    vector_add(&pager);
    pager.destroy();
    let pager = Pager::new(Discrete::builder().memory(3 * 4096).cores(1), 4096, 12, |_| {});
    vector_add(&pager);
    pager.destroy();
}

#[test]
fn what_cannot_be_built_is_refused() {
    use gmem_accel::BuildError;
    let refused = |b: gmem_accel::Builder| b.build().err();
    assert_eq!(refused(small().memory(0)), Some(BuildError::Memory));
    assert_eq!(refused(small().memory(4097)), Some(BuildError::Memory));
    let has = gmem_accel::machine_memory();
    let asked = ByteLen(has.get().next_multiple_of(4096) + 4096);
    assert_eq!(refused(small().memory(asked.get())), Some(BuildError::MoreThanMachine { asked, has }));
    small().memory(has.get() / 4096 * 4096).build().expect("all that the machine has: nothing is taken before the start");
    assert_eq!(refused(small().cores(0)), Some(BuildError::Cores));
    assert_eq!(refused(small().cores(65)), Some(BuildError::Cores));
    assert_eq!(refused(small().modes(Modes::all())), Some(BuildError::Modes));
    assert_eq!(refused(small().page_sizes(PageSizes::from_bitmap(1 << 30))), Some(BuildError::PageSizes));
    assert_eq!(refused(small().time_limit(std::time::Duration::ZERO)), Some(BuildError::TimeLimit));
    let cookies = [small().build().unwrap(), small().build().unwrap()].map(|d| d.info().mmu_cookie);
    assert!(cookies[0] != cookies[1] && !cookies.contains(&DeviceInfo::CPU_COOKIE));
}
