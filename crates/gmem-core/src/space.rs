//! An address space: its regions, their entries, its contexts, and who waits for what.
//!
//! Lock letters: `s` the space lock (`Space::inner`), `c` constant after creation, `a` atomic. The space lock is held for table look-ups and state
//! changes only, never over a callback, a copy or a wait. A hnode's pool lock may be taken inside it, never the other way round.

use crate::context::Context;
use crate::entry::Entry;
use crate::gate::{Gate, Inside};
use crate::hnode_set::HnodeSet;
use crate::sorted::{Sorted, lock_with_room};
use crate::zeroed::zeroed;
use alloc::boxed::Box;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::lock_api::{Mutex, MutexGuard};
use gmem_hal::{DeviceId, Event, Host, OutOfMemory, Pages, Platform, RegionAttrs, SpaceId, VirtAddr, VirtRange, Wait, WaitKind};

/// The most contexts one address space can have; bounds what a fault keeps on its stack.
pub(crate) const MAX_CONTEXTS: usize = 16;

/// Waiters are spread over this many events by page, so that an operation's end wakes few others.
const EVENTS: usize = 16;

pub(crate) type HostSpace<P> = <<P as Platform>::Host as Host>::Space;
pub(crate) type Guard<'a, P> = MutexGuard<'a, <P as Platform>::RawLock, Inner<P>>;

/// A context list short enough for the stack of a signal handler.
pub(crate) type Contexts<P> = ArrayVec<Arc<Context<P>>, MAX_CONTEXTS>;

pub(crate) struct Space<P: Platform> {
    pub(crate) id: SpaceId,        // c
    pub(crate) range: VirtRange,   // c
    pub(crate) cpu_visible: bool,  // c
    pub(crate) host: HostSpace<P>, // c
    inner: Mutex<P::RawLock, Inner<P>>,
    events: [P::Event; EVENTS],
    /// Signalled when the last operation has ended that a change of a region waits for, and when a change has ended.
    changes: P::Event,
    gate: Gate<P>,
}

pub(crate) struct Inner<P: Platform> {
    regions: Sorted<VirtAddr, Region>, // s  by start, disjoint
    tables: Sorted<TableId, Table>,    // s
    next_table: u64,                   // s
    pub(crate) contexts: Contexts<P>,  // s
    /// Hnodes that pages of this address space may live in. Attach adds a device's, detach removes them.
    pub(crate) allowed: HnodeSet, // s
    pub(crate) dying: bool,            // s
}

/// Names a table of entries; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct TableId(u64);

/// A mapped range with one set of attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) range: VirtRange,
    pub(crate) attrs: RegionAttrs,
    /// Being unmapped: faults find nothing here any more.
    pub(crate) closing: bool,
    /// A protect takes access away: `attrs` says what is allowed from now on, and some page tables still allow more.
    pub(crate) lowering: bool,
    table: TableId,
    table_base: VirtAddr,
}

impl Region {
    /// The page that holds `va`.
    pub(crate) fn page(&self, va: VirtAddr) -> VirtRange {
        VirtRange::page(va, self.attrs.page_size).expect("a page of a region never wraps")
    }

    pub(crate) fn pages(&self, range: VirtRange) -> Pages {
        Pages { range, attrs: self.attrs }
    }

    fn slot(&self, page: VirtAddr) -> usize {
        ((page.get() - self.table_base.get()) >> self.attrs.page_size.shift()) as usize
    }
}

/// Metadata of a region besides its entries, in bytes.
pub(crate) const REGION_BYTES: usize = Sorted::<VirtAddr, Region>::ITEM;
/// Metadata of a table of entries besides these, in bytes.
pub(crate) const TABLE_BYTES: usize = Sorted::<TableId, Table>::ITEM;

/// The entries of what was mapped in one call. A region that was split shares it with its other parts.
pub(crate) struct Table {
    words: Box<[u64]>,
    users: usize,
    /// How many of the entries are busy.
    busy: usize,
    change: Change,
}

/// How far the host has come with changing what the pages of a table allow. No operation on any of them is under way meanwhile: what it has read of
/// their region's attributes would not be true any more, and the host goes by these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// There is none.
    No,
    /// Whoever comes for a page waits. What is under way goes on, and may evict other pages of the table for it, or fault on them in its callbacks.
    Awaited,
    /// Nothing is under way, and nothing begins until the host is done. It waits for nobody, so everybody may wait for it.
    UnderWay,
}

/// What the end of an operation on a page means to others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// Somebody waits for the page.
    pub(crate) waiters: bool,
    /// It was the last that a change of the region waits for.
    last: bool,
}

