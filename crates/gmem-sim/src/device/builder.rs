//! Making devices.

use super::contexts::Contexts;
use super::dram::Dram;
use super::frames::FrameMap;
use super::peer::PeerState;
use super::tlb::Tlb;
use super::{Life, SimDevice};
use crate::Rng;
use crate::sim::{Sim, lock, stream};
use gmem_hal::{ByteLen, Capabilities, DeviceInfo, HnodeId, Modes, PageSizes, PhysRange};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// A defect built into a device on purpose: a test that does not notice it tests nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// It answers that it invalidated, and did not.
    KeepsTranslations,
    /// One copy in eight leaves the second half out, and says nothing.
    TearsCopies,
    /// It answers that it entered a mapping, and did not.
    ForgetsMappings,
    /// It invalidates, but only when it is called next.
    InvalidatesLate,
    /// It answers that it removed an entry, and did not.
    KeepsEntries,
    /// It answers that it filled memory with zeros, and did not.
    LeavesGarbage,
    /// It answers that it changed the access of an entry, and did not.
    IgnoresProtection,
    /// One mapping in sixteen is entered and said to be refused.
    EntersWhatItRefuses,
    /// One store in sixteen lands a page further.
    StoresAstray,
    /// A peer gives a page up without copying it home, one time in four.
    ForgetsHomes,
    /// Its own allocator hands out, one time in eight, a frame that is taken.
    HandsOutTwice,
}

/// What a device is like. Start from [`SimDevice::builder`].
#[derive(Clone)]
pub struct DeviceBuilder {
    pub(super) sim: Arc<Sim>,
    pub(super) info: DeviceInfo,
    pub(super) memory: PhysRange,
    pub(super) tlb_entries: usize,
    pub(super) caches_absent: bool,
    pub(super) reaches_peers: bool,
    pub(super) own_frames: bool,
    pub(super) accessed_bits: bool,
    pub(super) can_fence: bool,
    pub(super) memory_survives: bool,
    pub(super) latency_ns: u64,
    pub(super) bytes_per_us: u64,
    pub(super) canary: Option<Canary>,
}

impl DeviceBuilder {
    pub(super) fn new(sim: &Arc<Sim>, name: &str) -> Self {
        let info = DeviceInfo {
            name: name.into(),
            capabilities: Capabilities::REPLAYABLE,
            page_sizes: PageSizes::ALL,
            modes: Modes::all(),
            mmu_cookie: 0xd15c,
        };
        Self {
            sim: sim.clone(),
            info,
            memory: PhysRange { begin: 1 << 32, end: (1 << 32) + (1 << 20) },
            tlb_entries: 64,
            caches_absent: false,
            reaches_peers: false,
            own_frames: false,
            accessed_bits: false,
            can_fence: true,
            memory_survives: false,
            latency_ns: 10_000,
            bytes_per_us: 16_000,
            canary: None,
        }
    }

    /// The bytes of its memory, 1 MiB if not set. They start at 4 GiB in its own address space, so that confusing an address with an offset shows.
    pub fn memory(mut self, len: ByteLen) -> Self {
        self.memory.end = self.memory.begin + len.get();
        self
    }

    /// The page sizes of its MMU, all if not set.
    pub fn page_sizes(mut self, sizes: PageSizes) -> Self {
        self.info.page_sizes = sizes;
        self
    }

    /// The modes its contexts can have, all if not set.
    pub fn modes(mut self, modes: Modes) -> Self {
        self.info.modes = modes;
        self
    }

    /// The format of its page tables. [`DeviceInfo::CPU_COOKIE`]: it walks the CPU's.
    pub fn mmu_cookie(mut self, cookie: u64) -> Self {
        self.info.mmu_cookie = cookie;
        self
    }

    /// What it can do, [`Capabilities::REPLAYABLE`] if not set. With [`Capabilities::PEER`] it has an operating system of its own.
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.info.capabilities = capabilities;
        self
    }

    /// How many translations it caches, 64 if not set.
    pub fn tlb_entries(mut self, entries: usize) -> Self {
        self.tlb_entries = entries;
        self
    }

    /// It also caches that a page is absent: a page that came may fault once more.
    pub fn caches_absent(mut self) -> Self {
        self.caches_absent = true;
        self
    }

    /// Its copy engine and its MMU reach the memory of other devices.
    pub fn reaches_peers(mut self) -> Self {
        self.reaches_peers = true;
        self
    }

    /// It allocates its frames itself ([`gmem_hal::Frames`]).
    pub fn own_frames(mut self) -> Self {
        self.own_frames = true;
        self
    }

    /// Its MMU keeps accessed marks.
    pub fn accessed_bits(mut self) -> Self {
        self.accessed_bits = true;
        self
    }

    /// It cannot stop a context by force.
    pub fn without_fence(mut self) -> Self {
        self.can_fence = false;
        self
    }

    /// Its memory and copy engine outlive it, as where the host side owns them: what a dead device holds can still be copied home, and is there
    /// when it is revived.
    pub fn memory_survives(mut self) -> Self {
        self.memory_survives = true;
        self
    }

    /// How long its copy engine takes to begin, and how many bytes it moves in a microsecond.
    pub fn copy_speed(mut self, latency_ns: u64, bytes_per_us: u64) -> Self {
        assert_ne!(bytes_per_us, 0, "a copy engine that moves nothing never ends");
        self.latency_ns = latency_ns;
        self.bytes_per_us = bytes_per_us;
        self
    }

    /// It has this defect.
    pub fn canary(mut self, canary: Canary) -> Self {
        self.canary = Some(canary);
        self
    }

    /// Makes the device.
    pub fn build(self) -> Arc<SimDevice> {
        let number = self.sim.new_device();
        let dram = Arc::new(Dram::new(number, self.memory));
        // What a peer allocates is no hnode of the core. It gets a number no core hands out.
        let private = HnodeId(u16::MAX - number as u16);
        lock(&self.sim.pools).insert(private, dram.clone());
        let contexts = Contexts {
            live: BTreeMap::new(),
            gone: BTreeSet::new(),
            tlb: Tlb::new(self.tlb_entries, self.caches_absent),
            rng: Rng::stream(self.sim.seed(), stream::DEVICE + u64::from(number)),
            page_sizes: self.info.page_sizes,
            changes: self.sim.changes.clone(),
        };
        Arc::new(SimDevice {
            number,
            dram,
            contexts: Mutex::new(contexts),
            life: Mutex::new(Life::default()),
            frames: Mutex::new(FrameMap::new(self.memory)),
            peer: Mutex::new(PeerState::new(private)),
            is: self,
        })
    }
}
