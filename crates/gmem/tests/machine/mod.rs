//! A machine with software accelerators, as a world that random operations can be done to by way of the facade.

mod kernels;
mod refusal;

use gmem::{Access, AddressSpace, Args, Backing, Context, Delivery, Device, Gmem, Mode, PageSize, Prot, Region, Stats, VirtRange, accel};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Shape, SpaceShape, Spot};
use kernels::{CHECK, FETCH, FILL, hash};
use refusal::{outcome, refused};
use std::collections::BTreeMap;

/// Frames of each device but the peer: the three of them hold less than half of all pages.
const FRAMES: u64 = 32;

/// Which device is the integrated one: its kernels are threads of this process, so what they must not touch ends it.
const INTEGRATED: usize = 4;

/// Three address spaces of 4 KiB pages, 256 in all, the last of which only devices see, at the addresses of the first. Four devices with memory of their own,
/// one of them a peer, and one without.
pub(crate) fn shape() -> Shape {
    let space = |base: u64, pages, cpu_visible| SpaceShape { base: gmem::VirtAddr::new(base), pages, larger: &[], cpu_visible };
    let exclusive = vec![Mode::CoherentExclusive];
    let either = vec![Mode::CoherentExclusive, Mode::Replicate];
    Shape {
        page_size: PageSize::Size4K,
        spaces: vec![space(0x1100_0000_0000, 96, true), space(0x1200_0000_0000, 96, true), space(0x1100_0000_0000, 64, false)],
        devices: vec![exclusive.clone(), exclusive, either, vec![Mode::Replicate], vec![Mode::Share]],
        backings: vec![Backing::Shared, Backing::Shared, Backing::Private],
        frames: FRAMES,
    }
}

/// The world.
pub(crate) struct Machine {
    // Contexts and regions first: what they use is dropped after them.
    contexts: BTreeMap<(usize, usize), Context>,
    regions: Vec<Vec<Region>>,
    /// Where devices bring what they load, one page per address space that the CPU sees.
    scratch: Vec<Option<Region>>,
    prot: Vec<Vec<Option<Prot>>>,
    expected: Vec<u8>,
    spaces: Vec<AddressSpace>,
    devices: Vec<Device>,
    shape: Shape,
    gmem: Gmem,
}

