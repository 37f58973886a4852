//! From operations to bytes: how a corpus begins.

use crate::judged::Point;
use crate::worlds::Kind;
use gmem_hal::Prot;
use gmem_sim::Callback;
use gmem_sim::random::{Op, PageRun, Shape, Spot};

/// Pages from here on are counted among the mapped ones.
pub(super) const ABSOLUTE: u64 = 128;

/// What an operation begins with.
pub(super) mod letter {
    pub(crate) const MAP: u8 = 0;
    pub(crate) const UNMAP: u8 = 1;
    pub(crate) const PROTECT: u8 = 2;
    pub(crate) const CPU_READ: u8 = 3;
    pub(crate) const CPU_WRITE: u8 = 4;
    pub(crate) const DEV_READ: u8 = 5;
    pub(crate) const DEV_WRITE: u8 = 6;
    pub(crate) const ATTACH: u8 = 7;
    pub(crate) const DETACH: u8 = 8;
    pub(crate) const EVICT: u8 = 9;
    pub(crate) const PREFETCH: u8 = 10;
    pub(crate) const PREFETCH_TO: u8 = 11;
    pub(crate) const DISCARD: u8 = 12;
    pub(crate) const PIN: u8 = 13;
    pub(crate) const UNPIN: u8 = 14;
    pub(crate) const SWITCH: u8 = 15;
    pub(crate) const SWITCH_TO: u8 = 16;
    pub(crate) const LAUNCH: u8 = 17;
    pub(crate) const LOSE: u8 = 18;
    pub(crate) const LIMIT: u8 = 19;
    pub(crate) const MEMORY: u8 = 20;
    pub(crate) const KERNEL_PIN: u8 = 21;
    pub(crate) const KERNEL_UNPIN: u8 = 22;
    pub(crate) const COUNT: u8 = 23;
}

/// A run to be written down.
pub struct Script {
    /// The kind of world.
    pub kind: Kind,
    /// The seed of its machine.
    pub seed: u8,
    /// The calls that fail, three at most.
    pub points: Vec<Point>,
    /// What is done.
    pub ops: Vec<Op>,
}

impl Script {
    /// The bytes that [`super::run`] takes for this. `None` if there are none: the kind is not listed, too much fails, or an operand is one that bytes
    /// cannot say.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let kind = (0..=u8::MAX).find(|byte| super::kind(*byte).name == self.kind.name)?;
        let count = u8::try_from(self.points.len()).ok().filter(|count| *count < 4)?;
        let mut out = vec![kind, self.seed, count];
        for point in &self.points {
            let callback = Callback::ALL.iter().position(|callback| *callback == point.callback)?;
            let error = point.callback.errors().iter().position(|error| *error == point.error)?;
            let n = u16::try_from(point.n.checked_sub(1)?).ok().filter(|n| *n < 1024)?;
            out.extend([u8::try_from(callback).ok()?, u8::try_from(error).ok()?]);
            out.extend(n.to_le_bytes());
        }
        let mut writer = Writer { shape: self.kind.shape(), out };
        self.ops.iter().try_for_each(|op| writer.op(op))?;
        Some(writer.out)
    }
}

struct Writer {
    shape: Shape,
    out: Vec<u8>,
}

