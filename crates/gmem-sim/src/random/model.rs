//! What memory must contain, who may touch it, and what a world may answer. As flat and as simple as it can be: this is what is right.

use super::ops::{Op, Outcome, PageRun, Refusal, Shape, Spot};
use gmem_hal::{Access, Backing, Mode, Prot};

/// One page.
#[derive(Clone, Debug)]
struct Page {
    /// The number of the region it belongs to, if it is mapped.
    region: Option<u32>,
    prot: Option<Prot>,
    /// What it may contain, never nothing: one content, and one more for each discard that was refused and may have come that far.
    contents: Vec<Content>,
    pins: u32,
    /// How often the kernel holds it for I/O: it cannot leave its home.
    kernel_pins: u32,
}

/// The bytes of a page; none is all zeros.
type Content = Option<Box<[u8]>>;

impl Page {
    fn unmapped() -> Self {
        Self { region: None, prot: None, contents: vec![None], pins: 0, kernel_pins: 0 }
    }
}

/// What else a world may answer than what is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tolerance {
    /// Callbacks are made to fail: any operation may end with [`Refusal::Failed`] or [`Refusal::NoRoom`].
    pub failures: bool,
}

/// Whether an operation makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sense {
    Valid,
    Invalid,
    /// The rules leave it open.
    Open,
}

/// The model of a world.
#[derive(Clone, Debug)]
pub struct Model {
    shape: Shape,
    pages: Vec<Vec<Page>>,
    /// Per address space and device.
    attached: Vec<Vec<Option<Mode>>>,
    /// The same: the context was lost with its device, and does nothing until it is detached.
    lost: Vec<Vec<bool>>,
    regions: u32,
}

impl Model {
    /// A world in which nothing has happened.
    pub fn new(shape: Shape) -> Self {
        let pages = shape.spaces.iter().map(|s| vec![Page::unmapped(); s.pages as usize]).collect();
        let attached = vec![vec![None; shape.devices.len()]; shape.spaces.len()];
        let lost = vec![vec![false; shape.devices.len()]; shape.spaces.len()];
        Self { shape, pages, attached, lost, regions: 0 }
    }

    /// The size of the world.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How a device is attached to an address space.
    pub fn attached(&self, space: usize, device: usize) -> Option<Mode> {
        self.attached[space][device]
    }

    /// Whether a device is attached to an address space and can do something there.
    pub fn works(&self, space: usize, device: usize) -> bool {
        self.attached[space][device].is_some() && !self.lost[space][device]
    }

    /// Whether the kernel pins a page.
    pub fn is_kernel_pinned(&self, space: usize, page: u64) -> bool {
        self.pages[space][page as usize].kernel_pins > 0
    }

    /// What may be done to a page; `None` if it is not mapped.
    pub fn prot(&self, space: usize, page: u64) -> Option<Prot> {
        self.pages[space][page as usize].prot
    }

    /// Whether a page of the run is pinned.
    pub fn is_pinned(&self, run: &PageRun) -> bool {
        self.run(run).iter().any(|page| page.pins > 0)
    }

    /// The pages of the region around a page, if it is mapped.
    pub fn region_of(&self, space: usize, page: u64) -> Option<PageRun> {
        let pages = &self.pages[space];
        let region = pages[page as usize].region?;
        let same = |p: &&Page| p.region == Some(region);
        let before = pages[..page as usize].iter().rev().take_while(same).count() as u64;
        let after = pages[page as usize..].iter().take_while(same).count() as u64;
        Some(PageRun { space, first: page - before, count: before + after })
    }

    /// What these bytes must be, or may be if a discard was refused.
    pub fn bytes(&self, spot: &Spot) -> Vec<u8> {
        part(self.pages[spot.space][spot.page as usize].contents[0].as_deref(), spot)
    }

    fn run(&self, run: &PageRun) -> &[Page] {
        &self.pages[run.space][run.first as usize..(run.first + run.count) as usize]
    }

