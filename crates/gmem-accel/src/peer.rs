//! The host's side of a PEER device: the driver that orders the steps of one request, and copies.
//!
//! The device process decides (which frame, which victim, which addresses); this side hands it memory on demand, in chunks, and keeps a mirror of what
//! is mapped where, so that the death of the process loses no data. The frame that a copy uses always comes from the mirror, never from what
//! the process says at that moment.

use crate::context::{Command, Context};
use crate::device::{MARK, op, reply};
use crate::machine::Machine;
use crate::memories::Memories;
use crate::pagemap::PageMap;
use crate::wait::{Deadline, Lock};
use gmem_hal::{
    ByteLen, CopyEngine, DeviceError, EvictOutcome, PageSize, Peer, PeerError, PeerMap, PeerUnmap, PhysRange, PmapId, Prot, VirtAddr,
    VirtRange,
};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The unit in which DRAM is handed out: 2 MiB.
const BLOCK: u64 = 2 << 20;
/// Pages imported at a time.
const CHUNK_PAGES: u64 = 16;
/// How long `map` goes on looking for a victim that may be evicted.
const EVICTING_LIMIT: Duration = Duration::from_secs(1);
/// Between two attempts when everything is on the move.
const PAUSE: Duration = Duration::from_micros(100);

/// The device's memory, block by block: which context has it.
pub(crate) struct Pool {
    len: u64,
    /// The pmap that has the block, 0 if none. Pmap ids are never 0.
    owners: Vec<AtomicU64>,
    /// Threads that are taking blocks and telling a process of them.
    granting: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(len: u64) -> Self {
        Self { len, owners: (0..len.div_ceil(BLOCK)).map(|_| AtomicU64::new(0)).collect(), granting: AtomicUsize::new(0) }
    }

    /// Takes one free block for `pmap`, of those in which `memories` has something. The last block may be short. Async-signal-safe.
    pub(crate) fn take(&self, pmap: PmapId, memories: &Memories) -> Option<PhysRange> {
        let free = |owner: &AtomicU64| owner.compare_exchange(0, pmap.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let block = |n: usize| PhysRange { begin: n as u64 * BLOCK, end: self.len.min((n as u64 + 1) * BLOCK) };
        let taken = |(n, owner)| Some(block(n)).filter(|block| memories.within(*block).next().is_some() && free(owner));
        self.owners.iter().enumerate().find_map(taken)
    }

    /// Whether all of `[offset, offset + len)` belongs to `pmap`.
    pub(crate) fn owns(&self, pmap: PmapId, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.len && len > 0) else { return false };
        let blocks = (offset / BLOCK) as usize..end.div_ceil(BLOCK) as usize;
        self.owners[blocks].iter().all(|owner| owner.load(Ordering::Acquire) == pmap.0)
    }

    /// Whether a block belongs to `pmap`.
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    pub(crate) fn has(&self, pmap: PmapId) -> bool {
        self.owners.iter().any(|owner| owner.load(Ordering::Acquire) == pmap.0)
    }

