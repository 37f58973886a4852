//! What the tests of the facade share: a watchdog, and kernels that hammer memory.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `test`, and aborts the process with a dump of every thread's wait channel if it takes longer than a minute and a half: faults, signals and child
/// processes can hang, and a hung test says nothing.
pub(crate) fn watched(test: impl FnOnce()) {
    let (done, waiting) = channel::<()>();
    let dog = std::thread::spawn(move || {
        if waiting.recv_timeout(Duration::from_secs(90)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test hangs; its threads:");
            for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
                let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
                let (comm, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
                eprintln!("  {:?} {} in {wchan}: {}", task.file_name(), comm.trim(), syscall.trim());
            }
            std::process::abort();
        }
    });
    test();
    drop(done);
    let _ = dog.join();
}

/// A step of a fixed pseudo-random sequence (Knuth's MMIX multiplier).
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Adds 1 to `rounds` pseudo-randomly chosen words of the `words` at `base`.
///
/// # Safety
/// `base` points to that many 64-bit words, which only atomics touch meanwhile.
pub(crate) unsafe fn hammer(base: *mut u64, words: usize, rounds: usize, seed: u64) {
    let mut state = seed;
    for _ in 0..rounds {
        let at = next(&mut state) as usize % words;
        // SAFETY: `at` is below `words`; see the function's contract.
        unsafe { AtomicU64::from_ptr(base.add(at)) }.fetch_add(1, Ordering::Relaxed);
    }
}

gmem::kernel!(pub(crate) HAMMER = "hammer", |grid, args| {
    hammer(args[0] as *mut u64, args[1] as usize, args[2] as usize, args[3] + grid.worker as u64)
});