    fn run_mut(&mut self, run: &PageRun) -> &mut [Page] {
        &mut self.pages[run.space][run.first as usize..(run.first + run.count) as usize]
    }

    /// Pages of one region make sense; what holes and several regions mean is left open.
    fn sense_of_run(&self, run: &PageRun) -> Sense {
        let first = self.run(run)[0].region;
        let whole = first.is_some() && self.run(run).iter().all(|page| page.region == first);
        if whole { Sense::Valid } else { Sense::Open }
    }

    fn sense_of_access(&self, spot: &Spot, access: Access) -> Sense {
        let page = &self.pages[spot.space][spot.page as usize];
        match page.prot {
            Some(prot) if prot.allows(access) && page.pins == 0 => Sense::Valid,
            // Whether a pinned page may be touched from where it is not, depends on where it was pinned.
            Some(prot) if prot.allows(access) => Sense::Open,
            _ => Sense::Invalid,
        }
    }

    fn sense_of_device(&self, device: usize, spot: &Spot, access: Access) -> Sense {
        let mode = self.attached[spot.space][device];
        let open = self.pages[spot.space][spot.page as usize].kernel_pins > 0
            // The one whose table it shares may be gone.
            || mode == Some(Mode::Share) && self.lost[spot.space].contains(&true);
        match self.sense_of_access(spot, access) {
            _ if !self.works(spot.space, device) => Sense::Invalid,
            Sense::Valid if open => Sense::Open,
            sense => sense,
        }
    }

    fn sense_of_launch(&self, device: usize, run: &PageRun) -> Sense {
        let senses = (run.first..run.first + run.count).map(|page| {
            let spot = Spot { space: run.space, page, offset: 0, len: 1 };
            self.sense_of_device(device, &spot, Access::Write)
        });
        senses.fold(Sense::Valid, |all, one| match (all, one) {
            (Sense::Invalid, _) | (_, Sense::Invalid) => Sense::Invalid,
            (Sense::Open, _) | (_, Sense::Open) => Sense::Open,
            _ => Sense::Valid,
        })
    }

    fn sense(&self, op: &Op) -> Sense {
        let valid_if = |condition| if condition { Sense::Valid } else { Sense::Invalid };
        match op {
            Op::Map(run, _, backing) => {
                // A device that is given host memory cannot be given private memory.
                let replicated = self.attached[run.space].contains(&Some(Mode::Replicate));
                let free = self.run(run).iter().all(|page| page.region.is_none());
                if free && replicated && *backing == Backing::Private { Sense::Open } else { valid_if(free) }
            }
            Op::Unmap(run) | Op::Discard(run) if self.is_pinned(run) => Sense::Open,
            // Private memory does not leave the kernel's hands for it.
            Op::Discard(run) | Op::Protect(run, _) if self.run(run).iter().any(|page| page.kernel_pins > 0) => Sense::Open,
            Op::Unmap(run) | Op::Protect(run, _) | Op::Discard(run) => self.sense_of_run(run),
            Op::Prefetch(run, Some(device)) if self.attached[run.space][*device].is_none() => match self.sense_of_run(run) {
                Sense::Valid => Sense::Invalid,
                other => other,
            },
            Op::Prefetch(..) | Op::Pin(_) => Sense::Open,
            Op::Unpin(run) if !self.is_pinned(run) => Sense::Open,
            Op::Unpin(run) => valid_if(self.run(run).iter().all(|page| page.pins > 0)),
            Op::CpuRead(spot) | Op::CpuWrite(spot, _) if !self.shape.spaces[spot.space].cpu_visible => Sense::Invalid,
            Op::CpuRead(spot) => self.sense_of_access(spot, Access::Read),
            Op::CpuWrite(spot, _) => self.sense_of_access(spot, Access::Write),
            Op::DevRead(device, spot) => self.sense_of_device(*device, spot, Access::Read),
            Op::DevWrite(device, spot, _) => self.sense_of_device(*device, spot, Access::Write),
            Op::Attach { space, device, mode, .. } => match (self.attached[*space][*device], mode) {
                (Some(_), _) => Sense::Invalid,
                (None, Mode::CoherentExclusive) => Sense::Valid,
                // Sharing needs an equal cookie, replicating needs shared backing.
                (None, Mode::Share | Mode::Replicate) => Sense::Open,
            },
            Op::Detach(space, device) => match self.attached[*space][*device] {
                None => Sense::Invalid,
                Some(_) if self.pages[*space].iter().any(|page| page.pins > 0) => Sense::Open,
                // Another may share its table.
                Some(mode) if mode != Mode::Share && self.attached[*space].contains(&Some(Mode::Share)) => Sense::Open,
                Some(_) => Sense::Valid,
            },
            Op::Evict(..) | Op::Lose(..) => Sense::Valid,
            Op::Launch(device, run, ..) => self.sense_of_launch(*device, run),
            Op::Limit(..) | Op::Memory(_) | Op::KernelUnpin(_) => Sense::Open,
            Op::KernelPin(spot) if !self.shape.spaces[spot.space].cpu_visible => Sense::Invalid,
            Op::KernelPin(spot) => self.sense_of_access(spot, Access::Read),
            Op::Switch(device, Some(space)) if self.lost[*space].iter().any(|lost| *lost) => {
                if self.attached[*space][*device].is_some() {
                    Sense::Open
                } else {
                    Sense::Invalid
                }
            }
            Op::Switch(device, space) => valid_if(space.is_none_or(|space| self.attached[space][*device].is_some())),
        }
    }