impl Ended {
    /// A page that was not busy became free for those who waited, if any did.
    pub(crate) fn free(waiters: bool) -> Self {
        Self { waiters, last: false }
    }
}

impl Table {
    fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

impl<P: Platform> Space<P> {
    pub(crate) fn new(id: SpaceId, range: VirtRange, cpu_visible: bool, host: HostSpace<P>) -> Self {
        let inner = Inner {
            regions: Sorted::new(),
            tables: Sorted::new(),
            next_table: 0,
            contexts: ArrayVec::new(),
            allowed: HnodeSet::new(),
            dying: false,
        };
        let events = ::core::array::from_fn(|_| P::Event::default());
        Self { id, range, cpu_visible, host, inner: Mutex::new(inner), events, changes: P::Event::default(), gate: Gate::new() }
    }

    pub(crate) fn lock(&self) -> Guard<'_, P> {
        self.inner.lock()
    }

    /// Makes room for so many more regions and tables. Under the gate, which whoever adds some holds, it stays.
    pub(crate) fn make_room(&self, regions: usize, tables: usize) -> Result<(), OutOfMemory> {
        drop(lock_with_room(&self.inner, regions, |inner| &mut inner.regions)?);
        drop(lock_with_room(&self.inner, tables, |inner| &mut inner.tables)?);
        Ok(())
    }

    /// The regions that overlap `range`, in order, each looked up when it is asked for: no lock is held between two.
    pub(crate) fn walk(&self, range: VirtRange) -> impl Iterator<Item = Region> {
        let mut rest = Some(range);
        ::core::iter::from_fn(move || {
            let region = self.lock().regions_in(rest?).next()?;
            rest = VirtRange::new(region.range.end(), range.end());
            Some(region)
        })
    }

    /// Who takes part, as of now.
    pub(crate) fn contexts(&self) -> Contexts<P> {
        self.lock().contexts.clone()
    }

    /// The same, unless somebody holds the lock.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, P>> {
        self.inner.try_lock()
    }

    pub(crate) fn event(&self, page: VirtAddr) -> &P::Event {
        let page = page.get() >> 12;
        &self.events[((page ^ page >> 4 ^ page >> 9) % EVENTS as u64) as usize]
    }

    /// Waits until the operation that has `page` busy, or the launches that hold it, may have ended. The lock is dropped.
    pub(crate) fn park(&self, mut guard: Guard<'_, P>, region: &Region, page: VirtAddr, kind: WaitKind) {
        let mut entry = guard.entry(region, page);
        entry.waiters = true;
        let owner = if entry.evicting {
            "evict"
        } else if kind == WaitKind::HeldPage {
            "launch"
        } else {
            "fault or range call"
        };
        guard.set_entry(region, page, entry);
        let event = self.event(page);
        let epoch = event.epoch();
        drop(guard);
        event.wait(epoch, &Wait { kind, space: Some(self.id), at: page, owner });
    }

    /// Waits until no operation on a page of the regions in `range` is under way, and lets none begin before [`Space::end_change`]. Under the gate.
    pub(crate) fn begin_change(&self, range: VirtRange) {
        loop {
            let epoch = self.changes.epoch();
            let mut guard = self.lock();
            // All at once: an operation in one of them may have to evict a page of another.
            let idle = guard.regions_in(range).all(|region| guard.table(&region).busy == 0);
            guard.set_change(range, if idle { Change::UnderWay } else { Change::Awaited });
            drop(guard);
            if idle {
                return;
            }
            self.changes
                .wait(epoch, &Wait { kind: WaitKind::BusyPage, space: Some(self.id), at: range.start(), owner: "fault or range call" });
        }
    }

    /// The host is done with the regions in `range`, about which `change` tells the truth.
    pub(crate) fn end_change(&self, range: VirtRange, change: impl FnMut(&mut Region)) {
        let mut guard = self.lock();
        guard.update(range, change);
        guard.set_change(range, Change::No);
        drop(guard);
        self.changes.signal();
    }

    /// The lock, and the region that `find` finds, once the host is not changing what its pages allow. `None` if there is none.
    pub(crate) fn unchanging(&self, find: impl Fn(&Inner<P>) -> Option<Region>) -> Option<(Guard<'_, P>, Region)> {
        loop {
            let guard = self.lock();
            let region = find(&guard)?;
            if guard.change(&region) != Change::UnderWay {
                return Some((guard, region));
            }
            self.await_change(guard, region.range.start());
        }
    }

    /// Waits until the change of the region may have ended. The lock is dropped.
    pub(crate) fn await_change(&self, guard: Guard<'_, P>, page: VirtAddr) {
        let epoch = self.changes.epoch();
        drop(guard);
        self.changes.wait(epoch, &Wait { kind: WaitKind::BusyPage, space: Some(self.id), at: page, owner: "protect" });
    }

    /// Wakes those in the core who wait for what has ended at `page`.
    pub(crate) fn signal(&self, page: VirtAddr, ended: Ended) {
        if ended.waiters {
            self.event(page).signal();
        }
        if ended.last {
            self.changes.signal();
        }
    }

    /// Enters the gate: from now on this thread alone changes regions and contexts. `None` if the address space is being destroyed.
    pub(crate) fn enter_gate(&self, owner: &'static str) -> Option<Inside<'_, P>> {
        let inside = self.gate.enter(owner, Some(self.id), self.range.start());
        if self.lock().dying { None } else { Some(inside) }
    }
}

