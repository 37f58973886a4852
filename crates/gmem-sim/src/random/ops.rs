//! What can be done to a world, in words that do not depend on it: indices of spaces, devices and pages.

use gmem_hal::{Backing, Mode, PageSize, Prot, VirtAddr, VirtRange};

/// One address space of a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceShape {
    /// Where it begins.
    pub base: VirtAddr,
    /// How many pages it has, larger ones included.
    pub pages: u64,
    /// The last of them can be larger than the others: of each size, in ascending order, how many. They begin at multiples of their size.
    pub larger: &'static [(PageSize, u64)],
    /// Whether the CPU sees it.
    pub cpu_visible: bool,
}

/// The size of a world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The size of every page but the larger ones.
    pub page_size: PageSize,
    /// The address spaces.
    pub spaces: Vec<SpaceShape>,
    /// Per device, the modes that are asked for when it is attached.
    pub devices: Vec<Vec<Mode>>,
    /// The backing of the regions, drawn from these.
    pub backings: Vec<Backing>,
    /// How many pages each device has room for, if none is larger.
    pub frames: u64,
}

impl Shape {
    /// Three address spaces of 4 KiB pages, 256 in all, the last of which only devices see, at the addresses of the first; and four devices, all
    /// exclusive. With 32 frames each, they hold half of it.
    pub fn standard() -> Self {
        let space = |base: u64, pages, cpu_visible| SpaceShape { base: VirtAddr::new(base), pages, larger: &[], cpu_visible };
        Self {
            page_size: PageSize::Size4K,
            spaces: vec![space(0x10_0000_0000, 96, true), space(0x20_0000_0000, 96, true), space(0x10_0000_0000, 64, false)],
            devices: vec![vec![Mode::CoherentExclusive]; 4],
            backings: vec![Backing::Shared],
            frames: 32,
        }
    }

    /// The pages of one size of an address space, by size: the size, the first page, how many, and where the first begins. Ascending.
    fn zones(&self, space: usize) -> impl Iterator<Item = (PageSize, u64, u64, u64)> {
        let SpaceShape { base, pages, larger, .. } = self.spaces[space];
        let small = pages - larger.iter().map(|(_, count)| count).sum::<u64>();
        let (mut first, mut at) = (0, base.get());
        [(self.page_size, small)].into_iter().chain(larger.iter().copied()).map(move |(size, count)| {
            let zone = (size, first, count, at.next_multiple_of(size.bytes()));
            (first, at) = (first + count, zone.3 + count * size.bytes());
            zone
        })
    }

    /// The size of a page.
    pub fn size_of(&self, space: usize, page: u64) -> PageSize {
        if self.spaces[space].larger.is_empty() {
            return self.page_size;
        }
        let zone = self.zones(space).find(|(_, first, count, _)| page < first + count);
        zone.unwrap_or_else(|| panic!("address space {space} has no page {page}")).0
    }

    /// Where a page begins; where the address space ends for the one after the last.
    pub fn start(&self, space: usize, page: u64) -> VirtAddr {
        let SpaceShape { base, larger, .. } = self.spaces[space];
        if larger.is_empty() {
            return VirtAddr::new(base.get() + page * self.page_size.bytes());
        }
        let zone = self.zones(space).find(|(_, first, count, _)| page < first + count).or_else(|| self.zones(space).last());
        let (size, first, _, at) = zone.expect("an address space has pages");
        VirtAddr::new(at + (page - first) * size.bytes())
    }

    /// The number of the page at `va`, if it is one of the address space.
    pub fn page_at(&self, space: usize, va: VirtAddr) -> Option<u64> {
        self.zones(space).find_map(|(size, first, count, at)| {
            let page = va.get().checked_sub(at)? >> size.shift();
            (page < count).then_some(first + page)
        })
    }

    /// The numbers of the pages that a range of addresses touches.
    pub fn pages_in(&self, space: usize, range: VirtRange) -> impl Iterator<Item = u64> {
        self.zones(space).flat_map(move |(size, first, count, at)| {
            let from = range.start().get().saturating_sub(at) >> size.shift();
            let end = range.end().get().saturating_sub(at).div_ceil(size.bytes()).min(count);
            (from..end).map(move |page| first + page)
        })
    }

    /// Whether the pages of a run have one size, so that one region can hold them.
    pub fn is_of_one_size(&self, run: &PageRun) -> bool {
        self.size_of(run.space, run.first) == self.size_of(run.space, run.first + run.count - 1)
    }

    /// The addresses of an address space.
    pub fn space_range(&self, space: usize) -> VirtRange {
        let SpaceShape { base, pages, .. } = self.spaces[space];
        VirtRange::new(base, self.start(space, pages)).expect("an address space has pages and does not wrap")
    }

