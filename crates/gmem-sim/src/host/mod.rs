//! The simulated host: homes are real bytes, the CPU's page table is real, and each call checks what the core owes it.

mod cpu;
mod state;

pub use cpu::CpuFault;
pub(crate) use state::HostState;

use crate::sim::{Sim, lock};
use crate::{Callback, Change, Injected};
use gmem_hal::{Backing, Host, HostError, HostWindow, Pages, PhysAddr, Prot, RegionAttrs, VirtAddr, VirtRange};
use state::{GRAIN, Region, SpaceState, grains, home_of};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A defect built into the host on purpose: a test that does not notice it tests nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostCanary {
    /// It answers that it took pages from the CPU, and one time in eight did not.
    KeepsCpuMappings,
    /// A home that was just populated is not zero.
    PopulatesGarbage,
    /// It keeps the bytes of a home that was discarded.
    KeepsDiscarded,
    /// It forgets that the kernel holds a page.
    ForgetsPins,
}

/// A host's record of an address space.
#[derive(Debug)]
pub struct SimSpace {
    number: u32,
    range: VirtRange,
}

/// The host of a simulated machine. Clones are the same host.
///
/// It panics, with numbers, when the core breaks the contract of [`Host`].
#[derive(Clone)]
pub struct SimHost {
    sim: Arc<Sim>,
}

impl SimHost {
    /// The host of `sim`.
    pub fn new(sim: &Arc<Sim>) -> Self {
        Self { sim: sim.clone() }
    }

    /// Takes addresses of the process, as another library would: an address space over them is refused with [`HostError::AddressInUse`].
    pub fn occupy(&self, range: VirtRange) {
        lock(&self.sim.host).taken.insert(range);
    }

    /// How many bytes of homes exist.
    pub fn populated_bytes(&self) -> u64 {
        lock(&self.sim.host).spaces.values().map(|s| s.homes.len() as u64 * GRAIN).sum()
    }

    /// The home of the page at `va` of the address space of this number, in the order of making from zero, if a region is there.
    pub fn home_at(&self, space: u32, va: VirtAddr) -> Option<PhysAddr> {
        let host = lock(&self.sim.host);
        let state = host.spaces.get(&space)?;
        let region = state.region_at(va.get())?;
        Some(home_of(space, state.range, va, region.attrs.backing))
    }

    fn call(&self, callback: Callback, space: &SimSpace, range: VirtRange) -> Result<(), HostError> {
        let args = [u64::from(space.number), range.start().get(), range.len().get()];
        match self.sim.callback(callback, None, args) {
            None => Ok(()),
            Some(Injected::Host(error)) => Err(error),
            Some(other) => unreachable!("{other:?} was refused when it was asked for"),
        }
    }

    fn note(&self, what: &'static str, space: &SimSpace, range: VirtRange) {
        crate::sched::assert_no_lock_held(what);
        crate::sched::yield_point(crate::Reason::Callback(what));
        self.sim.event(what, [u64::from(space.number), range.start().get(), range.len().get(), 0]);
    }

    /// What the CPU may do changed at these pages, or their homes did.
    fn changed(&self, space: &SimSpace, pages: &Pages, bytes: bool) {
        self.sim.changes.note(Change::Cpu(pages.range));
        if bytes {
            let home = home_of(space.number, space.range, pages.range.start(), pages.attrs.backing);
            self.sim.changes.note(Change::Bytes(home, pages.range.len()));
        }
    }

    fn with<R>(&self, space: &SimSpace, f: impl FnOnce(&mut SpaceState, &mut crate::Rng) -> R) -> R {
        let mut host = lock(&self.sim.host);
        let HostState { rng, spaces, .. } = &mut *host;
        let state = spaces.get_mut(&space.number).unwrap_or_else(|| panic!("a call on host space {}, which was destroyed", space.number));
        f(state, rng)
    }

    /// Panics if a device could still reach a home of `pages`.
    fn assert_homes_unreachable(&self, space: &SimSpace, pages: &Pages, doing: &str) {
        let home = home_of(space.number, space.range, pages.range.start(), pages.attrs.backing);
        self.sim.assert_unreachable(home, pages.range.len(), doing);
    }
}

impl Host for SimHost {
    type Space = SimSpace;

