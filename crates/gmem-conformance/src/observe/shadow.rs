//! What the observer remembers of a device: a shadow of its page tables, built from the calls alone.

use super::rules::{self, Breach, Rule};
use gmem::hal::{
    Access, ByteLen, DeviceError, DeviceId, DeviceInfo, FaultError, FaultHint, HnodeId, Mapping, Mode, PageSize, PhysAddr, PhysRange,
    PmapId, PmapRequest, Prot, Upcalls, VirtAddr, VirtRange,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Weak;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// What was copied so far, in bytes, by calls that were answered with Ok: by the copy engine, and by a peer that was told to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Copied {
    /// From the host to the device.
    pub down: u64,
    /// From the device to the host.
    pub home: u64,
    /// From device memory to device memory, the same device's or another's.
    pub across: u64,
}

impl std::ops::Sub for Copied {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { down: self.down - before.down, home: self.home - before.home, across: self.across - before.across }
    }
}

/// What a callback does to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Takes it away. A whole region is taken away at once while operations on its pages end, so these may meet.
    Revoke,
    /// Anything else.
    Other,
}

/// A callback that has not returned.
pub(super) struct Call {
    pub(super) token: u64,
    pub(super) name: &'static str,
    pub(super) begun: Instant,
    pub(super) thread: ThreadId,
    pub(super) page: Option<(PmapId, VirtRange, Kind)>,
    /// Its lateness was reported.
    pub(super) late: bool,
}

/// A fault of the device that the core has not answered.
pub(super) struct Fault {
    token: u64,
    pmap: PmapId,
    va: VirtAddr,
    /// If the page was there with the access that was asked for: its first address, and how many tenths it counts.
    needless: Option<(u64, u64)>,
    /// The page, or what the device may do with it, was taken away meanwhile.
    revoked: bool,
}

/// A page of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    pub(super) len: u64,
    /// `None`: a peer's, which chooses its own.
    pub(super) frame: Option<PhysAddr>,
    pub(super) prot: Prot,
    /// Released, and not yet invalidated.
    pub(super) queued: bool,
    /// Its access was lowered, and the cached one may still be used.
    pub(super) lowered: bool,
}

pub(super) struct Table {
    pub(super) range: VirtRange,
    mode: Mode,
    base: Option<PhysAddr>,
    pub(super) pages: BTreeMap<u64, Mapped>,
    /// The core has given it up, or it died.
    pub(super) fenced: bool,
    /// The driver was asked to stop it.
    pub(super) asked_to_stop: bool,
    /// What the driver answered when it was asked to, by the core or by the kit.
    pub(super) fence_answer: Option<Result<(), DeviceError>>,
    /// It is certain to touch nothing any more.
    dead: bool,
    /// Its destruction was asked for, whatever came of it.
    pub(super) destroyed: bool,
    pub(super) reserved: Vec<VirtRange>,
}

/// So many needless faults for one page, from which nothing was taken away between them, do not end by themselves: each access that is under way when the page comes may
/// report one that another has just had resolved, and a device may have thousands. One with a hint, which may be meant for the hint alone, counts a tenth.
const ENDLESS: u64 = 100_000;

/// Fewer do not either if they go on for so long.
const LASTING: (u64, Duration) = (1_000, Duration::from_secs(5));

/// So many faults at one address that were answered with an error are one access that is tried again, if no two of them are further apart than this.
const TRIED_AGAIN: u64 = ENDLESS;
/// Fewer are too if they go on for so long.
const LONG_TRIED: (u64, Duration) = (5 * LASTING.0, LASTING.1);
const PAUSE: Duration = Duration::from_millis(100);

struct Tried {
    faults: u64,
    since: Instant,
    last: Instant,
    /// It was told.
    named: bool,
}

/// The needless faults of a page.
pub(super) struct Repeated {
    tenths: u64,
    since: Instant,
    /// It was told.
    named: bool,
}

