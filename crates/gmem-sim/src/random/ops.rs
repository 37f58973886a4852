//! What can be done to a world, in words that do not depend on it: indices of spaces, devices and pages.

use gmem_hal::{Backing, ByteLen, Mode, PageSize, Prot, VirtAddr, VirtRange};

/// One address space of a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceShape {
    /// Where it begins.
    pub base: VirtAddr,
    /// How many pages it has.
    pub pages: u64,
    /// Whether the CPU sees it.
    pub cpu_visible: bool,
}

/// The size of a world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The size of every page.
    pub page_size: PageSize,
    /// The address spaces.
    pub spaces: Vec<SpaceShape>,
    /// Per device, the modes that are asked for when it is attached.
    pub devices: Vec<Vec<Mode>>,
    /// The backing of the regions, drawn from these.
    pub backings: Vec<Backing>,
    /// How many pages each device has room for.
    pub frames: u64,
}

impl Shape {
    /// Three address spaces of 4 KiB pages, 256 in all, the last of which only devices see, at the addresses of the first; and four devices, all
    /// exclusive. With 32 frames each, they hold half of it.
    pub fn standard() -> Self {
        let space = |base: u64, pages, cpu_visible| SpaceShape { base: VirtAddr::new(base), pages, cpu_visible };
        Self {
            page_size: PageSize::Size4K,
            spaces: vec![space(0x10_0000_0000, 96, true), space(0x20_0000_0000, 96, true), space(0x10_0000_0000, 64, false)],
            devices: vec![vec![Mode::CoherentExclusive]; 4],
            backings: vec![Backing::Shared],
            frames: 32,
        }
    }

    /// The addresses of an address space.
    pub fn space_range(&self, space: usize) -> VirtRange {
        let SpaceShape { base, pages, .. } = self.spaces[space];
        VirtRange::from_len(base, ByteLen(pages * self.page_size.bytes())).expect("an address space has pages and does not wrap")
    }

    /// The addresses of some pages.
    pub fn range(&self, run: &PageRun) -> VirtRange {
        let size = self.page_size.bytes();
        let start = VirtAddr::new(self.spaces[run.space].base.get() + run.first * size);
        VirtRange::from_len(start, ByteLen(run.count * size)).expect("a run of pages is never empty")
    }

    /// The address of some bytes.
    pub fn va(&self, spot: &Spot) -> VirtAddr {
        VirtAddr::new(self.spaces[spot.space].base.get() + spot.page * self.page_size.bytes() + spot.offset)
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
