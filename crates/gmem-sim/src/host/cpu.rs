//! What programs and the kernel do with host memory.

use super::SimHost;
use super::state::{GRAIN, SpaceState, across, grains};
use crate::Change;
use crate::SimEvent;
use crate::sched::{self, Reason};
use crate::sim::lock;
use gmem_hal::{Access, ByteLen, Event, PhysAddr, Prot, VirtAddr, VirtRange};
use std::sync::Arc;

/// A CPU access that the CPU's page table does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuFault {
    /// The first byte that could not be accessed. The bytes before it were.
    pub va: VirtAddr,
    /// What was wanted.
    pub access: Access,
}

impl SimHost {
    /// The CPU loads `buf.len()` bytes. On a fault the bytes before it were read.
    pub fn cpu_read(&self, va: VirtAddr, buf: &mut [u8]) -> Result<(), CpuFault> {
        sched::yield_point(Reason::Access);
        let result = self.access(va, Access::Read, buf.len(), |state, page, inside, part| {
            buf[part].copy_from_slice(&state.homes[&page][inside]);
        });
        self.sim.event_bytes("cpu_read", [va.get(), buf.len() as u64, u64::from(result.is_ok()), 0], buf);
        result
    }

    /// The CPU stores `buf`. On a fault the bytes before it were written.
    pub fn cpu_write(&self, va: VirtAddr, buf: &[u8]) -> Result<(), CpuFault> {
        sched::yield_point(Reason::Access);
        let changes = self.sim.changes.clone();
        let result = self.access(va, Access::Write, buf.len(), |state, page, inside, part| {
            changes.note(Change::Cpu(VirtRange::from_len(VirtAddr::new(page), ByteLen(GRAIN)).expect("a mapped page does not wrap")));
            state.homes.get_mut(&page).expect("a CPU-mapped page is populated")[inside].copy_from_slice(&buf[part]);
        });
        self.sim.event_bytes("cpu_write", [va.get(), buf.len() as u64, u64::from(result.is_ok()), 0], buf);
        result
    }

    fn access(
        &self,
        va: VirtAddr,
        access: Access,
        len: usize,
        mut f: impl FnMut(&mut SpaceState, u64, std::ops::Range<usize>, std::ops::Range<usize>),
    ) -> Result<(), CpuFault> {
        let mut host = lock(&self.sim.host);
        let Some(state) = host.visible_space(va) else { return Err(CpuFault { va, access }) };
        let mut fault = None;
        across(va.get(), len, |page, inside, part| {
            let allowed = state.cpu.get(&page).is_some_and(|prot| prot.allows(access));
            if allowed {
                f(state, page, inside, part);
            } else {
                fault = Some(CpuFault { va: VirtAddr::new(page + inside.start as u64), access });
            }
            allowed
        });
        fault.map_or(Ok(()), Err)
    }

    /// Where a thread waits whose fault at `va` is pending: signalled when the page is CPU-mapped, or when the core says that it is to try again.
    pub(crate) fn pending(&self, va: VirtAddr) -> Arc<SimEvent> {
        lock(&self.sim.pending).entry(va.get() - va.get() % GRAIN).or_default().clone()
    }

    pub(super) fn wake_pending(&self, range: VirtRange) {
        let waiting: Vec<_> =
            lock(&self.sim.pending).range(range.start().get()..range.end().get()).map(|(_, event)| event.clone()).collect();
        waiting.iter().for_each(|event| event.signal());
    }

    /// What the CPU may do at `va` without a fault: nothing if the page is absent.
    pub fn cpu_prot(&self, va: VirtAddr) -> Prot {
        let mut host = lock(&self.sim.host);
        let page = va.get() - va.get() % GRAIN;
        host.visible_space(va).and_then(|s| s.cpu.get(&page).copied()).unwrap_or(Prot::empty())
    }

    /// Whether the home of the page at `va` of the space the CPU sees there holds bytes.
    pub fn is_populated(&self, va: VirtAddr) -> bool {
        let mut host = lock(&self.sim.host);
        let page = va.get() - va.get() % GRAIN;
        host.visible_space(va).is_some_and(|s| s.homes.contains_key(&page))
    }

    /// The number of the address space, in the order of making from zero, and the virtual address whose home is at a host physical address.
    pub fn locate(&self, at: PhysAddr) -> Option<(u32, VirtAddr)> {
        lock(&self.sim.host).resolve(at).map(|(space, va, _)| (space, va))
    }

    /// The virtual address whose home is at a host physical address.
    pub fn resolve_host(&self, at: PhysAddr) -> Option<VirtAddr> {
        lock(&self.sim.host).resolve(at).map(|(_, va, _)| va)
    }

