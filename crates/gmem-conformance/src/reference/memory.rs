//! The memory that the device reaches: its own, of fixed size, and in REPLICATE mode the host's, by a mapping of its own.

use gmem::hal::{DeviceError, HostWindow, PhysAddr, VirtRange};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The device's own memory. Atomic words, because whoever the MMU lets touch a byte may do so at any time.
pub(super) struct Dram {
    words: Box<[AtomicU64]>,
}

impl Dram {
    pub(super) fn new(bytes: u64) -> Self {
        // What a real memory holds when the power comes on: not zeros.
        Self { words: (0..bytes / 8).map(|_| AtomicU64::new(0xdead_dead_dead_dead)).collect() }
    }

    /// Where the `len` bytes at the device-physical address `addr` are, if they are inside.
    pub(super) fn pointer(&self, addr: u64, len: u64) -> Option<*mut u8> {
        let end = addr.checked_add(len)?;
        if end > self.words.len() as u64 * 8 {
            return None;
        }
        Some(self.words.as_ptr().cast_mut().cast::<u8>().wrapping_add(addr as usize))
    }
}

/// The homes of an address space, mapped: what a REPLICATE context's entries name.
pub(super) struct Window {
    at: NonNull<u8>,
    len: usize,
    base: PhysAddr,
}

// SAFETY: the mapping belongs to the whole process, and its bytes are only touched through raw pointers.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Maps the homes of `range`, seen by everybody (`shared`) or, which is wrong, in a copy of its own.
    pub(super) fn map(window: &HostWindow, range: VirtRange, shared: bool) -> Result<Self, DeviceError> {
        let len = range.len().get() as usize;
        let kind = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: the core passes a descriptor that is valid in this thread, for the length of the call.
        let handle = unsafe { BorrowedFd::borrow_raw(window.handle) };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let at = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, kind | MapFlags::NORESERVE, handle, window.offset)
        };
        let at = at.ok().and_then(|at| NonNull::new(at.cast::<u8>())).ok_or(DeviceError::NoMemory)?;
        Ok(Self { at, len, base: window.base })
    }

    /// Where the `len` bytes of host memory at `addr` are, if they are homes of this address space.
    pub(super) fn pointer(&self, addr: PhysAddr, len: u64) -> Option<*mut u8> {
        let offset = addr.addr.checked_sub(self.base.addr).filter(|_| addr.hnode == self.base.hnode)?;
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        Some(self.at.as_ptr().wrapping_add(offset as usize))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made by `map`; the context that used it is gone.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "the window was mapped: {unmapped:?}");
    }
}
