//! One simulated machine: what its host and its devices share.

use crate::changes::{Change, Changes};
use crate::device::Dram;
use crate::host::{HostCanary, HostState};
use crate::index::{FrameIndex, Use};
use crate::inject::Injector;
use crate::sched::{self, Reason};
use crate::trace::Trace;
use crate::{Callback, Coverage, Injected, Rng, SimClock, SimEvent, TraceEvent};
use gmem_hal::{ByteLen, HnodeId, PhysAddr, PmapId, Prot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which draws of the seed belong to whom.
pub(crate) mod stream {
    pub(crate) const INJECTOR: u64 = 1;
    pub(crate) const HOST: u64 = 2;
    pub(crate) const DEVICE: u64 = 0x100;
}

/// Locks a mutex of the simulation itself. Contract panics pass while some are held; the state behind them is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Things that are let happen, as on hardware, and counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hazards {
    /// Device accesses that used a cached translation which the table no longer holds. Allowed between a release and its invalidation, where another thread of control
    /// can meet it; with one thread of control a correct core never causes one.
    pub stale_accesses: u64,
    /// Device accesses that reached memory which no longer exists (a freed home). A correct core never causes one.
    pub wild_accesses: u64,
}

/// A simulated machine.
///
/// It owns the seed, the clock, the trace and the injector; [`crate::SimPlatform`], [`crate::SimHost`] and [`crate::SimDevice`] are made on it and share them.
/// All state is behind uncontended locks that are never held where control may pass to another thread of control.
pub struct Sim {
    seed: u64,
    clock: SimClock,
    trace: Mutex<Trace>,
    injector: Mutex<Injector>,
    pub(crate) changes: Changes,
    pub(crate) index: Mutex<FrameIndex>,
    pub(crate) host: Mutex<HostState>,
    pub(crate) pools: Mutex<BTreeMap<HnodeId, Arc<Dram>>>,
    hazards: Mutex<Hazards>,
    /// How many calls answered each thread of control with a failure that somebody asked for, or with the death of a device.
    troubles: Mutex<BTreeMap<u32, u64>>,
    /// Contexts that could not be stopped after a revoke failed. The core knows; what they do is contained by quarantine.
    runaways: Mutex<BTreeSet<PmapId>>,
    /// Where threads wait whose CPU fault is pending, by page.
    pub(crate) pending: Mutex<BTreeMap<u64, Arc<SimEvent>>>,
    /// A defect of the host, planted on purpose.
    host_canary: Mutex<Option<HostCanary>>,
    next_pmap: AtomicU64,
    next_device: AtomicU64,
}

