//! The peer operating system: it manages the addresses and the pages of a PEER device by itself.
//!
//! The host asks (see [`op`]); this side decides which frame a page gets, which page goes when memory is short, and which addresses are in use. It
//! never sees the host's memory: the host's driver copies, between PREPARE and COMMIT, and between DETACH and FREE.

use super::frames::{Frames, Stage};
use super::ring::{Command, op, reply};
use super::{Device, window};
use crate::pagemap::PageMap;
use std::cell::UnsafeCell;

/// The most address ranges in use; a region takes one.
const RANGES: usize = 4096;

/// Bit of a command's `prot`: count the page as recently used (PREPARE), or the range belongs to the peer itself (VA_ALLOC).
pub(crate) const MARK: u32 = 1 << 8;

/// The state of the peer. Touched only by who holds [`Device::draining`].
pub(super) struct PeerOs(UnsafeCell<State>);

// SAFETY: `carry_out` is the only place that touches the state, and its callers hold `draining`.
unsafe impl Sync for PeerOs {}
// SAFETY: nothing in the state is bound to a thread.
unsafe impl Send for PeerOs {}

struct State {
    frames: Frames,
    /// The first frame of the page at an address.
    pages: PageMap,
    /// Ranges in use: start, end, and whether the peer itself uses it. Sorted. Never grows beyond its capacity.
    ranges: Vec<(u64, u64, bool)>,
}

impl PeerOs {
    /// A peer without memory: the host gives it some. `None` if there is no room for its tables.
    pub(super) fn new(dram_len: u64) -> Option<Self> {
        let pages = PageMap::new((dram_len / 4096) as usize)?;
        let mut ranges = Vec::new();
        ranges.try_reserve_exact(RANGES).ok()?;
        Some(Self(UnsafeCell::new(State { frames: Frames::new(dram_len)?, pages, ranges })))
    }
}

/// Carries out a command to the peer. The caller holds `draining`. Async-signal-safe. Returns a [`reply`] and a number.
pub(super) fn carry_out(device: &Device, c: &Command) -> (u32, u64) {
    let Some(peer) = &device.peer else { return (reply::BAD, 0) };
    // SAFETY: whoever holds `draining` is the only one here, and no call below comes back to this function.
    let state = unsafe { &mut *peer.0.get() };
    match c.op {
        op::VA_ALLOC => (state.va_alloc(c), 0),
        op::VA_FREE => (state.va_free(c), 0),
        op::GRANT => (if state.frames.give(c.frame, c.len) { reply::OK } else { reply::BAD }, 0),
        op::PREPARE => state.prepare(device, c),
        op::COMMIT => (state.attach(device, c, Stage::Filling), 0),
        op::REATTACH => (state.attach(device, c, Stage::Detached), 0),
        op::ABORT => (state.free(c, Stage::Filling), 0),
        op::FREE => (state.free(c, Stage::Detached), 0),
        op::DETACH => (state.detach(device, c), 0),
        op::VICTIM => state.victim(c),
        op::SPARE => (state.spare(c), 0),
        _ => (reply::BAD, 0),
    }
}

/// The access of pages in a range was changed: a page that is attached again must not get the old one.
pub(super) fn protected(device: &Device, c: &Command) {
    let Some(peer) = &device.peer else { return };
    // SAFETY: as in `carry_out`.
    let State { frames, .. } = unsafe { &mut *peer.0.get() };
    let mut at = frames.oldest_first().next();
    while let Some(first) = at {
        let page = frames.page(first);
        if (c.va..c.va.saturating_add(c.len)).contains(&page.va) {
            page.prot = c.prot & 3;
        }
        at = frames.newer(first);
    }
}

/// How many bytes the pages of a peer have; none if the device is not one. The caller is the only one to use the device.
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub(super) fn taken(device: &Device) -> u64 {
    let Some(peer) = &device.peer else { return 0 };
    // SAFETY: as in `carry_out`: nobody else is here, by what the caller promises.
    unsafe { &*peer.0.get() }.frames.taken()
}

impl State {
    fn va_alloc(&mut self, c: &Command) -> u32 {
        let Some(end) = c.va.checked_add(c.len).filter(|end| *end > c.va) else { return reply::BAD };
        let at = self.ranges.partition_point(|(start, ..)| *start < c.va);
        let before = at.checked_sub(1).is_some_and(|i| self.ranges[i].1 > c.va);
        let after = self.ranges.get(at).is_some_and(|r| r.0 < end);
        if before || after {
            return reply::CONFLICT;
        }
        if self.ranges.len() == RANGES {
            return reply::NO_MEMORY;
        }
        self.ranges.insert(at, (c.va, end, c.prot & MARK != 0));
        reply::OK
    }

