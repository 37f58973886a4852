//! The memory of a discrete accelerator: one file in memory, of fixed size, filled and made of huge pages up front.
//!
//! The host owns it, so the death of a device process loses no data. It is sealed against shrinking and growing; a device process could still punch holes
//! into it, which makes zeros of its own data and of nothing else.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;

const HUGE: usize = 2 << 20;

/// MADV_COLLAPSE, Linux 6.1.
const MADV_COLLAPSE: i32 = 25;

/// A mapping of the device's memory in the host process, for the copy engine. Valid until dropped.
pub(crate) struct Dram {
    base: *mut u8,
    len: usize,
    reserved: (*mut c_void, usize),
}

// SAFETY: the mapping is valid from any thread until drop; its bytes are only reached by raw copies.
unsafe impl Send for Dram {}
// SAFETY: as above.
unsafe impl Sync for Dram {}

impl Dram {
    /// Makes `len` bytes (a multiple of 4 KiB), all populated. Takes some 75 µs per MiB. The descriptor is for the device processes.
    pub(crate) fn create(len: usize) -> Result<(Self, OwnedFd), Errno> {
        let fd = rustix::fs::memfd_create("gmem-dram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let dram = Self::map(&fd, len)?;
        dram.populate()?;
        Ok((dram, fd))
    }

    /// Maps the file at a multiple of 2 MiB, so that the kernel can use huge pages.
    fn map(fd: impl AsFd, len: usize) -> Result<Self, Errno> {
        let room = len.next_multiple_of(4096) + HUGE;
        // SAFETY: a reservation at an address of the kernel's choice.
        let reserved =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)? };
        let base = (reserved as usize).next_multiple_of(HUGE) as *mut c_void;
        let dram = Self { base: base.cast(), len, reserved: (reserved, room) };
        // SAFETY: the range lies inside the reservation just made, which nothing else uses.
        unsafe { rustix::mm::mmap(base, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED, fd, 0)? };
        // A child that the program forks has no use for it, and would keep the memory alive.
        // SAFETY: this changes no byte of this process's memory.
        unsafe { rustix::mm::madvise(base, len, Advice::LinuxDontFork)? };
        Ok(dram)
    }

    /// Allocates every page, as huge pages where possible. The kernel collapses only what holds a page already.
    fn populate(&self) -> Result<(), Errno> {
        let mut at = 0;
        while at < self.len {
            let len = HUGE.min(self.len - at);
            // SAFETY: `at + len` stays inside the mapping.
            let start = unsafe { self.base.add(at) }.cast::<c_void>();
            // SAFETY: populating a page of our own mapping changes no byte.
            unsafe { rustix::mm::madvise(start, 4096, Advice::LinuxPopulateWrite)? };
            // SAFETY: collapsing keeps every byte; a kernel without it answers EINVAL.
            let collapsed = len == HUGE && unsafe { libc::madvise(start, len, MADV_COLLAPSE) } == 0;
            if !collapsed {
                // SAFETY: as for the first page.
                unsafe { rustix::mm::madvise(start, len, Advice::LinuxPopulateWrite)? };
            }
            at += len;
        }
        Ok(())
    }

    /// The address of the first byte in the host process.
    pub(crate) fn base(&self) -> usize {
        self.base as usize
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Dram {
    fn drop(&mut self) {
        // SAFETY: the reservation and everything mapped inside it is ours; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.reserved.0, self.reserved.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_populated_whatever_its_size_and_cannot_be_truncated() {
        for len in [4096, HUGE, 2 * HUGE + 8192] {
            let (dram, fd) = Dram::create(len).unwrap();
            assert_eq!((dram.len(), dram.base() % HUGE), (len, 0));
            let blocks = rustix::fs::fstat(&fd).unwrap().st_blocks as usize * 512;
            assert!(blocks >= len, "{blocks} of {len} bytes populated");
            assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(&fd, 1 << 30), Err(Errno::PERM));
        }
    }
}
