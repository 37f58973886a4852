//! The peer's own frame allocator and its list of pages by recency. Memory is taken once; every operation is async-signal-safe.

use bytemuck::allocation::try_zeroed_vec;

/// 4 KiB, the unit of allocation.
const UNIT: u64 = 4096;
/// No frame.
pub(super) const NONE: u32 = u32::MAX;

/// What a mapped page is going through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It has a frame, which the host fills.
    Filling,
    /// Kernels can touch it.
    Mapped,
    /// So they can, but it was chosen as a victim.
    Evicting,
    /// Kernels cannot touch it any more; the host saves its bytes.
    Detached,
}

/// A page, kept at the number of its first frame.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) va: u64,
    pub(super) len: u64,
    pub(super) prot: u32,
    pub(super) stage: Stage,
    newer: u32,
    older: u32,
}

/// The frames of the DRAM, as far as the host gave them.
pub(super) struct Frames {
    /// A bit per frame: given and free.
    free: Vec<u64>,
    /// The page that owns a frame: its first frame plus one; 0 if none.
    owner: Vec<u32>,
    pages: Vec<Page>,
    newest: u32,
    oldest: u32,
    /// Pages in any stage but [`Stage::Mapped`].
    pub(super) in_flux: usize,
}

impl Frames {
    pub(super) fn new(dram_len: u64) -> Option<Self> {
        let count = usize::try_from(dram_len / UNIT).ok().filter(|n| *n < NONE as usize)?;
        let page = Page { va: 0, len: 0, prot: 0, stage: Stage::Filling, newer: NONE, older: NONE };
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).ok()?;
        pages.resize(count, page);
        Some(Self {
            free: try_zeroed_vec(count.div_ceil(64)).ok()?,
            owner: try_zeroed_vec(count).ok()?,
            pages,
            newest: NONE,
            oldest: NONE,
            in_flux: 0,
        })
    }

    /// How many bytes pages have.
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    pub(super) fn taken(&self) -> u64 {
        self.owner.iter().filter(|owner| **owner != 0).count() as u64 * UNIT
    }

    fn count(&self) -> usize {
        self.owner.len()
    }

    fn is_free(&self, frame: usize) -> bool {
        self.free[frame / 64] >> (frame % 64) & 1 != 0
    }

    fn set_free(&mut self, frame: usize, free: bool) {
        let bit = 1 << (frame % 64);
        if free { self.free[frame / 64] |= bit } else { self.free[frame / 64] &= !bit }
    }

    /// Takes `len` bytes at `offset` from the host. False if that is no memory, or given already.
    pub(super) fn give(&mut self, offset: u64, len: u64) -> bool {
        let (first, last) = ((offset / UNIT) as usize, (offset.saturating_add(len) / UNIT) as usize);
        if last > self.count() || (first..last).any(|f| self.is_free(f) || self.owner[f] != 0) {
            return false;
        }
        (first..last).for_each(|f| self.set_free(f, true));
        true
    }

    /// The first of `len` free contiguous bytes, aligned to `len`, as a frame.
    pub(super) fn find(&self, len: u64) -> Option<usize> {
        let frames = (len / UNIT) as usize;
        if frames.is_multiple_of(64) {
            let words = frames / 64;
            self.free.chunks_exact(words).position(|run| run.iter().all(|w| *w == u64::MAX)).map(|i| i * frames)
        } else {
            (0..self.count() / frames)
                .filter(|i| self.free[i * frames / 64] != 0)
                .map(|i| i * frames)
                .find(|first| (*first..first + frames).all(|f| self.is_free(f)))
        }
    }

    /// Takes `len` free contiguous bytes, aligned to `len`, for a page at `va`. Returns its first frame.
    pub(super) fn allocate(&mut self, va: u64, len: u64, prot: u32) -> Option<u32> {
        let frames = (len / UNIT) as usize;
        let first = self.find(len)?;
        for frame in first..first + frames {
            self.set_free(frame, false);
            self.owner[frame] = first as u32 + 1;
        }
        self.in_flux += 1;
        self.pages[first] = Page { va, len, prot, stage: Stage::Filling, newer: NONE, older: NONE };
        Some(first as u32)
    }

    /// Moves a page on.
    pub(super) fn set_stage(&mut self, first: u32, stage: Stage) {
        let before = std::mem::replace(&mut self.page(first).stage, stage);
        self.in_flux = self.in_flux + usize::from(before == Stage::Mapped) - usize::from(stage == Stage::Mapped);
    }

    /// Frees the frames of a page that is not in the list.
    pub(super) fn free(&mut self, first: u32) {
        self.set_stage(first, Stage::Mapped);
        let frames = (self.pages[first as usize].len / UNIT) as usize;
        for frame in first as usize..first as usize + frames {
            self.owner[frame] = 0;
            self.set_free(frame, true);
        }
    }

    pub(super) fn page(&mut self, first: u32) -> &mut Page {
        &mut self.pages[first as usize]
    }

    /// The offset in the DRAM of a frame.
    pub(super) fn offset(first: u32) -> u64 {
        u64::from(first) * UNIT
    }

    /// Makes a page the newest of the list, whether it was in it or not.
    pub(super) fn link(&mut self, first: u32) {
        self.unlink(first);
        let newest = self.newest;
        self.page(first).older = newest;
        self.page(first).newer = NONE;
        if newest == NONE {
            self.oldest = first
        } else {
            self.page(newest).newer = first
        }
        self.newest = first;
    }

    /// Takes a page out of the list, if it is in it.
    pub(super) fn unlink(&mut self, first: u32) {
        let Page { newer, older, .. } = *self.page(first);
        if newer == NONE && older == NONE && self.newest != first {
            return;
        }
        if newer == NONE {
            self.newest = older
        } else {
            self.page(newer).older = older
        }
        if older == NONE {
            self.oldest = newer
        } else {
            self.page(older).newer = newer
        }
        let page = self.page(first);
        (page.newer, page.older) = (NONE, NONE);
    }

    /// The pages of the list, oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(self.oldest).filter(|n| *n != NONE), |first| self.newer(*first))
    }

    /// The next newer page in the list.
    pub(super) fn newer(&self, first: u32) -> Option<u32> {
        Some(self.pages[first as usize].newer).filter(|n| *n != NONE)
    }

    /// Chooses a page to evict so that `len` aligned bytes come closer to being free: the oldest page around which a whole run
    /// is ours, or another page in that run. Says `None` if every such run holds a page that cannot be evicted.
    pub(super) fn victim(&self, len: u64) -> Option<u32> {
        let frames = (len / UNIT) as usize;
        let mapped = |first: u32| self.pages[first as usize].stage == Stage::Mapped;
        self.oldest_first().filter(|first| mapped(*first)).find(|first| {
            let start = *first as usize / frames * frames;
            let run = start..(start + frames).max(*first as usize + 1);
            run.end <= self.count() && run.into_iter().all(|f| self.is_free(f) || (self.owner[f] != 0 && mapped(self.owner[f] - 1)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIG: u64 = 2 << 20;

    #[test]
    fn big_and_small_pages_share_memory_and_victims_clear_a_run() {
        let mut frames = Frames::new(2 * BIG).unwrap();
        assert_eq!(frames.allocate(0, UNIT, 3), None, "nothing was given");
        assert!(frames.give(0, 2 * BIG) && !frames.give(BIG, UNIT), "given twice");
        let small: Vec<u32> = (0..3).map(|i| frames.allocate(i * UNIT, UNIT, 3).unwrap()).collect();
        let big = frames.allocate(BIG, BIG, 3).unwrap();
        assert_eq!((&small[..], big), (&[0, 1, 2][..], 512));
        assert_eq!(frames.allocate(2 * BIG, BIG, 3), None);
        for first in small.iter().chain([&big]) {
            frames.set_stage(*first, Stage::Mapped);
            frames.link(*first);
        }
        // Clearing the run of the oldest page takes the three small ones.
        for expected in small {
            let victim = frames.victim(BIG).unwrap();
            assert_eq!(victim, expected);
            frames.unlink(victim);
            frames.free(victim);
        }
        assert_eq!(frames.allocate(2 * BIG, BIG, 3), Some(0));
        assert_eq!(frames.victim(UNIT), Some(big), "a page being filled is no victim");
        frames.set_stage(big, Stage::Detached);
        assert_eq!(frames.in_flux, 2);
        assert_eq!(frames.victim(UNIT), None);
    }

    #[test]
    fn the_list_keeps_the_order_of_use() {
        let mut frames = Frames::new(BIG).unwrap();
        assert!(frames.give(0, BIG));
        let all: Vec<u32> = (0..4).map(|i| frames.allocate(i * UNIT, UNIT, 3).unwrap()).collect();
        all.iter().for_each(|f| frames.link(*f));
        frames.link(0);
        frames.unlink(2);
        frames.unlink(2);
        assert_eq!(frames.oldest_first().collect::<Vec<_>>(), [1, 3, 0]);
        [1, 3, 0].into_iter().for_each(|f| frames.unlink(f));
        assert_eq!(frames.oldest_first().count(), 0);
        frames.link(2);
        assert_eq!(frames.oldest_first().collect::<Vec<_>>(), [2]);
    }
}
