//! Ranges of addresses that gmem owns in this process.

use super::process::errno;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use gmem_hal::{PageSize, Prot, VirtAddr, VirtRange};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::os::fd::AsFd;

/// The kernel's base page.
pub(crate) const BASE_PAGE: u64 = 4096;

/// What to tell the kernel about a range: the `MADV_` values we use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub(crate) enum Advice {
    DontNeed = 4,
    Remove = 9,
    DontFork = 10,
    HugePage = 14,
    NoHugePage = 15,
    PopulateWrite = 23,
    DontNeedLocked = 24,
    Collapse = 25,
}

/// A range of addresses of this process that belongs to gmem until it is released.
#[derive(Debug)]
pub(crate) struct Area {
    range: VirtRange,
    released: AtomicBool,
}

fn ptr(va: VirtAddr) -> *mut c_void {
    core::ptr::with_exposed_provenance_mut(va.get() as usize)
}

fn len(range: VirtRange) -> usize {
    range.len().get() as usize
}

/// Loads alone, loads and stores, or nothing: no MMU allows stores without loads.
fn prot_flags(prot: Prot) -> ProtFlags {
    if prot.contains(Prot::RW) {
        ProtFlags::READ | ProtFlags::WRITE
    } else if prot.contains(Prot::READ) {
        ProtFlags::READ
    } else {
        ProtFlags::empty()
    }
}

const RESERVED: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

impl Area {
    /// Reserves exactly `range`, inaccessible; `EEXIST` if any of it is in use.
    pub(crate) fn reserve_at(range: VirtRange) -> Result<Self, Errno> {
        // SAFETY: FIXED_NOREPLACE never replaces a mapping.
        let at = unsafe { mmap_anonymous(ptr(range.start()), len(range), ProtFlags::empty(), RESERVED | MapFlags::FIXED_NOREPLACE) }?;
        // A kernel older than 4.17 takes the address as a hint.
        let area = Self {
            range: VirtRange::from_len(VirtAddr::new(at.expose_provenance() as u64), range.len()).ok_or(Errno::NOMEM)?,
            released: AtomicBool::new(false),
        };
        if area.range == range { Ok(area) } else { Err(Errno::EXIST) }
    }

