//! The core: the tables of devices, hnodes and address spaces.

use crate::device::DeviceSlot;
use crate::entry::TRANSITIONS;
use crate::error::DeviceCallError;
use crate::hnode::{Hnode, HnodeStats};
use crate::hnode_set::HnodeSet;
use crate::retire::Retired;
use crate::sorted::Sorted;
use crate::space::Space;
use crate::stats::{Counters, Stats};
use ::core::sync::atomic::{AtomicBool, Ordering};
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::lock_api::Mutex;
use gmem_hal::{ByteLen, Device, DeviceId, HnodeId, Platform, SpaceId, VirtAddr};

/// All state and policy of gmem.
///
/// Every method may be called from any thread. Methods that say "may block" wait for pages that other operations have busy, for device callbacks
/// and for copies, all of which are bounded; and, where they say so, for launches that hold pages, which last as long as they last. None of them may be
/// called by a thread that could be interrupted by a signal handler which touches managed memory: gmem's own threads have all signals blocked.
pub struct Core<P: Platform> {
    pub(crate) platform: P,
    enabled: AtomicBool,
    pub(crate) tables: Mutex<P::RawLock, Tables<P>>,
    /// Taken by no fault.
    pub(crate) retired: Mutex<P::RawLock, Retired>,
    pub(crate) counters: Counters,
}

/// Lock letter `t`: the table lock, for look-ups; nothing is called and no other lock is taken under it.
pub(crate) struct Tables<P: Platform> {
    pub(crate) devices: Sorted<DeviceId, Arc<DeviceSlot<P>>>, // t
    /// The drivers of the devices, from before each is started until after it was stopped.
    pub(crate) drivers: Sorted<DeviceId, Arc<dyn Device>>, // t
    /// Ids given out, from before the hnode is made until after it is gone.
    hnode_ids: HnodeSet, // t
    pub(crate) hnodes: Sorted<HnodeId, Arc<Hnode<P>>>,        // t
    pub(crate) spaces: Sorted<SpaceId, Arc<Space<P>>>,        // t
    /// Address spaces that the CPU sees, by start: disjoint.
    pub(crate) visible: Sorted<VirtAddr, Arc<Space<P>>>, // t
    next_device: u32,                                         // t
    next_space: u32,                                          // t
}

impl<P: Platform> Tables<P> {
    pub(crate) fn fresh_device(&mut self) -> u32 {
        self.next_device += 1;
        self.next_device
    }

    pub(crate) fn fresh_space(&mut self) -> u32 {
        self.next_space += 1;
        self.next_space
    }

    /// The lowest free hnode id. Ids of unregistered memory are used again: nothing refers to them any more.
    pub(crate) fn fresh_hnode(&mut self) -> Option<HnodeId> {
        let id = self.hnode_ids.first_absent()?;
        self.hnode_ids.insert(id);
        Some(id)
    }

    /// Gives an hnode's id back.
    pub(crate) fn forget_hnode(&mut self, id: HnodeId) {
        self.hnode_ids.remove(id);
    }
}

impl<P: Platform> Core<P> {
    /// A core on `platform`, with nothing in it.
    pub fn new(platform: P) -> Arc<Self> {
        let tables = Tables {
            devices: Sorted::new(),
            drivers: Sorted::new(),
            hnode_ids: HnodeSet::new(),
            hnodes: Sorted::new(),
            spaces: Sorted::new(),
            visible: Sorted::new(),
            next_device: 0,
            next_space: 0,
        };
        Arc::new(Self {
            platform,
            enabled: AtomicBool::new(true),
            tables: Mutex::new(tables),
            retired: Mutex::new(Retired::new()),
            counters: Counters::default(),
        })
    }

    /// What the core stands on.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Switches gmem on or off. Off, nothing new can be made or attached; what exists goes on working, so that no data is cut off.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    pub(crate) fn check_enabled(&self) -> Result<(), ()> {
        if self.enabled.load(Ordering::Acquire) { Ok(()) } else { Err(()) }
    }

    pub(crate) fn device(&self, id: DeviceId) -> Result<Arc<DeviceSlot<P>>, DeviceCallError> {
        self.tables.lock().devices.get(id).cloned().ok_or(DeviceCallError::NoSuchDevice(id))
    }

    pub(crate) fn hnode(&self, id: HnodeId) -> Option<Arc<Hnode<P>>> {
        self.tables.lock().hnodes.get(id).cloned()
    }

    pub(crate) fn space(&self, id: SpaceId) -> Option<Arc<Space<P>>> {
        self.tables.lock().spaces.get(id).cloned()
    }

    /// The address space that the CPU sees at `va`.
    pub(crate) fn space_at(&self, va: VirtAddr) -> Option<Arc<Space<P>>> {
        let tables = self.tables.lock();
        tables.visible.at_or_below(va).filter(|s| s.range.contains(va)).cloned()
    }

    /// The hnodes of a device.
    pub fn hnodes_of(&self, device: DeviceId) -> Vec<HnodeId> {
        self.device(device).map(|d| d.pools().iter().map(|h| h.id).collect()).unwrap_or_default()
    }

    /// The figures of one hnode.
    pub fn hnode_stats(&self, id: HnodeId) -> Option<HnodeStats> {
        Some(self.hnode(id)?.stats())
    }

    /// How often each row of [`TRANSITIONS`](crate::TRANSITIONS) was taken since the core was made.
    pub fn transitions(&self) -> [u64; TRANSITIONS.len()] {
        self.counters.transitions()
    }

    /// The figures of everything since the core was made.
    pub fn stats(&self) -> Stats {
        let entries = self.each_space().map(|s| s.lock().metadata_bytes() as u64).sum::<u64>();
        let hnodes: Vec<HnodeStats> = self.each_hnode().map(|h| h.stats()).collect();
        let metadata = entries + hnodes.iter().map(|h| h.metadata.get()).sum::<u64>();
        self.counters.snapshot(ByteLen(metadata), hnodes)
    }

    /// Every address space, each looked up when it is asked for: no lock is held between two.
    pub(crate) fn each_space(&self) -> impl Iterator<Item = Arc<Space<P>>> {
        let mut from = Some(SpaceId(0));
        ::core::iter::from_fn(move || {
            let (id, space) = self.tables.lock().spaces.from(from?).next().map(|(id, space)| (id, space.clone()))?;
            from = id.0.checked_add(1).map(SpaceId);
            Some(space)
        })
    }

    /// Every hnode, likewise.
    pub(crate) fn each_hnode(&self) -> impl Iterator<Item = Arc<Hnode<P>>> {
        let mut from = Some(HnodeId(0));
        ::core::iter::from_fn(move || {
            let (id, hnode) = self.tables.lock().hnodes.from(from?).next().map(|(id, hnode)| (id, hnode.clone()))?;
            from = id.0.checked_add(1).map(HnodeId);
            Some(hnode)
        })
    }
}