    /// The kernel pins pages for I/O, as many times as asked: [`gmem_hal::Host::cpu_unmap`] answers [`gmem_hal::HostError::Pinned`] until as many
    /// [`SimHost::unpin`]s. Faults like a load if a page is not CPU-mapped, and pins nothing then.
    pub fn pin(&self, va: VirtAddr, len: ByteLen) -> Result<(), CpuFault> {
        sched::yield_point(Reason::Access);
        self.sim.event("pin", [va.get(), len.get(), 0, 0]);
        let mut host = lock(&self.sim.host);
        let range = pages_around(va, len);
        let absent = |va| CpuFault { va, access: Access::Read };
        let state = host.visible_space(va).ok_or(absent(va))?;
        if let Some(page) = grains(range).find(|page| !state.cpu.contains_key(page)) {
            return Err(absent(VirtAddr::new(page)));
        }
        for page in grains(range) {
            *state.pins.entry(page).or_insert(0) += 1;
        }
        Ok(())
    }

    /// Takes one pin back from each page. Pages that are not pinned (because they were unmapped) are no error.
    pub fn unpin(&self, va: VirtAddr, len: ByteLen) {
        sched::yield_point(Reason::Access);
        self.sim.event("unpin", [va.get(), len.get(), 0, 0]);
        let mut host = lock(&self.sim.host);
        let Some(state) = host.visible_space(va) else { return };
        for page in grains(pages_around(va, len)) {
            if let Some(count) = state.pins.get_mut(&page) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(&page);
                }
            }
        }
    }
}

impl SimHost {
    /// An I/O device of the kernel stores to a pinned page, past every page table. False if the page is not pinned any more, because it was unmapped.
    pub fn dma_write(&self, va: VirtAddr, buf: &[u8]) -> bool {
        sched::yield_point(Reason::Access);
        let done = self.dma(va, buf.len(), |home, part| home.copy_from_slice(&buf[part]));
        self.sim.changes.note(Change::Cpu(pages_around(va, ByteLen(buf.len() as u64))));
        self.sim.event_bytes("dma_write", [va.get(), buf.len() as u64, u64::from(done), 0], buf);
        done
    }

    /// An I/O device of the kernel loads from a pinned page. False as for [`SimHost::dma_write`].
    pub fn dma_read(&self, va: VirtAddr, buf: &mut [u8]) -> bool {
        sched::yield_point(Reason::Access);
        let done = self.dma(va, buf.len(), |home, part| buf[part].copy_from_slice(home));
        self.sim.event_bytes("dma_read", [va.get(), buf.len() as u64, u64::from(done), 0], buf);
        done
    }

    fn dma(&self, va: VirtAddr, len: usize, mut f: impl FnMut(&mut [u8], std::ops::Range<usize>)) -> bool {
        let mut host = lock(&self.sim.host);
        let Some(state) = host.visible_space(va) else { return false };
        across(va.get(), len, |page, inside, part| {
            let home = state.homes.get_mut(&page).filter(|_| state.pins.contains_key(&page));
            home.map(|home| f(&mut home[inside], part)).is_some()
        })
    }
}

