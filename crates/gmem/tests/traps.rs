//! The traps of this kernel, end to end: futexes, descriptors, forks, signals and mappings around unified memory.

mod common;

use common::*;
use gmem::{Backing, Delivery, Gmem, Mode, PageSize, accel};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

#[test]
fn a_shared_futex_wakes_after_its_page_went_to_the_device_and_back() {
    watched(|| {
        for (size, memory) in sizes() {
            let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
            let region = region_of(&world, size, (Backing::Shared, Delivery::Service), 2);
            let word = at(&region, size.bytes() + 128);
            set(word, 0);
            // Not FUTEX_PRIVATE: keyed by inode and offset, as between processes. A futex in the device's own memory would have another key.
            let futex = move |op: i32, value: u32| {
                let limit = libc::timespec { tv_sec: 20, tv_nsec: 0 };
                // SAFETY: a system call on a word of a region that lives.
                unsafe { libc::syscall(libc::SYS_futex, word as *const u32, op, value, &raw const limit) }
            };
            for round in 0..5 {
                let (waiting, tid) = (AtomicBool::new(false), AtomicU64::new(0));
                std::thread::scope(|threads| {
                    let waiter = threads.spawn(|| {
                        // SAFETY: no argument.
                        tid.store(unsafe { libc::gettid() } as u64, Ordering::SeqCst);
                        waiting.store(true, Ordering::SeqCst);
                        // The word is never changed, so that only a wake can end the wait.
                        futex(libc::FUTEX_WAIT, 0)
                    });
                    eventually("the waiter sleeps in the kernel", || {
                        let task = format!("/proc/self/task/{}/syscall", tid.load(Ordering::SeqCst));
                        waiting.load(Ordering::SeqCst)
                            && std::fs::read_to_string(task)
                                .is_ok_and(|s| s.starts_with(&format!("{} ", libc::SYS_futex)) && s.contains(&format!("{word:#x}")))
                    });
                    world.run(&ADD, &[word + 8, 1]).unwrap();
                    assert_eq!(used(&world.device), size.bytes(), "the page is away");
                    let woken = futex(libc::FUTEX_WAKE, 1);
                    assert_eq!((woken, waiter.join().unwrap()), (1, 0), "{size}: the wake missed its waiter");
                });
                assert_eq!(get(word + 8), round + 1);
            }
        }
    });
}

#[test]
fn a_program_that_closes_every_descriptor_it_does_not_know_closes_none_of_ours() {
    alone("a_program_that_closes_every_descriptor_it_does_not_know_closes_none_of_ours", || {
        let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(2), Mode::CoherentExclusive);
        let regions: Vec<_> = kinds().into_iter().map(|kind| region_of(&world, PageSize::Size2M, kind, 8)).collect();
        let visit = |round: u64| {
            for region in &regions {
                world.run(&STRIDE, &[at(region, 0), round, PAGE, 8]).unwrap();
                (0..8).for_each(|page| assert_eq!(get(at(region, page * PAGE)), round + page));
            }
        };
        visit(1);
        for _ in 0..3 {
            // SAFETY: closes the program's own table; in this child nobody uses it any more.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            visit(2);
        }
        // And what needs new descriptors: another device, another process, another address space. The program fills its table meanwhile.
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let space = world.gmem.address_space().create().unwrap();
        let context = space.attach(&discrete(&world.gmem, PAGE), Mode::CoherentExclusive).unwrap();
        let other = space.region().map(4 * PAGE).unwrap();
        run(&context, &STRIDE, &[at(&other, 0), 3, PAGE, 4]).unwrap();
        (0..4).for_each(|page| assert_eq!(get(at(&other, page * PAGE)), 3 + page));
        drop((other, context, space));
        for file in &files {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(link.to_str(), Some("/dev/null"), "a descriptor of the program was closed");
        }
        verify(&world.gmem);
    });
}

#[test]
fn a_forked_child_that_touches_unified_memory_dies_and_the_parent_goes_on() {
    // Alone, because a fork copies descriptors and mappings of whoever else runs.
    alone("a_forked_child_that_touches_unified_memory_dies_and_the_parent_goes_on", || {
        for (size, memory) in sizes() {
            for kind in kinds() {
                let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
                let region = region_of(&world, size, kind, 3);
                // One page on the CPU, one on the device, one nowhere.
                set(at(&region, 0), 1);
                world.run(&STORE, &[at(&region, size.bytes()), 2]).unwrap();
                for page in 0..3 {
                    let word = at(&region, page * size.bytes());
                    // SAFETY: the child makes one load and exits: nothing in it allocates or locks.
                    let pid = unsafe {
                        let pid = libc::fork();
                        if pid == 0 {
                            (word as *const u64).read_volatile();
                            libc::_exit(0);
                        }
                        pid
                    };
                    let mut status = 0;
                    // SAFETY: waits for the child just made.
                    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                    let killed = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                    assert_eq!(killed, Some(libc::SIGSEGV), "page {page}: status {status:#x}, {size} {kind:?}");
                }
                world.run(&ADD, &[at(&region, 0), 10]).unwrap();
                let words = [0, 1, 2].map(|page| get(at(&region, page * size.bytes())));
                assert_eq!(words, [11, 2, 0], "{size} {kind:?}");
                verify(&world.gmem);
            }
        }
    });
}