impl Repeated {
    fn new() -> Self {
        Self { tenths: 0, since: Instant::now(), named: false }
    }

    fn is_endless(&self) -> bool {
        self.tenths >= 10 * ENDLESS || self.tenths >= 10 * LASTING.0 && self.since.elapsed() >= LASTING.1
    }
}

#[derive(Default)]
pub(super) struct Shadow {
    pub(super) started: bool,
    pub(super) stopped: bool,
    pub(super) info: Option<DeviceInfo>,
    pub(super) core: Option<(DeviceId, Weak<dyn Upcalls>)>,
    pub(super) memory: Vec<(HnodeId, PhysRange)>,
    pub(super) tables: BTreeMap<PmapId, Table>,
    /// Frames that the driver's own allocator has handed out.
    pub(super) frames: BTreeMap<(HnodeId, u64), u64>,
    /// Pages by frame.
    users: BTreeMap<(HnodeId, u64), BTreeSet<(PmapId, u64)>>,
    pub(super) calls: Vec<Call>,
    pub(super) tokens: u64,
    pub(super) breaches: Vec<Breach>,
    pub(super) copied: Copied,
    faults: Vec<Fault>,
    /// What the driver was last told to switch to.
    pub(super) current: Option<PmapId>,
    /// Faults for pages that the table had with the access that was asked for.
    pub(super) needless: u64,
    /// Of them, those that came with a hint.
    pub(super) hinted: u64,
    /// The needless faults that were answered with Ok for each page, by its table and first address, since something of it was taken away.
    repeated: BTreeMap<(PmapId, u64), Repeated>,
    /// The faults at each address that were answered with an error, one after the other.
    ended: BTreeMap<(PmapId, VirtAddr), Tried>,
    pub(super) answered_dead: BTreeSet<PmapId>,
    /// It was told that the driver called from another thread than its own.
    interruptible: bool,
    /// Callbacks that the driver answered with an error, each once with each.
    pub(super) failed: Vec<(&'static str, DeviceError)>,
}

impl Table {
    pub(super) fn new(request: &PmapRequest) -> Self {
        let base = request.host.map(|host| host.base);
        Self {
            range: request.range,
            mode: request.mode,
            base,
            pages: BTreeMap::new(),
            fenced: false,
            asked_to_stop: false,
            fence_answer: None,
            dead: false,
            destroyed: false,
            reserved: Vec::new(),
        }
    }

    /// Whether it is certain to touch nothing any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// The addresses of the pages that overlap `range`.
    pub(super) fn overlapping(&self, range: VirtRange) -> Vec<u64> {
        let from = range.start().get().saturating_sub(PageSize::Size2M.bytes());
        let pages = self.pages.range(from..range.end().get());
        pages.filter(|(va, page)| **va + page.len > range.start().get()).map(|(va, _)| *va).collect()
    }
}

impl Shadow {
    pub(super) fn breach(&mut self, rule: Rule, seen: impl fmt::Display) {
        let seen = seen.to_string();
        // The first few say it all.
        if self.breaches.len() < 64 {
            let breach = Breach { rule, seen };
            // Whoever made the call may hang or crash next, and then say nothing.
            eprintln!("{breach}");
            self.breaches.push(breach);
        }
    }

    /// Checks that `pmap` lives and that `range` is part of what it is for.
    pub(super) fn check_range(&mut self, name: &str, pmap: PmapId, range: VirtRange) {
        let Some(table) = self.tables.get(&pmap) else {
            return self.breach(rules::KNOWN_PMAP, format_args!("{name} names {pmap}"));
        };
        if !range.is_aligned(PageSize::Size4K) || !table.range.contains_range(range) {
            let inside = table.range;
            self.breach(rules::ALIGNED, format_args!("{name} of {range} in {pmap}, which is for {inside}"));
            return;
        }
        let page = |va: &u64| VirtRange::from_len(VirtAddr::new(*va), ByteLen(table.pages[va].len));
        let cut = table.overlapping(range).iter().filter_map(page).find(|page| !range.contains_range(*page));
        if let Some(page) = cut {
            self.breach(rules::WHOLE, format_args!("{name} of {range} in {pmap}, where {page} is one page"));
        }
    }

