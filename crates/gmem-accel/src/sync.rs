//! What the parts that host and device processes share without a lock stand on: the standard library and the kernel, or with `--cfg loom` a model of both.

#[cfg(loom)]
pub(crate) use gmem_loom::{Mutex, MutexGuard, atomic, futex, hint, thread_local};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
pub(crate) use {rustix::thread::futex, std::hint, std::thread_local};

use atomic::{AtomicU32, AtomicU64};

/// What holds an atomic in shared memory: the plain number. Under loom there is no other process, and an atomic is no plain number.
#[cfg(not(loom))]
pub(crate) type Word = u32;
/// The same for 64 bits.
#[cfg(not(loom))]
pub(crate) type Long = u64;
#[cfg(loom)]
pub(crate) type Word = AtomicU32;
#[cfg(loom)]
pub(crate) type Long = AtomicU64;

/// The atomic at `at`.
///
/// # Safety
/// As for [`AtomicU32::from_ptr`].
pub(crate) unsafe fn word<'a>(at: *mut Word) -> &'a AtomicU32 {
    #[cfg(not(loom))]
    // SAFETY: by contract of this function.
    return unsafe { AtomicU32::from_ptr(at) };
    #[cfg(loom)]
    // SAFETY: by contract of this function; loom's atomics are only ever shared.
    return unsafe { &*at };
}

/// The same for 64 bits.
///
/// # Safety
/// As for [`AtomicU64::from_ptr`].
pub(crate) unsafe fn long<'a>(at: *mut Long) -> &'a AtomicU64 {
    #[cfg(not(loom))]
    // SAFETY: by contract of this function.
    return unsafe { AtomicU64::from_ptr(at) };
    #[cfg(loom)]
    // SAFETY: by contract of this function; loom's atomics are only ever shared.
    return unsafe { &*at };
}

/// Lets others go on for a while.
pub(crate) fn pause(a_while: std::time::Duration) {
    #[cfg(not(loom))]
    std::thread::sleep(a_while);
    #[cfg(loom)]
    let _ = (a_while, gmem_loom::thread::yield_now());
}
