//! What a kernel or a device does wrong harms its own context and nobody else, and no address space ever sees what another one left behind.

mod common;

use common::*;
use gmem::hal::{FaultError, LaunchError};
use gmem::{Access, AddressSpace, Args, Backing, Context, Delivery, Device, Error, Gmem, Mode, PageSize, Region, accel};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Two contexts of one device in different address spaces.
struct Two {
    gmem: Gmem,
    driver: Arc<accel::Discrete>,
    device: Device,
    culprit: (Context, Region),
    bystander: (Context, Region),
}

fn two(peer: bool) -> Two {
    let gmem = Gmem::new().unwrap();
    // A peer hands its memory out in blocks of sixteen pages.
    let memory = if peer { 40 * PAGE } else { 8 * PAGE };
    let driver = accel::Discrete::builder().memory(memory).cores(1).peer(peer).build().unwrap();
    let device = gmem.add_device(driver.clone()).unwrap();
    let [culprit, bystander] = [(); 2].map(|()| {
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        (context, space.region().map(2 * PAGE).unwrap())
    });
    Two { gmem, driver, device, culprit, bystander }
}

/// Where nothing of the address space is, by name.
fn wild_addresses(two: &Two) -> Vec<(&'static str, u64)> {
    let (space, region) = (two.culprit.0.space().range(), &two.culprit.1);
    vec![
        ("the null page", 8),
        ("the middle of a page of no region", region.range().end().get() + 5 * PAGE + 40),
        ("the last word of the address space", space.end().get() - 8),
        ("the word behind the address space", space.end().get()),
        ("the word before the address space", space.start().get() - 8),
        ("the other address space", at(&two.bystander.1, 0)),
        ("below every executable", 2 << 20),
        ("no canonical address", 1 << 63 | 0x1000),
        ("the last address", u64::MAX - 7),
    ]
}

// Runs wild: loads or stores at args[0], by args[1].
gmem::kernel!(WILD = "containment-wild", |grid, args| {
    if grid.worker == 0 {
        let word = args[0] as *mut u64;
        if args[1] == 0 {
            std::hint::black_box(word.read_volatile());
        } else {
            word.write_volatile(args[1]);
        }
    }
});

#[test]
fn a_kernel_that_runs_wild_ends_and_the_next_context_does_not_notice() {
    watched(|| {
        for peer in [false, true] {
            let two = two(peer);
            let (bystander, theirs) = &two.bystander;
            set(at(theirs, 0), 500);
            let (word, stop) = (at(theirs, 64), at(theirs, PAGE));
            std::thread::scope(|threads| {
                let kernel = threads.spawn(move || run(bystander, &SPIN, &[word, stop]));
                let _stops = AtEnd(|| set(stop, 1));
                eventually("the bystander's kernel runs", || get(word) > 0);
                let mut counted = get(word);
                for (what, va) in wild_addresses(&two) {
                    for value in [0, 0xbad] {
                        let result = run(&two.culprit.0, &WILD, &[va, value]);
                        let ended = matches!(result, Err(Error::Launch(LaunchError::Fault { .. } | LaunchError::Crashed(_))));
                        assert!(ended, "{what}, value {value:#x}, peer {peer}: {result:?}");
                        assert!(!two.culprit.0.is_fenced() && !bystander.is_fenced(), "{what}");
                    }
                    run(&two.culprit.0, &ADD, &[at(&two.culprit.1, 0), 1]).unwrap_or_else(|e| panic!("after {what}: {e}"));
                    assert_eq!(get(at(theirs, 0)), 500, "{what}");
                    eventually("the bystander's kernel runs on", || get(word) > counted);
                    counted = get(word);
                }
                set(stop, 1);
                kernel.join().unwrap().unwrap();
            });
            assert_eq!(get(at(&two.culprit.1, 0)), wild_addresses(&two).len() as u64);
            verify(&two.gmem);
        }
    });
}

// Tries to become several processes, or another program, and to start a thread: the errno of each in its word, 0 if it could.
gmem::kernel!(BREED = "containment-breed", |grid, args| {
    if grid.worker == 0 {
        let errno = |result: i64| if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) as u64 } else { 0 };
        let child = |result: i64| {
            if result == 0 {
                libc::_exit(0);
            }
            errno(result)
        };
        let none = std::ptr::null::<u8>();
        let found = [
            child(libc::fork().into()),
            child(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
            errno(libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), none, none)),
            u64::from(std::process::Command::new("/bin/true").spawn().is_ok()),
            u64::from(std::thread::spawn(|| 7).join().ok() != Some(7)),
        ];
        for (n, value) in found.into_iter().enumerate() {
            (args[0] as *mut u64).add(n).write_volatile(value);
        }
    }
});