    /// Judges what a world answered, and follows it.
    pub fn judge(&mut self, op: &Op, outcome: &Outcome, tolerance: Tolerance) -> Result<(), String> {
        let sense = self.sense(op);
        match outcome {
            Outcome::Refused(Refusal::Invalid) if sense == Sense::Valid => Err("it was refused as invalid, but is valid".into()),
            Outcome::Refused(refusal @ (Refusal::NoRoom | Refusal::Failed)) if sense == Sense::Valid && !tolerance.failures => {
                // With pages pinned everywhere there may be no room, and that is nobody's fault.
                let excused = *refusal == Refusal::NoRoom && self.pages.iter().flatten().any(|page| page.pins > 0);
                if excused {
                    self.refused(op);
                    Ok(())
                } else {
                    Err(format!("it was refused ({refusal:?}), but nothing stood in its way"))
                }
            }
            Outcome::Refused(_) => {
                self.refused(op);
                Ok(())
            }
            Outcome::Done | Outcome::Loaded(_) if sense == Sense::Invalid => Err("it was done, but is not allowed".into()),
            Outcome::Done => {
                self.apply(op);
                Ok(())
            }
            Outcome::Loaded(bytes) => self.judge_bytes(op, bytes),
        }
    }

    fn judge_bytes(&mut self, op: &Op, bytes: &[u8]) -> Result<(), String> {
        let (Op::CpuRead(spot) | Op::DevRead(_, spot)) = op else { return Err("it loaded bytes, but is no load".into()) };
        let right = self.bytes(spot);
        if right.len() != bytes.len() {
            return Err(format!("it loaded {} bytes, not {}", bytes.len(), right.len()));
        }
        let page = &mut self.pages[spot.space][spot.page as usize];
        if page.contents.iter().any(|content| part(content.as_deref(), spot) == bytes) {
            page.contents.retain(|content| part(content.as_deref(), spot) == bytes);
            return Ok(());
        }
        let at = right.iter().zip(bytes).position(|(right, loaded)| right != loaded).expect("no content is equal");
        let (loaded, right, byte) = (bytes[at], right[at], spot.offset + at as u64);
        Err(format!("byte {byte:#x} of page {} of space {} is {loaded:#04x}, but must be {right:#04x}", spot.page, spot.space))
    }

