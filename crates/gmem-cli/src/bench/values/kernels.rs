//! Kernels that touch a page.

use gmem::{Grid, kernel};
use std::time::Instant;

kernel!(pub(crate) TOUCH = "bench-touch", |grid, args| {
    // SAFETY: launched by `super::faults` alone, with writable memory of this length.
    unsafe { touch(grid, args[0], args[1] as usize, args[2] as usize) }
});

kernel!(pub(crate) TOUCH_TIMED = "bench-touch-timed", |grid, args| {
    // SAFETY: launched by `super::faults` alone, with readable bytes at these distances and a writable number.
    unsafe { touch_timed(grid, args[0], args[1], args[2] as usize, args[3] as usize, args[4]) }
});

/// Writes to a byte in every `stride` bytes of memory, in a way the compiler cannot leave out.
///
/// # Safety
/// `start` is the address of `len` writable bytes.
unsafe fn touch(grid: Grid, start: u64, len: usize, stride: usize) {
    let start = std::ptr::with_exposed_provenance_mut::<u8>(start as usize);
    for at in (grid.worker * stride..len).step_by(grid.workers * stride) {
        // SAFETY: `at < len`, and each byte is one core's.
        unsafe {
            let byte = start.add(at);
            byte.write_volatile(byte.read_volatile().wrapping_add(1));
        }
    }
}

/// Reads a byte at `first`, then `count` bytes from `at` on, `stride` bytes apart, and writes down how long the latter took on average, in nanoseconds.
///
/// # Safety
/// `first` and those from `at` on are the addresses of readable bytes, `nanoseconds` that of a writable number; `count` is not zero.
unsafe fn touch_timed(grid: Grid, first: u64, at: u64, count: usize, stride: usize, nanoseconds: u64) {
    if grid.worker == 0 {
        let byte = |address: u64| std::ptr::with_exposed_provenance::<u8>(address as usize);
        let nanoseconds = std::ptr::with_exposed_provenance_mut::<u64>(nanoseconds as usize);
        // SAFETY: as the caller vouches. Written to before, so that its own fault is not in the time.
        unsafe { nanoseconds.write_volatile(0) };
        // SAFETY: as the caller vouches.
        unsafe { byte(first).read_volatile() };
        let started = Instant::now();
        for n in 0..count {
            // SAFETY: `n < count`, as the caller vouches.
            unsafe { byte(at).add(n * stride).read_volatile() };
        }
        let elapsed = started.elapsed().as_nanos() as u64 / count as u64;
        // SAFETY: as above.
        unsafe { nanoseconds.write_volatile(elapsed) };
    }
}