// The end of a device's process counts as the end of every access of its context.
#[test]
fn a_kernel_has_no_children_that_could_outlive_its_context() {
    watched(|| {
        let two = two(false);
        let (context, region) = &two.culprit;
        run(context, &STORE, &[at(region, 0), 5]).unwrap();
        run(context, &BREED, &[at(region, 0)]).unwrap();
        let eperm = libc::EPERM as u64;
        assert_eq!(
            [0, 8, 16, 24, 32].map(|offset| get(at(region, offset))),
            [eperm, eperm, eperm, 0, 0],
            "fork, clone, exec, a command, a thread"
        );
        verify(&two.gmem);
    });
}

// Overwrites the memory that its process shares with the host (args[0] is 0), or its own stack.
gmem::kernel!(SCRIBBLE = "containment-scribble", |grid, args| {
    if grid.worker == 0 {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of = |name: &str| maps.lines().filter(|l| l.contains(name) && l.contains("rw")).map(str::to_owned).collect::<Vec<_>>();
        for line in of(if args[0] == 0 { "gmem-ring" } else { "[stack]" }) {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
            for word in (start..end).step_by(8) {
                (word as *mut u64).write_volatile(0x4141_4141_4141_4141);
            }
        }
    }
});

#[test]
fn a_kernel_that_overwrites_its_own_ring_or_stack_harms_its_context_alone() {
    watched(|| {
        for peer in [false, true] {
            for what in [0, 1] {
                let two = two(peer);
                let (bystander, theirs) = &two.bystander;
                run(bystander, &STRIDE, &[at(theirs, 0), 70, PAGE, 2]).unwrap();
                run(&two.culprit.0, &STORE, &[at(&two.culprit.1, 0), 5]).unwrap();
                // A launch that garbles what it reports may end in any way; if it never does, ending the context ends it.
                let ours = &two.culprit.0;
                let end = std::thread::scope(|threads| {
                    let launch = threads.spawn(|| run(ours, &SCRIBBLE, &[what]));
                    run(bystander, &ADD, &[at(theirs, 0), 1]).unwrap();
                    let patience = Instant::now();
                    while !launch.is_finished() && patience.elapsed().as_secs() < 3 {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    if !launch.is_finished() {
                        signal(two.driver.process(ours.pmap().unwrap()).unwrap(), libc::SIGKILL);
                    }
                    launch.join().unwrap()
                });
                println!("peer {peer}, {}: {end:?}", if what == 0 { "its ring" } else { "its stack" });
                run(bystander, &ADD, &[at(theirs, PAGE), 1]).unwrap();
                assert_eq!((get(at(theirs, 0)), get(at(theirs, PAGE))), (71, 72));
                let Two { gmem, device, culprit: (context, region), bystander, .. } = two;
                let space = context.space().clone();
                assert_eq!(get(at(&region, 0)), 5, "the CPU has its data back");
                context.detach().unwrap();
                let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
                run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
                assert_eq!(get(at(&region, 0)), 6);
                run(&bystander.0, &ADD, &[at(&bystander.1, 0), 1]).unwrap();
                verify(&gmem);
            }
        }
    });
}

#[test]
fn a_flood_of_faults_keeps_nobody_else_from_working() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let device = gmem.add_device(accel::Discrete::builder().memory(64 << 12).cores(2).build().unwrap()).unwrap();
        let [flood, calm] = [(); 2].map(|()| {
            let space = gmem.address_space().create().unwrap();
            let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
            (context, space.region().page_size(PageSize::Size4K).map(512 << 12).unwrap())
        });
        let stop = calm.0.space().region().page_size(PageSize::Size4K).map(4096).unwrap();
        let mut counted = 0;
        // One page that the CPU takes back each time, and many that do not fit.
        for pages in [1, 512] {
            let halt = flood.0.space().region().page_size(PageSize::Size4K).map(4096).unwrap();
            set(at(&halt, 0), 0);
            let done = AtomicU64::new(0);
            std::thread::scope(|threads| {
                let storm = threads.spawn(|| run(&flood.0, &FLOOD, &[at(&flood.1, 0), pages, at(&halt, 0)]));
                let fight = threads.spawn(|| {
                    let mut count = 0;
                    while done.load(Ordering::SeqCst) == 0 {
                        // SAFETY: a word of a region that lives, which nobody else touches; the kernel adds to the one before it.
                        unsafe { AtomicU64::from_ptr(at(&flood.1, 8) as *mut u64) }.fetch_add(1, Ordering::SeqCst);
                        count += 1;
                    }
                    count
                });
                let end = AtEnd(|| {
                    done.store(1, Ordering::SeqCst);
                    set(at(&halt, 0), 1);
                });
                for round in 1..=20 {
                    run(&calm.0, &STRIDE, &[at(&calm.1, 0), round, 4096, 32]).unwrap();
                    (0..32).for_each(|page| assert_eq!(get(at(&calm.1, page * 4096)), round + page, "{pages} pages, round {round}"));
                    set(at(&stop, 0), round);
                }
                drop(end);
                counted += fight.join().unwrap();
                storm.join().unwrap().unwrap();
            });
            assert_eq!(get(at(&flood.1, 8)), counted, "{pages} pages: the CPU's own writes were lost");
            assert!(gmem.stats().device_faults > 20);
        }
        verify(&gmem);
    });
}

