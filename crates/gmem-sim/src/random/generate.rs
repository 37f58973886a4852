//! Drawing operations.

use super::model::Model;
use super::ops::{Op, PageRun, Spot};
use crate::Rng;
use gmem_hal::Prot;

/// How often each operation is drawn, relative to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the operations")]
pub struct Weights {
    pub map: u32,
    pub unmap: u32,
    pub protect: u32,
    pub cpu_read: u32,
    pub cpu_write: u32,
    pub dev_read: u32,
    pub dev_write: u32,
    pub attach: u32,
    pub detach: u32,
    pub evict: u32,
    pub prefetch: u32,
    pub discard: u32,
    pub pin: u32,
    pub unpin: u32,
    pub switch: u32,
    pub launch: u32,
    pub lose: u32,
    pub limit: u32,
    pub memory: u32,
    pub kernel_pin: u32,
    pub kernel_unpin: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self::usual()
    }
}

impl Weights {
    /// Mostly accesses, which is what finds wrong bytes; the calls that change the world a few times in a hundred each.
    pub const fn usual() -> Self {
        Self {
            map: 4,
            unmap: 2,
            protect: 3,
            cpu_read: 15,
            cpu_write: 15,
            dev_read: 20,
            dev_write: 20,
            attach: 4,
            detach: 1,
            evict: 3,
            prefetch: 5,
            discard: 3,
            pin: 1,
            unpin: 2,
            switch: 1,
            launch: 0,
            lose: 0,
            limit: 0,
            memory: 0,
            kernel_pin: 0,
            kernel_unpin: 0,
        }
    }

    /// Everything that can happen to a world of simulated devices, whose memory survives them.
    pub const fn everything() -> Self {
        Self { launch: 6, lose: 1, limit: 1, memory: 1, kernel_pin: 1, kernel_unpin: 2, attach: 6, ..Self::usual() }
    }

    const fn list(&self) -> [u32; 21] {
        let Self {
            map,
            unmap,
            protect,
            cpu_read,
            cpu_write,
            dev_read,
            dev_write,
            attach,
            detach,
            evict,
            prefetch,
            discard,
            pin,
            unpin,
            switch,
            launch,
            lose,
            limit,
            memory,
            kernel_pin,
            kernel_unpin,
        } = *self;
        [
            map,
            unmap,
            protect,
            cpu_read,
            cpu_write,
            dev_read,
            dev_write,
            attach,
            detach,
            evict,
            prefetch,
            discard,
            pin,
            unpin,
            switch,
            launch,
            lose,
            limit,
            memory,
            kernel_pin,
            kernel_unpin,
        ]
    }
}

/// Draws operations for a world. It looks at the model so that most of them make sense; some do not, on purpose.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    weights: Weights,
}

/// How often in a thousand an operation is drawn without looking whether it makes sense.
const WILD_PER_MILLE: u16 = 40;

impl Generator {
    /// The generator of a seed.
    pub fn new(seed: u64, weights: Weights) -> Self {
        Self { rng: Rng::stream(seed, 0x6e4), weights }
    }

    /// The next operation for the world in the state of `model`.
    pub fn draw(&mut self, model: &Model) -> Op {
        let wild = self.rng.chance(WILD_PER_MILLE);
        let device = self.rng.index(model.shape().devices.len());
        match self.rng.weighted(&self.weights.list()) {
            0 => self.map(model, wild),
            1 => Op::Unmap(self.run(model, wild)),
            2 => Op::Protect(self.run(model, wild), self.prot()),
            3 => Op::CpuRead(self.spot(model, None, wild)),
            4 => Op::CpuWrite(self.spot(model, None, wild), self.rng.draw() as u8),
            5 => Op::DevRead(device, self.spot(model, Some(device), wild)),
            6 => Op::DevWrite(device, self.spot(model, Some(device), wild), self.rng.draw() as u8),
            7 => self.attach(model, device, wild),
            8 => Op::Detach(self.space_of(model, device, wild), device),
            9 => Op::Evict(device, 1 + self.rng.index(8)),
            10 => self.prefetch(model, device, wild),
            11 => self.discard(model, wild),
            12 => Op::Pin(self.short_run(model)),
            13 => self.unpin(model),
            14 => Op::Switch(device, self.rng.coin().then(|| self.space_of(model, device, wild))),
            15 => self.launch(model, device, wild),
            16 => Op::Lose(device, self.rng.coin()),
            17 => Op::Limit(device, model.shape().frames / 2 + self.rng.below(model.shape().frames / 2 + 1)),
            18 => Op::Memory(device),
            19 => Op::KernelPin(Spot { offset: 0, len: 1, ..self.spot(model, None, wild) }),
            _ => Op::KernelUnpin(self.kernel_pinned(model)),
        }
    }

    fn space(&mut self, model: &Model) -> usize {
        self.rng.index(model.shape().spaces.len())
    }

    /// An address space that the device is attached to, if there is one: most of the time one where it works.
    fn space_of(&mut self, model: &Model, device: usize, wild: bool) -> usize {
        let attached: Vec<usize> = (0..model.shape().spaces.len()).filter(|s| model.attached(*s, device).is_some()).collect();
        if wild || attached.is_empty() { self.space(model) } else { attached[self.rng.index(attached.len())] }
    }

    fn prot(&mut self) -> Prot {
        match self.rng.below(20) {
            0..=13 => Prot::RW,
            14..=18 => Prot::READ,
            _ => Prot::empty(),
        }
    }

