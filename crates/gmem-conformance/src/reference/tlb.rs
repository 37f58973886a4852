//! A translation cache that forgets nothing by itself, except for room.
//!
//! Real ones forget often enough to hide a missing invalidation for days.

use super::table::Entry;
use gmem::hal::VirtRange;

const ROOM: usize = 256;

/// The cached entries of one context.
pub(super) struct Tlb {
    cached: Vec<Entry>,
    /// Which one goes when there is no room.
    next: usize,
}

impl Tlb {
    pub(super) fn new() -> Self {
        Self { cached: Vec::with_capacity(ROOM), next: 0 }
    }

    /// The cached translation of `va`.
    pub(super) fn at(&self, va: u64) -> Option<Entry> {
        self.cached.iter().find(|e| e.page.start().get() <= va && va < e.page.end().get()).copied()
    }

    /// Caches `entry`, in the place of an older translation of its page.
    pub(super) fn fill(&mut self, entry: Entry) {
        self.forget(entry.page);
        if self.cached.len() < ROOM {
            self.cached.push(entry);
        } else {
            self.cached[self.next] = entry;
            self.next = (self.next + 1) % ROOM;
        }
    }

    /// Drops every translation of a page in `range`.
    pub(super) fn forget(&mut self, range: VirtRange) {
        self.cached.retain(|e| !e.page.overlaps(range));
    }

    /// Drops of every translation that `range` covers the first 4 KiB, as a broken device does.
    pub(super) fn forget_first_of_each(&mut self, range: VirtRange) {
        let tails: Vec<Entry> = self.cached.iter().filter(|e| e.page.overlaps(range)).filter_map(Entry::tail).collect();
        self.forget(range);
        self.cached.extend(tails);
    }

    /// Drops every translation.
    pub(super) fn clear(&mut self) {
        self.cached.clear();
    }
}