impl<P: Platform> Inner<P> {
    /// The region that holds `va`.
    pub(crate) fn region_at(&self, va: VirtAddr) -> Option<Region> {
        self.regions.at_or_below(va).filter(|r| r.range.contains(va)).copied()
    }

    /// The regions that overlap `range`, in order.
    pub(crate) fn regions_in(&self, range: VirtRange) -> impl Iterator<Item = Region> {
        let from = self.region_at(range.start()).map_or(range.start(), |r| r.range.start());
        self.regions.from(from).map(|(_, r)| *r).take_while(move |r| r.range.overlaps(range))
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = Region> {
        self.regions.values().copied()
    }

    /// The first free range of `bytes`, aligned to `align`, at or after `from` and before `end`.
    pub(crate) fn find_free(&self, from: VirtAddr, end: VirtAddr, bytes: u64, align: gmem_hal::PageSize) -> Option<VirtRange> {
        let mut at = from.align_up(align)?;
        loop {
            let candidate = VirtRange::from_len(at, gmem_hal::ByteLen(bytes))?;
            if candidate.end() > end {
                return None;
            }
            match self.regions_in(candidate).next() {
                None => return Some(candidate),
                Some(region) => at = region.range.end().align_up(align)?,
            }
        }
    }

    /// All that was mapped in the call that made the region.
    pub(crate) fn mapped_with(&self, region: &Region) -> VirtRange {
        let bytes = (self.table(region).words.len() as u64) << region.attrs.page_size.shift();
        VirtRange::from_len(region.table_base, gmem_hal::ByteLen(bytes)).expect("it was mapped")
    }

    /// Adds a region with entries of its own, all untouched. Room was made for it ([`Space::make_room`]).
    pub(crate) fn insert(&mut self, range: VirtRange, attrs: RegionAttrs, words: Box<[u64]>) {
        let table = TableId(self.next_table);
        self.next_table += 1;
        self.tables.insert(table, Table { words, users: 1, busy: 0, change: Change::No });
        let start = range.start();
        self.regions.insert(start, Region { range, attrs, closing: false, lowering: false, table, table_base: start });
    }

    /// Entries for `range`, as [`Inner::insert`] wants them.
    pub(crate) fn entries_for(range: VirtRange, attrs: &RegionAttrs) -> Result<Box<[u64]>, OutOfMemory> {
        zeroed((range.len().get() >> attrs.page_size.shift()) as usize)
    }

    /// Makes a region boundary at `va`, if a region spans it; answers whether one did. Room was made for one more region.
    pub(crate) fn split(&mut self, va: VirtAddr) -> bool {
        let Some(region) = self.region_at(va).filter(|r| r.range.start() != va) else { return false };
        let (left, right) = (VirtRange::new(region.range.start(), va), VirtRange::new(va, region.range.end()));
        let (Some(left), Some(right)) = (left, right) else { return false };
        self.table_mut(&region).users += 1;
        self.regions.insert(left.start(), Region { range: left, ..region });
        self.regions.insert(right.start(), Region { range: right, ..region });
        true
    }

    /// Makes one region of two that meet at `va` and differ in nothing any more; answers whether there were such.
    pub(crate) fn merge(&mut self, va: VirtAddr) -> bool {
        let Some(right) = self.regions.get(va).copied() else { return false };
        let Some(left) = va.get().checked_sub(1).and_then(|below| self.region_at(VirtAddr::new(below))) else { return false };
        let alike = |r: &Region| (r.attrs, r.table, r.closing, r.lowering);
        let (true, Some(whole)) = (alike(&left) == alike(&right), VirtRange::new(left.range.start(), right.range.end())) else {
            return false;
        };
        self.regions.remove(va);
        self.table_mut(&right).users -= 1;
        self.regions.insert(whole.start(), Region { range: whole, ..left });
        true
    }

    /// Changes every region wholly inside `range`.
    pub(crate) fn update(&mut self, range: VirtRange, change: impl FnMut(&mut Region)) {
        self.regions.range_mut(range.start(), range.end()).for_each(change);
    }

    /// Removes a region. Answers how many bytes of metadata go with it, and its table if it was the last user, to be dropped when the lock is free.
    pub(crate) fn remove(&mut self, start: VirtAddr) -> (usize, Option<Table>) {
        let Some(region) = self.regions.remove(start) else { return (0, None) };
        let table = self.table_mut(&region);
        table.users -= 1;
        if table.users > 0 {
            return (REGION_BYTES, None);
        }
        let table = self.tables.remove(region.table);
        (REGION_BYTES + TABLE_BYTES + table.as_ref().map_or(0, Table::bytes), table)
    }

    /// Bytes of metadata: regions and entries.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.regions.len() * REGION_BYTES + self.tables.values().map(|t| TABLE_BYTES + t.bytes()).sum::<usize>()
    }