    /// Takes everything back from a context whose process is gone.
    pub(crate) fn take_back(&self, pmap: PmapId) {
        for owner in &self.owners {
            let _ = owner.compare_exchange(pmap.0, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// What is mapped in a peer context, as the host knows it: the frame of each page.
pub(crate) struct Mirror {
    lock: Lock,
    map: UnsafeCell<PageMap>,
}

// SAFETY: the map is only reached in `Mirror::with`, which holds the lock.
unsafe impl Sync for Mirror {}
// SAFETY: nothing in it is bound to a thread.
unsafe impl Send for Mirror {}

impl Mirror {
    /// For a device of `len` bytes. `None` if there is no memory.
    pub(crate) fn new(len: u64) -> Option<Self> {
        Some(Self { lock: Lock::default(), map: UnsafeCell::new(PageMap::new((len / 4096) as usize)?) })
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut PageMap) -> T) -> T {
        let _held = self.lock.lock();
        // SAFETY: the lock is held, and no `f` in this file comes back here.
        f(unsafe { &mut *self.map.get() })
    }
}

impl Peer for Machine {
    fn va_alloc_fixed(&self, pmap: PmapId, range: VirtRange, _prot: Prot) -> Result<(), PeerError> {
        match self.with(pmap, |context| context.call(&Command::on(op::VA_ALLOC, range)))?.0 {
            reply::OK => Ok(()),
            reply::CONFLICT => Err(PeerError::Conflict),
            other => Err(device_error(other).into()),
        }
    }

    fn va_free(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        self.with(pmap, |context| expect_ok(context.call(&Command::on(op::VA_FREE, range))?.0))
    }

    fn map(&self, request: &PeerMap) -> Result<(), PeerError> {
        let range = VirtRange::from_len(request.va, request.len).ok_or(DeviceError::BadRequest)?;
        let mark = if request.hot { MARK } else { 0 };
        let command = Command { prot: u32::from(request.prot.bits()) | mark, ..Command::on(op::PREPARE, range) };
        let give_up = Deadline::after(EVICTING_LIMIT.min(self.spec.limit));
        self.with(request.pmap, |context| {
            loop {
                let (result, frame) = context.call(&command)?;
                match result {
                    reply::OK => return Ok(self.fill(context, request, range, frame)?),
                    reply::EXISTS => return Err(PeerError::PageExists),
                    reply::MIGRATING => return Err(PeerError::Migrating),
                    reply::NO_MEMORY => self.make_room(context, request.len.get(), give_up)?,
                    other => return Err(device_error(other).into()),
                }
            }
        })
    }

    fn unmap(&self, request: &PeerUnmap) -> Result<(), DeviceError> {
        let range = VirtRange::from_len(request.va, request.len).ok_or(DeviceError::BadRequest)?;
        self.with(request.pmap, |context| {
            let mirror = context.mirror.as_ref().ok_or(DeviceError::BadRequest)?;
            let Some(frame) = mirror.with(|map| map.get(request.va.get())) else {
                // Nothing to free is fine; nothing to copy is not.
                return if request.copy.is_some() { Err(DeviceError::BadRequest) } else { Ok(()) };
            };
            match context.call(&Command::on(op::DETACH, range)) {
                // A process that is gone touches nothing: its bytes are still there.
                Ok((reply::OK | reply::ABSENT, _)) | Err(DeviceError::Dead) => {}
                Ok((other, _)) => return Err(device_error(other)),
                Err(e) => return Err(e),
            }
            if let Some(home) = request.copy
                && self.copy(home, self.own_address(frame)?, request.len).is_err()
            {
                expect_ok(context.call(&Command::on(op::REATTACH, range))?.0)?;
                return Err(DeviceError::CopyFailed);
            }
            mirror.with(|map| map.remove(request.va.get()));
            // Dead is fine; a peer that forgot the page by itself has nothing to free.
            match context.call(&Command::on(op::FREE, range)) {
                Err(DeviceError::NoAnswer) => Err(DeviceError::NoAnswer),
                _ => Ok(()),
            }
        })
    }
}

impl Machine {
    /// Fills the frame that the peer chose for a page, and has it entered. On an error the peer frees the frame.
    fn fill(&self, context: &Context, request: &PeerMap, range: VirtRange, frame: u64) -> Result<(), DeviceError> {
        let on = self.on()?;
        let mirror = context.mirror.as_ref().ok_or(DeviceError::BadRequest)?;
        let done = || {
            if !on.peer.owns(context.facts.pmap, frame, request.len.get()) {
                return Err(DeviceError::BadRequest); // not memory of this context: the peer is broken
            }
            let to = self.own_address(frame)?;
            match request.copy {
                Some(home) => self.copy(to, home, request.len)?,
                None => self.zero(to, request.len)?,
            }
            if !mirror.with(|map| map.insert(request.va.get(), frame)) {
                return Err(DeviceError::NoMemory);
            }
            expect_ok(context.call(&Command::on(op::COMMIT, range))?.0)
        };
        done().inspect_err(|_| {
            mirror.with(|map| map.remove(request.va.get()));
            // The error that led here is the one to report.
            let _ = context.call(&Command::on(op::ABORT, range));
        })
    }

    /// Gets the peer closer to `len` contiguous free bytes: by giving it memory, or by evicting a page of its choice.
    fn make_room(&self, context: &Context, len: u64, give_up: Deadline) -> Result<(), PeerError> {
        if self.import(context, len)? {
            return Ok(());
        }
        if give_up.passed() {
            return Err(PeerError::NoMemory);
        }
        // Looked at before the process is asked: what another thread took before this one found nothing left is then either on its way or there.
        let on_its_way = self.on()?.peer.granting.load(Ordering::SeqCst) > 0;
        let (result, victim) = context.call(&Command { op: op::VICTIM, va: 0, len, frame: 0, prot: 0 })?;
        match result {
            reply::OK => {}
            reply::MIGRATING => {
                std::thread::sleep(PAUSE);
                return Ok(());
            }
            // Other cores have everything in hand: they map or unmap it, and then it can be asked for.
            reply::NO_MEMORY if len <= self.spec.memory => {
                std::thread::sleep(PAUSE);
                return Ok(());
            }
            reply::ABSENT if on_its_way => {
                std::thread::sleep(PAUSE);
                return Ok(());
            }
            _ => return Err(PeerError::NoMemory),
        }
        let (va, shift) = (VirtAddr::new(victim & !0xfff), victim & 0xfff);
        let range = VirtRange::from_len(va, ByteLen(1u64.checked_shl(shift as u32).unwrap_or(0)));
        let pages = |r: &VirtRange| r.is_aligned(PageSize::Size4K) && context.facts.window.contains_range(*r);
        let range = range.filter(pages).ok_or(DeviceError::BadRequest)?;
        if context.evictor.ask(context, range) != EvictOutcome::Evicted {
            // Another page next time; if there is none, this one again.
            context.call(&Command::on(op::SPARE, range))?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Gives the peer a chunk of what the core has of the memory. False if none is left.
    fn import(&self, context: &Context, len: u64) -> Result<bool, DeviceError> {
        let pool = &self.on()?.peer;
        let wanted = (CHUNK_PAGES * len).div_ceil(BLOCK);
        pool.granting.fetch_add(1, Ordering::SeqCst);
        let grant = |part: PhysRange| {
            let command = Command { op: op::GRANT, va: 0, len: part.len().get(), frame: part.begin, prot: 0 };
            expect_ok(context.call(&command)?.0)
        };
        let granted = (0..wanted).try_fold(false, |any, _| match pool.take(context.facts.pmap, &self.memories) {
            Some(block) => self.memories.within(block).try_for_each(grant).map(|()| true),
            None => Ok(any),
        });
        pool.granting.fetch_sub(1, Ordering::SeqCst);
        granted
    }
}

/// The error a reply stands for.
fn device_error(code: u32) -> DeviceError {
    match code {
        reply::NO_MEMORY => DeviceError::NoMemory,
        reply::TOO_MANY => DeviceError::TooManyMappings,
        _ => DeviceError::BadRequest,
    }
}

fn expect_ok(code: u32) -> Result<(), DeviceError> {
    if code == reply::OK { Ok(()) } else { Err(device_error(code)) }
}
