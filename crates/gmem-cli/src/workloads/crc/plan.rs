//! How files are cut into blocks, blocks into batches that fit in the buffer, and batches into launches.

use super::checksum::Block;
use super::files::Input;
use gmem::PageSize;
use std::ops::Range;

/// The largest block.
pub(crate) const BLOCK: u64 = 1 << 20;

/// Where a file starts in the buffer: a cache line of its own.
const ALIGN: u64 = 64;

/// Some blocks of some files, as they lie in the buffer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Which block is where.
    pub(crate) blocks: Vec<Block>,
    /// Which file each block is of.
    pub(crate) files: Vec<usize>,
}

/// Cuts `files` into blocks of at most `block` bytes and packs them, in order, into batches that fit in `capacity` bytes and `rows` rows.
pub(crate) fn batches(files: &[Input], block: u64, capacity: u64, rows: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    let mut end = 0u64;
    for (file, input) in files.iter().enumerate() {
        let mut left = input.len;
        let mut at = end.next_multiple_of(ALIGN);
        while left > 0 {
            let len = left.min(block);
            if at + len > capacity || batch.blocks.len() == rows {
                batches.push(std::mem::take(&mut batch));
                at = 0;
            }
            batch.blocks.push(Block { offset: at, len });
            batch.files.push(file);
            at += len;
            left -= len;
        }
        end = at;
    }
    if !batch.blocks.is_empty() {
        batches.push(batch);
    }
    batches
}

/// The bytes of buffer and the rows that one batch of all files would take.
pub(crate) fn whole(files: &[Input], block: u64) -> (u64, usize) {
    files.iter().fold((0, 0), |(end, rows): (u64, usize), file| {
        let end = end.next_multiple_of(ALIGN).saturating_add(file.len).min(u64::MAX - ALIGN);
        (end, rows.saturating_add(usize::try_from(file.len.div_ceil(block)).unwrap_or(usize::MAX)))
    })
}

/// The bytes of whole pages that a launch over `rows` of `blocks` touches: the data, the rows, the sums.
pub(crate) fn held_by(blocks: &[Block], rows: &Range<usize>, page: PageSize) -> u64 {
    let pages = |start: u64, end: u64| (end.div_ceil(page.bytes()) - start / page.bytes()) * page.bytes();
    let (first, last) = (&blocks[rows.start], &blocks[rows.end - 1]);
    let row = size_of::<Block>() as u64;
    let sum = size_of::<u32>() as u64;
    let (from, to) = (rows.start as u64, rows.end as u64);
    pages(first.offset, last.offset + last.len) + pages(from * row, to * row) + pages(from * sum, to * sum)
}

/// Cuts a batch into launches of which each touches at most `held` bytes of whole pages; `None` if a single block touches more.
pub(crate) fn launches(blocks: &[Block], held: u64, page: PageSize) -> Option<Vec<Range<usize>>> {
    let mut launches = Vec::new();
    let mut start = 0;
    for end in 1..=blocks.len() {
        if held_by(blocks, &(start..end), page) > held {
            launches.push(start..end - 1);
            start = end - 1;
            if launches.last().is_some_and(Range::is_empty) || held_by(blocks, &(start..end), page) > held {
                return None;
            }
        }
    }
    launches.push(start..blocks.len());
    Some(launches)
}

#[cfg(test)]
mod tests {
    use super::super::files::Content;
    use super::*;
    use std::path::PathBuf;

    fn inputs(lengths: &[u64]) -> Vec<Input> {
        lengths.iter().map(|len| Input { path: PathBuf::from("f"), len: *len, content: Content::Taken(Vec::new()) }).collect()
    }

    #[test]
    fn batches_hold_every_byte_once_and_fit() {
        let files = inputs(&[1, 5000, 100, 4096, 12345]);
        for (block, capacity, rows) in [(4096, 4096, 100), (1000, 6000, 3), (4096, 1 << 20, 1000), (512, 1024, 1)] {
            let batches = batches(&files, block, capacity, rows);
            let mut seen = vec![0u64; files.len()];
            for batch in &batches {
                assert!(!batch.blocks.is_empty() && batch.blocks.len() <= rows && batch.blocks.len() == batch.files.len());
                let mut end = 0;
                for (b, file) in batch.blocks.iter().zip(&batch.files) {
                    assert!(b.offset >= end && b.len > 0 && b.len <= block);
                    end = b.offset + b.len;
                    seen[*file] += b.len;
                }
                assert!(end <= capacity);
            }
            assert_eq!(seen, [1, 5000, 100, 4096, 12345]);
        }
        let (bytes, rows) = whole(&files, 1000);
        assert_eq!(rows, 1 + 5 + 1 + 5 + 13);
        assert_eq!(super::batches(&files, 1000, bytes, rows).len(), 1);
        assert_eq!(super::batches(&files, 1000, bytes - 1, rows).len(), 2);
    }

    #[test]
    fn launches_fit_in_the_memory_held() {
        let page = PageSize::Size4K;
        let blocks = batches(&inputs(&[100_000, 3, 50_000]), 4096, 1 << 20, 1000).remove(0).blocks;
        for held in [16 << 10, 20 << 10, 64 << 10, 1 << 20] {
            let launches = launches(&blocks, held, page).unwrap();
            assert_eq!(launches.first().map(|r| r.start), Some(0));
            assert_eq!(launches.last().map(|r| r.end), Some(blocks.len()));
            assert!(launches.windows(2).all(|w| w[0].end == w[1].start));
            assert!(launches.iter().all(|r| !r.is_empty() && held_by(&blocks, r, page) <= held));
        }
        assert_eq!(launches(&blocks, 8 << 10, page), None);
    }
}
