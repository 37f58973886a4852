//! The reference driver: a small accelerator in this process, complete and correct, unless it is told to be broken.
//!
//! It has what a real one has: a page table and a TLB per context, where the TLB keeps a translation until it is invalidated; memory of a fixed size that does
//! not begin as zeros; a copy engine, which reaches the memory of other devices of its kind; cores of its own (threads) that touch memory only through the MMU, and report what it cannot translate. On request it
//! has a frame allocator, accessed bits, or a system of its own that manages its memory (PEER).
//!
//! It is there for two purposes. A driver author can read it as an example that is larger than the one in `docs/writing-a-device.md`. And every
//! [`Defect`] that drivers are known to have can be switched on in it, which is how the kit is tested: each must be found, by the name of the rule it breaks.

mod bus;
mod copy;
mod frames;
mod memory;
mod mmu;
mod peer;
mod pmap;
mod subject;
mod table;
mod tlb;
mod worker;

pub use subject::ReferenceSubject;
pub use worker::AccessFault;

use crate::Defect;
use frames::FrameMap;
use gmem::hal::{
    Capabilities, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, Frames, HnodeId, Mmu, Modes, PageSize, PageSizes, Peer, PhysRange,
    PmapId, Upcalls,
};
use memory::Dram;
use peer::PeerState;
use pmap::Pmap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use worker::Cores;

/// How long a driver that answers late takes.
const LATE_ANSWER: Duration = Duration::from_secs(7);

/// What the device should be.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceBuilder {
    memory: u64,
    peer: bool,
    own_frames: bool,
    accessed_bits: bool,
    by_hand: bool,
    defect: Option<Defect>,
}

/// The device.
pub struct Reference {
    me: Weak<Reference>,
    is: ReferenceBuilder,
    info: DeviceInfo,
    /// Its memory, once it is started.
    dram: OnceLock<Dram>,
    core: OnceLock<(DeviceId, Weak<dyn Upcalls>)>,
    hnodes: Mutex<Vec<(HnodeId, PhysRange)>>,
    /// Its memory as other devices reach it.
    connected: Mutex<Vec<bus::Memory>>,
    pmaps: Mutex<Vec<Arc<Pmap>>>,
    next_pmap: AtomicU64,
    frames: Mutex<FrameMap>,
    peer: Mutex<PeerState>,
    cores: Mutex<Cores>,
    copies: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Reference {
    /// Begins to make a device: 8 MiB of memory, all page sizes, COHERENT_EXCLUSIVE and REPLICATE, frames managed by the core.
    pub fn builder() -> ReferenceBuilder {
        ReferenceBuilder { memory: 8 << 20, peer: false, own_frames: false, accessed_bits: false, by_hand: false, defect: None }
    }

    /// What the core asked that breaks the contracts, in words. Each was refused with [`DeviceError::BadRequest`].
    pub fn protocol_errors(&self) -> Vec<String> {
        lock(&self.errors).clone()
    }

    fn has(&self, defect: Defect) -> bool {
        self.is.defect == Some(defect)
    }

    /// Notes a breach of contract by the core.
    fn protocol_error(&self, what: fmt::Arguments<'_>) -> DeviceError {
        lock(&self.errors).push(what.to_string());
        DeviceError::BadRequest
    }

    fn core(&self) -> Option<(DeviceId, Arc<dyn Upcalls>)> {
        let (id, core) = self.core.get()?;
        Some((*id, core.upgrade()?))
    }

    fn memory_of(&self, hnode: HnodeId) -> Option<PhysRange> {
        lock(&self.hnodes).iter().find(|(id, _)| *id == hnode).map(|(_, range)| *range)
    }

    fn first_hnode(&self) -> HnodeId {
        lock(&self.hnodes).first().map_or(HnodeId(u16::MAX), |(id, _)| *id)
    }

    /// Where the `len` bytes at `addr` of the device's memory are, if they are inside.
    fn pointer(&self, addr: u64, len: u64) -> Option<*mut u8> {
        self.dram.get()?.pointer(addr, len)
    }

    fn pmaps(&self) -> MutexGuard<'_, Vec<Arc<Pmap>>> {
        lock(&self.pmaps)
    }

