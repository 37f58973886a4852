//! A driver's own frame allocator.

use super::{Canary, SimDevice};
use crate::Callback;
use crate::sim::lock;
use gmem_hal::{DeviceError, Frames, HnodeId, PageSize, PhysAddr, PhysRange};

const GRAIN: u64 = 4096;

/// Which frames of a memory are taken. First fit, hence a freed frame is used again at once, which is what finds early reuse.
pub(super) struct FrameMap {
    range: PhysRange,
    taken: Vec<bool>,
}

impl FrameMap {
    pub(super) fn new(range: PhysRange) -> Self {
        Self { range, taken: vec![false; (range.len().get() / GRAIN) as usize] }
    }

    /// Takes the first free frame of `size` inside `within`.
    pub(super) fn alloc(&mut self, within: PhysRange, size: PageSize) -> Option<u64> {
        let first = within.begin.max(self.range.begin).next_multiple_of(size.bytes());
        let last = within.end.min(self.range.end);
        let mut at = first;
        while at + size.bytes() <= last {
            let slots = self.slots(at, size);
            if self.taken[slots.clone()].iter().all(|taken| !taken) {
                self.taken[slots].fill(true);
                return Some(at);
            }
            at += size.bytes();
        }
        None
    }

    fn first_taken(&self, within: PhysRange, size: PageSize) -> Option<u64> {
        let frames = (within.begin.next_multiple_of(size.bytes())..within.end).step_by(size.bytes() as usize);
        frames.into_iter().find(|at| self.taken[self.slots(*at, size)].iter().all(|taken| *taken))
    }

    fn slots(&self, addr: u64, size: PageSize) -> std::ops::Range<usize> {
        let first = ((addr - self.range.begin) / GRAIN) as usize;
        first..first + (size.bytes() / GRAIN) as usize
    }

    /// Gives a frame back.
    pub(super) fn free(&mut self, addr: u64, size: PageSize) {
        let slots = self.slots(addr, size);
        assert!(self.taken[slots.clone()].iter().all(|taken| *taken), "the frame at {addr:#x} ({size}) is given back, but is not taken");
        self.taken[slots].fill(false);
    }

    /// Bytes not taken.
    pub(super) fn free_bytes(&self) -> u64 {
        self.taken.iter().filter(|taken| !**taken).count() as u64 * GRAIN
    }
}

impl Frames for SimDevice {
    fn alloc_frame(&self, hnode: HnodeId, size: PageSize) -> Result<PhysAddr, DeviceError> {
        self.call(Callback::AllocFrame, [u64::from(hnode.0), size.bytes(), 0])?;
        let within =
            self.registered(hnode).unwrap_or_else(|| panic!("alloc_frame in {hnode}, which is not registered memory of this device"));
        let mut frames = lock(&self.frames);
        if self.shows(Canary::HandsOutTwice, 8)
            && let Some(addr) = frames.first_taken(within, size)
        {
            return Ok(PhysAddr { hnode, addr });
        }
        let addr = frames.alloc(within, size).ok_or(DeviceError::NoMemory)?;
        Ok(PhysAddr { hnode, addr })
    }

    fn free_frame(&self, frame: PhysAddr, size: PageSize) {
        self.note("free_frame", [u64::from(frame.hnode.0), frame.addr, size.bytes()]);
        assert!(self.registered(frame.hnode).is_some(), "free_frame of {frame:?}, which is not registered memory of this device");
        self.is.sim.assert_unreachable(frame, size.len(), "free_frame of");
        lock(&self.frames).free(frame.addr, size);
    }
}