impl Machine {
    pub(crate) fn new(shape: &Shape) -> Self {
        let gmem = Gmem::new().expect("this machine runs gmem");
        let memory = FRAMES * shape.page_size.bytes();
        // A peer gives each of its contexts memory of its own, 2 MiB at a time, and takes none back while the context lives.
        let of_peer = shape.spaces.len() as u64 * PageSize::Size2M.bytes();
        let discrete = |peer, cores| {
            let memory = if peer { of_peer } else { memory };
            let device = accel::Discrete::builder().memory(memory).cores(cores).peer(peer).build().expect("it is described well");
            gmem.add_device(device).expect("it can be added")
        };
        let mut devices = vec![discrete(false, 1), discrete(true, 1), discrete(false, 2), discrete(false, 1)];
        let integrated = accel::Integrated::builder().cores(1).build().expect("it is described well");
        devices.insert(INTEGRATED, gmem.add_device(integrated).expect("it can be added"));
        let mut spaces = Vec::new();
        let mut scratch = Vec::new();
        for (n, space) in shape.spaces.iter().enumerate() {
            // 2 MiB more than the pages need: for the scratch page.
            let range = shape.space_range(n).align_outward(PageSize::Size2M).expect("it does not wrap");
            let len = range.len().get() + PageSize::Size2M.bytes();
            let builder = gmem.address_space().at(range.start()).len(len);
            let made = if space.cpu_visible { builder } else { builder.devices_only() }.create().expect("these addresses are free");
            let page = || made.region().page_size(shape.page_size).at(range.end()).map(shape.page_size.bytes()).expect("there is room");
            scratch.push(space.cpu_visible.then(page));
            spaces.push(made);
        }
        Self {
            contexts: BTreeMap::new(),
            regions: shape.spaces.iter().map(|_| Vec::new()).collect(),
            scratch,
            prot: shape.spaces.iter().map(|space| vec![None; space.pages as usize]).collect(),
            expected: Vec::new(),
            spaces,
            devices,
            shape: shape.clone(),
            gmem,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.gmem.stats()
    }

    /// What the next load must find. Where the CPU does not see an address space it is the device that compares.
    pub(crate) fn expect(&mut self, bytes: Vec<u8>) {
        self.expected = bytes;
    }

    /// The background evictor may be at work while the tables are walked; what is wrong stays wrong.
    pub(crate) fn verify(&self) -> Result<(), String> {
        let mut result = self.gmem.verify();
        for _ in 0..5 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            result = self.gmem.verify();
        }
        result
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Map(run, prot, backing) => self.map(&run, prot, backing),
            Op::Unmap(run) => self.unmap(&run),
            Op::Protect(run, prot) => self.protect(&run, prot),
            Op::CpuRead(spot) => self.cpu_read(&spot),
            Op::CpuWrite(spot, fill) => self.cpu_write(&spot, fill),
            Op::DevRead(device, spot) => self.device_read(device, &spot),
            Op::DevWrite(device, spot, fill) => self.device_write(device, &spot, fill),
            Op::Attach { space, device, mode, .. } => match self.spaces[space].attach(&self.devices[device], mode) {
                Ok(context) => {
                    self.contexts.insert((space, device), context);
                    Outcome::Done
                }
                Err(error) => refused(&error),
            },
            Op::Detach(space, device) => match self.contexts.remove(&(space, device)) {
                Some(context) => outcome(context.detach().map_err(Into::into)),
                None => Outcome::Refused(Refusal::Invalid),
            },
            Op::Evict(device, pages) => {
                self.devices[device].evict(pages);
                Outcome::Done
            }
            Op::Prefetch(run, device) => {
                let device = device.map(|device| &self.devices[device]);
                outcome(self.spaces[run.space].prefetch(self.shape.range(&run), device, Access::Read))
            }
            Op::Discard(run) => self.in_regions(&run, |region, range| region.discard(range)),
            Op::Pin(run) => outcome(self.spaces[run.space].pin(self.shape.range(&run))),
            Op::Unpin(run) => outcome(self.spaces[run.space].unpin(self.shape.range(&run))),
            Op::Switch(..) | Op::Launch(..) | Op::Lose(..) | Op::Limit(..) | Op::Memory(_) | Op::KernelPin(_) | Op::KernelUnpin(_) => {
                unreachable!("{op:?} is not drawn for the facade")
            }
        }
    }

    fn pages(&mut self, run: &PageRun) -> &mut [Option<Prot>] {
        &mut self.prot[run.space][run.first as usize..(run.first + run.count) as usize]
    }

    fn map(&mut self, run: &PageRun, prot: Prot, backing: Backing) -> Outcome {
        let range = self.shape.range(run);
        // Private regions are in the second address space alone, because no replica can be attached where one is; and that one resolves its other faults in
        // the faulting thread.
        let backing = if run.space == 1 { backing } else { Backing::Shared };
        let delivery = if run.space == 1 && backing == Backing::Shared { Delivery::InThread } else { Delivery::Service };
        let region = self.spaces[run.space].region().page_size(self.shape.page_size).backing(backing).delivery(delivery).prot(prot);
        match region.at(range.start()).map(range.len().get()) {
            Ok(region) => {
                self.regions[run.space].push(region);
                self.pages(run).fill(Some(prot));
                Outcome::Done
            }
            Err(error) => refused(&error),
        }
    }

    fn unmap(&mut self, run: &PageRun) -> Outcome {
        let outcome = self.in_regions(run, |region, range| region.unmap(range));
        self.pages(run).fill(None);
        let mapped = &self.prot[run.space];
        let base = self.shape.spaces[run.space].base.get();
        let size = self.shape.page_size;
        // A region of which nothing is mapped any more is dropped, which must unmap nothing of those that took its place.
        let ours = |region: &Region| {
            region.range().pages(size).any(|page| mapped[((page.start().get() - base) >> size.shift()) as usize].is_some())
        };
        self.regions[run.space].retain(ours);
        outcome
    }

    fn protect(&mut self, run: &PageRun, prot: Prot) -> Outcome {
        let outcome = self.in_regions(run, |region, range| region.protect(range, prot));
        if outcome == Outcome::Done {
            self.pages(run).iter_mut().flatten().for_each(|page| *page = prot);
        }
        outcome
    }

    /// Calls `call` for each run of mapped pages, by each region it may be a part of.
    fn in_regions(&self, run: &PageRun, call: impl Fn(&Region, VirtRange) -> Result<(), gmem::Error>) -> Outcome {
        for page in self.shape.range(run).pages(self.shape.page_size) {
            for region in &self.regions[run.space] {
                match region.range().intersection(page).map(|page| call(region, page)) {
                    // Not its page any more: it was unmapped, and is another's or nobody's.
                    None | Some(Ok(()) | Err(gmem::Error::Range(gmem_core::RangeError::NotMapped(_)))) => {}
                    Some(Err(error)) => return refused(&error),
                }
            }
        }
        Outcome::Done
    }

    /// Whether the CPU, or a thread of this process that stands for a device, may touch the bytes.
    fn may_touch(&self, spot: &Spot, access: Access) -> bool {
        self.shape.spaces[spot.space].cpu_visible && self.prot[spot.space][spot.page as usize].is_some_and(|prot| prot.allows(access))
    }

    fn cpu_read(&self, spot: &Spot) -> Outcome {
        if !self.may_touch(spot, Access::Read) {
            return Outcome::Refused(Refusal::Invalid);
        }
        // SAFETY: the page is mapped readable, and nobody else runs now.
        Outcome::Loaded(unsafe { kernels::load(self.shape.va(spot).get(), spot.len) })
    }

    fn cpu_write(&self, spot: &Spot, fill: u8) -> Outcome {
        if !self.may_touch(spot, Access::Write) {
            return Outcome::Refused(Refusal::Invalid);
        }
        // SAFETY: the page is mapped writable, and nobody else runs now.
        unsafe { kernels::store(self.shape.va(spot).get(), &spot.bytes(fill)) };
        Outcome::Done
    }

    fn launchable(&self, device: usize, spot: &Spot, access: Access) -> Option<&Context> {
        let context = self.contexts.get(&(spot.space, device))?;
        (device != INTEGRATED || self.may_touch(spot, access)).then_some(context)
    }

    fn device_write(&self, device: usize, spot: &Spot, fill: u8) -> Outcome {
        let Some(context) = self.launchable(device, spot, Access::Write) else { return Outcome::Refused(Refusal::Invalid) };
        let args = Args::new().number(self.shape.va(spot).get()).number(spot.offset).number(spot.len).number(fill);
        // SAFETY: the kernel writes only the bytes of the spot, which nobody borrows.
        outcome(unsafe { context.run(&FILL, args) })
    }

    fn device_read(&self, device: usize, spot: &Spot) -> Outcome {
        let Some(context) = self.launchable(device, spot, Access::Read) else { return Outcome::Refused(Refusal::Invalid) };
        let args = Args::new().number(self.shape.va(spot).get()).number(spot.len);
        let Some(scratch) = &self.scratch[spot.space] else {
            // SAFETY: the kernel reads only the bytes of the spot, which nobody borrows.
            return match unsafe { context.run(&CHECK, args.number(hash(&self.expected))) } {
                Ok(()) => Outcome::Loaded(self.expected.clone()),
                Err(gmem::Error::Launch(gmem::hal::LaunchError::Panicked(_))) => {
                    Outcome::Loaded(self.expected.iter().map(|byte| !byte).collect())
                }
                Err(error) => refused(&error),
            };
        };
        let to = scratch.range().start().get();
        // SAFETY: the kernel reads the bytes of the spot and writes as many to the scratch page; nobody borrows either.
        match unsafe { context.run(&FETCH, args.number(to)) } {
            // SAFETY: the scratch page is mapped, and nobody else runs now.
            Ok(()) => Outcome::Loaded(unsafe { kernels::load(to, spot.len) }),
            Err(error) => refused(&error),
        }
    }
}
