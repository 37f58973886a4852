//! Calling a function on another stack.

use core::ffi::c_void;

/// What runs there. It must not unwind: the ABI aborts if it tries.
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