    fn table(&self, region: &Region) -> &Table {
        self.tables.get(region.table).expect("a region's table lives as long as the region")
    }

    fn table_mut(&mut self, region: &Region) -> &mut Table {
        self.tables.get_mut(region.table).expect("a region's table lives as long as the region")
    }

    pub(crate) fn entry(&self, region: &Region, page: VirtAddr) -> Entry {
        Entry::unpack(self.table(region).words[region.slot(page)])
    }

    pub(crate) fn set_entry(&mut self, region: &Region, page: VirtAddr, entry: Entry) {
        let slot = region.slot(page);
        let table = self.table_mut(region);
        table.busy = table.busy + usize::from(entry.busy) - usize::from(Entry::unpack(table.words[slot]).busy);
        table.words[slot] = entry.pack();
    }

    /// The operation that has the page busy is over: the entry says so besides what `entry` says.
    pub(crate) fn end(&mut self, region: &Region, page: VirtAddr, entry: Entry) -> Ended {
        let waiters = self.entry(region, page).waiters;
        self.set_entry(region, page, Entry { busy: false, evicting: false, waiters: false, ..entry });
        let table = self.table(region);
        Ended { waiters, last: table.busy == 0 && table.change == Change::Awaited }
    }

    fn set_change(&mut self, range: VirtRange, change: Change) {
        let Self { regions, tables, .. } = self;
        for region in regions.range_mut(range.start(), range.end()) {
            tables.get_mut(region.table).expect("a region's table lives as long as the region").change = change;
        }
    }

    /// Whether what the pages of the region allow is about to change.
    pub(crate) fn change(&self, region: &Region) -> Change {
        self.table(region).change
    }

    /// The entries of the pages of a region that somebody has touched.
    pub(crate) fn touched(&self, region: &Region) -> impl Iterator<Item = (VirtAddr, Entry)> {
        let (first, last) = (region.slot(region.range.start()), region.slot(region.range.end()));
        let (start, shift) = (region.range.start().get(), region.attrs.page_size.shift());
        let words = self.table(region).words[first..last].iter().enumerate();
        let touched = words.filter(|(_, word)| !Entry::is_untouched(**word));
        touched.map(move |(n, word)| (VirtAddr::new(start + ((n as u64) << shift)), Entry::unpack(*word)))
    }

    /// The first page in `range` at or after `from` that somebody has touched, looking at no more than `most` pages; or where to go on looking.
    pub(crate) fn next_touched(&self, region: &Region, from: VirtAddr, end: VirtAddr, most: usize) -> Result<VirtAddr, Option<VirtAddr>> {
        let (first, last) = (region.slot(from), region.slot(end));
        let words = &self.table(region).words[first..last.min(first.saturating_add(most))];
        let page = |slot: usize| VirtAddr::new(from.get() + ((slot as u64) << region.attrs.page_size.shift()));
        match words.iter().position(|word| !Entry::is_untouched(*word)) {
            Some(slot) => Ok(page(slot)),
            None if first + words.len() < last => Err(Some(page(words.len()))),
            None => Err(None),
        }
    }

    pub(crate) fn context_of(&self, device: DeviceId) -> Option<Arc<Context<P>>> {
        self.contexts.iter().find(|c| c.device.id == device).cloned()
    }
}
