//! Frame descriptors: one per frame in use, with its backlink to the page it holds and its place in a list.
//!
//! Descriptors are numbered as they are first used, so the table costs memory for as many frames as were ever in use at once and not for as many as
//! the memory could be cut into. 28 bytes each, kept as seven words so that a zeroed table is a valid one.

use crate::zeroed::zeroed;
use ::core::num::NonZeroU32;
use alloc::boxed::Box;
use gmem_hal::{OutOfMemory, PageSize, SpaceId, VirtAddr};

/// The number of a descriptor in its hnode; never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct FrameId(NonZeroU32);

impl FrameId {
    pub(crate) fn from_raw(raw: u32) -> Option<Self> {
        NonZeroU32::new(raw).map(Self)
    }

    pub(crate) fn to_raw(id: Option<Self>) -> u32 {
        id.map_or(0, |id| id.0.get())
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Which list a frame is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum List {
    /// None: an operation has it, or it is being set up.
    Isolated = 0,
    /// Frames whose page is also in its home, oldest first.
    Clean = 1,
    /// Frames that hold the only copy, oldest first.
    Dirty = 2,
    /// Frames a fenced device might still reach.
    Quarantined = 3,
    /// Frames of pages that are pinned, or held by a launch: never chosen for eviction.
    Pinned = 4,
}

const LISTS: [List; 5] = [List::Isolated, List::Clean, List::Dirty, List::Quarantined, List::Pinned];

/// What a descriptor says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// The first base frame, counted from the hnode's aligned start.
    pub(crate) number: u32,
    pub(crate) size: PageSize,
    pub(crate) list: List,
    /// Its mapping was revoked to learn whether it is still used.
    pub(crate) sampled: bool,
    pub(crate) space: SpaceId,
    pub(crate) va: VirtAddr,
}

// Words of a descriptor: number, space, low half of the page number, high half with the small fields, previous, next, and when it was last put on a
// list.
type Words = [u32; 7];
const NUMBER: usize = 0;
const SPACE: usize = 1;
const PAGE: usize = 2;
const BITS: usize = 3;
const PREV: usize = 4;
const NEXT: usize = 5;
const STAMP: usize = 6;

const USED: u32 = 1 << 31;

pub(crate) struct FrameTable {
    words: Box<[Words]>,
    /// Descriptors ever used; those beyond were never touched.
    high_water: usize,
    /// Head of the list of unused descriptors below the high water, linked by `NEXT`.
    unused: u32,
    heads: [u32; LISTS.len()],
    tails: [u32; LISTS.len()],
    counts: [usize; LISTS.len()],
    used: usize,
    /// Counts how often a frame was put on a list; wraps.
    clock: u32,
}

impl FrameTable {
    pub(crate) fn new(most: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            words: zeroed(most)?,
            high_water: 0,
            unused: 0,
            heads: [0; LISTS.len()],
            tails: [0; LISTS.len()],
            counts: [0; LISTS.len()],
            used: 0,
            clock: 0,
        })
    }

    /// A descriptor for the frame that starts at base frame `number`, isolated. There are as many descriptors as smallest frames, so one is always free.
    pub(crate) fn take(&mut self, number: u32, size: PageSize, space: SpaceId, va: VirtAddr) -> FrameId {
        let raw = match FrameId::from_raw(self.unused) {
            Some(id) => {
                self.unused = self.words[id.index()][NEXT];
                id
            }
            None => {
                self.high_water += 1;
                assert!(self.high_water <= self.words.len(), "more frames in use than the memory holds ({})", self.words.len());
                FrameId::from_raw(self.high_water as u32).expect("at least one")
            }
        };
        self.used += 1;
        self.words[raw.index()] = [0; 7];
        self.write(raw, &Frame { number, size, list: List::Isolated, sampled: false, space, va });
        raw
    }

    /// Gives a descriptor back. The frame is isolated.
    pub(crate) fn put(&mut self, id: FrameId) {
        let frame = self.get(id);
        assert!(frame.list == List::Isolated, "frame {id:?} is given up while on {:?}", frame.list);
        self.used -= 1;
        self.words[id.index()] = [0; 7];
        self.words[id.index()][NEXT] = self.unused;
        self.unused = id.0.get();
    }

    pub(crate) fn is_used(&self, id: FrameId) -> bool {
        self.words.get(id.index()).is_some_and(|words| words[BITS] & USED != 0)
    }

    pub(crate) fn get(&self, id: FrameId) -> Frame {
        let words = &self.words[id.index()];
        assert!(words[BITS] & USED != 0, "frame {id:?} is not in use");
        let page = u64::from(words[PAGE]) | u64::from(words[BITS] & 0xf_ffff) << 32;
        Frame {
            number: words[NUMBER],
            size: PageSize::ALL[(words[BITS] >> 20 & 3) as usize],
            list: LISTS[(words[BITS] >> 22 & 7) as usize],
            sampled: words[BITS] >> 25 & 1 != 0,
            space: SpaceId(words[SPACE]),
            va: VirtAddr::new(page << 12),
        }
    }

    fn write(&mut self, id: FrameId, frame: &Frame) {
        let page = frame.va.get() >> 12;
        let size = PageSize::ALL.iter().position(|s| *s == frame.size).expect("one of the sizes") as u32;
        let words = &mut self.words[id.index()];
        words[NUMBER] = frame.number;
        words[SPACE] = frame.space.0;
        words[PAGE] = page as u32;
        words[BITS] = USED | (page >> 32) as u32 & 0xf_ffff | size << 20 | (frame.list as u32) << 22 | u32::from(frame.sampled) << 25;
    }

    pub(crate) fn set_sampled(&mut self, id: FrameId, sampled: bool) {
        let frame = Frame { sampled, ..self.get(id) };
        self.write(id, &frame);
    }

    pub(crate) fn set_space(&mut self, id: FrameId, space: SpaceId) {
        self.words[id.index()][SPACE] = space.0;
    }

    /// Whether every descriptor is in use.
    pub(crate) fn is_full(&self) -> bool {
        self.used == self.words.len()
    }

    /// Takes the frame off its list, if it is on one, and puts it at the young end of `list`.
    pub(crate) fn move_to(&mut self, id: FrameId, list: List) {
        self.isolate(id);
        if list == List::Isolated {
            return;
        }
        let (at, raw) = (list as usize, id.0.get());
        let tail = self.tails[at];
        let frame = Frame { list, ..self.get(id) };
        self.write(id, &frame);
        self.clock = self.clock.wrapping_add(1);
        self.words[id.index()][STAMP] = self.clock;
        self.words[id.index()][PREV] = tail;
        self.words[id.index()][NEXT] = 0;
        match FrameId::from_raw(tail) {
            Some(tail) => self.words[tail.index()][NEXT] = raw,
            None => self.heads[at] = raw,
        }
        self.tails[at] = raw;
        self.counts[at] += 1;
    }

    fn isolate(&mut self, id: FrameId) {
        let frame = self.get(id);
        if frame.list == List::Isolated {
            return;
        }
        let at = frame.list as usize;
        let (prev, next) = (self.words[id.index()][PREV], self.words[id.index()][NEXT]);
        match FrameId::from_raw(prev) {
            Some(prev) => self.words[prev.index()][NEXT] = next,
            None => self.heads[at] = next,
        }
        match FrameId::from_raw(next) {
            Some(next) => self.words[next.index()][PREV] = prev,
            None => self.tails[at] = prev,
        }
        self.counts[at] -= 1;
        self.write(id, &Frame { list: List::Isolated, ..frame });
    }

    /// The oldest frame of `list`.
    pub(crate) fn oldest(&self, list: List) -> Option<FrameId> {
        FrameId::from_raw(self.heads[list as usize])
    }

    /// How many frames were put on a list since this one was.
    pub(crate) fn age(&self, id: FrameId) -> usize {
        self.clock.wrapping_sub(self.words[id.index()][STAMP]) as usize
    }

    /// The next younger frame on the same list.
    pub(crate) fn younger(&self, id: FrameId) -> Option<FrameId> {
        FrameId::from_raw(self.words[id.index()][NEXT])
    }

    pub(crate) fn count(&self, list: List) -> usize {
        self.counts[list as usize]
    }

    /// Descriptors in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Every frame in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FrameId, Frame)> {
        (1..=self.high_water as u32).filter_map(FrameId::from_raw).filter(|id| self.is_used(*id)).map(|id| (id, self.get(id)))
    }

    /// Bytes of metadata that were ever touched.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.high_water * size_of::<Words>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn descriptors_are_kept_and_lists_stay_in_order() {
        let mut table = FrameTable::new(8).unwrap();
        let ids: Vec<FrameId> = (0..8u32)
            .map(|n| table.take(n * 512, PageSize::Size2M, SpaceId(n), VirtAddr::new(0xf_ffff_ffff_f000 - u64::from(n) * 0x1000)))
            .collect();
        for id in &ids {
            table.move_to(*id, List::Clean);
        }
        table.set_sampled(ids[3], true);
        let third = table.get(ids[3]);
        assert_eq!((third.number, third.size, third.space, third.sampled), (1536, PageSize::Size2M, SpaceId(3), true));
        assert_eq!(third.va, VirtAddr::new(0xf_ffff_ffff_c000));
        table.move_to(ids[0], List::Clean);
        table.move_to(ids[5], List::Dirty);
        let mut order = Vec::new();
        let mut at = table.oldest(List::Clean);
        while let Some(id) = at {
            order.push(table.get(id).space.0);
            at = table.younger(id);
        }
        assert_eq!(order, [1, 2, 3, 4, 6, 7, 0]);
        assert_eq!((table.count(List::Clean), table.count(List::Dirty)), (7, 1));
        for id in &ids {
            table.move_to(*id, List::Isolated);
            table.put(*id);
        }
        assert_eq!(table.used(), 0);
        assert_eq!(table.oldest(List::Clean), None);
        assert_eq!(table.take(9, PageSize::Size4K, SpaceId(1), VirtAddr::new(0)), ids[7], "descriptors are used again");
    }
}
