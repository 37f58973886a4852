//! Which parts of a device's memory the core has, and by which numbers.
//!
//! Faults look here, in signal handlers too: no lock. What is looked for never changes meanwhile, since a part is added before the core uses a frame of it
//! and removed when none is used any more; other parts may.

use gmem_hal::{HnodeId, MAX_MEMORIES, PhysRange};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const FREE: u32 = u32::MAX;

struct Part {
    /// The number of the hnode, [`FREE`] if there is none.
    hnode: AtomicU32,
    /// The first frame of 4 KiB in the upper half, and the one behind the last in the lower: one word, so that nobody reads the beginning of one part and the end
    /// of another.
    frames: AtomicU64,
}

/// The parts that the core has. It adds and removes one at a time.
pub(crate) struct Memories([Part; MAX_MEMORIES]);

impl Memories {
    pub(crate) fn new() -> Self {
        Self([const { Part { hnode: AtomicU32::new(FREE), frames: AtomicU64::new(0) } }; MAX_MEMORIES])
    }

    /// Adds `range` as `hnode`. False if there are too many, or it passes 16 TiB.
    pub(crate) fn add(&self, hnode: HnodeId, range: PhysRange) -> bool {
        let frame = |at: u64| u32::try_from(at >> 12).ok().map(u64::from);
        let (Some(part), Some(begin), Some(end)) = (self.find(FREE), frame(range.begin), frame(range.end)) else { return false };
        part.frames.store(begin << 32 | end, Ordering::Relaxed);
        part.hnode.store(hnode.0.into(), Ordering::Release);
        true
    }

    /// Removes `hnode`. False if it was not there.
    pub(crate) fn remove(&self, hnode: HnodeId) -> bool {
        self.find(hnode.0.into()).map(|part| part.hnode.store(FREE, Ordering::Release)).is_some()
    }

    /// Whether `hnode` is of this device.
    pub(crate) fn have(&self, hnode: HnodeId) -> bool {
        self.find(hnode.0.into()).is_some()
    }

    /// Which of them has the byte at `offset`. A part that is replaced meanwhile is not the one, before nor after: parts do not overlap.
    pub(crate) fn at(&self, offset: u64) -> Option<HnodeId> {
        self.0.iter().find_map(|part| {
            let hnode = u16::try_from(part.hnode.load(Ordering::Acquire)).ok()?;
            let frames = part.frames.load(Ordering::Relaxed);
            (frames >> 32 <= offset >> 12 && offset >> 12 < frames & 0xffff_ffff).then_some(HnodeId(hnode))
        })
    }

    /// What the core has of `range`.
    pub(crate) fn within(&self, range: PhysRange) -> impl Iterator<Item = PhysRange> {
        self.0.iter().filter(|part| part.hnode.load(Ordering::Acquire) != FREE).filter_map(move |part| {
            let frames = part.frames.load(Ordering::Relaxed);
            let (begin, end) = (range.begin.max((frames >> 32) << 12), range.end.min((frames & 0xffff_ffff) << 12));
            (begin < end).then_some(PhysRange { begin, end })
        })
    }

    /// One that is there, if any is.
    pub(crate) fn any(&self) -> Option<HnodeId> {
        self.0.iter().find_map(|part| u16::try_from(part.hnode.load(Ordering::Acquire)).ok()).map(HnodeId)
    }

    fn find(&self, hnode: u32) -> Option<&Part> {
        self.0.iter().find(|part| part.hnode.load(Ordering::Acquire) == hnode)
    }
}