    /// A call that was refused changed nothing that can be seen, with one exception: a discard may have come half-way.
    fn refused(&mut self, op: &Op) {
        if let Op::Discard(run) = op {
            for page in self.run_mut(run).iter_mut().filter(|page| !page.contents.contains(&None)) {
                page.contents.push(None);
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Map(run, prot, _) => {
                self.regions += 1;
                let page = Page { region: Some(self.regions), prot: Some(*prot), ..Page::unmapped() };
                self.run_mut(run).fill(page);
            }
            Op::Unmap(run) => self.run_mut(run).fill(Page::unmapped()),
            Op::Protect(run, prot) => self.run_mut(run).iter_mut().filter(|p| p.prot.is_some()).for_each(|p| p.prot = Some(*prot)),
            Op::CpuWrite(spot, fill) | Op::DevWrite(_, spot, fill) => self.store(spot, *fill),
            Op::Attach { space, device, mode, .. } => self.attached[*space][*device] = Some(*mode),
            Op::Detach(space, device) => {
                self.attached[*space][*device] = None;
                self.lost[*space][*device] = false;
            }
            Op::Launch(_, _, spot, fill) => self.store(spot, *fill),
            Op::Lose(device, _) => {
                for (attached, lost) in self.attached.iter().zip(&mut self.lost) {
                    lost[*device] |= attached[*device].is_some_and(|mode| mode != Mode::Share);
                }
            }
            Op::KernelPin(spot) => self.pages[spot.space][spot.page as usize].kernel_pins += 1,
            Op::KernelUnpin(spot) => {
                let pins = &mut self.pages[spot.space][spot.page as usize].kernel_pins;
                *pins = pins.saturating_sub(1);
            }
            Op::Discard(run) => self.run_mut(run).iter_mut().for_each(|page| page.contents = vec![None]),
            Op::Pin(run) => self.run_mut(run).iter_mut().filter(|p| p.region.is_some()).for_each(|p| p.pins += 1),
            Op::Unpin(run) => self.run_mut(run).iter_mut().for_each(|page| page.pins = page.pins.saturating_sub(1)),
            Op::CpuRead(_) | Op::DevRead(..) | Op::Evict(..) | Op::Prefetch(..) | Op::Switch(..) | Op::Limit(..) | Op::Memory(_) => {}
        }
    }

    fn store(&mut self, spot: &Spot, fill: u8) {
        let size = self.shape.size_of(spot.space, spot.page).bytes() as usize;
        let page = &mut self.pages[spot.space][spot.page as usize];
        for content in &mut page.contents {
            let bytes = content.get_or_insert_with(|| vec![0; size].into_boxed_slice());
            bytes[spot.offset as usize..(spot.offset + spot.len) as usize].copy_from_slice(&spot.bytes(fill));
        }
    }

    /// Loads that together look at every byte that can be looked at: by the CPU where it sees the address space, else by a device that is attached.
    pub fn sweep(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for (space, pages) in self.pages.iter().enumerate() {
            let device = (0..self.shape.devices.len()).find(|device| self.works(space, *device));
            for (page, _) in pages.iter().enumerate().filter(|(_, p)| p.prot.is_some_and(|prot| prot.allows(Access::Read))) {
                let spot = Spot { space, page: page as u64, offset: 0, len: self.shape.size_of(space, page as u64).bytes() };
                match device {
                    _ if self.shape.spaces[space].cpu_visible => ops.push(Op::CpuRead(spot)),
                    Some(device) => ops.push(Op::DevRead(device, spot)),
                    None => {}
                }
            }
        }
        ops
    }
}

/// The bytes of a spot of a page with this content.
fn part(content: Option<&[u8]>, spot: &Spot) -> Vec<u8> {
    let (from, to) = (spot.offset as usize, (spot.offset + spot.len) as usize);
    content.map_or_else(|| vec![0; to - from], |bytes| bytes[from..to].to_vec())
}
