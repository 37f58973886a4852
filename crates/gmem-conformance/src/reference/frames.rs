//! The driver's own frame allocator: first fit over a map of base frames. A PEER device uses it for its pages.

use super::Reference;
use crate::Defect;
use gmem::hal::{DeviceError, Frames, HnodeId, PageSize, PhysAddr, PhysRange};

const BASE: u64 = PageSize::Size4K.bytes();

/// How many frames a broken allocator remembers.
const TWICE: usize = 64;

/// Which base frames are used.
pub(super) struct FrameMap {
    used: Vec<bool>,
    /// Frames that a broken allocator has on its free list twice.
    twice: Vec<(u64, PageSize)>,
}

impl FrameMap {
    pub(super) fn new(memory: u64) -> Self {
        Self { used: vec![false; (memory / BASE) as usize], twice: Vec::with_capacity(TWICE) }
    }

    /// Takes a free frame inside `range`.
    pub(super) fn alloc(&mut self, range: PhysRange, size: PageSize) -> Option<u64> {
        let mut addr = range.begin.checked_next_multiple_of(size.bytes())?;
        while addr.checked_add(size.bytes())? <= range.end {
            let frames = self.frames(addr, size)?;
            if !frames.contains(&true) {
                frames.fill(true);
                return Some(addr);
            }
            addr += size.bytes();
        }
        None
    }

    /// Gives a frame back. `false` if it was not in use.
    pub(super) fn free(&mut self, addr: u64, size: PageSize) -> bool {
        let Some(frames) = self.frames(addr, size) else { return false };
        let was = frames.iter().all(|used| *used);
        frames.fill(false);
        was
    }

    fn frames(&mut self, addr: u64, size: PageSize) -> Option<&mut [bool]> {
        let first = (addr / BASE) as usize;
        self.used.get_mut(first..first + (size.bytes() / BASE) as usize)
    }

    /// A frame on the list for the second time, which somebody uses.
    fn taken_again(&mut self, size: PageSize) -> Option<u64> {
        let twice = std::mem::take(&mut self.twice);
        let used = |(addr, of): &(u64, PageSize)| *of == size && self.used.get((addr / BASE) as usize) == Some(&true);
        let at = twice.iter().position(used);
        self.twice = twice;
        at.map(|at| self.twice.remove(at).0)
    }
}

impl Frames for Reference {
    fn alloc_frame(&self, hnode: HnodeId, size: PageSize) -> Result<PhysAddr, DeviceError> {
        let range = self.memory_of(hnode).ok_or_else(|| self.protocol_error(format_args!("a frame of {hnode}, which is not ours")))?;
        let mut frames = self.frames();
        if let Some(addr) = frames.taken_again(size) {
            return Ok(PhysAddr { hnode, addr });
        }
        let addr = frames.alloc(range, size).ok_or(DeviceError::NoMemory)?;
        Ok(PhysAddr { hnode, addr })
    }

    fn free_frame(&self, frame: PhysAddr, size: PageSize) {
        let mut frames = self.frames();
        let was_used = frames.free(frame.addr, size);
        if self.has(Defect::FrameFreedTwice) && frames.twice.len() < TWICE {
            frames.twice.push((frame.addr, size));
        }
        drop(frames);
        if !was_used && !self.has(Defect::FrameFreedEarly) && !self.has(Defect::FrameFreedTwice) {
            self.protocol_error(format_args!("{frame:?} is freed but was free"));
        }
    }
}