    pub(super) fn check_overlap(&mut self, name: &'static str, page: (PmapId, VirtRange, Kind)) {
        let (pmap, range, kind) = page;
        let meets = self.calls.iter().find(|call| {
            let other = call.page.filter(|(p, r, _)| *p == pmap && r.overlaps(range));
            other.is_some_and(|(_, _, k)| (kind, k) != (Kind::Revoke, Kind::Revoke))
        });
        if let Some(call) = meets {
            let (other, at) = (call.name, call.page.map(|(_, r, _)| r));
            self.breach(rules::NO_OVERLAP, format_args!("{name} of {range} in {pmap} begins during {other} of {at:?}"));
        }
    }

    /// The hnode of this device that `frame` and the `len` bytes there lie in.
    fn is_own(&self, frame: PhysAddr, len: u64) -> bool {
        let end = frame.addr.checked_add(len);
        self.memory
            .iter()
            .any(|(hnode, range)| *hnode == frame.hnode && range.begin <= frame.addr && end.is_some_and(|end| end <= range.end))
    }

    pub(super) fn check_enter(&mut self, pmap: PmapId, mapping: &Mapping) {
        let (len, va, frame) = (mapping.len.get(), mapping.va.get(), mapping.frame);
        let aligned = PageSize::from_bytes(len).is_some() && va.is_multiple_of(len) && frame.addr.is_multiple_of(len.min(1 << 12));
        let own_aligned = frame.hnode == HnodeId::HOST || frame.addr.is_multiple_of(len);
        if !aligned || !own_aligned || mapping.prot.is_empty() {
            self.breach(rules::MAPPING, format_args!("pmap_enter of {mapping:?}"));
        }
        self.check_range("pmap_enter", pmap, mapping.range());
        let Some(table) = self.tables.get(&pmap) else { return };
        let home = table.base.map(|base| PhysAddr { addr: base.addr + (va - table.range.start().get()), ..base });
        let inside = match table.mode {
            Mode::Replicate => home == Some(frame),
            _ => self.is_own(frame, len),
        };
        let there: Vec<_> = table.overlapping(mapping.range()).into_iter().map(|va| (va, table.pages[&va])).collect();
        if !inside {
            self.breach(rules::FRAME_INSIDE, format_args!("{mapping:?} in {pmap}, home {home:?}"));
        }
        for (at, page) in there {
            let same = at == va && page.len == len && page.frame == Some(frame) && mapping.prot.contains(page.prot);
            if page.queued {
                self.breach(rules::SHOOTDOWN, format_args!("{mapping:?} enters {pmap} between release and invalidation of {at:#x}"));
            } else if !same {
                self.breach(rules::ENTER_SAME, format_args!("{mapping:?} enters {pmap} over {page:?} at {at:#x}"));
            }
        }
        if frame.hnode != HnodeId::HOST {
            for (other, at, page) in self.mapped_at(frame, len) {
                if (other, at) != (pmap, va) {
                    let rule = if page.queued { rules::SHOOTDOWN } else { rules::ONE_OWNER };
                    self.breach(rule, format_args!("{mapping:?} enters {pmap}; the frame is {page:?} of {other} at {at:#x}"));
                }
            }
        }
    }

    /// The pages whose frames overlap the `len` bytes at `frame`.
    fn mapped_at(&self, frame: PhysAddr, len: u64) -> Vec<(PmapId, u64, Mapped)> {
        let from = frame.addr.saturating_sub(PageSize::Size2M.bytes());
        let range = (frame.hnode, from)..(frame.hnode, frame.addr.saturating_add(len));
        let pages = self.users.range(range).flat_map(|((_, addr), users)| users.iter().map(move |user| (*addr, *user)));
        let found = pages.filter_map(|(addr, (pmap, va))| {
            let page = *self.tables.get(&pmap)?.pages.get(&va)?;
            (addr + page.len > frame.addr).then_some((pmap, va, page))
        });
        found.collect()
    }

