//! The MMU: the page table of this process over the window.
//!
//! * An *entered* page is a shared mapping of the DRAM file (or, in REPLICATE mode, of the host's) at the frame's offset.
//! * An *absent* page is a shared mapping, without access, of an **empty** file. Anonymous memory would not do: the core may ask to raise the access of
//!   a range in which pages are absent, and those would then read as fresh zeros. Past the end of a file there is nothing to see whatever the access:
//!   the kernel answers with SIGBUS, and that is a fault like any other.
//!
//! Replacing or lowering a mapping is a complete shootdown: the kernel interrupts every core of this process before the call returns.

use super::Device;
use super::ring::reply;
use crate::shm::Config;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::ffi::c_void;
use std::sync::atomic::Ordering;

/// Mappings kept for what may not be refused: taking access away can split a mapping in three.
const RESERVE: u64 = 4096;

/// MAP_FIXED_NOREPLACE, which this version of rustix does not name.
const FIXED_NOREPLACE: MapFlags = MapFlags::from_bits_retain(linux_map_fixed_noreplace());

const fn linux_map_fixed_noreplace() -> u32 {
    libc::MAP_FIXED_NOREPLACE as u32
}

/// Makes the empty file that absent pages map.
pub(super) fn make_hole() -> Option<OwnedFd> {
    let fd = rustix::fs::memfd_create("gmem-absent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).ok()?;
    Some(fd)
}

/// Reserves the window. `Err(true)` if something else lies there in this process.
pub(super) fn reserve(config: &Config, hole: &OwnedFd) -> Result<(), bool> {
    let (start, len) = (config.window_start as usize, (config.window_end - config.window_start) as usize);
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping, so no memory in use changes.
    let at = unsafe { rustix::mm::mmap(start as *mut c_void, len, ProtFlags::empty(), flags, hole, 0) }.map_err(|e| e == Errno::EXIST)?;
    if at as usize != start {
        // A kernel before 4.17 takes the address for a hint.
        // SAFETY: this is the mapping made above, and nothing uses it.
        let _ = unsafe { rustix::mm::munmap(at, len) };
        return Err(true);
    }
    Ok(())
}

/// Whether `[va, va + len)` lies in the window and is made of whole 4 KiB pages.
fn inside(device: &Device, va: u64, len: u64) -> bool {
    let end = va.checked_add(len);
    len > 0 && va >= device.config.window_start && end.is_some_and(|end| end <= device.config.window_end) && (va | len).is_multiple_of(4096)
}

/// The kernel's words for the bits of [`gmem_hal::Prot`]. No CPU can allow stores without loads.
fn prot_flags(prot: u32) -> ProtFlags {
    match prot & 3 {
        1 => ProtFlags::READ,
        3 => ProtFlags::READ | ProtFlags::WRITE,
        _ => ProtFlags::empty(),
    }
}

/// Enters `len` bytes at `va`: those at `offset` of the DRAM or, with `host`, of the host's memory. Answers a [`reply`].
pub(super) fn enter(device: &Device, va: u64, len: u64, offset: u64, prot: u32, host: bool) -> u32 {
    let end = offset.checked_add(len);
    let (fd, fits): (BorrowedFd<'_>, bool) = match (&device.host, host) {
        (_, false) => (device.dram.as_fd(), end.is_some_and(|end| end <= device.config.dram_len)),
        (Some(window), true) => (window.as_fd(), end.is_some()),
        (None, true) => return reply::BAD,
    };
    if !inside(device, va, len) || !fits {
        return reply::BAD;
    }
    if !room_for_mappings(device) {
        return reply::TOO_MANY;
    }
    // SAFETY: the range lies inside the window, which this process uses for nothing but what kernels are told to touch.
    let mapped =
        unsafe { rustix::mm::mmap(va as *mut c_void, len as usize, prot_flags(prot), MapFlags::SHARED | MapFlags::FIXED, fd, offset) };
    match mapped {
        Ok(_) => reply::OK,
        Err(Errno::NOMEM) => reply::NO_MEMORY,
        Err(_) => reply::BAD,
    }
}

/// Makes `len` bytes at `va` absent.
pub(super) fn release(device: &Device, va: u64, len: u64) -> u32 {
    if !inside(device, va, len) {
        return reply::BAD;
    }
    grew(device);
    let offset = va - device.config.window_start;
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: as for `enter`.
    let mapped = unsafe { rustix::mm::mmap(va as *mut c_void, len as usize, ProtFlags::empty(), flags, &device.hole, offset) };
    if mapped.is_ok() { reply::OK } else { reply::NO_MEMORY }
}

/// Changes the access of the pages entered in `len` bytes at `va`.
pub(super) fn protect(device: &Device, va: u64, len: u64, prot: u32) -> u32 {
    if !inside(device, va, len) {
        return reply::BAD;
    }
    grew(device);
    let flags = MprotectFlags::from_bits_retain(prot_flags(prot).bits());
    // SAFETY: as for `enter`; absent pages have nothing behind them whatever their access.
    match unsafe { rustix::mm::mprotect(va as *mut c_void, len as usize, flags) } {
        Ok(()) => reply::OK,
        Err(_) => reply::NO_MEMORY,
    }
}

/// Counts what one change of the window can add at most: it can split a mapping in three.
fn grew(device: &Device) {
    let before = device.maps.load(Ordering::Relaxed);
    device.maps.store(before.saturating_add(2), Ordering::Relaxed);
}

/// Whether one more page may be entered. Neighbours merge in the kernel, so the bound is often far too high; it is replaced by the true count
/// when it matters.
fn room_for_mappings(device: &Device) -> bool {
    let limit = device.config.max_maps.saturating_sub(RESERVE.min(device.config.max_maps / 2)) as u32;
    grew(device);
    if device.maps.load(Ordering::Relaxed) >= limit
        && let Some(count) = count_mappings()
    {
        device.maps.store(count, Ordering::Relaxed);
    }
    device.maps.load(Ordering::Relaxed) < limit
}

/// Counts the lines of `/proc/self/maps`. Tens of milliseconds near the limit, hence only done there. Async-signal-safe.
fn count_mappings() -> Option<u32> {
    let fd =
        rustix::fs::open(c"/proc/self/maps", rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()).ok()?;
    let mut buffer = [0u8; 4096];
    let mut lines = 0;
    loop {
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) => return Some(lines),
            Ok(n) => lines += buffer[..n].iter().filter(|b| **b == b'\n').count() as u32,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}
