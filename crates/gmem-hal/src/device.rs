//! What a driver supplies.

use crate::{ByteLen, Compute, DeviceError, DeviceId, HnodeId, Mmu, PageSize, PageSizes, Peer, PhysAddr, PhysRange, PmapId, Upcalls};
use alloc::{string::String, sync::Weak, vec::Vec};
use bitflags::bitflags;

/// The most memories that one device can have registered at once.
pub const MAX_MEMORIES: usize = 16;

bitflags! {
    /// What a device can do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Capabilities: u32 {
        /// An access that faulted can be replayed after the fault is resolved. Without it a launch must name what it will touch.
        const REPLAYABLE = 0x1;
        /// The device runs an operating system of its own that manages its addresses and its memory ([`Peer`]).
        const PEER = 0x10;
    }
}

bitflags! {
    /// A set of modes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Modes: u8 {
        /// [`Mode::Share`].
        const SHARE = 1;
        /// [`Mode::CoherentExclusive`].
        const COHERENT_EXCLUSIVE = 2;
        /// [`Mode::Replicate`].
        const REPLICATE = 4;
    }
}

/// How a context takes part in its address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Mode {
    /// No table of its own: the context uses the CPU's page table, or that of an attached device with an equal cookie.
    Share,
    /// A table of its own with exclusive entries: a page is mapped in one MMU at a time, and touching it elsewhere moves it. Needs no coherent link.
    CoherentExclusive,
    /// A table of its own that receives every mapping as soon as it is installed in the address space; the data stays in host memory.
    Replicate,
}

impl Mode {
    /// The set of this mode alone.
    pub const fn as_set(self) -> Modes {
        match self {
            Mode::Share => Modes::SHARE,
            Mode::CoherentExclusive => Modes::COHERENT_EXCLUSIVE,
            Mode::Replicate => Modes::REPLICATE,
        }
    }
}

/// The facts of a device; they never change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// For messages and reports.
    pub name: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The page sizes of its MMU. Pages smaller than the smallest cannot be mapped.
    pub page_sizes: PageSizes,
    /// The modes a context on it can have.
    pub modes: Modes,
    /// Two MMUs with an equal cookie have page tables of one format and can share one (the MMU cookie of the original). [`DeviceInfo::CPU_COOKIE`]: this device
    /// walks the CPU's own page table.
    pub mmu_cookie: u64,
}

impl DeviceInfo {
    /// The cookie of the CPU's page table.
    pub const CPU_COOKIE: u64 = 0;
}

/// The copy engine, which fills the frames of a device and empties them (`prepare_page` of the original).
///
/// Every length is one of [`PageSize`]'s sizes, and the addresses are aligned to it. Addresses in [`HnodeId::HOST`] are valid for the length of the call. May block
/// for as long as the copy takes. Returns when the bytes are in place. Source and destination never overlap.
pub trait CopyEngine: Send + Sync {
    /// Fills `len` bytes of the device's own memory with zeros.
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError>;

    /// Copies `len` bytes. One side at least is the device's own memory; the other is the device's own, the host's, or one for which
    /// [`CopyEngine::reaches`] said yes.
    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError>;

    /// Whether this engine can copy directly to and from the memory `hnode` of another device. If not, the core goes by way of the host. Asked while a page is
    /// planned, under a lock of the core: a look at what the driver knows, which takes no lock and calls nobody.
    fn reaches(&self, _hnode: HnodeId) -> bool {
        false
    }
}

/// A driver's own frame allocator. A device without one gets the core's buddy allocator over its registered memory.
pub trait Frames: Send + Sync {
    /// Takes a free frame of `size` out of `hnode`, aligned to its size and handed to nobody else until it is given back, or fails with [`DeviceError::NoMemory`], upon which the core evicts and asks
    /// again. The content is arbitrary: the core zeroes or overwrites it.
    fn alloc_frame(&self, hnode: HnodeId, size: PageSize) -> Result<PhysAddr, DeviceError>;

    /// Gives a frame back. Called after the shootdown of every mapping of it. Cannot fail.
    fn free_frame(&self, frame: PhysAddr, size: PageSize);
}

/// An accelerator, as its driver presents it.
///
/// What goes wrong in a callback, here and in [`Mmu`], [`CopyEngine`], [`Peer`] and [`Frames`], is its answer: no callback panics. The core holds the page of a call, and nobody else
/// would ever let it go.
pub trait Device: Send + Sync {
    /// The facts. Called often, also under locks of the core: a reference to what never changes, and nothing else.
    fn info(&self) -> &DeviceInfo;

    /// Called once, before anything else, with the id the core gave and the way to call the core. May block.
    ///
    /// One core never starts a driver that it has; what was given to two cores, or was stopped and cannot begin again, answers [`DeviceError::AlreadyStarted`].
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError>;

    /// The device-physical memory that the core registers when the device is added. Empty for a device that has none of its own, and for one of whose memory the program is to
    /// say which parts are used (`Device::register_memory` of the facade); then [`Device::memory_registered`] says what there is.
    fn physical_memory(&self) -> Vec<PhysRange> {
        Vec::new()
    }

    /// Called when the memory `range` is registered and becomes `hnode`, before the first frame of it is used. A device may have up to [`MAX_MEMORIES`] of them.
    /// A driver must refuse what its device has not, by [`DeviceError::BadRequest`]: only it knows, and the core hands out frames of whatever is registered. As provided
    /// it accepts what [`physical_memory`](Self::physical_memory) lists and nothing else. After an error the memory is not registered, and not taken back either.
    fn memory_registered(&self, _hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        let is_there = |part: &PhysRange| part.begin <= range.begin && range.end <= part.end;
        if self.physical_memory().iter().any(is_there) { Ok(()) } else { Err(DeviceError::BadRequest) }
    }

    /// Called when memory was taken back: no frame of it is used nor being copied, and once this has returned the number may be given to memory of any device.
    /// Each memory that became one is taken back before [`stop`](Self::stop).
    fn memory_unregistered(&self, _hnode: HnodeId, _range: PhysRange) {}

    /// Called after the device was destroyed in the core: every page table was destroyed, no memory pool and no context of it is left, and no callback follows. May block.
    fn stop(&self) {}

    /// The MMU functions.
    fn mmu(&self) -> &dyn Mmu;

    /// The copy engine.
    fn copy_engine(&self) -> &dyn CopyEngine;

    /// The peer operating system, if the device has [`Capabilities::PEER`].
    fn peer(&self) -> Option<&dyn Peer> {
        None
    }

    /// The driver's own frame allocator, if it wants one.
    fn frames(&self) -> Option<&dyn Frames> {
        None
    }

    /// Running programs on the device, if the driver offers it through gmem.
    fn compute(&self) -> Option<&dyn Compute> {
        None
    }

    /// Makes `pmap` the current context of the device, or none. Optional in the original, hence provided. May block.
    fn switch_context(&self, _pmap: Option<PmapId>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// A revoke on this context failed: stop it by force. `Ok` confirms that it will never touch memory again; otherwise its frames stay quarantined.
    /// Must be async-signal-safe and bounded in time. Called at most once per context.
    fn fence(&self, _pmap: PmapId) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported)
    }
}