static TARGET: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn touch_in_handler(_: i32) {
    let word = TARGET.load(Ordering::SeqCst);
    if word != 0 {
        // SAFETY: a word of a region that lives while the test stores it in TARGET, added to atomically.
        unsafe { AtomicU64::from_ptr(word as *mut u64) }.fetch_add(1, Ordering::SeqCst);
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
}

fn handle(signal: i32, flags: i32) {
    // SAFETY: installs a handler that only touches atomics and unified memory.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = touch_in_handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn faults_inside_signal_handlers_and_under_a_storm_of_signals() {
    const NAME: &str = "faults_inside_signal_handlers_and_under_a_storm_of_signals";
    if !is_child(NAME) {
        watched(|| {
            for n in 0..kinds().len() {
                let output = child(NAME, &n.to_string());
                assert!(output.status.success(), "{n}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
            }
        });
        return;
    }
    watched(|| {
        let kind = kinds()[param().parse::<usize>().unwrap()];
        let world = World::new(accel::Discrete::builder().memory(16 << 12).cores(1), Mode::CoherentExclusive);
        let region = region_of(&world, PageSize::Size4K, kind, 64);
        handle(libc::SIGUSR1, 0);
        TARGET.store(at(&region, 0), Ordering::SeqCst);
        for round in 1..=50 {
            world.run(&ADD, &[at(&region, 8), 1]).unwrap();
            // SAFETY: the handler faults in this thread.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!((HANDLED.load(Ordering::SeqCst), get(at(&region, 0)), get(at(&region, 8))), (round, round, round), "{kind:?}");
        }
        // Signals interrupt whatever the program's threads do, a wait for a fault above all, and the handler faults too.
        handle(libc::SIGALRM, libc::SA_RESTART);
        let words = region.range().len().get() / 8;
        set(at(&region, 0), 0);
        let before = HANDLED.load(Ordering::SeqCst);
        let alarms = || HANDLED.load(Ordering::SeqCst) - before;
        let rounds = AtomicU64::new(0);
        // Everybody goes on until there were enough signals, adding atomically to the words of the region.
        let on = |part: &dyn Fn()| {
            while alarms() < 300 {
                part();
                rounds.fetch_add(PART, Ordering::SeqCst);
            }
        };
        const PART: u64 = 100;
        std::thread::scope(|threads| {
            let (world, region, on) = (&world, &region, &on);
            let (tell, tids) = channel();
            threads.spawn(move || on(&|| world.run(&HAMMER, &[at(region, 0), words, PART, 1]).unwrap()));
            for seed in 2..4 {
                let tell = tell.clone();
                threads.spawn(move || {
                    // SAFETY: no argument.
                    tell.send(unsafe { libc::gettid() }).unwrap();
                    // SAFETY: a region that lives, whose words only atomics touch.
                    on(&|| unsafe { hammer(at(region, 0) as *mut u64, words as usize, PART as usize, seed) });
                });
            }
            storm(tids.iter().take(2).collect());
        });
        let sum: u64 = (0..words).map(|word| get(at(&region, 8 * word))).sum();
        // 50 from the second word of the first part.
        assert_eq!(sum, 50 + rounds.load(Ordering::SeqCst) + alarms(), "{kind:?}");
        verify(&world.gmem);
        TARGET.store(0, Ordering::SeqCst);
    });
}

/// Sends SIGALRM to these threads, one after the other, until they have ended. To the process, it would go to the main thread, which is idle. The next signal
/// comes some time after the last was handled, so that the threads get on however slow their faults are.
fn storm(mut tids: Vec<i32>) {
    // SAFETY: sends a signal that is handled, or none, to a thread of this process; one that has ended is an error.
    let send = |tid: i32, signal: i32| unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) } == 0;
    while !tids.is_empty() {
        tids.retain(|tid| {
            let before = HANDLED.load(Ordering::SeqCst);
            send(*tid, libc::SIGALRM) && {
                while HANDLED.load(Ordering::SeqCst) == before && send(*tid, 0) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_micros(50));
                true
            }
        });
    }
}

