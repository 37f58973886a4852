//! Regions as values: what a program does with parts of them.

mod common;

use common::watched;
use gmem::{Gmem, PageSize, Prot, VirtRange};

/// The pages from `first` on.
fn pages(region: &gmem::Region, first: usize, count: usize) -> VirtRange {
    let all: Vec<_> = region.range().pages(PageSize::Size4K).collect();
    VirtRange::new(all[first].start(), all[first + count - 1].end()).unwrap()
}

#[test]
fn a_region_unmaps_only_what_is_still_its_own() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let old = space.region().page_size(PageSize::Size4K).map(8 << 12).unwrap();
        let hole = pages(&old, 2, 3);
        old.unmap(hole).unwrap();
        assert!(old.protect(pages(&old, 1, 2), Prot::READ).is_err(), "a part of it is not its own any more");
        let mut new = space.region().page_size(PageSize::Size4K).at(hole.start()).vec::<u64>(3 * 512).unwrap();
        new.fill(7);
        old.unmap(pages(&old, 0, 4)).unwrap();
        drop(old);
        assert!(new.iter().all(|word| *word == 7), "another region was unmapped with the one that lay there before");
        gmem.verify().unwrap();
    });
}
