//! What the simulated host remembers: regions, homes and the CPU's page table, per address space.

use crate::Rng;
use crate::ranges::RangeSet;
use gmem_hal::{Backing, HnodeId, Pages, PhysAddr, Prot, RegionAttrs, VirtAddr, VirtRange};
use std::collections::BTreeMap;

/// Homes and CPU mappings are kept at this grain, the smallest page size.
pub(super) const GRAIN: u64 = 4096;
/// Each address space has a window of this size, twice: once per backing.
const WINDOW_SHIFT: u32 = 43;

pub(super) struct Region {
    /// Which call of `region_map` made it: that call's start address. Parts of one keep it.
    pub(super) made_at: u64,
    pub(super) end: u64,
    pub(super) attrs: RegionAttrs,
    /// A change of `attrs.prot` was refused when a part of it was done: it must be taken back before anything else.
    pub(super) torn: bool,
}

/// One address space.
pub(super) struct SpaceState {
    pub(super) range: VirtRange,
    pub(super) cpu_visible: bool,
    pub(super) regions: BTreeMap<u64, Region>,
    /// Homes that are populated, by virtual address.
    pub(super) homes: BTreeMap<u64, Box<[u8]>>,
    /// The CPU's page table.
    pub(super) cpu: BTreeMap<u64, Prot>,
    /// How often each page is pinned.
    pub(super) pins: BTreeMap<u64, u32>,
}

/// The state behind [`crate::SimHost`].
pub(crate) struct HostState {
    pub(super) rng: Rng,
    pub(super) spaces: BTreeMap<u32, SpaceState>,
    /// Addresses of this process that are taken, by address spaces or by [`crate::SimHost::occupy`].
    pub(super) taken: RangeSet,
    pub(super) next_space: u32,
}

/// The start of every grain of `range`.
pub(super) fn grains(range: VirtRange) -> impl Iterator<Item = u64> {
    (range.start().get()..range.end().get()).step_by(GRAIN as usize)
}

/// The physical address of the home of the byte at `va`.
pub(super) fn home_of(space: u32, range: VirtRange, va: VirtAddr, backing: Backing) -> PhysAddr {
    let window = u64::from(space) * 2 + u64::from(backing == Backing::Private);
    PhysAddr { hnode: HnodeId::HOST, addr: ((window + 2) << WINDOW_SHIFT) + (va.get() - range.start().get()) }
}

impl HostState {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { rng, spaces: BTreeMap::new(), taken: RangeSet::default(), next_space: 0 }
    }

    /// What lies at a host physical address: the space's number, the virtual address, the backing.
    pub(crate) fn resolve(&self, at: PhysAddr) -> Option<(u32, VirtAddr, Backing)> {
        let window = (at.addr >> WINDOW_SHIFT).checked_sub(2).filter(|_| at.hnode == HnodeId::HOST)?;
        let number = u32::try_from(window / 2).ok()?;
        let space = self.spaces.get(&number)?;
        let va = space.range.start().get() + (at.addr & ((1 << WINDOW_SHIFT) - 1));
        let backing = if window % 2 == 1 { Backing::Private } else { Backing::Shared };
        Some((number, VirtAddr::new(va), backing))
    }

    fn home(&self, at: PhysAddr) -> Option<(u32, u64)> {
        let (space, va, backing) = self.resolve(at)?;
        let region = self.spaces[&space].region_at(va.get())?;
        (region.attrs.backing == backing).then_some((space, va.get()))
    }

    /// Bytes of one home, inside one grain.
    pub(crate) fn home_bytes(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let (space, va) = self.home(at)?;
        let inside = (va % GRAIN) as usize;
        self.spaces[&space].homes.get(&(va - va % GRAIN))?.get(inside..inside + len)
    }

    /// The bytes of every home are freed.
    pub(crate) fn give_up_homes(&mut self) {
        self.spaces.values_mut().for_each(|space| space.homes.clear());
    }

    /// Reads bytes of one home. False if it does not exist.
    pub(crate) fn read_home(&self, at: PhysAddr, buf: &mut [u8]) -> bool {
        let Some((space, va)) = self.home(at) else { return false };
        let homes = &self.spaces[&space].homes;
        across(va, buf.len(), |page, inside, part| match homes.get(&page) {
            Some(home) => {
                buf[part].copy_from_slice(&home[inside]);
                true
            }
            None => false,
        })
    }

    /// Writes bytes of one home. False if it does not exist.
    pub(crate) fn write_home(&mut self, at: PhysAddr, buf: &[u8]) -> bool {
        let Some((space, va)) = self.home(at) else { return false };
        let homes = &mut self.spaces.get_mut(&space).expect("it was just found").homes;
        across(va, buf.len(), |page, inside, part| match homes.get_mut(&page) {
            Some(home) => {
                home[inside].copy_from_slice(&buf[part]);
                true
            }
            None => false,
        })
    }

    /// Panics unless a copy engine may use the home at `at`: it exists, and the CPU does not get in the way.
    pub(crate) fn assert_copyable(&self, at: PhysAddr, len: u64, write: bool) {
        let doing = if write { "a copy into" } else { "a copy from" };
        let (number, va, backing) = self.resolve(at).unwrap_or_else(|| panic!("{doing} {at:?}, which is no home"));
        let space = &self.spaces[&number];
        for page in (va.get()..va.get() + len).step_by(GRAIN as usize) {
            let region = space.region_at(page).unwrap_or_else(|| panic!("{doing} the home of {page:#x}, where no region is"));
            assert_eq!(region.attrs.backing, backing, "{doing} {at:?}: the region at {page:#x} has another backing");
            assert!(space.homes.contains_key(&page), "{doing} the home of {page:#x} in host space {number}, which is not populated");
            let Some(prot) = space.cpu.get(&page) else { continue };
            assert!(!write, "{doing} the home of {page:#x} while the CPU can touch it ({prot:?})");
            assert!(!prot.contains(Prot::WRITE), "{doing} the home of {page:#x} while the CPU can write it: a write could be lost");
            assert_eq!(backing, Backing::Shared, "{doing} the private home of {page:#x} while it is CPU-mapped");
        }
    }

    /// Panics unless a device may map the home at `at`: it exists, and its memory can be shared.
    pub(crate) fn assert_mappable(&self, at: PhysAddr, len: u64) {
        let (number, va, backing) = self.resolve(at).unwrap_or_else(|| panic!("pmap_enter of {at:?}, which is no home"));
        assert_eq!(backing, Backing::Shared, "pmap_enter of {at:?}, a home of private backing, which no device can map");
        for page in (va.get()..va.get() + len).step_by(GRAIN as usize) {
            let there = self.spaces[&number].homes.contains_key(&page);
            assert!(there, "pmap_enter of the home of {page:#x} in host space {number}, which is not populated");
        }
    }

    /// The space the CPU sees at `va`.
    pub(super) fn visible_space(&mut self, va: VirtAddr) -> Option<&mut SpaceState> {
        self.spaces.values_mut().find(|s| s.cpu_visible && s.range.contains(va))
    }
}