// Adds 1 to the first word of each of args[1] pages of 4 KiB at args[0], again and again, until the word at args[2] is not zero.
gmem::kernel!(FLOOD = "containment-flood", |_grid, args| {
    let stop = args[2] as *const u64;
    while stop.read_volatile() == 0 {
        for page in 0..args[1] {
            AtomicU64::from_ptr((args[0] + page * 4096) as *mut u64).fetch_add(1, Ordering::Relaxed);
        }
    }
});

// ---- secrecy ----

const SECRET: u64 = 0x5ec4_e75e_c4e7_5ec4;

// Fills args[1] words at args[0] with the secret.
gmem::kernel!(CONFIDE = "containment-confide", |grid, args| {
    for i in grid.share(args[1] as usize) {
        (args[0] as *mut u64).add(i).write_volatile(SECRET);
    }
});

// Counts the secrets among the args[2] words at args[1] into the word at args[0].
gmem::kernel!(SEARCH = "containment-search", |grid, args| {
    if grid.worker == 0 {
        let words = args[1] as *const u64;
        let found = (0..args[2] as usize).filter(|i| words.add(*i).read_volatile() == SECRET).count();
        (args[0] as *mut u64).write_volatile(found as u64);
    }
});

/// Writes the secret all over memory of an address space, on the CPU and on the device, part of each page and whole pages, and gives it up in every way there is.
fn confide(space: &AddressSpace, device: &Device, mode: Mode, size: PageSize, kind: (Backing, Delivery), pages: u64) {
    let context = space.attach(device, mode).unwrap();
    let region = space.region().page_size(size).backing(kind.0).delivery(kind.1).map(pages * size.bytes()).unwrap();
    let words = size.bytes() / 8;
    for page in 0..pages {
        let va = at(&region, page * size.bytes());
        // A word, the first half, the last word, or everything.
        let (from, count) = [(0, 1), (0, words / 2), (words - 1, 1), (0, words)][page as usize % 4];
        if page % 3 == 0 {
            (from..from + count).for_each(|word| set(va + 8 * word, SECRET));
        } else {
            run(&context, &CONFIDE, &[va + 8 * from, count]).unwrap();
        }
    }
    region.discard(part(&region, 0, 2 * size.bytes())).unwrap();
    region.unmap(part(&region, 2 * size.bytes(), 2 * size.bytes())).unwrap();
    if pages.is_multiple_of(2) {
        context.detach().unwrap();
    } else {
        drop(region);
    }
}