    pub(super) fn insert(&mut self, pmap: PmapId, va: u64, page: Mapped) {
        // What a call entered that ends after the context's death nobody can touch.
        let Some(table) = self.tables.get_mut(&pmap).filter(|table| !table.dead) else { return };
        let old = table.pages.insert(va, page);
        self.forget_user(pmap, va, old);
        if let Some(frame) = page.frame {
            self.users.entry((frame.hnode, frame.addr)).or_default().insert((pmap, va));
        }
    }

    fn forget_user(&mut self, pmap: PmapId, va: u64, page: Option<Mapped>) {
        if let Some(frame) = page.and_then(|page| page.frame)
            && let Some(users) = self.users.get_mut(&(frame.hnode, frame.addr))
        {
            users.remove(&(pmap, va));
            if users.is_empty() {
                self.users.remove(&(frame.hnode, frame.addr));
            }
        }
    }

    pub(super) fn remove(&mut self, pmap: PmapId, va: u64) {
        let old = self.tables.get_mut(&pmap).and_then(|table| table.pages.remove(&va));
        self.forget_user(pmap, va, old);
    }

    /// The context is certain to touch nothing any more: what it had is free.
    pub(super) fn died(&mut self, pmap: PmapId) {
        let Some(table) = self.tables.get_mut(&pmap) else { return };
        (table.fenced, table.dead) = (true, true);
        self.repeated.retain(|(other, _), _| *other != pmap);
        self.ended.retain(|(other, _), _| *other != pmap);
        let all = table.range;
        self.pages_in(pmap, all).into_iter().for_each(|va| self.remove(pmap, va));
    }

    /// The page of a table at `va`, by its first address.
    fn page_at(&self, pmap: PmapId, va: VirtAddr) -> Option<(u64, &Mapped)> {
        let (start, page) = self.tables.get(&pmap)?.pages.range(..=va.get()).next_back()?;
        (start + page.len > va.get()).then_some((*start, page))
    }

    /// Whether the device can touch `va` so by what was entered. If so, the first address of the page.
    fn can_touch(&self, pmap: PmapId, va: VirtAddr, access: Access) -> Option<u64> {
        self.page_at(pmap, va).filter(|(_, page)| !page.queued && page.prot.allows(access)).map(|(start, _)| start)
    }

    /// Whether something is promised of a table. Of a context that was given up nothing is, and of a table that is gone or another device's nothing is known.
    fn is_live(&self, pmap: PmapId) -> bool {
        self.tables.get(&pmap).is_some_and(|table| !table.fenced && !table.destroyed)
    }

    /// The driver called from a thread that signals can interrupt. Once is enough.
    pub(super) fn breach_of_thread(&mut self, what: &str) {
        if !std::mem::replace(&mut self.interruptible, true) {
            self.breach(rules::OWN_THREADS, format_args!("{what} comes from a thread that has signals not blocked"));
        }
    }

    /// A fault was answered with an error, which ends the access.
    fn fault_failed(&mut self, pmap: PmapId, va: VirtAddr, access: Access, error: FaultError) {
        let now = Instant::now();
        let tried = self.ended.entry((pmap, va)).or_insert(Tried { faults: 0, since: now, last: now, named: false });
        if now.duration_since(tried.last) > PAUSE {
            // After a pause it is another access.
            *tried = Tried { faults: 0, since: now, last: now, named: tried.named };
        }
        (tried.faults, tried.last) = (tried.faults + 1, now);
        let faults = tried.faults;
        let endless = faults >= TRIED_AGAIN || faults >= LONG_TRIED.0 && now.duration_since(tried.since) >= LONG_TRIED.1;
        if endless && !std::mem::replace(&mut tried.named, true) {
            self.breach(
                rules::ERROR_ENDS,
                format_args!("{faults} faults, the last for {access:?} of {va} in {pmap}; each was answered with an error: {error}"),
            );
        }
    }