    fn space_create(&self, range: VirtRange, cpu_visible: bool) -> Result<SimSpace, HostError> {
        let args = [range.start().get(), range.len().get(), u64::from(cpu_visible)];
        if let Some(Injected::Host(error)) = self.sim.callback(Callback::SpaceCreate, None, args) {
            return Err(error);
        }
        assert!(
            range.start().get().is_multiple_of(GRAIN) && range.end().get().is_multiple_of(GRAIN),
            "an address space over {range}, unaligned"
        );
        assert!(range.len().get() <= 1 << 43, "{range} is longer than the simulated window of homes");
        let mut host = lock(&self.sim.host);
        if cpu_visible {
            if host.taken.overlaps(range) {
                return Err(HostError::AddressInUse);
            }
            host.taken.insert(range);
        }
        let number = host.next_space;
        host.next_space += 1;
        let (regions, homes, cpu, pins) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        host.spaces.insert(number, SpaceState { range, cpu_visible, regions, homes, cpu, pins });
        Ok(SimSpace { number, range })
    }

    fn space_destroy(&self, space: &SimSpace) {
        self.note("space_destroy", space, space.range);
        let mut host = lock(&self.sim.host);
        let state = host.spaces.remove(&space.number).unwrap_or_else(|| panic!("host space {} is destroyed twice", space.number));
        if let Some((start, region)) = state.regions.first_key_value() {
            panic!("host space {} is destroyed with a region at [{start:#x}, {:#x})", space.number, region.end);
        }
        if state.cpu_visible {
            host.taken.remove(state.range);
        }
    }

    fn window(&self, space: &SimSpace) -> Option<HostWindow> {
        let base = home_of(space.number, space.range, space.range.start(), gmem_hal::Backing::Shared);
        Some(HostWindow { handle: space.number as i32, offset: 0, base })
    }

    fn supports(&self, _attrs: &RegionAttrs) -> Result<(), HostError> {
        Ok(())
    }

    fn region_map(&self, space: &SimSpace, region: &Pages) -> Result<(), HostError> {
        self.call(Callback::RegionMap, space, region.range)?;
        let Pages { range, attrs } = *region;
        assert!(space.range.contains_range(range), "region_map of {range} outside the address space {}", space.range);
        assert!(range.is_aligned(attrs.page_size), "region_map of {range}, which is not a range of pages of {}", attrs.page_size);
        self.with(space, |state, _| {
            assert!(!state.has_region(range), "region_map of {range} over another region");
            let made_at = range.start().get();
            state.regions.insert(made_at, Region { made_at, end: range.end().get(), attrs, torn: false });
        });
        Ok(())
    }

    fn region_unmap(&self, space: &SimSpace, region: &Pages) {
        self.note("region_unmap", space, region.range);
        self.assert_homes_unreachable(space, region, "region_unmap frees");
        self.changed(space, region, true);
        self.with(space, |state, _| {
            state.join(region.range);
            state.assert_pages("region_unmap", region);
            state.split_at_ends(region.range);
            state.regions.remove(&region.range.start().get()).expect("the region was just split there");
            for page in grains(region.range) {
                state.homes.remove(&page);
                state.cpu.remove(&page);
                state.pins.remove(&page);
            }
        });
    }

    fn region_protect(&self, space: &SimSpace, region: &Pages, prot: Prot) -> Result<(), HostError> {
        let Pages { range, attrs } = *region;
        // What it says was in force comes back: by contract that is not refused.
        let undoing = prot == attrs.prot;
        let answer = if undoing {
            self.note("region_protect", space, range);
            Ok(())
        } else {
            self.call(Callback::RegionProtect, space, range)
        };
        self.changed(space, region, false);
        self.with(space, |state, rng| {
            state.join(range);
            if !undoing {
                state.assert_pages("region_protect", region);
            }
            state.split_at_ends(range);
            let torn = answer.is_err() && rng.coin();
            let changed = state.regions.get_mut(&range.start().get()).expect("the region was just split there");
            if answer.is_ok() {
                changed.attrs.prot = prot;
            }
            changed.torn = torn;
            if answer.is_err() && !torn {
                return;
            }
            // The contract leaves open whether pages stay mapped, and how far a call came that was refused: let the seed say so, that nobody relies on either.
            let drop_all = rng.coin();
            let pages = range.len().get() / GRAIN;
            let count = if torn { rng.below(pages) } else { pages };
            for page in grains(range) {
                assert!(
                    attrs.backing == Backing::Shared || !state.cpu.contains_key(&page),
                    "region_protect of {page:#x}, of private backing, which is CPU-mapped"
                );
            }
            for page in grains(range).take(count as usize) {
                let Some(allowed) = state.cpu.get_mut(&page) else { continue };
                *allowed = if torn { prot } else { *allowed & prot };
                if allowed.is_empty() || (drop_all && !state.pins.contains_key(&page)) {
                    state.cpu.remove(&page);
                }
            }
        });
        answer
    }