    /// Gives back what of the range is in use by regions; parts of them, too.
    fn va_free(&mut self, c: &Command) -> u32 {
        let (start, end) = (c.va, c.va.saturating_add(c.len));
        let mut i = 0;
        while i < self.ranges.len() {
            let (s, e, own) = self.ranges[i];
            if own || e <= start || end <= s {
                i += 1;
                continue;
            }
            match (s < start, end < e) {
                (true, true) if self.ranges.len() == RANGES => return reply::NO_MEMORY,
                (true, true) => {
                    self.ranges[i].1 = start;
                    self.ranges.insert(i + 1, (end, e, false));
                    return reply::OK;
                }
                (true, false) => self.ranges[i].1 = start,
                (false, true) => self.ranges[i].0 = end,
                (false, false) => {
                    self.ranges.remove(i);
                    continue;
                }
            }
            i += 1;
        }
        reply::OK
    }

    /// Whether a region was reserved around the page.
    fn reserved(&self, c: &Command) -> bool {
        let at = self.ranges.partition_point(|(start, ..)| *start <= c.va);
        at.checked_sub(1).is_some_and(|i| !self.ranges[i].2 && self.ranges[i].1 >= c.va.saturating_add(c.len))
    }

    fn prepare(&mut self, device: &Device, c: &Command) -> (u32, u64) {
        if !c.len.is_power_of_two() || c.len < 4096 || !c.va.is_multiple_of(c.len) || !self.reserved(c) {
            return (reply::BAD, 0);
        }
        if let Some(first) = self.pages.get(c.va) {
            return (self.prepare_present(device, c, first as u32), 0);
        }
        let Some(first) = self.frames.allocate(c.va, c.len, c.prot & 3) else { return (reply::NO_MEMORY, 0) };
        if !self.pages.insert(c.va, first.into()) {
            self.frames.free(first);
            return (reply::NO_MEMORY, 0);
        }
        (reply::OK, Frames::offset(first))
    }

    /// A page that is there: more access, or more recent.
    fn prepare_present(&mut self, device: &Device, c: &Command, first: u32) -> u32 {
        let page = *self.frames.page(first);
        if matches!(page.stage, Stage::Filling | Stage::Detached) {
            return reply::BAD;
        }
        let prot = page.prot | c.prot & 3;
        if prot != page.prot {
            let result = window::protect(device, page.va, page.len, prot);
            if result != reply::OK {
                return result;
            }
            self.frames.page(first).prot = prot;
        }
        if page.stage == Stage::Evicting {
            // The eviction is about to be refused, and then the page is what was asked for.
            return reply::MIGRATING;
        }
        if c.prot & MARK != 0 {
            self.frames.link(first);
        }
        reply::EXISTS
    }

    /// The first frame of the page at the command's address, if it is in `stage`.
    fn in_stage(&mut self, c: &Command, stage: Stage) -> Option<u32> {
        let first = self.pages.get(c.va)? as u32;
        (self.frames.page(first).stage == stage).then_some(first)
    }

    /// Enters a page whose frame is ready.
    fn attach(&mut self, device: &Device, c: &Command, from: Stage) -> u32 {
        let Some(first) = self.in_stage(c, from) else { return reply::BAD };
        let page = *self.frames.page(first);
        let result = window::enter(device, page.va, page.len, Frames::offset(first), page.prot, false);
        if result == reply::OK {
            self.frames.set_stage(first, Stage::Mapped);
            self.frames.link(first);
        }
        result
    }

    fn detach(&mut self, device: &Device, c: &Command) -> u32 {
        let Some(first) = self.pages.get(c.va).map(|f| f as u32) else { return reply::ABSENT };
        let page = *self.frames.page(first);
        if !matches!(page.stage, Stage::Mapped | Stage::Evicting) {
            return reply::BAD;
        }
        let result = window::release(device, page.va, page.len);
        if result == reply::OK {
            self.frames.set_stage(first, Stage::Detached);
            self.frames.unlink(first);
        }
        result
    }

    fn free(&mut self, c: &Command, from: Stage) -> u32 {
        let Some(first) = self.in_stage(c, from) else { return reply::BAD };
        self.pages.remove(c.va);
        self.frames.free(first);
        reply::OK
    }

    /// Chooses and marks a victim. The answer holds its address and, in the low bits, log2 of its length.
    fn victim(&mut self, c: &Command) -> (u32, u64) {
        if !c.len.is_power_of_two() || c.len < 4096 {
            return (reply::BAD, 0);
        }
        let Some(first) = self.frames.victim(c.len) else {
            // Pages that come or go right now can be evicted, or will be free, soon; and memory may have come since it was found missing.
            let soon = self.frames.in_flux > 0 || self.frames.find(c.len).is_some();
            return (if soon { reply::MIGRATING } else { reply::ABSENT }, 0);
        };
        self.frames.set_stage(first, Stage::Evicting);
        let page = self.frames.page(first);
        (reply::OK, page.va | u64::from(page.len.trailing_zeros()))
    }

    fn spare(&mut self, c: &Command) -> u32 {
        let Some(first) = self.in_stage(c, Stage::Evicting) else { return reply::ABSENT };
        self.frames.set_stage(first, Stage::Mapped);
        self.frames.link(first);
        reply::OK
    }
}
