//! Calling a function on another stack.

use super::area::{Area, BASE_PAGE};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering::*};
use gmem_hal::{ByteLen, Prot, VirtAddr, VirtRange};
use rustix::io::Errno;

/// How many spare stacks there are: as many threads can resolve a fault of a signal handler on an alternate stack at the same time; others wait for them.
const SPARES: u32 = 16;
/// Length of a spare stack, in bytes, with a page below it that nobody may touch.
const SPARE_LEN: u64 = 256 << 10;

/// Stacks for faults of code whose own stack is too small to resolve them on.
#[derive(Debug)]
pub(super) struct Spares {
    area: Area,
    /// A bit per stack.
    taken: AtomicU32,
}

impl Spares {
    pub(super) fn new() -> Result<Self, Errno> {
        let area = Area::reserve(u64::from(SPARES) * SPARE_LEN)?;
        for n in 0..u64::from(SPARES) {
            let start = VirtAddr::new(area.range().start().get() + n * SPARE_LEN + BASE_PAGE);
            area.map_anonymous(VirtRange::from_len(start, ByteLen(SPARE_LEN - BASE_PAGE)).ok_or(Errno::INVAL)?, Prot::RW)?;
        }
        Ok(Self { area, taken: AtomicU32::new(0) })
    }

    /// Calls `entry(arg)` on a spare stack, as soon as one is free. Async-signal-safe. Whoever has one resolves a fault and waits for no other that has none.
    ///
    /// # Safety
    /// `entry(arg)` is sound to call.
    pub(super) unsafe fn call(&self, entry: Entry, arg: *mut c_void) {
        let n = loop {
            let taken = self.taken.load(Relaxed);
            let n = taken.trailing_ones();
            if n == SPARES {
                rustix::thread::sched_yield();
            } else if self.taken.compare_exchange_weak(taken, taken | 1 << n, Acquire, Relaxed).is_ok() {
                break n;
            }
        };
        let top = self.area.range().start().get() + u64::from(n + 1) * SPARE_LEN;
        // SAFETY: the stack that ends at `top` is this call's alone while its bit is set, and nothing runs on it; `entry(arg)` is the caller's promise.
        unsafe { call_below(top as usize, entry, arg) };
        self.taken.fetch_and(!(1 << n), Release);
    }
}

/// What runs on another stack. It must not unwind: the ABI aborts if it tries.
pub(super) type Entry = unsafe extern "C" fn(*mut c_void);

/// Bytes below the stack pointer that interrupted code may be using (the red zone of x86-64; none elsewhere).
const RED_ZONE: usize = 128;

/// Calls `entry(arg)` with the stack pointer just below `sp`.
///
/// # Safety
/// `sp` is the stack pointer of suspended code of this very thread, with room below it, and that code does not run before this returns.
/// `entry(arg)` is sound to call.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call_below(sp: usize, entry: Entry, arg: *mut c_void) {
    let top = (sp - RED_ZONE) & !15;
    // SAFETY: `top` is 16-byte aligned, as the ABI wants before a call, and the memory below it is unused stack (the caller's promise). r12
    // survives the call because it is callee-saved, and brings the stack pointer back. What the C ABI clobbers is declared.
    unsafe {
        core::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {entry}",
            "mov rsp, r12",
            top = in(reg) top,
            entry = in(reg) entry,
            in("rdi") arg,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

/// Calls `entry(arg)` with the stack pointer just below `sp`.
///
/// # Safety
/// As on x86-64.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn call_below(sp: usize, entry: Entry, arg: *mut c_void) {
    let top = (sp - RED_ZONE) & !15;
    // SAFETY: as on x86-64, with x20 as the callee-saved register.
    unsafe {
        core::arch::asm!(
            "mov x20, sp",
            "mov sp, {top}",
            "blr {entry}",
            "mov sp, x20",
            top = in(reg) top,
            entry = in(reg) entry,
            in("x0") arg,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}

/// Calls `entry(arg)` on the current stack: on this architecture nobody has written the switch.
///
/// # Safety
/// `entry(arg)` is sound to call.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) unsafe fn call_below(_sp: usize, entry: Entry, arg: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { entry(arg) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_stacks_are_one_callers_each() {
        /// Notes how many run at the same time, and uses its stack.
        unsafe extern "C" fn entry(arg: *mut c_void) {
            // SAFETY: the test passes a pointer to two counters.
            let [now, most] = unsafe { &*arg.cast::<[AtomicU32; 2]>() };
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let used = core::hint::black_box([now as *const _ as u64; 4 << 10]);
            std::thread::yield_now();
            assert!(core::hint::black_box(&used).iter().all(|word| *word == now as *const _ as u64));
            now.fetch_sub(1, SeqCst);
        }
        let (spares, counters) = (Spares::new().expect("memory"), [AtomicU32::new(0), AtomicU32::new(0)]);
        std::thread::scope(|threads| {
            for _ in 0..2 * SPARES {
                threads.spawn(|| {
                    for _ in 0..50 {
                        // SAFETY: `entry` takes what it is given here.
                        unsafe { spares.call(entry, (&raw const counters).cast_mut().cast()) };
                    }
                });
            }
        });
        let most = counters[1].load(SeqCst);
        assert!((1..=SPARES).contains(&most), "{most} at the same time");
        assert_eq!(spares.taken.load(SeqCst), 0);
    }

    #[test]
    fn runs_on_the_given_stack_and_comes_back() {
        unsafe extern "C" fn entry(arg: *mut c_void) {
            let here = &raw const arg as usize;
            // SAFETY: the test passes a pointer to a usize.
            unsafe { *arg.cast::<usize>() = here };
        }
        let stack = vec![0u128; 16 << 10];
        let (low, high) = (stack.as_ptr() as usize, stack.as_ptr_range().end as usize);
        let mut seen = 0usize;
        // SAFETY: nothing runs on `stack`, which is 256 KiB.
        unsafe { call_below(high, entry, (&raw mut seen).cast()) };
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            assert!(low < seen && seen < high - RED_ZONE, "{seen:#x} is not in [{low:#x}, {high:#x})");
        }
    }
}
