//! Kernels: programs for the accelerators, found by name.

use std::ops::Range;

/// Which part of a launch this call is: every core of the device runs the kernel once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// The number of this worker, from 0.
    pub worker: usize,
    /// How many workers run the kernel together, at least 1.
    pub workers: usize,
}

impl Grid {
    /// This worker's contiguous share of `len` items. The shares of all workers are disjoint, cover everything, and differ by one item at most.
    pub fn share(self, len: usize) -> Range<usize> {
        let (each, extra) = (len / self.workers, len % self.workers);
        let start = self.worker * each + self.worker.min(extra);
        start..start + each + usize::from(self.worker < extra)
    }

    /// This worker's share of `len` items in interleaved chunks of `chunk` items (the last may be shorter): worker 0 takes the first, worker 1 the
    /// second, and so on, so that all workers stay near each other in memory.
    ///
    /// # Panics
    /// If `chunk` is zero.
    pub fn chunks(self, len: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        assert!(chunk > 0, "a chunk holds at least one item");
        (self.worker * chunk..len).step_by(self.workers * chunk).map(move |start| start..len.min(start.saturating_add(chunk)))
    }
}

/// A program for an accelerator.
pub struct Kernel {
    /// The name launches use. The first of two kernels with one name wins.
    pub name: &'static str,
    /// The program, called once per core.
    ///
    /// # Safety
    /// The caller passes the arguments the kernel was written for: numbers, and addresses of an address space that the device is attached to.
    ///
    /// In return the kernel must stand being ended at any memory access: a worker whose access cannot be resolved is stopped there for ever, and its
    /// stack is freed without running destructors. So a kernel holds no lock and no allocation while it touches unified memory, and no other thread
    /// borrows from its stack.
    pub run: unsafe fn(Grid, &[u64]),
}

/// Every kernel linked into the program. Use [`kernel!`](crate::kernel!) to add one.
#[linkme::distributed_slice]
pub static KERNELS: [Kernel];

/// The most arguments a kernel can have.
pub const MAX_ARGS: usize = 16;

/// The number of the kernel called `name`. The device process is the same executable, so the number means the same kernel there.
pub(crate) fn find(name: &str) -> Option<usize> {
    KERNELS.iter().position(|k| k.name == name)
}

/// Registers a kernel: `kernel!(VECTOR_ADD = "vector-add", |grid, args| { ... });`
///
/// ```
/// gmem_accel::kernel! {
///     /// Adds `args[1]` to each of the `args[2]` words from address `args[0]` on.
///     pub ADD = "add", |grid, args| {
///         let words = args[0] as *mut u64;
///         for i in grid.share(args[2] as usize) {
///             words.add(i).write(words.add(i).read() + args[1]);
///         }
///     }
/// }
/// assert!(gmem_accel::KERNELS.iter().any(|kernel| kernel.name == "add"));
/// ```
///
/// The body is unsafe code over raw pointers: `args` is a slice of `u64`, `grid` a [`Grid`]. See [`Kernel::run`] for what it must stand.
#[macro_export]
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis $id:ident = $name:literal, |$grid:pat_param, $args:pat_param| $body:block) => {
        $(#[$meta])*
        #[$crate::__private::linkme::distributed_slice($crate::KERNELS)]
        #[linkme(crate = $crate::__private::linkme)]
        $vis static $id: $crate::Kernel = {
            #[allow(unused_unsafe)]
            unsafe fn run($grid: $crate::Grid, $args: &[u64]) {
                // SAFETY: forwarded to the caller of `Kernel::run`, which owes the arguments this body was written for.
                unsafe { $body }
            }
            $crate::Kernel { name: $name, run }
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_chunks_cover_everything_once() {
        for workers in 1..5 {
            for len in [0, 1, 3, 4, 17, 100] {
                let (mut shared, mut chunked) = (vec![0; len], vec![0; len]);
                for worker in 0..workers {
                    let grid = Grid { worker, workers };
                    grid.share(len).for_each(|i| shared[i] += 1);
                    grid.chunks(len, 3).flatten().for_each(|i| chunked[i] += 1);
                }
                assert!(shared.iter().all(|n| *n == 1), "{len} items over {workers} workers");
                assert!(chunked.iter().all(|n| *n == 1), "{len} items over {workers} workers, in chunks");
            }
        }
    }
}