/// Calls `f(page, bytes of the page, bytes of the buffer)` for each grain that `len` bytes from `va` touch, while it answers true.
pub(super) fn across(va: u64, len: usize, mut f: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> bool) -> bool {
    let mut done = 0;
    while done < len {
        let at = va + done as u64;
        let inside = (at % GRAIN) as usize;
        let part = (len - done).min(GRAIN as usize - inside);
        if !f(at - at % GRAIN, inside..inside + part, done..done + part) {
            return false;
        }
        done += part;
    }
    true
}

impl SpaceState {
    pub(super) fn region_at(&self, va: u64) -> Option<&Region> {
        self.regions.range(..=va).next_back().map(|(_, r)| r).filter(|r| va < r.end)
    }

    /// Panics unless `pages` are whole pages of one region with these attributes.
    pub(super) fn assert_pages(&self, call: &str, pages: &Pages) {
        let Pages { range, attrs } = pages;
        let region = self.region_at(range.start().get()).unwrap_or_else(|| panic!("{call} of {range}, where no region is"));
        assert!(range.is_aligned(attrs.page_size), "{call} of {range}, which is not a range of pages of {}", attrs.page_size);
        assert!(range.end().get() <= region.end, "{call} of {range}, but the region ends at {:#x}", region.end);
        assert!(!region.torn, "{call} of {range}, where a refused change of what it allows was not taken back");
        assert!(region.attrs == *attrs, "{call} of {range} with {attrs:?}, but the region has {:?}", region.attrs);
    }

    /// Makes `range` start and end at ends of regions, splitting them.
    pub(super) fn split_at_ends(&mut self, range: VirtRange) {
        for at in [range.start().get(), range.end().get()] {
            if let Some((&start, region)) = self.regions.range_mut(..at).next_back()
                && start < at
                && at < region.end
            {
                let rest = Region { end: region.end, ..*region };
                region.end = at;
                self.regions.insert(at, rest);
            }
        }
    }

    /// Makes one region again of the parts in `range` that one call made and that have equal attributes.
    pub(super) fn join(&mut self, range: VirtRange) {
        let mut at = self.region_at(range.start().get()).map(|r| r.end);
        while let Some(boundary) = at.filter(|at| *at < range.end().get()) {
            let Some(right) = self.regions.get(&boundary).map(|r| (r.made_at, r.attrs, r.end)) else { return };
            let (_, left) = self.regions.range_mut(..boundary).next_back().expect("a region ends at the boundary");
            if (left.made_at, left.attrs) == (right.0, right.1) {
                left.end = right.2;
                self.regions.remove(&boundary);
            }
            at = Some(right.2);
        }
    }

    /// Whether a region overlaps `range`.
    pub(super) fn has_region(&self, range: VirtRange) -> bool {
        self.regions.range(..range.end().get()).next_back().is_some_and(|(_, r)| r.end > range.start().get())
    }
}
