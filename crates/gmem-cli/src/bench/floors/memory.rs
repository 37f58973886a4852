//! Memory for the floors: huge pages of one memory object, and windows of address space aligned to them.

use crate::failure::Failure;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;

/// The page all floors are about.
pub(crate) const PAGE: usize = 2 << 20;

/// `MADV_COLLAPSE`, which the C library's headers may not know yet.
const MADV_COLLAPSE: i32 = 25;

/// What a page is filled with.
pub(crate) fn byte_of(page: usize) -> u8 {
    (page as u8).wrapping_mul(37) ^ 0x5a
}

/// Names what failed.
pub(crate) fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> Failure {
    move |e| Failure::while_doing(format_args!("the hand-written floor: {what}"), e)
}

/// A memory object of `pages` pages.
pub(crate) fn memory_object(pages: usize) -> Result<OwnedFd, Failure> {
    let object = memfd_create(c"gmem-bench", MemfdFlags::CLOEXEC).map_err(failed("memfd_create"))?;
    ftruncate(&object, (pages * PAGE) as u64).map_err(failed("ftruncate"))?;
    Ok(object)
}

/// A range of addresses that begins on a boundary of [`PAGE`], and what is mapped there.
pub(crate) struct Window {
    reserved: *mut c_void,
    reserved_len: usize,
    start: *mut u8,
    pages: usize,
}

// SAFETY: a window is only a range of addresses; every access to the memory is made, and argued for, by who uses the addresses.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `pages` pages of addresses that nobody may touch yet.
    pub(crate) fn reserve(pages: usize) -> Result<Self, Failure> {
        let reserved_len = (pages + 1) * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let reserved = unsafe { mmap_anonymous(null_mut(), reserved_len, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE) }
            .map_err(failed("mmap"))?;
        let start = reserved.map_addr(|a| a.next_multiple_of(PAGE)).cast();
        Ok(Self { reserved, reserved_len, start, pages })
    }

    /// A window on `pages` pages of `object`, from page `first` on.
    pub(crate) fn on(object: BorrowedFd<'_>, first: usize, pages: usize) -> Result<Self, Failure> {
        let window = Self::reserve(pages)?;
        window.map(0, pages, object, first, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(window)
    }

    /// Maps `count` pages of `object`, from page `first` on, at the window's page `page`. Async-signal-safe.
    pub(crate) fn map(&self, page: usize, count: usize, object: BorrowedFd<'_>, first: usize, prot: ProtFlags) -> Result<(), Failure> {
        assert!(page + count <= self.pages);
        let (at, offset) = (self.page(page).cast(), (first * PAGE) as u64);
        // SAFETY: the addresses are inside this window, which owns them.
        unsafe { mmap(at, count * PAGE, prot, MapFlags::SHARED | MapFlags::FIXED, object, offset) }.map_err(failed("mmap"))?;
        Ok(())
    }

    /// Takes a page away: an access is a fault again.
    pub(crate) fn unmap(&self, page: usize) -> Result<(), Failure> {
        assert!(page < self.pages);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the page is inside this window, which owns it.
        unsafe { mmap_anonymous(self.page(page).cast(), PAGE, ProtFlags::empty(), flags) }.map_err(failed("mmap"))?;
        Ok(())
    }

    /// Brings every page in, as a huge page, filled with its [`byte_of`]; turned over with `stale`, so that a copy that was not made is noticed.
    pub(crate) fn populate(&self, stale: bool) {
        for page in 0..self.pages {
            let at = self.page(page);
            // SAFETY: the page is mapped for reading and writing, by the contract of this function's only callers: windows made by `on`.
            unsafe { at.write_volatile(1) };
            // SAFETY: as above; collapsing changes how the memory is mapped and not what it holds. If the kernel refuses, the page stays made of
            // small ones, and floor and value are slower alike.
            let _ = unsafe { libc::madvise(at.cast(), PAGE, MADV_COLLAPSE) };
            // SAFETY: as above, for all of the page.
            unsafe { at.write_bytes(if stale { !byte_of(page) } else { byte_of(page) }, PAGE) };
        }
    }

    /// The address of a page.
    pub(crate) fn page(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        self.start.wrapping_add(page * PAGE)
    }

    /// The number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Which page an address is in.
    pub(crate) fn find(&self, address: usize) -> Option<usize> {
        let page = address.checked_sub(self.start.addr())? / PAGE;
        (page < self.pages).then_some(page)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours, and everything mapped in it since lies inside it.
        let _ = unsafe { munmap(self.reserved, self.reserved_len) };
    }
}

/// Two populated memories of the same number of pages, and a window for the side that faults: what every floor that copies needs.
pub(crate) struct Pair {
    /// The memory object: first the homes, then the device's frames.
    pub(crate) object: OwnedFd,
    /// Where the copying side sees the homes.
    pub(crate) homes: Window,
    /// Where the copying side sees the device's frames.
    pub(crate) frames: Window,
}

impl Pair {
    /// `pages` pages of each.
    pub(crate) fn new(pages: usize) -> Result<Self, Failure> {
        let object = memory_object(2 * pages)?;
        let homes = Window::on(object.as_fd(), 0, pages)?;
        let frames = Window::on(object.as_fd(), pages, pages)?;
        homes.populate(true);
        frames.populate(false);
        Ok(Self { object, homes, frames })
    }

    /// Copies a frame to its home. Async-signal-safe.
    pub(crate) fn bring_home(&self, page: usize) {
        // SAFETY: both windows are mapped, have this page, and do not overlap; nobody else touches a page while its one faulting thread waits.
        unsafe { std::ptr::copy_nonoverlapping(self.frames.page(page), self.homes.page(page), PAGE) }
    }
}