    /// The device reports a fault. `None` if it has reported this one again and again, and would go on so.
    pub(super) fn fault_begins(&mut self, pmap: PmapId, va: VirtAddr, access: Access, hint: Option<FaultHint>) -> Option<u64> {
        let needless = self.can_touch(pmap, va, access);
        self.needless += u64::from(needless.is_some());
        // What comes with a hint may be meant for the hint alone.
        self.hinted += u64::from(needless.is_some() && hint.is_some());
        let repeated = needless.filter(|_| self.is_live(pmap)).and_then(|page| self.repeated.get_mut(&(pmap, page)));
        if let Some(repeated) = repeated.filter(|repeated| repeated.is_endless()) {
            let faults = repeated.tenths / 10;
            if !std::mem::replace(&mut repeated.named, true) {
                let seen = format_args!(
                    "{faults} faults, the last for {access:?} of {va} in {pmap}, where a page had been entered for them; nothing was taken away between. \
                     This one is answered with BadRequest, so that it ends"
                );
                self.breach(rules::ENTERED_IS_USED, seen);
            }
            return None;
        }
        self.tokens += 1;
        let tenths = if hint.is_some() { 1 } else { 10 };
        let needless = needless.map(|page| (page, tenths));
        self.faults.push(Fault { token: self.tokens, pmap, va, needless, revoked: false });
        Some(self.tokens)
    }

    /// The fault was answered, with Ok or not.
    pub(super) fn fault_ends(&mut self, token: u64, access: Access, answer: Result<(), FaultError>) {
        let Some(at) = self.faults.iter().position(|fault| fault.token == token) else { return };
        let Fault { pmap, va, needless, revoked, .. } = self.faults.swap_remove(at);
        if !self.is_live(pmap) {
            return;
        }
        if let Err(error) = answer {
            self.fault_failed(pmap, va, access, error);
            return;
        }
        self.ended.remove(&(pmap, va));
        if revoked {
            return;
        }
        if let Some((page, tenths)) = needless {
            self.repeated.entry((pmap, page)).or_insert_with(Repeated::new).tenths += tenths;
        }
        if self.can_touch(pmap, va, access).is_none() {
            self.breach(
                rules::RESOLVED,
                format_args!("a fault for {access:?} of {va} in {pmap} was answered with Ok, and no page entered"),
            );
        }
    }

    /// What the device may do in `range` begins to be taken away.
    pub(super) fn revoke_begins(&mut self, pmap: PmapId, range: VirtRange) {
        let (start, end) = (range.start().get(), range.end().get());
        let pages: Vec<_> = self.repeated.range((pmap, start)..(pmap, end)).map(|(page, _)| *page).collect();
        for page in pages {
            self.repeated.remove(&page);
        }
        let concerned = self.faults.iter_mut().filter(|fault| fault.pmap == pmap && range.contains(fault.va));
        concerned.for_each(|fault| fault.revoked = true);
    }

    /// A revoke was answered with Dead.
    pub(super) fn answered_dead(&mut self, pmap: PmapId) {
        self.died(pmap);
        self.answered_dead.insert(pmap);
    }

    /// Whether a callback of this thread that has not returned is for the page at `va`.
    pub(super) fn is_inside(&self, pmap: PmapId, va: VirtAddr) -> Option<&'static str> {
        let me = std::thread::current().id();
        let mut mine = self.calls.iter().filter(|call| call.thread == me);
        mine.find(|call| call.page.is_some_and(|(p, range, _)| p == pmap && range.contains(va))).map(|call| call.name)
    }

    /// The pages in `range` of a table.
    pub(super) fn pages_in(&self, pmap: PmapId, range: VirtRange) -> Vec<u64> {
        self.tables.get(&pmap).map(|table| table.overlapping(range)).unwrap_or_default()
    }