/// Looks for the secret in everything that an address space can read: with the CPU, and with the device, which gets fresh frames for every page.
fn search(space: &AddressSpace, device: &Device, mode: Mode, size: PageSize, kind: (Backing, Delivery), pages: u64, case: &str) {
    let context = space.attach(device, mode).unwrap();
    let region = space.region().page_size(size).backing(kind.0).delivery(kind.1).map(pages * size.bytes()).unwrap();
    let answer = space.region().page_size(size).map(size.bytes()).unwrap();
    let words = region.range().len().get() / 8;
    // Every second page is first seen by the CPU, and of the others some have been written in one place before the device looks.
    let page = |n: u64| at(&region, n * size.bytes());
    for n in (0..pages).step_by(2) {
        let seen = (0..size.bytes() / 8).filter(|word| get(page(n) + 8 * word) == SECRET).count();
        assert_eq!(seen, 0, "{case}: the CPU sees it in page {n}");
    }
    (1..pages).step_by(4).for_each(|n| run(&context, &STORE, &[page(n) + 8, 1]).unwrap());
    run(&context, &SEARCH, &[at(&answer, 0), at(&region, 0), words]).unwrap();
    assert_eq!(get(at(&answer, 0)), 0, "{case}: the device sees it");
    let seen = (0..words).filter(|word| get(at(&region, 8 * word)) == SECRET).count();
    assert_eq!(seen, 0, "{case}: the CPU sees it after the device");
}

#[test]
fn a_secret_of_one_address_space_is_never_seen_in_another() {
    for (size, memory) in sizes() {
        for kind in kinds() {
            // Neither a peer nor private memory can be replicated.
            let ways = [(false, Mode::CoherentExclusive), (true, Mode::CoherentExclusive), (false, Mode::Replicate)];
            for (peer, mode) in ways.into_iter().filter(|(_, mode)| *mode != Mode::Replicate || kind.0 == Backing::Shared) {
                watched(|| keep_secret(peer, mode, size, memory, kind));
            }
        }
    }
}

fn keep_secret(peer: bool, mode: Mode, size: PageSize, memory: u64, kind: (Backing, Delivery)) {
    let gmem = Gmem::new().unwrap();
    let builder = accel::Discrete::builder().memory(2 * memory).cores(1).peer(peer);
    let device = gmem.add_device(builder.build().unwrap()).unwrap();
    // The search needs twice what the device has, so that every frame of it is seen.
    let pages = 16;
    let space = || gmem.address_space().create().unwrap();
    let first = space();
    confide(&first, &device, mode, size, kind, pages);
    confide(&first, &device, mode, size, kind, pages - 1);
    let case = format!("{size}, {kind:?}, {mode:?}, peer {peer}");
    search(&space(), &device, mode, size, kind, pages, &case);
    // The first goes, and its addresses are used again.
    let place = first.range().start();
    drop(first);
    let again = gmem.address_space().at(place).create().unwrap();
    search(&again, &device, mode, size, kind, pages, &case);
}

#[test]
fn a_secret_is_not_left_in_frames_by_a_killed_device() {
    watched(|| {
        for peer in [false, true] {
            let world = World::new(accel::Discrete::builder().memory(8 * PAGE).cores(1).peer(peer), Mode::CoherentExclusive);
            let region = world.pages(8);
            let words = region.range().len().get() / 8;
            world.run(&CONFIDE, &[at(&region, 0), words]).unwrap();
            signal(world.pid(), libc::SIGKILL);
            eventually("the context is fenced", || world.context.is_fenced());
            let World { context, device, space, gmem, .. } = world;
            assert_eq!(get(at(&region, 0)), SECRET, "its owner has it");
            context.detach().unwrap();
            drop((region, space));
            let other = gmem.address_space().create().unwrap();
            search(&other, &device, Mode::CoherentExclusive, PageSize::Size2M, kinds()[0], 16, "after a kill");
        }
    });
}

#[test]
fn a_prefetch_brings_nobody_elses_bytes() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let device = discrete(&gmem, 4 * PAGE);
        let first = gmem.address_space().create().unwrap();
        confide(&first, &device, Mode::CoherentExclusive, PageSize::Size2M, kinds()[0], 5);
        let other = gmem.address_space().create().unwrap();
        let context = other.attach(&device, Mode::CoherentExclusive).unwrap();
        let region = other.region().map(4 * PAGE).unwrap();
        other.prefetch(region.range(), Some(&device), Access::Read).unwrap();
        let answer = other.region().map(PAGE).unwrap();
        // SAFETY: the kernel takes three numbers; the regions live.
        unsafe { context.run(&SEARCH, Args::new().number(at(&answer, 0)).number(at(&region, 0)).number(4 * PAGE / 8)) }.unwrap();
        assert_eq!(get(at(&answer, 0)), 0);
        let beyond = fault(run(&context, &LOAD, &[region.range().end().get() + 64 * PAGE]));
        assert_eq!(beyond.1, FaultError::NotMapped);
    });
}