    fn any_run(&mut self, model: &Model) -> PageRun {
        let space = self.space(model);
        let pages = model.shape().spaces[space].pages;
        let first = self.rng.below(pages);
        PageRun { space, first, count: 1 + self.rng.below((pages - first).min(24)) }
    }

    /// A part of one region, most of the time the whole or a small one.
    fn run(&mut self, model: &Model, wild: bool) -> PageRun {
        let any = self.any_run(model);
        let Some(region) = self.mapped_page(model, any.space).and_then(|page| model.region_of(any.space, page)) else { return any };
        if wild {
            return any;
        }
        if self.rng.chance(250) {
            return region;
        }
        let skip = self.rng.below(region.count);
        let count = 1 + self.rng.below((region.count - skip).min(8));
        PageRun { first: region.first + skip, count, ..region }
    }

    fn short_run(&mut self, model: &Model) -> PageRun {
        let run = self.run(model, false);
        PageRun { count: run.count.min(2), ..run }
    }

    /// A page that is mapped, if a few draws find one.
    fn mapped_page(&mut self, model: &Model, space: usize) -> Option<u64> {
        let pages = model.shape().spaces[space].pages;
        (0..8).map(|_| self.rng.below(pages)).find(|page| model.prot(space, *page).is_some())
    }

    fn map(&mut self, model: &Model, wild: bool) -> Op {
        let mut run = self.any_run(model);
        if !wild {
            let free = |page: &u64| model.prot(run.space, *page).is_none();
            let count = (run.first..run.first + run.count).take_while(free).count() as u64;
            run.count = count.max(1);
        }
        let backings = &model.shape().backings;
        Op::Map(run, self.prot(), backings[self.rng.index(backings.len())])
    }

    fn spot(&mut self, model: &Model, device: Option<usize>, wild: bool) -> Spot {
        let visible = |space: usize| device.is_some() || model.shape().spaces[space].cpu_visible;
        let mut space = match device {
            Some(device) => self.space_of(model, device, wild),
            None => self.space(model),
        };
        while !wild && !visible(space) {
            space = self.space(model);
        }
        let pages = model.shape().spaces[space].pages;
        // Half of the accesses go to a few pages, so that the same page is fought over.
        let near = self.rng.coin();
        let page = if near { Some(self.rng.below(pages.min(6))) } else { None };
        let page = page.filter(|page| model.prot(space, *page).is_some()).or_else(|| self.mapped_page(model, space));
        let page = page.filter(|_| !wild).unwrap_or_else(|| self.rng.below(pages));
        let size = model.shape().size_of(space, page).bytes();
        let offset = self.rng.below(size);
        Spot { space, page, offset, len: 1 + self.rng.below((size - offset).min(64)) }
    }

    fn attach(&mut self, model: &Model, device: usize, wild: bool) -> Op {
        let detached: Vec<usize> = (0..model.shape().spaces.len()).filter(|s| model.attached(*s, device).is_none()).collect();
        let space = if wild || detached.is_empty() { self.space(model) } else { detached[self.rng.index(detached.len())] };
        let modes = &model.shape().devices[device];
        Op::Attach { space, device, mode: modes[self.rng.index(modes.len())], activate: self.rng.coin() }
    }

    fn prefetch(&mut self, model: &Model, device: usize, wild: bool) -> Op {
        let run = self.run(model, wild);
        let to = (self.rng.chance(700) && (wild || model.attached(run.space, device).is_some())).then_some(device);
        Op::Prefetch(run, to)
    }

    fn discard(&mut self, model: &Model, wild: bool) -> Op {
        let run = self.run(model, wild);
        // What discarding a pinned page means is left open, and the model cannot follow what is open.
        if model.is_pinned(&run) { self.unpin(model) } else { Op::Discard(run) }
    }

    /// A launch on some pages of a region, few enough that half of the device's memory holds them.
    fn launch(&mut self, model: &Model, device: usize, wild: bool) -> Op {
        let spot = self.spot(model, Some(device), wild);
        let region = model.region_of(spot.space, spot.page);
        let end = region.map_or(spot.page + 1, |region| region.first + region.count);
        let most = (end - spot.page).min(model.shape().frames / 4).max(1);
        let run = PageRun { space: spot.space, first: spot.page, count: 1 + self.rng.below(most) };
        Op::Launch(device, run, spot, self.rng.draw() as u8)
    }

    /// A page that the kernel pins, if there is one.
    fn kernel_pinned(&mut self, model: &Model) -> Spot {
        let spot = |space, page| Spot { space, page, offset: 0, len: 1 };
        for (space, shape) in model.shape().spaces.iter().enumerate() {
            if let Some(page) = (0..shape.pages).find(|page| model.is_kernel_pinned(space, *page)) {
                return spot(space, page);
            }
        }
        spot(0, self.rng.below(model.shape().spaces[0].pages))
    }

    /// Takes a pin back from the first run of pinned pages, if there is one.
    fn unpin(&mut self, model: &Model) -> Op {
        for (space, shape) in model.shape().spaces.iter().enumerate() {
            let pinned = |page: &u64| model.is_pinned(&PageRun { space, first: *page, count: 1 });
            if let Some(first) = (0..shape.pages).find(pinned) {
                return Op::Unpin(PageRun { space, first, count: 1 });
            }
        }
        // A run of which some pages are pinned would lose some pins and be refused: one page at a time.
        Op::Unpin(PageRun { count: 1, ..self.short_run(model) })
    }
}
