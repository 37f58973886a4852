//! The kinds of worlds: what address spaces, devices and pages there are.

use crate::CoreWorld;
use gmem_hal::{Backing, ByteLen, Capabilities, DeviceInfo, Mode, Modes, PageSize};
use gmem_sim::random::{Shape, SpaceShape};
use gmem_sim::{Canary, DeviceBuilder, Sim, SimDevice};
use std::sync::Arc;

/// A kind of world.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What it is called in reports.
    pub name: &'static str,
    /// Three address spaces, 3 : 3 : 2, the last of which only devices see, at the addresses of the first.
    pub pages: u64,
    /// Of every region but those of larger pages.
    pub page_size: PageSize,
    /// So many larger pages of these sizes follow in each address space.
    pub larger: &'static [(PageSize, u64)],
    /// Of regions.
    pub backings: &'static [Backing],
    /// How many pages each device has room for, if none is larger.
    pub frames: u64,
    /// In how many pools.
    pub pools: u64,
    /// What is in the memory of a device that dies is still there.
    pub survives: bool,
    /// The devices, by index.
    pub devices: &'static [Plan],
}

/// One device of a kind: the modes it is attached in, and what is special about it.
pub type Plan = (&'static [Mode], fn(DeviceBuilder) -> DeviceBuilder);

const EXCLUSIVE: &[Mode] = &[Mode::CoherentExclusive];
const REPLICATE: &[Mode] = &[Mode::Replicate];
const SHARE: &[Mode] = &[Mode::Share];
const EITHER: &[Mode] = &[Mode::CoherentExclusive, Mode::Replicate];

/// Cannot wait for faults: it touches what its launches name.
fn blind(device: DeviceBuilder) -> DeviceBuilder {
    device.capabilities(Capabilities::empty())
}

fn blind_peer(device: DeviceBuilder) -> DeviceBuilder {
    device.capabilities(Capabilities::PEER)
}

fn peer(device: DeviceBuilder) -> DeviceBuilder {
    device.capabilities(Capabilities::REPLAYABLE | Capabilities::PEER)
}

/// Four exclusive devices that differ in everything else, and twice as many pages as they have room for.
pub const STANDARD: Kind = Kind {
    name: "standard",
    pages: 256,
    page_size: PageSize::Size4K,
    larger: &[],
    backings: &[Backing::Shared],
    frames: 32,
    pools: 1,
    survives: true,
    devices: &[
        (EXCLUSIVE, |d| d.caches_absent()),
        (EXCLUSIVE, |d| d.tlb_entries(4).accessed_bits().reaches_peers()),
        (EXCLUSIVE, |d| d.own_frames().without_fence()),
        (EXCLUSIVE, peer),
    ],
};

/// All modes at once, two devices with tables of one format, one of which shares the other's, and one that shares the CPU's.
pub const MIXED: Kind = Kind {
    name: "all modes",
    frames: 24,
    devices: &[
        (EXCLUSIVE, |d| d.mmu_cookie(0xa).caches_absent()),
        (SHARE, |d| d.mmu_cookie(0xa)),
        (REPLICATE, |d| d.tlb_entries(8)),
        (EITHER, |d| d.reaches_peers().accessed_bits()),
        (SHARE, |d| d.mmu_cookie(DeviceInfo::CPU_COOKIE)),
        (EXCLUSIVE, peer),
        (EXCLUSIVE, |d| blind(d).accessed_bits()),
    ],
    ..STANDARD
};

/// All modes and all kinds of devices at once, with memory in two pools that together holds less than half of the pages: the world of campaigns.
pub const CAMPAIGN: Kind = Kind {
    name: "campaign",
    frames: 20,
    pools: 2,
    devices: &[
        (EXCLUSIVE, |d| d.mmu_cookie(0xa).caches_absent()),
        (SHARE, |d| d.mmu_cookie(0xa)),
        (REPLICATE, |d| d.tlb_entries(8)),
        (EITHER, |d| d.reaches_peers().accessed_bits().tlb_entries(4)),
        (SHARE, |d| d.mmu_cookie(DeviceInfo::CPU_COOKIE)),
        (EXCLUSIVE, peer),
        (EXCLUSIVE, |d| d.own_frames().without_fence()),
        (EXCLUSIVE, |d| blind(d).tlb_entries(8)),
        (EXCLUSIVE, blind_peer),
    ],
    ..STANDARD
};

/// The same with pages of three sizes in one address space, of which a device has room for one of the largest and a few others; and with both backings, as long as
/// no replica is attached.
pub const SIZES: Kind = Kind {
    name: "pages of three sizes",
    larger: &[(PageSize::Size64K, 6), (PageSize::Size2M, 2)],
    backings: &[Backing::Shared, Backing::Private],
    frames: 512 + 24,
    pools: 1,
    ..CAMPAIGN
};

/// The same with small pages of both backings, as long as no replica is attached.
pub const BACKED: Kind = Kind { name: "regions of both backings", backings: &[Backing::Shared, Backing::Private], ..CAMPAIGN };

/// The same with devices that take what is in their memory with them when they die.
pub const MORTAL: Kind = Kind { name: "memory that dies with its device", survives: false, ..CAMPAIGN };

/// The worlds of campaigns, each with the name of its constant.
pub const CAMPAIGNS: &[(&str, Kind)] = &[("CAMPAIGN", CAMPAIGN), ("SIZES", SIZES), ("BACKED", BACKED), ("MORTAL", MORTAL)];

/// Devices that cannot replay faults, beside one that can.
pub const BLIND: Kind = Kind {
    name: "without replay",
    devices: &[
        (EXCLUSIVE, |d| blind(d).tlb_entries(4).reaches_peers()),
        (EXCLUSIVE, blind_peer),
        (EXCLUSIVE, |d| blind(d).own_frames().without_fence()),
        (EXCLUSIVE, |d| d.reaches_peers().accessed_bits()),
    ],
    ..STANDARD
};

/// Replicas only, and more than one of each: no byte ever moves.
pub const REPLICAS: Kind = Kind {
    name: "replicas",
    devices: &[(REPLICATE, |d| d), (REPLICATE, |d| d.tlb_entries(4)), (REPLICATE, |d| d.caches_absent()), (REPLICATE, |d| d)],
    ..STANDARD
};

/// Devices whose memory is several pools.
pub const POOLS: Kind = Kind {
    name: "several pools",
    pools: 4,
    devices: &[(EXCLUSIVE, |d| d), (EXCLUSIVE, |d| d.reaches_peers()), (EITHER, |d| d.own_frames()), (EXCLUSIVE, |d| d.accessed_bits())],
    ..STANDARD
};

/// Private backing, which no replica can reach, in exclusive devices only.
pub const PRIVATE: Kind = Kind { name: "private backing", backings: &[Backing::Private], ..STANDARD };

/// Regions of both backings, with devices that can be replicas if nothing private is there.
pub const BACKINGS: Kind = Kind { name: "both backings", backings: &[Backing::Shared, Backing::Private], ..MIXED };

/// 64 KiB pages, for MMUs that have them and for one that has only smaller ones.
pub const MIDDLE: Kind = Kind {
    name: "64 KiB pages",
    pages: 96,
    page_size: PageSize::Size64K,
    frames: 12,
    devices: &[
        (EXCLUSIVE, |d| d.page_sizes(gmem_hal::PageSizes::from_bitmap(1 << 12))),
        (EITHER, |d| d.tlb_entries(4)),
        (REPLICATE, |d| d),
        (EXCLUSIVE, peer),
    ],
    ..STANDARD
};

/// 2 MiB pages.
pub const LARGE: Kind = Kind { name: "2 MiB pages", pages: 24, page_size: PageSize::Size2M, frames: 3, ..MIDDLE };

/// Every kind.
pub const ALL: &[Kind] = &[STANDARD, MIXED, REPLICAS, POOLS, PRIVATE, BACKINGS, MIDDLE, LARGE, BLIND];

impl Kind {
    /// How many devices have frames that pages can be in.
    pub fn exclusive_devices(&self) -> usize {
        self.devices.iter().filter(|(modes, _)| modes.contains(&Mode::CoherentExclusive)).count()
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        let space = |base: u64, eighths, cpu_visible| {
            let pages = self.pages * eighths / 8 + self.larger.iter().map(|(_, count)| count).sum::<u64>();
            SpaceShape { base: gmem_hal::VirtAddr::new(base), pages, larger: self.larger, cpu_visible }
        };
        Shape {
            page_size: self.page_size,
            spaces: vec![space(0x10_0000_0000, 3, true), space(0x20_0000_0000, 3, true), space(0x10_0000_0000, 2, false)],
            devices: self.devices.iter().map(|(modes, _)| modes.to_vec()).collect(),
            backings: self.backings.to_vec(),
            frames: self.frames,
        }
    }

    /// A world of this kind on `sim`.
    pub fn make(&self, sim: &Arc<Sim>) -> CoreWorld {
        self.make_with(sim, None)
    }

    /// The same, with a defect in each of its devices.
    pub fn make_with(&self, sim: &Arc<Sim>, canary: Option<Canary>) -> CoreWorld {
        let builder = |(n, (modes, special)): (usize, &Plan)| {
            let memory = ByteLen(self.page_size.bytes() * self.frames);
            let modes = modes.iter().fold(Modes::empty(), |all, mode| all | mode.as_set());
            let device = SimDevice::builder(sim, &format!("device {n}")).memory(memory).modes(modes);
            let device = if self.survives { device.memory_survives() } else { device };
            canary.into_iter().fold(special(device), DeviceBuilder::canary)
        };
        CoreWorld::new(sim, &self.shape(), self.devices.iter().enumerate().map(builder).collect(), self.pools)
    }
}
