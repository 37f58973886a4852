//! What the lock-free parts stand on: the standard library and the kernel, or with `--cfg loom` a model of both.

#[cfg(loom)]
pub(crate) use gmem_loom::{atomic, cell::UnsafeCell, futex, thread};
#[cfg(not(loom))]
pub(crate) use {core::sync::atomic, rustix::thread::futex, std::thread};

/// [`core::cell::UnsafeCell`] with the interface of loom's, which watches who accesses it when.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// A cell that holds `value`.
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Lends the address of the value for a change.
    pub(crate) fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
        change(self.0.get())
    }
}