impl Sim {
    /// A machine in which `seed` decides everything that is left to chance.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            clock: SimClock::default(),
            trace: Mutex::default(),
            injector: Mutex::new(Injector::new(Rng::stream(seed, stream::INJECTOR))),
            changes: Changes::default(),
            index: Mutex::default(),
            host: Mutex::new(HostState::new(Rng::stream(seed, stream::HOST))),
            pools: Mutex::default(),
            hazards: Mutex::default(),
            troubles: Mutex::default(),
            runaways: Mutex::default(),
            pending: Mutex::default(),
            host_canary: Mutex::default(),
            next_pmap: AtomicU64::new(1),
            next_device: AtomicU64::new(0),
        })
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The clock.
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// A hash of everything that happened so far.
    pub fn trace_hash(&self) -> u64 {
        lock(&self.trace).hash()
    }

    /// How many events happened so far.
    pub fn trace_events(&self) -> u64 {
        lock(&self.trace).events()
    }

    /// The last events, oldest first.
    pub fn trace_tail(&self) -> Vec<TraceEvent> {
        lock(&self.trace).tail()
    }

    /// The hazards that were met so far.
    pub fn hazards(&self) -> Hazards {
        *lock(&self.hazards)
    }

    /// Frees the bytes of all memory. Only for a machine on which nothing runs any more, and which cannot be taken apart because it broke in the middle.
    pub fn give_up_memory(&self) {
        lock(&self.pools).values().for_each(|dram| dram.give_up());
        lock(&self.host).give_up_homes();
    }

    /// Builds a defect into the host on purpose.
    pub fn plant(&self, canary: HostCanary) {
        *lock(&self.host_canary) = Some(canary);
    }

    pub(crate) fn host_has(&self, canary: HostCanary) -> bool {
        *lock(&self.host_canary) == Some(canary)
    }

    /// From now on, changes of page tables and of memory are kept for [`Sim::take_changes`], which somebody must call then.
    pub fn record_changes(&self) {
        self.changes.record();
    }

    /// The changes since the last call, in order; `into` is overwritten.
    pub fn take_changes(&self, into: &mut Vec<Change>) {
        self.changes.take(into);
    }

    /// The `n`th call of `callback` from now (the first is 1) fails with `error`, once.
    ///
    /// # Panics
    /// If the callback cannot answer with this kind of error.
    pub fn fail_nth(&self, callback: Callback, n: u64, error: Injected) {
        lock(&self.injector).nth(callback, None, n, error);
    }

    /// The same for the device numbered `device` in the order of making: the first of its calls that comes as `n`th or later of all.
    pub fn fail_nth_on(&self, device: u32, callback: Callback, n: u64, error: Injected) {
        lock(&self.injector).nth(callback, Some(device), n, error);
    }

    /// Each call of `callback` fails with `error` with a probability of `per_mille` in a thousand.
    pub fn fail_chance(&self, callback: Callback, per_mille: u16, error: Injected) {
        lock(&self.injector).chance(callback, None, per_mille, error);
    }

    /// The same for one device.
    pub fn fail_chance_on(&self, device: u32, callback: Callback, per_mille: u16, error: Injected) {
        lock(&self.injector).chance(callback, Some(device), per_mille, error);
    }

    /// From now on memory is short, the host's or that of the device of this number: every call that needs some is refused.
    pub fn begin_shortage(&self, device: Option<u32>) {
        self.event("shortage", [device.map_or(u64::MAX, u64::from), 0, 0, 0]);
        lock(&self.injector).begin_shortage(device);
    }

    /// There is enough memory again.
    pub fn end_shortage(&self) {
        self.event("enough", [0; 4]);
        lock(&self.injector).end_shortage();
    }

    /// Whether memory is short somewhere.
    pub fn is_short(&self) -> bool {
        lock(&self.injector).is_short()
    }

    /// Whether a call of `callback` is to fail, and has not yet.
    pub fn is_to_fail(&self, callback: Callback) -> bool {
        lock(&self.injector).is_pending(callback)
    }

    /// Forgets every failure asked for.
    pub fn clear_failures(&self) {
        lock(&self.injector).clear();
    }

    /// Suspends (`false`) or resumes (`true`) the failures asked for.
    pub fn enable_failures(&self, enabled: bool) {
        lock(&self.injector).set_enabled(enabled);
    }

    /// How often `callback` was called, and made to fail.
    pub fn coverage(&self, callback: Callback) -> Coverage {
        lock(&self.injector).coverage(callback)
    }

    /// How often `callback` was made to answer with this error, one of [`Callback::errors`].
    pub fn answered(&self, callback: Callback, error: Injected) -> u64 {
        lock(&self.injector).answered(callback, error)
    }

    /// The callbacks that were never called.
    pub fn never_called(&self) -> Vec<Callback> {
        Callback::ALL.iter().copied().filter(|c| self.coverage(*c).calls == 0).collect()
    }

    /// The memory behind a physical address, read without a trace and without checks: for tests that look behind the scenes.
    pub fn peek(&self, at: PhysAddr, buf: &mut [u8]) {
        self.memory_read(at, buf, None);
    }

    /// Whether bytes of a device's memory were lost with it, and nobody wrote there since. Without a trace.
    pub fn is_lost(&self, at: PhysAddr, len: ByteLen) -> bool {
        self.pool(at.hnode).is_some_and(|dram| dram.is_lost(at.addr, len.get()))
    }

    /// The `len` bytes at a physical address, all in one page, where they are; `None` if the memory does not exist. Without a trace and without checks, like
    /// [`Sim::peek`].
    pub fn inspect<R>(&self, at: PhysAddr, len: ByteLen, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        match self.pool(at.hnode) {
            Some(dram) => dram.inspect(at.addr, len.get() as usize, f),
            None => f(lock(&self.host).home_bytes(at, len.get() as usize)),
        }
    }

    /// Everything a callback does first: it must not run under a lock, others may go first, it is recorded, and it may have to fail.
    pub(crate) fn callback(&self, callback: Callback, device: Option<u32>, args: [u64; 3]) -> Option<Injected> {
        sched::assert_no_lock_held(callback.name());
        sched::yield_point(Reason::Callback(callback.name()));
        self.count(callback, device, args)
    }

    /// The same for a call that may come under a lock.
    pub(crate) fn count(&self, callback: Callback, device: Option<u32>, args: [u64; 3]) -> Option<Injected> {
        let who = device.map_or(u64::MAX, u64::from);
        self.event(callback.name(), [who, args[0], args[1], args[2]]);
        let injected = lock(&self.injector).check(callback, device);
        if injected.is_some() {
            self.event("injected", [who, callback as u64, 0, 0]);
            self.trouble();
        }
        injected
    }

    /// See [`Injector::forestalled`](crate::inject::Injector::forestalled).
    pub(crate) fn forestalled(&self, callback: Callback, error: Injected) {
        lock(&self.injector).forestalled(callback, error);
    }

    /// A call of the running thread of control answers with a failure that is not its own.
    pub(crate) fn trouble(&self) {
        *lock(&self.troubles).entry(sched::current()).or_default() += 1;
    }

    /// How many calls failed so far that the running thread of control made, because somebody asked for it or because a device or what was in it is gone.
    pub fn troubles(&self) -> u64 {
        lock(&self.troubles).get(&sched::current()).copied().unwrap_or(0)
    }

    pub(crate) fn event(&self, what: &'static str, args: [u64; 4]) {
        lock(&self.trace).event(what, args);
    }

    pub(crate) fn event_bytes(&self, what: &'static str, args: [u64; 4], bytes: &[u8]) {
        let mut trace = lock(&self.trace);
        trace.event(what, args);
        trace.bytes(bytes);
    }

    pub(crate) fn new_pmap(&self) -> PmapId {
        PmapId(self.next_pmap.fetch_add(1, Relaxed))
    }

    pub(crate) fn new_device(&self) -> u32 {
        self.next_device.fetch_add(1, Relaxed) as u32
    }

    pub(crate) fn stale_access(&self) {
        lock(&self.hazards).stale_accesses += 1;
    }

    /// Memory was touched that no longer exists. Homes go although a context that could not be stopped by force may still touch them: they belong to their addresses.
    fn wild_access(&self, at: PhysAddr, by: Option<PmapId>) {
        self.event("wild_access", [u64::from(at.hnode.0), at.addr, by.map_or(0, |pmap| pmap.0), 0]);
        let expected = at.hnode == HnodeId::HOST && by.is_some_and(|pmap| self.is_runaway(pmap));
        lock(&self.hazards).wild_accesses += u64::from(!expected);
    }

    /// Reads memory as hardware does, a context or a copy engine: whatever is there. Memory that no longer exists reads as 0xdd.
    pub(crate) fn memory_read(&self, at: PhysAddr, buf: &mut [u8], by: Option<PmapId>) {
        let there = match self.pool(at.hnode) {
            Some(dram) => dram.read(at.addr, buf),
            None => lock(&self.host).read_home(at, buf),
        };
        if !there {
            buf.fill(0xdd);
            self.wild_access(at, by);
        }
    }

    /// Writes memory as hardware does, a context or a copy engine. A write to memory that no longer exists is lost.
    pub(crate) fn memory_write(&self, at: PhysAddr, buf: &[u8], by: Option<PmapId>) {
        self.changes.note(Change::Bytes(at, ByteLen(buf.len() as u64)));
        let there = match self.pool(at.hnode) {
            Some(dram) => dram.write(at.addr, buf),
            None => lock(&self.host).write_home(at, buf),
        };
        if !there {
            self.wild_access(at, by);
        }
    }

    fn pool(&self, hnode: HnodeId) -> Option<Arc<Dram>> {
        lock(&self.pools).get(&hnode).cloned()
    }

    /// A context could not be stopped by force.
    pub(crate) fn add_runaway(&self, pmap: PmapId) {
        lock(&self.runaways).insert(pmap);
    }

    /// A device that was stopped for good reaches nothing: not even by the contexts that could not be stopped by force.
    pub(crate) fn forget_runaway(&self, pmap: PmapId) {
        lock(&self.runaways).remove(&pmap);
    }

    /// Whether a context could not be stopped by force.
    pub(crate) fn is_runaway(&self, pmap: PmapId) -> bool {
        lock(&self.runaways).contains(&pmap)
    }

    /// Whether any context could not be stopped by force.
    pub(crate) fn has_runaways(&self) -> bool {
        !lock(&self.runaways).is_empty()
    }

    /// Panics if a device could still reach a byte of the memory: it is about to be filled, freed or used for another page.
    pub(crate) fn assert_unreachable(&self, at: PhysAddr, len: ByteLen, doing: &str) {
        let runaways = lock(&self.runaways);
        // A device frame that a runaway reaches is quarantined. Homes cannot be: they belong to their addresses.
        let counts = |u: &Use| at.hnode != HnodeId::HOST || !runaways.contains(&u.pmap);
        if let Some((frame, by)) = lock(&self.index).find(at, len, counts) {
            panic!("{doing} {at:?} ({len}) while {by:?} still reaches it as {frame:?}: its shootdown is not done");
        }
    }

    /// Panics if a device could still write a byte of the memory, which is about to be copied: the write would be lost.
    pub(crate) fn assert_unwritable(&self, at: PhysAddr, len: ByteLen, doing: &str) {
        let runaways = lock(&self.runaways);
        // What a runaway writes after the core gave it up is nobody's loss.
        let counts = |u: &Use| u.prot.contains(Prot::WRITE) && !runaways.contains(&u.pmap);
        if let Some((frame, by)) = lock(&self.index).find(at, len, counts) {
            panic!("{doing} {at:?} ({len}) while {by:?} can still write it as {frame:?}: a write could be lost");
        }
    }
}
