//! One atomic bit per 2 MiB piece of an address space.

use core::sync::atomic::{AtomicU64, Ordering::*};
use gmem_hal::{HostError, PageSize, VirtAddr, VirtRange};

/// A bitmap over the 2 MiB pieces of a range. 64 KiB for 1 TiB, allocated once and untouched until used.
#[derive(Debug)]
pub(crate) struct PieceBits {
    base: u64,
    words: Box<[AtomicU64]>,
}

impl PieceBits {
    /// All bits clear. `range` begins on a 2 MiB boundary.
    pub(crate) fn new(range: VirtRange) -> Result<Self, HostError> {
        assert!(range.start().is_aligned(PageSize::Size2M), "{range} does not begin with a piece");
        let pieces = range.len().get().div_ceil(PageSize::Size2M.bytes());
        let count = pieces.div_ceil(64) as usize;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| HostError::NoMemory)?;
        words.resize_with(count, || AtomicU64::new(0));
        Ok(Self { base: range.start().get(), words: words.into_boxed_slice() })
    }

    fn place(&self, va: VirtAddr) -> (&AtomicU64, u64) {
        let piece = (va.get() - self.base) >> PageSize::Size2M.shift();
        (&self.words[(piece / 64) as usize], 1 << (piece % 64))
    }

    /// Whether the bit of the piece that holds `va` is set; false outside the range.
    pub(crate) fn get(&self, va: VirtAddr) -> bool {
        if va.get() < self.base || (va.get() - self.base) >> 27 >= self.words.len() as u64 {
            return false;
        }
        let (word, bit) = self.place(va);
        word.load(Acquire) & bit != 0
    }

    /// Sets or clears the bits of the pieces in `range`.
    pub(crate) fn set(&self, range: VirtRange, value: bool) {
        let range = range.align_outward(PageSize::Size2M).expect("the last piece ends below the last address");
        for piece in range.pages(PageSize::Size2M) {
            let (word, bit) = self.place(piece.start());
            if value {
                word.fetch_or(bit, AcqRel);
            } else {
                word.fetch_and(!bit, AcqRel);
            }
        }
    }

    /// Cuts `range`, which is aligned to 2 MiB, into runs of pieces with equal bits, first to last.
    pub(crate) fn runs(&self, range: VirtRange) -> impl Iterator<Item = (bool, VirtRange)> + '_ {
        let mut at = range.start();
        core::iter::from_fn(move || {
            let rest = VirtRange::new(at, range.end())?;
            let value = self.get(at);
            let end = rest.pages(PageSize::Size2M).find(|p| self.get(p.start()) != value).map_or(range.end(), |p| p.start());
            at = end;
            Some((value, VirtRange::new(rest.start(), end)?))
        })
    }

    /// The largest run of set bits around `range`, all of whose bits are set.
    pub(crate) fn widen(&self, range: VirtRange) -> VirtRange {
        const PIECE: u64 = PageSize::Size2M.bytes();
        let (mut start, mut end) = (range.start().get(), range.end().get());
        while start >= self.base + PIECE && self.get(VirtAddr::new(start - PIECE)) {
            start -= PIECE;
        }
        while self.get(VirtAddr::new(end)) {
            end += PIECE;
        }
        VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).expect("it only grew")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> VirtRange {
        const M2: u64 = 2 << 20;
        VirtRange::new(VirtAddr::new((1 << 40) + start * M2), VirtAddr::new((1 << 40) + end * M2)).expect("not empty")
    }

    #[test]
    fn runs_and_widening_follow_the_bits() {
        let bits = PieceBits::new(range(0, 200)).expect("memory");
        bits.set(range(3, 70), true);
        bits.set(range(10, 11), false);
        let runs: Vec<_> = bits.runs(range(0, 100)).collect();
        assert_eq!(
            runs,
            [(false, range(0, 3)), (true, range(3, 10)), (false, range(10, 11)), (true, range(11, 70)), (false, range(70, 100))]
        );
        assert_eq!(bits.widen(range(20, 21)), range(11, 70));
        assert_eq!(bits.widen(range(4, 5)), range(3, 10));
        bits.set(range(190, 200), true);
        assert_eq!(bits.widen(range(195, 196)), range(190, 200));
    }
}