#[test]
fn no_signal_of_the_program_is_handled_in_a_thread_of_ours() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(2).peer(true), Mode::CoherentExclusive);
        let integrated = world.gmem.add_device(accel::Integrated::builder().cores(1).build().unwrap()).unwrap();
        let shared = world.space.attach(&integrated, Mode::Share).unwrap();
        let region = world.pages(1);
        world.run(&STORE, &[at(&region, 0), 1]).unwrap();
        run(&shared, &ADD, &[at(&region, 0), 1]).unwrap();
        // A handler that touches unified memory in the thread that resolves faults would wait for itself.
        let mut seen = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
            if field("Name:").starts_with("gmem-") {
                let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
                for signal in [libc::SIGALRM, libc::SIGCHLD, libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGPROF] {
                    assert_ne!(blocked >> (signal - 1) & 1, 0, "{} takes signal {signal}", field("Name:"));
                }
                seen += 1;
            }
        }
        assert!(seen > 6, "only {seen} threads of ours");
    });
}

#[test]
fn a_device_process_cannot_cut_the_memory_it_is_given() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(PAGE).cores(1), Mode::Replicate);
        let region = world.pages(1);
        set(at(&region, 0), 5);
        let fds = std::fs::read_dir(format!("/proc/{}/fd", world.pid())).unwrap().flatten();
        // What stands for absent pages there is the device's own affair.
        let ours = |link: &str| link.contains("memfd:gmem") && !link.contains("gmem-absent");
        let memory: Vec<_> = fds.filter(|f| std::fs::read_link(f.path()).is_ok_and(|l| ours(&l.to_string_lossy()))).collect();
        assert!(memory.len() >= 2, "its own memory and the host's: {memory:?}");
        for fd in memory {
            // What the device could do with the descriptor it holds.
            let Ok(file) = std::fs::File::options().write(true).open(fd.path()) else { continue };
            let cut = file.set_len(0);
            assert_eq!(cut.err().and_then(|e| e.raw_os_error()), Some(libc::EPERM), "{fd:?} can be truncated");
        }
        world.run(&ADD, &[at(&region, 0), 1]).unwrap();
        assert_eq!(get(at(&region, 0)), 6);
    });
}

#[test]
fn memory_that_the_program_unmaps_behind_our_back_is_a_segfault_and_no_more() {
    const NAME: &str = "memory_that_the_program_unmaps_behind_our_back_is_a_segfault_and_no_more";
    if is_child(NAME) {
        let world = World::small();
        let region = region_of(&world, PageSize::Size2M, kinds()[param().parse::<usize>().unwrap()], 4);
        world.run(&STRIDE, &[at(&region, 0), 1, PAGE, 4]).unwrap();
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (1, 2));
        // Page 1 is on the CPU, page 2 on the device.
        // SAFETY: this is what the test is about; nothing else of the child lies there.
        assert_eq!(unsafe { libc::munmap(at(&region, PAGE) as *mut _, 2 * PAGE as usize) }, 0);
        assert_eq!((get(at(&region, 0)), get(at(&region, 3 * PAGE))), (1, 4), "the rest is untouched");
        world.run(&ADD, &[at(&region, 0), 1]).unwrap();
        // The device still has what it had: gmem was not told.
        world.run(&LOAD, &[at(&region, 2 * PAGE)]).unwrap();
        verify(&world.gmem);
        println!("alive");
        get(at(&region, PAGE));
        println!("read");
        return;
    }
    watched(|| {
        for n in 0..kinds().len() {
            let output = child(NAME, &n.to_string());
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{n}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
            assert!(said.contains("alive") && !said.contains("read"), "{n}: {said}");
        }
    });
}

#[test]
fn gmem_lives_and_goes_without_a_trace_in_the_program() {
    alone("gmem_lives_and_goes_without_a_trace_in_the_program", || {
        let before = census();
        for _ in 0..3 {
            let gmem = Gmem::new().unwrap();
            let space = gmem.address_space().create().unwrap();
            let context = space.attach(&discrete(&gmem, 4 * PAGE), Mode::CoherentExclusive).unwrap();
            assert_eq!(census().descriptors, before.descriptors, "no descriptor of ours is in the program's table");
            let region = space.region().map(8 * PAGE).unwrap();
            run(&context, &STRIDE, &[at(&region, 0), 1, PAGE, 8]).unwrap();
        }
        assert_nothing_left(&before);
    });
}