impl Writer {
    fn op(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Map(run, prot, backing) => {
                self.run(letter::MAP, &run)?;
                let backing = self.shape.backings.iter().position(|one| *one == backing)?;
                self.out.extend([read_only(prot), small(backing)?]);
            }
            Op::Unmap(run) => self.run(letter::UNMAP, &run)?,
            Op::Protect(run, prot) => {
                self.run(letter::PROTECT, &run)?;
                self.out.push(read_only(prot));
            }
            Op::CpuRead(spot) => self.spot(letter::CPU_READ, None, &spot)?,
            Op::CpuWrite(spot, fill) => {
                self.spot(letter::CPU_WRITE, None, &spot)?;
                self.out.push(fill);
            }
            Op::DevRead(device, spot) => self.spot(letter::DEV_READ, Some(device), &spot)?,
            Op::DevWrite(device, spot, fill) => {
                self.spot(letter::DEV_WRITE, Some(device), &spot)?;
                self.out.push(fill);
            }
            Op::Attach { space, device, mode, activate } => {
                let mode = self.shape.devices.get(device)?.iter().position(|one| *one == mode)?;
                self.out.extend([letter::ATTACH, small(space)?, small(device)?, small(mode)?, activate.into()]);
            }
            Op::Detach(space, device) => self.out.extend([letter::DETACH, small(space)?, small(device)?]),
            Op::Evict(device, pages) => {
                let pages = pages.checked_sub(1).filter(|pages| *pages < 16)?;
                self.out.extend([letter::EVICT, small(device)?, small(pages)?]);
            }
            Op::Prefetch(run, None) => self.run(letter::PREFETCH, &run)?,
            Op::Prefetch(run, Some(device)) => {
                self.run(letter::PREFETCH_TO, &run)?;
                self.out.push(small(device)?);
            }
            Op::Discard(run) => self.run(letter::DISCARD, &run)?,
            // One page each: the bytes know no other.
            Op::Pin(run) => each(&run).try_for_each(|one| self.run(letter::PIN, &one))?,
            Op::Unpin(run) => each(&run).try_for_each(|one| self.run(letter::UNPIN, &one))?,
            Op::Switch(device, None) => self.out.extend([letter::SWITCH, small(device)?]),
            Op::Switch(device, Some(space)) => self.out.extend([letter::SWITCH_TO, small(device)?, small(space)?]),
            Op::Launch(device, run, spot, fill) => {
                self.spot(letter::LAUNCH, Some(device), &spot)?;
                let before = spot.page.checked_sub(run.first).filter(|_| run.space == spot.space)?;
                self.out.extend([u8::try_from(before).ok()?, u8::try_from(run.count.checked_sub(1)?).ok()?, fill]);
            }
            Op::Lose(device, told) => self.out.extend([letter::LOSE, small(device)?, told.into()]),
            Op::Limit(device, pages) => {
                let pages = pages.checked_sub(self.shape.frames / 2).filter(|pages| *pages <= self.shape.frames / 2)?;
                self.out.extend([letter::LIMIT, small(device)?, u8::try_from(pages).ok()?]);
            }
            Op::Memory(device) => self.out.extend([letter::MEMORY, small(device)?]),
            Op::KernelPin(spot) => self.spot(letter::KERNEL_PIN, None, &spot)?,
            Op::KernelUnpin(spot) => self.spot(letter::KERNEL_UNPIN, None, &spot)?,
        }
        Some(())
    }

    fn page(&mut self, space: usize, page: u64) -> Option<()> {
        self.out.extend([small(space)?, u8::try_from(page).ok().filter(|page| u64::from(*page) < ABSOLUTE)?]);
        Some(())
    }

    fn run(&mut self, letter: u8, run: &PageRun) -> Option<()> {
        self.out.push(letter);
        self.page(run.space, run.first)?;
        self.out.push(u8::try_from(run.count.checked_sub(1)?).ok()?);
        Some(())
    }

    fn spot(&mut self, letter: u8, device: Option<usize>, spot: &Spot) -> Option<()> {
        self.out.push(letter);
        if let Some(device) = device {
            self.out.push(small(device)?);
        }
        self.page(spot.space, spot.page)?;
        let size = self.shape.page_size.bytes();
        let offset = (spot.offset << 16).div_ceil(size);
        ((offset * size) >> 16 == spot.offset).then_some(())?;
        self.out.extend(u16::try_from(offset).ok()?.to_le_bytes());
        self.out.push(u8::try_from(spot.len.checked_sub(1)?).ok().filter(|len| *len < 64)?);
        Some(())
    }
}

fn small(index: usize) -> Option<u8> {
    u8::try_from(index).ok()
}

fn read_only(prot: Prot) -> u8 {
    (prot != Prot::RW).into()
}

fn each(run: &PageRun) -> impl Iterator<Item = PageRun> {
    let (space, first, count) = (run.space, run.first, run.count);
    (first..first + count).map(move |first| PageRun { space, first, count: 1 })
}
