//! How fast this machine copies memory: the yardstick of every bandwidth.

use super::median;
use crate::failure::Failure;
use crate::machine::Machine;
use gmem::ByteLen;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::time::Instant;

/// What is copied at a time: a large page, as gmem moves it.
const BLOCK: usize = 2 << 20;

/// Far more than any cache holds, and long enough that on a busy machine the copy is interrupted as often as what it is compared with.
const BUFFER: usize = 256 << 20;

/// Passes of a sample.
const PASSES: usize = 3;

/// Measures copies, a few at a time, so that they can lie before and after what they are compared with.
pub(crate) struct CopySpeed {
    blocks: usize,
    seconds: Vec<f64>,
}

impl CopySpeed {
    /// With buffers that this machine has room for.
    pub(crate) fn new(machine: &Machine) -> Self {
        let most = usize::try_from(machine.available / 16).unwrap_or(BUFFER);
        Self { blocks: most.clamp(BLOCK, BUFFER) / BLOCK, seconds: Vec::new() }
    }

    /// Copies every block of one large buffer to another, both in place beforehand and in huge pages, and keeps the time of each pass.
    pub(crate) fn sample(&mut self) -> Result<(), Failure> {
        let from = Buffer::new(self.blocks * BLOCK)?;
        let to = Buffer::new(self.blocks * BLOCK)?;
        for _ in 0..PASSES {
            let started = Instant::now();
            for block in 0..self.blocks {
                // SAFETY: both buffers have `blocks` blocks, are mapped for reading and writing, and are ours alone.
                unsafe {
                    let (from, to) = (from.start.as_ptr().cast::<u8>(), to.start.as_ptr().cast::<u8>());
                    std::ptr::copy_nonoverlapping(from.add(block * BLOCK), to.add(block * BLOCK), BLOCK);
                }
            }
            self.seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// The bytes copied in a second: those of a pass over the median of the times.
    ///
    /// # Panics
    /// If nothing was sampled.
    pub(crate) fn bytes_per_second(&mut self) -> f64 {
        (self.blocks * BLOCK) as f64 / median(&mut self.seconds)
    }
}

/// Touches `bytes` of memory once and gives them back, so that what is measured next finds memory the machine really has. On a virtual machine the very
/// first touch of a page costs ten times a copy, because the host has to find it; the yardstick's own buffers are in place beforehand too.
pub(crate) fn warm(bytes: u64) -> Result<(), Failure> {
    match usize::try_from(bytes) {
        Ok(0) | Err(_) => Ok(()),
        Ok(bytes) => Buffer::new(bytes).map(drop),
    }
}

/// Anonymous memory, in huge pages where the system grants them, every page in place.
struct Buffer {
    start: NonNull<c_void>,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
            let why = limit.map_or(String::new(), |limit| format!("; this process may have {} of addresses (ulimit -v)", ByteLen(limit)));
            Failure::Failed(format!("no {} of memory for measuring how fast it is: {e}{why}", ByteLen(len as u64)))
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.map_err(failed)?;
        let start = NonNull::new(start).ok_or_else(|| Failure::Failed("the kernel mapped address zero".to_owned()))?;
        let buffer = Self { start, len };
        // SAFETY: the mapping was just made. A kernel without huge pages refuses, and base pages are then what it has.
        let _ = unsafe { madvise(start.as_ptr(), len, Advice::LinuxHugepage) };
        // SAFETY: the mapping is `len` writable bytes that nobody else knows; writing to each page brings it in.
        unsafe { start.as_ptr().cast::<u8>().write_bytes(1, len) };
        Ok(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and ends with its owner. It was made whole, so it can be unmapped whole.
        let _ = unsafe { munmap(self.start.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_some_time() {
        let mut speed = CopySpeed::new(&Machine::permissive(1 << 30, 64 << 20));
        speed.sample().unwrap();
        speed.sample().unwrap();
        assert_eq!((speed.blocks, speed.seconds.len()), (2, 2 * PASSES));
        let speed = speed.bytes_per_second();
        assert!(speed > 1e6 && speed < 1e13, "{speed}");
    }
}
