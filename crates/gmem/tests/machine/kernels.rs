//! What the accelerators are asked to do, and the same for the CPU.

use std::ptr::with_exposed_provenance_mut as at;

/// A hash of some bytes (FNV-1a, 64 bits): small enough to be a kernel's argument.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Loads `len` bytes from an address.
///
/// # Safety
/// They are mapped readable, and nobody writes them meanwhile.
pub(crate) unsafe fn load(from: u64, len: u64) -> Vec<u8> {
    // SAFETY: see the function's contract. Volatile, because the same address reads differently after a device wrote there.
    (from..from + len).map(|byte| unsafe { at::<u8>(byte as usize).read_volatile() }).collect()
}

/// Stores bytes at an address.
///
/// # Safety
/// They are mapped writable, and nobody else touches them meanwhile.
pub(crate) unsafe fn store(to: u64, bytes: &[u8]) {
    for (byte, value) in (to..).zip(bytes) {
        // SAFETY: see the function's contract.
        unsafe { at::<u8>(byte as usize).write_volatile(*value) };
    }
}

gmem::kernel! {
    /// Stores what a spot with a fill holds: `va`, the offset in the page, the length, the fill.
    pub(crate) FILL = "random-fill", |grid, args| {
        for i in grid.share(args[2] as usize) {
            let place = args[1] as usize + i;
            at::<u8>(args[0] as usize + i).write_volatile(args[3] as u8 ^ place as u8 ^ (place >> 8) as u8);
        }
    }
}

gmem::kernel! {
    /// Copies from `va`, so many bytes, to another address.
    pub(crate) FETCH = "random-fetch", |grid, args| {
        for i in grid.share(args[1] as usize) {
            at::<u8>(args[2] as usize + i).write_volatile(at::<u8>(args[0] as usize + i).read_volatile());
        }
    }
}

gmem::kernel! {
    /// Panics unless the bytes from `va`, so many, have this hash.
    pub(crate) CHECK = "random-check", |grid, args| {
        let bytes = (0..args[1] as usize).map(|i| at::<u8>(args[0] as usize + i).read_volatile());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        assert!(grid.worker != 0 || hash == args[2], "the bytes at {:#x} are not what they must be", args[0]);
    }
}
