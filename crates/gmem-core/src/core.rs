//! The core: the tables of devices, hnodes and address spaces.

use crate::device::DeviceSlot;
use crate::error::DeviceCallError;
use crate::hnode::{Hnode, HnodeStats};
use crate::space::Space;
use crate::stats::{Counters, Stats};
use ::core::sync::atomic::{AtomicBool, Ordering};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::lock_api::Mutex;
use gmem_hal::{ByteLen, DeviceId, HnodeId, Platform, SpaceId, VirtAddr};

/// All state and policy of gmem.
///
/// Every method may be called from any thread. Methods that say "may block" wait for pages that other operations have busy, for device callbacks
/// and for copies; all of those are bounded. None of them may be called by a thread that could be interrupted by a signal handler which touches managed
/// memory: gmem's own threads have all signals blocked.
pub struct Core<P: Platform> {
    pub(crate) platform: P,
    enabled: AtomicBool,
    pub(crate) tables: Mutex<P::RawLock, Tables<P>>,
    pub(crate) counters: Counters,
}

/// Lock letter `t`: the table lock, for look-ups; nothing is called and no other lock is taken under it.
pub(crate) struct Tables<P: Platform> {
    pub(crate) devices: BTreeMap<DeviceId, Arc<DeviceSlot<P>>>, // t
    /// Ids given out, from before the hnode is made until after it is gone.
    hnode_ids: BTreeSet<HnodeId>, // t
    pub(crate) hnodes: BTreeMap<HnodeId, Arc<Hnode<P>>>,        // t
    pub(crate) spaces: BTreeMap<SpaceId, Arc<Space<P>>>,        // t
    /// Address spaces that the CPU sees, by start: disjoint.
    pub(crate) visible: BTreeMap<VirtAddr, Arc<Space<P>>>, // t
    next_device: u32,                                           // t
    next_space: u32,                                            // t
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
    pub(crate) fn fresh_hnode(&mut self, most: usize) -> Option<HnodeId> {
        let id = (1..most as u16).map(HnodeId).find(|id| !self.hnode_ids.contains(id))?;
        self.hnode_ids.insert(id);
        Some(id)
    }

    /// Forgets an hnode; its id is free again.
    pub(crate) fn forget_hnode(&mut self, id: HnodeId) {
        self.hnodes.remove(&id);
        self.hnode_ids.remove(&id);
    }
}

impl<P: Platform> Core<P> {
    /// A core on `platform`, with nothing in it.
    pub fn new(platform: P) -> Arc<Self> {
        let tables = Tables {
            devices: BTreeMap::new(),
            hnode_ids: BTreeSet::new(),
            hnodes: BTreeMap::new(),
            spaces: BTreeMap::new(),
            visible: BTreeMap::new(),
            next_device: 0,
            next_space: 0,
        };
        Arc::new(Self { platform, enabled: AtomicBool::new(true), tables: Mutex::new(tables), counters: Counters::default() })
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
        self.tables.lock().devices.get(&id).cloned().ok_or(DeviceCallError::NoSuchDevice(id))
    }

    pub(crate) fn hnode(&self, id: HnodeId) -> Option<Arc<Hnode<P>>> {
        self.tables.lock().hnodes.get(&id).cloned()
    }

    pub(crate) fn space(&self, id: SpaceId) -> Option<Arc<Space<P>>> {
        self.tables.lock().spaces.get(&id).cloned()
    }

    /// The address space that the CPU sees at `va`.
    pub(crate) fn space_at(&self, va: VirtAddr) -> Option<Arc<Space<P>>> {
        let tables = self.tables.lock();
        tables.visible.range(..=va).next_back().map(|(_, s)| s).filter(|s| s.range.contains(va)).cloned()
    }

    /// The hnodes of a device.
    pub fn hnodes_of(&self, device: DeviceId) -> Vec<HnodeId> {
        self.device(device).map(|d| d.state.lock().hnodes.iter().map(|h| h.id).collect()).unwrap_or_default()
    }

    /// The figures of one hnode.
    pub fn hnode_stats(&self, id: HnodeId) -> Option<HnodeStats> {
        Some(self.hnode(id)?.stats())
    }

    /// The figures of everything since the core was made.
    pub fn stats(&self) -> Stats {
        let (spaces, hnodes) = {
            let tables = self.tables.lock();
            (tables.spaces.values().cloned().collect::<Vec<_>>(), tables.hnodes.values().cloned().collect::<Vec<_>>())
        };
        let entries = spaces.iter().map(|s| s.lock().table_bytes() as u64).sum::<u64>();
        let hnodes: Vec<HnodeStats> = hnodes.iter().map(|h| h.stats()).collect();
        let metadata = entries + hnodes.iter().map(|h| h.metadata.get()).sum::<u64>();
        self.counters.snapshot(ByteLen(metadata), hnodes)
    }
}