    /// Reserves `length` bytes somewhere, inaccessible, beginning at a 2 MiB boundary.
    pub(crate) fn reserve(length: u64) -> Result<Self, Errno> {
        const ALIGN: u64 = PageSize::Size2M.bytes();
        let padded = length.checked_add(ALIGN).ok_or(Errno::NOMEM)?;
        // SAFETY: the kernel chooses free addresses.
        let at = unsafe { mmap_anonymous(core::ptr::null_mut(), padded as usize, ProtFlags::empty(), RESERVED) }?;
        let at = at.expose_provenance() as u64;
        let start = at.next_multiple_of(ALIGN);
        let end = (start + length).next_multiple_of(BASE_PAGE);
        for (from, to) in [(at, start), (end, at + padded)] {
            if from < to {
                // SAFETY: the head and the tail of the mapping just made, which nobody else knows of.
                unsafe { munmap(ptr(VirtAddr::new(from)), (to - from) as usize) }?;
            }
        }
        let range = VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).ok_or(Errno::INVAL)?;
        Ok(Self { range, released: AtomicBool::new(false) })
    }

    pub(crate) fn range(&self) -> VirtRange {
        self.range
    }

    /// Panics unless `range` may be operated on: this is what the SAFETY notes of this module lean on.
    pub(crate) fn check(&self, range: VirtRange) {
        assert!(self.range.contains_range(range), "{range} is not inside the area {}", self.range);
        assert!(!self.released.load(Acquire), "the area {} was released", self.range);
    }

    /// Replaces `range` by fresh private anonymous memory with `prot`, without registrations or advice.
    pub(crate) fn map_anonymous(&self, range: VirtRange, prot: Prot) -> Result<(), Errno> {
        self.check(range);
        // SAFETY: the addresses belong to this area (checked), and no Rust reference points into an area.
        unsafe { mmap_anonymous(ptr(range.start()), len(range), prot_flags(prot), RESERVED | MapFlags::FIXED) }.map(drop)
    }

    /// Replaces `range` by the bytes of `fd` from `offset` on, shared.
    pub(crate) fn map_file(&self, range: VirtRange, fd: impl AsFd, offset: u64, prot: Prot) -> Result<(), Errno> {
        self.check(range);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as for `map_anonymous`.
        unsafe { mmap(ptr(range.start()), len(range), prot_flags(prot), flags, fd, offset) }.map(drop)
    }

    /// Changes the access to `range`.
    pub(crate) fn protect(&self, range: VirtRange, prot: Prot) -> Result<(), Errno> {
        self.check(range);
        let flags = MprotectFlags::from_bits_retain(prot_flags(prot).bits());
        // SAFETY: the addresses belong to this area (checked); who has pointers into it expects faults.
        unsafe { mprotect(ptr(range.start()), len(range), flags) }
    }

    /// Advises the kernel about `range`.
    pub(crate) fn advise(&self, range: VirtRange, advice: Advice) -> Result<(), Errno> {
        self.check(range);
        // SAFETY: the addresses belong to this area (checked). The destructive ones (DontNeed, Remove) change bytes that are reached by raw pointers only.
        let err = unsafe { libc::madvise(ptr(range.start()), len(range), advice as i32) };
        if err == 0 { Ok(()) } else { Err(errno()) }
    }

    /// Drops the page table entries of `range`: of shared memory the bytes stay in the file, of anonymous memory they are gone. Also when the program
    /// has locked its memory.
    pub(crate) fn zap(&self, range: VirtRange) -> Result<(), Errno> {
        match self.advise(range, Advice::DontNeedLocked) {
            // Linux before 5.18 does not know it.
            Err(Errno::INVAL) => self.advise(range, Advice::DontNeed),
            other => other,
        }
    }

    /// Whether there is a base page in `range` where nothing is mapped at all. Async-signal-safe.
    pub(crate) fn has_hole(&self, range: VirtRange) -> bool {
        self.check(range);
        // SAFETY: without flags to write back or to invalidate it only looks whether everything is mapped.
        let err = unsafe { libc::msync(ptr(range.start()), len(range), libc::MS_ASYNC) };
        err != 0 && errno() == Errno::NOMEM
    }

    /// Whether any base page of `range`, at most 2 MiB, is present.
    pub(crate) fn any_present(&self, range: VirtRange) -> Result<bool, Errno> {
        self.check(range);
        let mut present = [0u8; (PageSize::Size2M.bytes() / BASE_PAGE) as usize];
        assert!(range.len() <= PageSize::Size2M.len(), "{range} is longer than 2 MiB");
        // SAFETY: the kernel writes one byte per base page of `range`, and `present` has room for 2 MiB of them (checked).
        let err = unsafe { libc::mincore(ptr(range.start()), len(range), present.as_mut_ptr()) };
        if err == 0 { Ok(present.iter().any(|p| p & 1 != 0)) } else { Err(errno()) }
    }

    /// Stores the value that is there already into the base page at `va`, which is present and writable: breaks copy-on-write without changing anything,
    /// whoever else writes there.
    pub(crate) fn touch(&self, va: VirtAddr) {
        self.check(VirtRange::page(va, PageSize::Size4K).expect("the page lies inside the area"));
        let word = ptr(va.align_down(PageSize::Size4K)).cast::<u32>();
        // SAFETY: the address is inside this area (checked), aligned to a page, mapped writable (the caller's duty; otherwise a clean fault), and
        // everybody else reaches it by raw pointers too.
        let word = unsafe { AtomicU32::from_ptr(word) };
        // Not `fetch_or(0)`: the compiler turns that into a fence and a load on x86, which breaks nothing.
        let mut seen = word.load(SeqCst);
        while let Err(other) = word.compare_exchange(seen, seen, SeqCst, SeqCst) {
            seen = other;
        }
    }

    /// Reserves a part in which nothing lies any more, because the program unmapped it; `EEXIST` if something does.
    pub(crate) fn reserve_again(&self, range: VirtRange) -> Result<(), Errno> {
        self.check(range);
        // SAFETY: FIXED_NOREPLACE never replaces a mapping.
        let at = unsafe { mmap_anonymous(ptr(range.start()), len(range), ProtFlags::empty(), RESERVED | MapFlags::FIXED_NOREPLACE) }?;
        // A kernel older than 4.17, which takes the address as a hint, cannot be asked what lies where, so nobody comes here on it.
        assert_eq!(at.expose_provenance() as u64, range.start().get(), "the kernel placed a reservation elsewhere");
        Ok(())
    }

    /// Gives the addresses back to the process. Later operations panic.
    pub(crate) fn release(&self) {
        self.release_parts(|unmap| unmap(self.range));
    }

    /// Gives those parts back to the process that `parts` names, which are still ours; the program did something else with the others. Later operations panic.
    pub(crate) fn release_parts(&self, parts: impl FnOnce(&mut dyn FnMut(VirtRange))) {
        if self.released.load(Acquire) {
            return;
        }
        parts(&mut |range| {
            self.check(range);
            // SAFETY: a part of the area, which is ours until here; `released` keeps every later operation away. An error (too many mappings to split)
            // leaves the range reserved, which is harmless.
            let _ = unsafe { munmap(ptr(range.start()), len(range)) };
        });
        self.released.store(true, Release);
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        self.release();
    }
}

/// Takes all access to the base page `page` away, which lies in memory that a userfaultfd of ours reported, hence in an area.
pub(crate) fn forbid(page: VirtRange) -> bool {
    // SAFETY: taking access away cannot make sound code unsound; it can only make it fault.
    unsafe { mprotect(ptr(page.start()), len(page), MprotectFlags::empty()) }.is_ok()
}
