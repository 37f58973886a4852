//! From bytes to operations.

use super::write::{ABSOLUTE, letter};
use crate::judged::Point;
use gmem_hal::Prot;
use gmem_sim::Callback;
use gmem_sim::random::{Model, Op, PageRun, Spot};

/// The bytes that are left.
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// The next byte; zero at the end.
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn pair(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// The next byte as an index.
    fn index(&mut self, len: usize) -> usize {
        usize::from(self.byte()) % len
    }

    /// The calls that fail: none to three.
    pub(super) fn points(&mut self) -> Vec<Point> {
        (0..self.byte() % 4).map(|_| self.point()).collect()
    }

    fn point(&mut self) -> Point {
        let callback = Callback::ALL[self.index(Callback::ALL.len())];
        let errors = callback.errors();
        Point { callback, error: errors[self.index(errors.len())], n: 1 + u64::from(self.pair()) % 1024 }
    }

    /// The next operation that can be done to a world in the state of `model`; `None` at the end.
    pub(super) fn op(&mut self, model: &Model) -> Option<Op> {
        while !self.0.is_empty() {
            let op = self.one(model);
            // What discarding a pinned page means is left open, and the model cannot follow what is open.
            if !matches!(op, Op::Discard(run) if model.is_pinned(&run)) {
                return Some(op);
            }
        }
        None
    }

    fn one(&mut self, model: &Model) -> Op {
        let shape = model.shape().clone();
        let letter = self.byte() % letter::COUNT;
        let device = |bytes: &mut Self| bytes.index(shape.devices.len());
        let space = |bytes: &mut Self| bytes.index(shape.spaces.len());
        match letter {
            letter::MAP => {
                let (run, prot) = (self.run(model), self.prot());
                Op::Map(run, prot, shape.backings[self.index(shape.backings.len())])
            }
            letter::UNMAP => Op::Unmap(self.run(model)),
            letter::PROTECT => Op::Protect(self.run(model), self.prot()),
            letter::CPU_READ => Op::CpuRead(self.spot(model)),
            letter::CPU_WRITE => Op::CpuWrite(self.spot(model), self.byte()),
            letter::DEV_READ => Op::DevRead(device(self), self.spot(model)),
            letter::DEV_WRITE => Op::DevWrite(device(self), self.spot(model), self.byte()),
            letter::ATTACH => {
                let (space, device) = (space(self), device(self));
                let modes = &shape.devices[device];
                Op::Attach { space, device, mode: modes[self.index(modes.len())], activate: self.byte() & 1 != 0 }
            }
            letter::DETACH => Op::Detach(space(self), device(self)),
            letter::EVICT => Op::Evict(device(self), 1 + self.index(16)),
            letter::PREFETCH => Op::Prefetch(self.run(model), None),
            letter::PREFETCH_TO => Op::Prefetch(self.run(model), Some(device(self))),
            letter::DISCARD => Op::Discard(self.run(model)),
            letter::PIN => Op::Pin(PageRun { count: 1, ..self.run(model) }),
            letter::UNPIN => Op::Unpin(PageRun { count: 1, ..self.run(model) }),
            letter::SWITCH => Op::Switch(device(self), None),
            letter::SWITCH_TO => Op::Switch(device(self), Some(space(self))),
            letter::LAUNCH => self.launch(model),
            letter::LOSE => Op::Lose(device(self), self.byte() & 1 != 0),
            letter::LIMIT => Op::Limit(device(self), shape.frames / 2 + self.index(shape.frames as usize / 2 + 1) as u64),
            letter::MEMORY => Op::Memory(device(self)),
            letter::KERNEL_PIN => Op::KernelPin(Spot { offset: 0, len: 1, ..self.spot(model) }),
            _ => Op::KernelUnpin(Spot { offset: 0, len: 1, ..self.spot(model) }),
        }
    }

    fn prot(&mut self) -> Prot {
        if self.byte() & 1 != 0 { Prot::READ } else { Prot::RW }
    }

    /// An address space and a page of it.
    fn page(&mut self, model: &Model) -> (usize, u64) {
        let space = self.index(model.shape().spaces.len());
        let (byte, pages) = (u64::from(self.byte()), model.shape().spaces[space].pages);
        let mapped = || (0..pages).filter(|page| model.prot(space, *page).is_some());
        let chosen = byte.checked_sub(ABSOLUTE).and_then(|n| mapped().nth(n as usize % mapped().count().max(1)));
        (space, chosen.unwrap_or(byte % pages))
    }

    fn run(&mut self, model: &Model) -> PageRun {
        let (space, first) = self.page(model);
        let left = model.shape().spaces[space].pages - first;
        PageRun { space, first, count: 1 + u64::from(self.byte()) % left }
    }

    fn spot(&mut self, model: &Model) -> Spot {
        let (space, page) = self.page(model);
        let size = model.shape().page_size.bytes();
        let offset = (u64::from(self.pair()) * size) >> 16;
        Spot { space, page, offset, len: 1 + u64::from(self.byte()) % (size - offset).min(64) }
    }

    /// A launch on some pages of a region, few enough that half of the device's memory holds them.
    fn launch(&mut self, model: &Model) -> Op {
        let (device, spot) = (self.index(model.shape().devices.len()), self.spot(model));
        let one = PageRun { space: spot.space, first: spot.page, count: 1 };
        let region = model.region_of(spot.space, spot.page).unwrap_or(one);
        let most = (model.shape().frames / 4).max(1);
        let before = u64::from(self.byte()) % (spot.page - region.first + 1).min(most);
        let first = spot.page - before;
        let most = (region.first + region.count - first).min(most);
        let run = PageRun { first, count: (1 + u64::from(self.byte()) % most).max(before + 1), ..one };
        Op::Launch(device, run, spot, self.byte())
    }
}