    fn home(&self, space: &SimSpace, pages: &Pages) -> PhysAddr {
        self.with(space, |state, _| state.assert_pages("home", pages));
        home_of(space.number, space.range, pages.range.start(), pages.attrs.backing)
    }

    fn populate(&self, space: &SimSpace, pages: &Pages) -> Result<(), HostError> {
        let injected = self.call(Callback::Populate, space, pages.range);
        self.changed(space, pages, true);
        let fresh = if self.sim.host_has(HostCanary::PopulatesGarbage) { 0xa5 } else { 0 };
        self.with(space, |state, rng| {
            state.assert_pages("populate", pages);
            // A refusal may come half-way: some homes are there then.
            let all = pages.range.len().get() / GRAIN;
            let count = if injected.is_ok() { all } else { rng.below(all) };
            for page in grains(pages.range).take(count as usize) {
                assert!(!state.cpu.contains_key(&page), "populate of {page:#x}, which is CPU-mapped");
                state.homes.entry(page).or_insert_with(|| vec![fresh; GRAIN as usize].into_boxed_slice());
            }
        });
        injected
    }

    fn cpu_map(&self, space: &SimSpace, pages: &Pages) -> Result<(), HostError> {
        self.call(Callback::CpuMap, space, pages.range)?;
        self.changed(space, pages, false);
        let writable = pages.attrs.prot.contains(Prot::WRITE);
        let home = home_of(space.number, space.range, pages.range.start(), pages.attrs.backing);
        self.with(space, |state, _| {
            state.assert_pages("cpu_map", pages);
            assert!(!pages.attrs.prot.is_empty(), "cpu_map of {} without any access", pages.range);
            for page in grains(pages.range) {
                assert!(state.homes.contains_key(&page), "cpu_map of {page:#x}, whose home is not populated");
                // Where the CPU sees no address space there is no table to fill; the homes are all there is.
                if state.cpu_visible {
                    *state.cpu.entry(page).or_insert(pages.attrs.prot) |= pages.attrs.prot;
                }
            }
        });
        // A copy under way into or from these homes looks again when it ends; what is checked here is only its record.
        self.sim.event("cpu_mapped", [home.addr, pages.range.len().get(), u64::from(writable), 0]);
        self.wake_pending(pages.range);
        Ok(())
    }

    fn cpu_unmap(&self, space: &SimSpace, pages: &Pages) -> Result<(), HostError> {
        self.call(Callback::CpuUnmap, space, pages.range)?;
        self.changed(space, pages, false);
        let (forgets, keeps) = (self.sim.host_has(HostCanary::ForgetsPins), self.sim.host_has(HostCanary::KeepsCpuMappings));
        self.with(space, |state, rng| {
            state.assert_pages("cpu_unmap", pages);
            if keeps && rng.below(8) == 0 {
                return Ok(());
            }
            if forgets {
                state.pins.retain(|page, _| !pages.range.contains(VirtAddr::new(*page)));
            }
            if grains(pages.range).any(|page| state.pins.contains_key(&page)) {
                return Err(HostError::Pinned);
            }
            for page in grains(pages.range) {
                state.cpu.remove(&page);
            }
            Ok(())
        })
    }

    fn discard(&self, space: &SimSpace, pages: &Pages) {
        self.note("discard", space, pages.range);
        self.assert_homes_unreachable(space, pages, "discard frees");
        self.changed(space, pages, true);
        let keeps = self.sim.host_has(HostCanary::KeepsDiscarded);
        self.with(space, |state, _| {
            state.assert_pages("discard", pages);
            for page in grains(pages.range) {
                assert!(!state.cpu.contains_key(&page), "discard of {page:#x}, which is CPU-mapped");
                if !keeps {
                    state.homes.remove(&page);
                }
            }
        });
    }

    fn wake(&self, space: &SimSpace, pages: &Pages) {
        self.note("wake", space, pages.range);
        self.wake_pending(pages.range);
    }
}