fn pages_around(va: VirtAddr, len: ByteLen) -> VirtRange {
    VirtRange::from_len(va, len)
        .and_then(|r| r.align_outward(gmem_hal::PageSize::Size4K))
        .unwrap_or_else(|| panic!("{len} from {va} is no range to pin"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Callback, Injected, Sim};
    use gmem_hal::{Host, HostError, PageSize, Pages, RegionAttrs};

    const BASE: u64 = 0x1_0000;

    fn pages(first: u64, count: u64) -> Pages {
        let range = VirtRange::from_len(VirtAddr::new(BASE + first * 4096), ByteLen(count * 4096)).unwrap();
        Pages { range, attrs: RegionAttrs { page_size: PageSize::Size4K, ..RegionAttrs::default() } }
    }

    fn host() -> (SimHost, crate::SimSpace) {
        let host = SimHost::new(&Sim::new(1));
        let space = host.space_create(pages(0, 16).range, true).unwrap();
        host.region_map(&space, &pages(0, 8)).unwrap();
        (host, space)
    }

    #[test]
    fn a_page_is_touched_only_while_mapped_and_keeps_its_bytes() {
        let (host, space) = host();
        let va = VirtAddr::new(BASE + 10);
        assert_eq!(host.cpu_write(va, &[1]), Err(CpuFault { va, access: Access::Write }));
        host.populate(&space, &pages(0, 1)).unwrap();
        host.cpu_map(&space, &pages(0, 1)).unwrap();
        host.cpu_write(va, &[7]).unwrap();
        host.cpu_unmap(&space, &pages(0, 1)).unwrap();
        let mut byte = [0];
        assert!(host.cpu_read(va, &mut byte).is_err());
        let home = host.home(&space, &pages(0, 1));
        assert_eq!(host.resolve_host(home), Some(VirtAddr::new(BASE)));
        host.sim.peek(PhysAddr { addr: home.addr + 10, ..home }, &mut byte);
        assert_eq!(byte, [7]);
        host.discard(&space, &pages(0, 1));
        host.populate(&space, &pages(0, 1)).unwrap();
        host.cpu_map(&space, &pages(0, 1)).unwrap();
        host.cpu_read(va, &mut byte).unwrap();
        assert_eq!(byte, [0], "a discarded page reads as zero");
    }

    #[test]
    fn an_access_across_pages_stops_at_the_first_absent_one() {
        let (host, space) = host();
        host.populate(&space, &pages(0, 1)).unwrap();
        host.cpu_map(&space, &pages(0, 1)).unwrap();
        let fault = host.cpu_write(VirtAddr::new(BASE + 4095), &[1, 2]).unwrap_err();
        assert_eq!(fault.va, VirtAddr::new(BASE + 4096));
    }

    #[test]
    fn a_pinned_page_stays() {
        let (host, space) = host();
        host.populate(&space, &pages(0, 2)).unwrap();
        host.cpu_map(&space, &pages(0, 2)).unwrap();
        host.pin(VirtAddr::new(BASE), ByteLen(1)).unwrap();
        assert_eq!(host.cpu_unmap(&space, &pages(0, 2)), Err(HostError::Pinned));
        assert_eq!(host.cpu_prot(VirtAddr::new(BASE + 4096)), Prot::RW, "all are as they were");
        host.unpin(VirtAddr::new(BASE), ByteLen(1));
        host.cpu_unmap(&space, &pages(0, 2)).unwrap();
    }

    #[test]
    fn a_region_can_go_in_parts_and_leaves_nothing() {
        let (host, space) = host();
        host.populate(&space, &pages(0, 8)).unwrap();
        host.cpu_map(&space, &pages(0, 8)).unwrap();
        host.region_unmap(&space, &pages(2, 3));
        assert_eq!(host.populated_bytes(), 5 * 4096);
        host.region_map(&space, &pages(2, 3)).unwrap();
        host.region_unmap(&space, &pages(0, 2));
        host.region_unmap(&space, &pages(2, 3));
        host.region_unmap(&space, &pages(5, 3));
        assert_eq!(host.populated_bytes(), 0);
        host.space_destroy(&space);
    }

    #[test]
    fn taken_addresses_are_refused() {
        let (host, _space) = host();
        assert_eq!(host.space_create(pages(15, 2).range, true).unwrap_err(), HostError::AddressInUse);
        assert!(host.space_create(pages(15, 2).range, false).is_ok(), "address spaces the CPU does not see may overlap");
        host.occupy(pages(100, 1).range);
        assert_eq!(host.space_create(pages(100, 2).range, true).unwrap_err(), HostError::AddressInUse);
    }

    #[test]
    fn a_failed_call_changes_nothing() {
        let (host, space) = host();
        host.populate(&space, &pages(0, 1)).unwrap();
        host.sim.fail_nth(Callback::CpuMap, 1, Injected::Host(HostError::NoMemory));
        assert_eq!(host.cpu_map(&space, &pages(0, 1)), Err(HostError::NoMemory));
        assert!(host.cpu_prot(VirtAddr::new(BASE)).is_empty());
    }

    #[test]
    #[should_panic(expected = "whose home is not populated")]
    fn mapping_an_empty_home_is_a_defect() {
        let (host, space) = host();
        let _ = host.cpu_map(&space, &pages(0, 1));
    }

    #[test]
    #[should_panic(expected = "which is CPU-mapped")]
    fn discarding_a_mapped_page_is_a_defect() {
        let (host, space) = host();
        host.populate(&space, &pages(0, 1)).unwrap();
        host.cpu_map(&space, &pages(0, 1)).unwrap();
        host.discard(&space, &pages(0, 1));
    }

    #[test]
    #[should_panic(expected = "where no region is")]
    fn a_call_outside_a_region_is_a_defect() {
        let (host, space) = host();
        let _ = host.populate(&space, &pages(8, 1));
    }

    #[test]
    #[should_panic(expected = "is destroyed with a region")]
    fn destroying_a_space_with_a_region_is_a_defect() {
        let (host, space) = host();
        host.space_destroy(&space);
    }
}
