//! Kernels that touch a page.

use gmem::{Grid, kernel};
use std::time::Instant;

kernel!(pub(crate) TOUCH = "bench-touch", |grid, args| {
    // SAFETY: launched by `super::faults` alone, with writable memory of this length.
    unsafe { touch(grid, args[0], args[1] as usize, args[2] as usize) }
});

kernel!(pub(crate) TOUCH_TIMED = "bench-touch-timed", |grid, args| {
    // SAFETY: launched by `super::faults` alone, with the addresses of a writable byte and a writable number.
    unsafe { touch_timed(grid, args[0], args[1]) }
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

/// Touches and writes down how long the access took, in nanoseconds.
///
/// # Safety
/// `at` is the address of a writable byte, `nanoseconds` that of a writable number.
unsafe fn touch_timed(grid: Grid, at: u64, nanoseconds: u64) {
    if grid.worker == 0 {
        let nanoseconds = std::ptr::with_exposed_provenance_mut::<u64>(nanoseconds as usize);
        // SAFETY: as the caller vouches. Written to first, so that its own fault is not in the time.
        unsafe { nanoseconds.write_volatile(0) };
        let started = Instant::now();
        // SAFETY: as the caller vouches.
        unsafe { touch(Grid { worker: 0, workers: 1 }, at, 1, 1) };
        // SAFETY: as above.
        unsafe { nanoseconds.write_volatile(started.elapsed().as_nanos() as u64) };
    }
}
