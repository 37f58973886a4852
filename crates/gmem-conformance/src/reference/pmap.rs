//! One context: its page table, its TLB, and the walk.

use super::Reference;
use super::memory::Window;
use super::table::{Entry, Table};
use super::tlb::Tlb;
use crate::Defect;
use gmem::hal::{Access, HnodeId, PhysAddr, PmapId, Prot, VirtRange};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A page table of the device and what the hardware keeps beside it.
pub(super) struct Pmap {
    pub(super) id: PmapId,
    pub(super) range: VirtRange,
    pub(super) window: Option<Window>,
    state: Mutex<State>,
}

/// What the MMU holds for the length of an access, so that an invalidation has nothing else to wait for.
pub(super) struct State {
    pub(super) table: Table,
    pub(super) tlb: Tlb,
    /// Destroyed or fenced: no access is possible any more.
    pub(super) dead: bool,
    /// What a broken driver still has to release.
    pub(super) late: Option<VirtRange>,
    /// Bytes that a broken device wrote where nobody else looks.
    pub(super) hidden: BTreeMap<u64, u8>,
}

impl Pmap {
    pub(super) fn new(id: PmapId, range: VirtRange, window: Option<Window>, entries: usize) -> Self {
        let state = State { table: Table::new(entries), tlb: Tlb::new(), dead: false, late: None, hidden: BTreeMap::new() };
        Self { id, range, window, state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics but a defect, whose check has failed by then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the bytes of the frame at `frame` are.
    pub(super) fn pointer(&self, device: &Reference, frame: PhysAddr, len: u64) -> Option<*mut u8> {
        match frame.hnode {
            HnodeId::HOST => self.window.as_ref()?.pointer(frame, len),
            _ => device.pointer(frame.addr, len),
        }
    }
}

impl State {
    /// The translation of `va` for `access`: the TLB's, or else the table's, which the TLB then keeps.
    pub(super) fn translate(&mut self, va: u64, access: Access) -> Option<Entry> {
        if self.dead {
            return None;
        }
        if let Some(cached) = self.tlb.at(va).filter(|e| e.prot.allows(access)) {
            return Some(cached);
        }
        let entry = self.table.at(va).filter(|e| e.prot.allows(access))?;
        entry.accessed = true;
        let entry = *entry;
        self.tlb.fill(entry);
        Some(entry)
    }

    /// Ends every access for good.
    pub(super) fn kill(&mut self) {
        self.dead = true;
        self.table.clear();
        self.tlb.clear();
    }

    /// Enters a page, or changes the access of one that is there.
    pub(super) fn enter(&mut self, device: &Reference, entry: Entry) -> bool {
        let there = self.table.inside(entry.page).first().copied();
        // A reminder of a page is no reason to forget that it was used.
        let used = there.is_some_and(|e| e.frame == entry.frame && e.accessed);
        let mut entry = Entry { accessed: used, ..entry };
        if device.has(Defect::ProtIgnored) {
            entry.prot = Prot::RW;
        }
        if let Some(there) = there.filter(|e| e.frame == entry.frame && device.has(Defect::UpgradeIgnored)) {
            entry.prot = there.prot;
        }
        self.table.put(entry)
    }

    /// Takes `range` out of the table. The TLB keeps what it has.
    pub(super) fn release(&mut self, device: &Reference, range: VirtRange) {
        match self.table.inside(range).first().map(|e| e.page) {
            Some(first) if device.has(Defect::ReleaseFirstPageOnly) => self.table.remove(first),
            Some(_) if device.has(Defect::ReleaseBasePageOnly) => self.split_first_of_each(range, None),
            _ => self.table.remove(range),
        }
        self.hidden.retain(|va, _| *va < range.start().get() || *va >= range.end().get());
    }

    /// Gives the first 4 KiB of every page of `range` this access, or takes them out, as a broken driver does.
    pub(super) fn split_first_of_each(&mut self, range: VirtRange, prot: Option<Prot>) {
        let entries = self.table.inside(range).to_vec();
        self.table.remove(range);
        for entry in entries {
            let tail = entry.tail();
            let end = tail.map_or(entry.page.end(), |tail| tail.page.start());
            let first = prot.zip(VirtRange::new(entry.page.start(), end)).map(|(prot, page)| Entry { page, prot, ..entry });
            for part in first.into_iter().chain(tail) {
                // It has room for every 4 KiB of the device.
                let _ = self.table.put(part);
            }
        }
    }

    /// Does what a broken driver put off.
    pub(super) fn catch_up(&mut self) {
        if let Some(range) = self.late.take() {
            self.table.remove(range);
            self.tlb.forget(range);
        }
    }
}
