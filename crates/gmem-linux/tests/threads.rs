//! gmem's own threads.

mod common;

use common::watchdog;
use gmem_linux::Threads;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier};
use std::time::Duration;

#[test]
fn calls_run_elsewhere_at_the_same_time_and_inline_when_nested() {
    let _w = watchdog(30);
    let threads = Threads::start().expect("threads");
    assert!(!threads.is_current());
    let here = std::thread::current().id();
    let (inner, outer) = threads.run(|| {
        assert!(threads.is_current());
        (threads.run(|| std::thread::current().id()), std::thread::current().id())
    });
    assert!(inner == outer && outer != here);
    // Twelve calls that wait for each other need twelve workers.
    let barrier = Barrier::new(12);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| threads.run(|| barrier.wait()));
        }
    });
}

#[test]
fn a_panic_goes_on_in_the_caller_and_the_worker_lives() {
    let _w = watchdog(30);
    let threads = Threads::start().expect("threads");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| threads.run(|| panic!("on purpose"))));
    assert!(caught.is_err());
    assert_eq!(threads.run(|| 7), 7);
}

#[test]
fn descriptors_are_separate_and_signals_blocked() {
    let _w = watchdog(30);
    let mine = std::fs::File::open("/dev/zero").expect("a descriptor");
    let threads = Arc::new(Threads::start().expect("threads"));
    let target = |fd: i32| std::fs::read_link(format!("/proc/thread-self/fd/{fd}")).ok();
    let number = mine.as_raw_fd();
    assert_eq!(target(number).as_deref(), Some("/dev/zero".as_ref()));
    assert_ne!(threads.run(|| target(number)).as_deref(), Some("/dev/zero".as_ref()), "the program's descriptor was copied");
    // A pipe of the program is not held open by gmem.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let later = Threads::start().expect("threads");
    drop(writer);
    let mut text = String::new();
    assert_eq!(std::io::Read::read_to_string(&mut reader, &mut text).expect("the end"), 0);
    drop(later);
    let blocked = |status: String| status.lines().find_map(|l| l.strip_prefix("SigBlk:").map(|s| s.trim().to_owned())).expect("a mask");
    let mask = threads.run(|| blocked(std::fs::read_to_string("/proc/thread-self/status").expect("status")));
    let mask = u64::from_str_radix(&mask, 16).expect("a number");
    // KILL and STOP cannot be blocked; 32 and 33 are the C library's own.
    let all = !((1 << 8) | (1 << 18) | (1 << 31) | (1 << 32));
    assert_eq!(mask & all, all, "{mask:#x}");
}

#[test]
fn a_named_thread_is_one_of_ours_and_the_last_owner_may_be_one() {
    let _w = watchdog(30);
    let threads = Arc::new(Threads::start().expect("threads"));
    let (own, started) = (threads.clone(), Arc::new(Barrier::new(2)));
    let barrier = started.clone();
    let thread = threads
        .spawn("gmem-test", move || {
            assert!(own.is_current());
            barrier.wait();
            std::thread::sleep(Duration::from_millis(50));
            drop(own);
        })
        .expect("a thread");
    started.wait();
    drop(threads);
    thread.join().expect("no panic");
}

#[test]
fn a_forked_child_is_told_that_there_are_no_threads() {
    let _w = watchdog(30);
    let threads = Threads::start().expect("threads");
    assert_eq!(threads.try_run(|| 7), Ok(7));
    // SAFETY: the child runs ordinary code while no other thread of this test holds a lock, and ends without running the test harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends the child if it hangs.
        unsafe { libc::alarm(10) };
        // A panic must not go on into the copy of the harness, where the child would end as if all were well.
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let refused = threads.is_forked() && threads.try_run(|| 7) == Err(gmem_linux::Forked) && threads.spawn("none", || {}).is_err();
            drop(threads);
            refused
        }));
        // SAFETY: ends the process, and nothing else in it.
        unsafe { libc::_exit(i32::from(!well.unwrap_or(false))) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made, which the watchdog bounds.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert!(!threads.is_forked());
}