    fn frames(&self) -> MutexGuard<'_, FrameMap> {
        lock(&self.frames)
    }

    fn peer_state(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.peer)
    }

    fn cores(&self) -> MutexGuard<'_, Cores> {
        lock(&self.cores)
    }

    /// A broken driver takes its time, once, or all the time there is.
    fn be_late(&self, defect: Defect) {
        if !self.has(defect) {
            return;
        }
        match defect {
            Defect::NeverAnswers => loop {
                std::thread::park();
            },
            _ => std::thread::sleep(LATE_ANSWER),
        }
    }
}

/// The locks of the driver are held for a few instructions, by its own threads and gmem's. None of them is held when the core is called.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReferenceBuilder {
    /// Its memory in bytes, a multiple of 4 KiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// A device whose own system manages its addresses and its memory.
    pub fn peer(mut self) -> Self {
        self.peer = true;
        self
    }

    /// Frames are handed out by the driver instead of the core.
    pub fn own_frames(mut self) -> Self {
        self.own_frames = true;
        self
    }

    /// The MMU keeps accessed bits.
    pub fn accessed_bits(mut self) -> Self {
        self.accessed_bits = true;
        self
    }

    /// The driver names no memory to register: the program does, in two halves.
    pub fn registered_by_hand(mut self) -> Self {
        self.by_hand = true;
        self
    }

    /// The driver is broken in this way.
    pub fn defect(mut self, defect: Defect) -> Self {
        self.defect = Some(defect);
        self
    }

    /// Makes the device.
    pub fn build(self) -> Arc<Reference> {
        let peer = if self.peer { Capabilities::PEER } else { Capabilities::empty() };
        let modes = if self.peer { Modes::COHERENT_EXCLUSIVE } else { Modes::COHERENT_EXCLUSIVE | Modes::REPLICATE };
        let info = DeviceInfo {
            name: if self.peer { "reference peer".into() } else { "reference".into() },
            capabilities: Capabilities::REPLAYABLE | peer,
            page_sizes: PageSizes::ALL,
            modes,
            mmu_cookie: 0x5ef,
        };
        Arc::new_cyclic(|me| Reference {
            me: me.clone(),
            is: self,
            info,
            dram: OnceLock::new(),
            core: OnceLock::new(),
            hnodes: Mutex::default(),
            connected: Mutex::default(),
            pmaps: Mutex::default(),
            next_pmap: AtomicU64::new(1),
            frames: Mutex::new(FrameMap::new(self.memory)),
            peer: Mutex::new(PeerState::new((self.memory / PageSize::Size4K.bytes()) as usize)),
            cores: Mutex::default(),
            copies: AtomicU64::new(0),
            errors: Mutex::default(),
        })
    }
}

impl Device for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        self.dram.get_or_init(|| Dram::new(self.is.memory));
        if self.core.get().is_some() {
            return if self.has(Defect::StartsTwice) { Ok(()) } else { Err(DeviceError::AlreadyStarted) };
        }
        *self.cores() = Cores::start(&self.me).map_err(|_| DeviceError::NoMemory)?;
        self.core.set((id, upcalls)).map_err(|_| DeviceError::AlreadyStarted)
    }

    fn physical_memory(&self) -> Vec<PhysRange> {
        if self.is.by_hand { Vec::new() } else { vec![PhysRange { begin: 0, end: self.is.memory }] }
    }

    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        if range.end > self.is.memory && !self.has(Defect::TakesAnyMemory) {
            return Err(DeviceError::BadRequest);
        }
        lock(&self.hnodes).push((hnode, range));
        lock(&self.connected).push(bus::Memory::connect(hnode, self.me.clone()));
        Ok(())
    }

    fn memory_unregistered(&self, hnode: HnodeId, _range: PhysRange) {
        lock(&self.connected).retain(|memory| memory.hnode() != hnode);
        lock(&self.hnodes).retain(|(id, _)| *id != hnode);
    }

    fn stop(&self) {
        lock(&self.connected).clear();
        let cores = std::mem::take(&mut *self.cores());
        cores.stop();
    }

    fn mmu(&self) -> &dyn Mmu {
        self
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.is.peer.then_some(self)
    }

    fn frames(&self) -> Option<&dyn Frames> {
        self.is.own_frames.then_some(self)
    }

    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        // Once the MMU is ours no access is under way, and none can begin.
        let context = self.pmap(pmap)?;
        if self.has(Defect::WipedWhenStopped) || self.has(Defect::TornWhenStopped) {
            self.spoil(&context);
        }
        if !self.has(Defect::FenceIgnored) {
            context.lock().kill();
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reference").field("is", &self.is).field("copies", &self.copies.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}
