//! A buddy allocator for frames of 4 KiB to 2 MiB.
//!
//! Its metadata is a bitmap of free blocks per order and lies outside the memory it manages: a quarter of a byte per 4 KiB. A block of order `k` is 2^k
//! base frames, aligned to its size; freeing merges it with its buddy while that is free. The lowest address is handed out first, which keeps large
//! blocks whole at the other end.

use crate::bitmap::Bitmap;
use arrayvec::ArrayVec;
use gmem_hal::{OutOfMemory, PageSize};

/// The order of a block of one page of `size`.
pub(crate) const fn order_of(size: PageSize) -> usize {
    (size.shift() - PageSize::Size4K.shift()) as usize
}

const MAX_ORDER: usize = order_of(PageSize::Size2M);

pub(crate) struct Buddy {
    free: ArrayVec<Bitmap, { MAX_ORDER + 1 }>,
    free_frames: usize,
}

impl Buddy {
    /// All of `[first, end)` free, in base frames counted from an address aligned to the largest block.
    pub(crate) fn new(first: usize, end: usize) -> Result<Self, OutOfMemory> {
        let mut free = ArrayVec::new();
        for order in 0..=MAX_ORDER {
            free.push(Bitmap::new((end >> order) + 1)?);
        }
        let mut buddy = Self { free, free_frames: end - first };
        let mut at = first;
        while at < end {
            let aligned = if at == 0 { MAX_ORDER } else { (at.trailing_zeros() as usize).min(MAX_ORDER) };
            let order = aligned.min((end - at).ilog2() as usize);
            buddy.free[order].set(at >> order);
            at += 1 << order;
        }
        Ok(buddy)
    }

    /// A free block of `order`, as its first base frame.
    pub(crate) fn alloc(&mut self, order: usize) -> Option<usize> {
        let (from, block) = (order..=MAX_ORDER).find_map(|o| self.free[o].first().map(|block| (o, block)))?;
        self.free[from].clear(block);
        let frame = block << from;
        // Split down: the upper halves stay free.
        for o in (order..from).rev() {
            self.free[o].set((frame >> o) + 1);
        }
        self.free_frames -= 1 << order;
        Some(frame)
    }

    /// Gives a block of `order` back.
    pub(crate) fn free(&mut self, frame: usize, order: usize) {
        assert!(!self.is_free(frame), "frame {frame:#x} of order {order} is freed twice");
        self.free_frames += 1 << order;
        let (mut block, mut o) = (frame >> order, order);
        while o < MAX_ORDER && self.free[o].get(block ^ 1) {
            self.free[o].clear(block ^ 1);
            block >>= 1;
            o += 1;
        }
        self.free[o].set(block);
    }

    /// Whether base frame `frame` lies in a free block.
    pub(crate) fn is_free(&self, frame: usize) -> bool {
        (0..=MAX_ORDER).any(|o| self.free[o].get(frame >> o))
    }

    /// Free base frames.
    pub(crate) fn free_frames(&self) -> usize {
        self.free_frames
    }

    /// Bytes of metadata.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.free.iter().map(Bitmap::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn serves_every_order_aligned_and_merges_back() {
        let mut buddy = Buddy::new(3, 2048 + 5).unwrap();
        let total = buddy.free_frames();
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut state = 1u64;
        for round in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (state >> 33) as usize;
            if pick % 3 < 2 {
                let order = [0, 4, 9][pick / 3 % 3];
                if let Some(frame) = buddy.alloc(order) {
                    assert_eq!(frame & ((1 << order) - 1), 0, "round {round}");
                    assert!(frame >= 3 && frame + (1 << order) <= 2053);
                    assert!(!held.iter().any(|(f, o)| frame < f + (1 << o) && *f < frame + (1 << order)), "handed out twice");
                    held.push((frame, order));
                }
            } else if !held.is_empty() {
                let (frame, order) = held.swap_remove(pick % held.len());
                buddy.free(frame, order);
            }
            assert_eq!(buddy.free_frames() + held.iter().map(|(_, o)| 1usize << o).sum::<usize>(), total);
        }
        for (frame, order) in held {
            buddy.free(frame, order);
        }
        let mut whole = 0;
        while buddy.alloc(9).is_some() {
            whole += 1;
        }
        assert_eq!(whole, 3, "everything merged back into the three aligned 2 MiB blocks of [3, 2053)");
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_is_a_defect() {
        let mut buddy = Buddy::new(0, 512).unwrap();
        let frame = buddy.alloc(0).unwrap();
        buddy.free(frame, 0);
        buddy.free(frame, 0);
    }
}