    /// Changes the pages in `range`.
    pub(super) fn change(&mut self, pmap: PmapId, range: VirtRange, change: impl Fn(&mut Mapped)) {
        for va in self.pages_in(pmap, range) {
            if let Some(page) = self.tables.get_mut(&pmap).and_then(|table| table.pages.get_mut(&va)) {
                change(page);
            }
        }
    }

    /// An invalidation was answered: what was released is gone, what was lowered is low.
    pub(super) fn invalidated(&mut self, pmap: PmapId, range: VirtRange) {
        for va in self.pages_in(pmap, range) {
            let page = self.tables.get_mut(&pmap).and_then(|table| table.pages.get_mut(&va));
            match page {
                Some(page) if !page.queued => page.lowered = false,
                _ => self.remove(pmap, va),
            }
        }
    }

    /// Checks one side of a copy or a fill.
    pub(super) fn check_copy(&mut self, name: &str, at: PhysAddr, len: u64, written: bool) {
        if PageSize::from_bytes(len).is_none() || at.hnode != HnodeId::HOST && !at.addr.is_multiple_of(len) {
            self.breach(rules::COPY_SHAPE, format_args!("{name} of {len:#x} bytes at {at:?}"));
        }
        if at.hnode == HnodeId::HOST || !self.is_own(at, len) {
            return;
        }
        for (pmap, va, page) in self.mapped_at(at, len) {
            // From a device that can neither be asked nor stopped the core saves what it can; its frames are another matter.
            let given_up = self.tables.get(&pmap).is_some_and(|table| table.fenced);
            if given_up && !written {
                continue;
            }
            let could_write = page.prot.contains(Prot::WRITE) || page.lowered;
            if page.queued {
                self.breach(rules::SHOOTDOWN, format_args!("{name} at {at:?} before the invalidation of {va:#x} in {pmap}"));
            } else if written || could_write {
                self.breach(rules::CUT_BEFORE_COPY, format_args!("{name} at {at:?}, which is {page:?} of {pmap} at {va:#x}"));
            }
        }
    }

    /// Whether the memory of a copy or a fill is the device's.
    pub(super) fn owns(&self, at: PhysAddr, len: u64) -> bool {
        self.is_own(at, len)
    }

    /// Checks a frame that the core gives back to the driver's own allocator.
    pub(super) fn check_free(&mut self, frame: PhysAddr, len: u64) {
        if self.frames.remove(&(frame.hnode, frame.addr)) != Some(len) {
            self.breach(rules::FREE_ONCE, format_args!("free_frame of {len:#x} bytes at {frame:?}, which were not taken so"));
        }
        for (pmap, va, page) in self.mapped_at(frame, len) {
            self.breach(rules::FREE_ONCE, format_args!("free_frame of {frame:?}, which is {page:?} of {pmap} at {va:#x}"));
        }
    }

    /// Checks a frame that the driver's own allocator hands out.
    pub(super) fn check_taken(&mut self, hnode: HnodeId, frame: PhysAddr, len: u64) {
        let from = frame.addr.saturating_sub(PageSize::Size2M.bytes());
        let until = frame.addr.saturating_add(len);
        let meets = self.frames.range((frame.hnode, from)..(frame.hnode, until)).find(|((_, addr), size)| addr + **size > frame.addr);
        let meets = meets.map(|((_, addr), size)| (*addr, *size));
        if let Some((addr, size)) = meets {
            self.breach(rules::FREE_FRAME, format_args!("{frame:?} overlaps the {size:#x} bytes at {addr:#x}, which are in use"));
        }
        if frame.hnode != hnode || !frame.addr.is_multiple_of(len) || !self.is_own(frame, len) {
            self.breach(rules::FREE_FRAME, format_args!("{frame:?} for {len:#x} bytes of {hnode}"));
        }
        self.frames.insert((frame.hnode, frame.addr), len);
    }
}
