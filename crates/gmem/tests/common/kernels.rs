//! The kernels of the tests, and the gates by which a test lets a kernel in another process go on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A file that a kernel waits for. Removed on drop.
pub(crate) struct KernelGate(u64);

impl KernelGate {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let gate = Self(u64::from(std::process::id()) << 20 | NEXT.fetch_add(1, Ordering::Relaxed));
        let _ = std::fs::remove_file(gate_path(gate.0));
        gate
    }

    /// What the kernel is told.
    pub(crate) fn number(&self) -> u64 {
        self.0
    }

    pub(crate) fn open(&self) {
        std::fs::write(gate_path(self.0), "").unwrap();
    }
}

impl Drop for KernelGate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(gate_path(self.0));
    }
}

fn gate_path(number: u64) -> PathBuf {
    std::env::temp_dir().join(format!("gmem-test-gate-{number:x}"))
}

pub(crate) fn wait_at_gate(number: u64) {
    let path = gate_path(number);
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

// ---- kernels ----

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

// *args[0] = args[1]
gmem::kernel!(pub(crate) STORE = "store", |grid, args| {
    if grid.worker == 0 {
        (args[0] as *mut u64).write_volatile(args[1]);
    }
});

// *args[0] += args[1]
gmem::kernel!(pub(crate) ADD = "add", |grid, args| {
    if grid.worker == 0 {
        let word = args[0] as *mut u64;
        word.write_volatile(word.read_volatile().wrapping_add(args[1]));
    }
});

// Loads args[0].
gmem::kernel!(pub(crate) LOAD = "load", |grid, args| {
    if grid.worker == 0 {
        std::hint::black_box((args[0] as *const u64).read_volatile());
    }
});

// Stores args[1] + i at args[0] + i * args[2], for i below args[3].
gmem::kernel!(pub(crate) STRIDE = "stride", |grid, args| {
    for i in grid.share(args[3] as usize) {
        ((args[0] + i as u64 * args[2]) as *mut u64).write_volatile(args[1] + i as u64);
    }
});

// The sum of the words at args[1] + i * args[2], for i below args[3], goes to args[0].
gmem::kernel!(pub(crate) SUM = "sum", |grid, args| {
    if grid.worker == 0 {
        let mut sum = 0u64;
        for i in 0..args[3] {
            sum = sum.wrapping_add(((args[1] + i * args[2]) as *const u64).read_volatile());
        }
        (args[0] as *mut u64).write_volatile(sum);
    }
});

// Stores 1 at args[0], waits for the gate args[1], stores 2.
gmem::kernel!(pub(crate) GATED = "gated", |grid, args| {
    if grid.worker == 0 {
        (args[0] as *mut u64).write_volatile(1);
        wait_at_gate(args[1]);
        (args[0] as *mut u64).write_volatile(2);
    }
});

// Increments args[0] until args[1], in another page, is not zero.
gmem::kernel!(pub(crate) SPIN = "spin", |grid, args| {
    if grid.worker == 0 {
        let (word, stop) = (args[0] as *mut u64, args[1] as *const u64);
        while stop.read_volatile() == 0 {
            word.write_volatile(word.read_volatile() + 1);
        }
    }
});

gmem::kernel!(pub(crate) NOTHING = "nothing", |_, _| {});

gmem::kernel!(pub(crate) PANIC = "panic", |grid, _| {
    if grid.worker == 0 {
        panic!("a kernel panics, as the test wants");
    }
});

gmem::kernel!(pub(crate) ABORT = "abort", |grid, _| {
    if grid.worker == 0 {
        std::process::abort();
    }
});