    /// The addresses of some pages, and of what lies between those of different sizes.
    pub fn range(&self, run: &PageRun) -> VirtRange {
        let last = run.first + run.count - 1;
        let end = self.start(run.space, last).get() + self.size_of(run.space, last).bytes();
        VirtRange::new(self.start(run.space, run.first), VirtAddr::new(end)).expect("a run of pages is never empty")
    }

    /// All pages of an address space, in runs of one size.
    pub fn runs(&self, space: usize) -> impl Iterator<Item = PageRun> {
        self.zones(space).map(move |(_, first, count, _)| PageRun { space, first, count }).filter(|run| run.count > 0)
    }

    /// The address of some bytes.
    pub fn va(&self, spot: &Spot) -> VirtAddr {
        VirtAddr::new(self.start(spot.space, spot.page).get() + spot.offset)
    }
}

/// Some pages of an address space. Never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    /// Which address space.
    pub space: usize,
    /// The first page.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Some bytes of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// Which address space.
    pub space: usize,
    /// Which page.
    pub page: u64,
    /// Where in the page.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Spot {
    /// The bytes that a store here with `fill` writes: each depends on its place, so that a shifted copy is seen.
    pub fn bytes(&self, fill: u8) -> Vec<u8> {
        (self.offset..self.offset + self.len).map(|at| fill ^ (at as u8) ^ ((at >> 8) as u8)).collect()
    }
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Map a region at this place.
    Map(PageRun, Prot, Backing),
    /// Unmap these pages.
    Unmap(PageRun),
    /// Change what may be done to these pages.
    Protect(PageRun, Prot),
    /// The CPU loads.
    CpuRead(Spot),
    /// The CPU stores [`Spot::bytes`].
    CpuWrite(Spot, u8),
    /// A device loads.
    DevRead(usize, Spot),
    /// A device stores [`Spot::bytes`].
    DevWrite(usize, Spot, u8),
    /// Attach a device to an address space, current at once or not.
    Attach {
        /// Which address space.
        space: usize,
        /// Which device.
        device: usize,
        /// How.
        mode: Mode,
        /// Make it the device's current context.
        activate: bool,
    },
    /// Detach a device (second) from an address space (first).
    Detach(usize, usize),
    /// Have up to so many pages evicted from a device's memory.
    Evict(usize, usize),
    /// Bring pages to a device, or home.
    Prefetch(PageRun, Option<usize>),
    /// The content of these pages is not needed: they read as zero from now on.
    Discard(PageRun),
    /// These pages stay where they are.
    Pin(PageRun),
    /// Takes one pin back.
    Unpin(PageRun),
    /// Make the context of this address space the current one of a device.
    Switch(usize, Option<usize>),
    /// A launch on a device that says what it touches: the pages are brought in and held, memory is short meanwhile, the device stores
    /// [`Spot::bytes`] to one of them, and the hold ends.
    Launch(usize, PageRun, Spot, u8),
    /// A device dies, and works again; its memory survives. It says so at once or leaves the core to find out.
    Lose(usize, bool),
    /// Cap a device's memory at so many pages.
    Limit(usize, u64),
    /// Take the last pool of a device's memory back, or register it again.
    Memory(usize),
    /// The kernel pins the page of these bytes for I/O.
    KernelPin(Spot),
    /// It takes one such pin back.
    KernelUnpin(Spot),
}

/// Why an operation was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// What was asked for makes no sense, or is not allowed: not mapped, protected, not attached.
    Invalid,
    /// Nothing is wrong with it, but there is no room now.
    NoRoom,
    /// A callback failed, or a device is dead or fenced.
    Failed,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was done and loaded these bytes.
    Loaded(Vec<u8>),
    /// It was refused and, by the rules, changed nothing that can be seen.
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_pages_follow_the_small_ones_at_multiples_of_their_size() {
        let base = VirtAddr::new(0x10_0000_0000);
        let larger: &[_] = &[(PageSize::Size64K, 2), (PageSize::Size2M, 1)];
        let shape = Shape { spaces: vec![SpaceShape { base, pages: 8, larger, cpu_visible: true }], ..Shape::standard() };
        let starts: Vec<u64> = (0..=8).map(|page| shape.start(0, page).get() - base.get()).collect();
        assert_eq!(starts, [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x1_0000, 0x2_0000, 0x20_0000, 0x40_0000]);
        for page in 0..8 {
            let last = VirtAddr::new(shape.start(0, page).get() + shape.size_of(0, page).bytes() - 1);
            assert_eq!((shape.page_at(0, shape.start(0, page)), shape.page_at(0, last)), (Some(page), Some(page)));
        }
        assert_eq!(shape.page_at(0, VirtAddr::new(base.get() + 0x5000)), None, "what lies between two sizes is no page");
        let run = PageRun { space: 0, first: 4, count: 2 };
        assert_eq!(shape.pages_in(0, shape.range(&run)).collect::<Vec<_>>(), [4, 5]);
        assert!(!shape.is_of_one_size(&run) && shape.is_of_one_size(&PageRun { count: 1, ..run }));
    }
}
