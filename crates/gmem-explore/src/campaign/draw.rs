//! What each thread of control does next: drawn by its own stream of the seed, with a look at the ledger so that most of it makes sense.

use super::act::Act;
use super::ledger::Ledger;
use crate::CoreWorld;
use gmem_hal::{Access, DeviceError, PageSize, PeerError, Prot};
use gmem_sim::random::{Op, PageRun, Spot};
use gmem_sim::{Callback, Injected, Rng};

/// What goes wrong in a campaign.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Faults {
    /// Nothing: every refusal needs a reason.
    None,
    /// Grants are refused and copies fail; every device goes on.
    Some,
    /// Everything: devices do not answer, die, are taken out and put back.
    #[default]
    All,
}

/// What a thread of control mostly does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A program: accesses, launches, hints.
    Worker,
    /// A program that changes what is mapped.
    Mapper,
    /// Attaches and detaches.
    Changer,
    /// Evicts in the background, and at once.
    Evictor,
    /// The kernel: it holds pages, and its devices store to them.
    Kernel,
    /// A device that faults by itself, more than a program would.
    Device,
    /// Makes calls fail and devices die.
    Saboteur,
}

/// The threads of control of a campaign.
pub const ROLES: [Role; 8] =
    [Role::Worker, Role::Worker, Role::Mapper, Role::Changer, Role::Evictor, Role::Kernel, Role::Device, Role::Saboteur];

impl Role {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Mapper => "mapper",
            Role::Changer => "changer",
            Role::Evictor => "evictor",
            Role::Kernel => "kernel",
            Role::Device => "device",
            Role::Saboteur => "saboteur",
        }
    }

    /// How often it draws each act, in the order of [`Drawer::draw`]. Everybody does a little of everything, so that every two acts meet.
    const fn weights(self) -> [u32; 26] {
        //   cpu r  w   dev r  w  launch pref disc pin unpin map unmap prot att det sw evict bg lim mem pin unpin dma  fail kill revive plug visit
        // (the last three share a weight each with their opposites)
        match self {
            Role::Worker => [60, 60, 60, 60, 24, 20, 14, 4, 6, 4, 2, 6, 2, 1, 2, 4, 2, 1, 1, 2, 3, 2, 0, 1, 1, 1],
            Role::Mapper => [10, 10, 10, 10, 4, 6, 30, 6, 6, 60, 36, 40, 2, 1, 2, 2, 2, 1, 1, 2, 3, 2, 0, 1, 1, 1],
            Role::Changer => [6, 6, 10, 10, 4, 4, 4, 2, 4, 6, 2, 4, 60, 20, 20, 4, 2, 4, 8, 2, 3, 2, 0, 1, 3, 4],
            Role::Evictor => [6, 6, 10, 10, 4, 8, 4, 2, 4, 4, 1, 4, 3, 1, 2, 40, 80, 6, 4, 2, 3, 2, 0, 1, 1, 1],
            Role::Kernel => [20, 20, 6, 6, 4, 4, 4, 2, 4, 4, 1, 4, 3, 1, 2, 2, 2, 1, 1, 60, 70, 120, 0, 1, 1, 1],
            Role::Device => [4, 4, 120, 120, 20, 10, 4, 2, 4, 4, 1, 4, 3, 1, 4, 4, 2, 1, 1, 2, 3, 2, 0, 1, 1, 1],
            Role::Saboteur => [10, 10, 10, 10, 4, 4, 4, 4, 8, 6, 2, 4, 6, 3, 4, 4, 4, 16, 16, 4, 6, 4, 100, 6, 12, 8],
        }
    }
}

/// Draws the acts of one thread of control.
pub struct Drawer {
    rng: Rng,
    role: Role,
    faults: Faults,
}

/// How often in a thousand an act is drawn without a look at the ledger.
const WILD_PER_MILLE: u16 = 20;

/// How often in a thousand memory becomes short for long, where else one call would be made to fail.
const SHORT_PER_MILLE: u16 = 30;

impl Drawer {
    /// Of the thread of control number `me`.
    pub fn new(seed: u64, me: usize, role: Role, faults: Faults) -> Self {
        Self { rng: Rng::stream(seed, 0x9000 + me as u64), role, faults }
    }

    /// The next act.
    pub fn draw(&mut self, world: &CoreWorld, ledger: &Ledger) -> Act {
        // What was drawn may make no sense now. Where little does, there is always the eviction.
        const TRIES: usize = 32;
        (0..TRIES).find_map(|_| self.try_draw(world, ledger)).unwrap_or(Act::Background)
    }

    fn try_draw(&mut self, world: &CoreWorld, ledger: &Ledger) -> Option<Act> {
        let device = self.rng.index(world.members.len());
        let fill = self.rng.draw() as u8;
        let op = match self.rng.weighted(&self.role.weights()) {
            0 => Op::CpuRead(self.spot(ledger, None, Access::Read)),
            1 => Op::CpuWrite(self.spot(ledger, None, Access::Write), fill),
            2 => Op::DevRead(device, self.spot(ledger, Some(device), Access::Read)),
            3 => Op::DevWrite(device, self.spot(ledger, Some(device), Access::Write), fill),
            4 => self.launch(ledger, device, fill),
            5 => self.prefetch(ledger, device),
            6 => Op::Discard(self.part(ledger, 4)?),
            7 => Op::Pin(self.part(ledger, 2)?),
            8 => Op::Unpin(self.find(ledger, |page| page.pins > 0)?),
            9 => self.map(ledger)?,
            10 => Op::Unmap(self.part(ledger, 24)?),
            11 => {
                let prot = match self.rng.below(20) {
                    0..=13 => Prot::RW,
                    14..=18 => Prot::READ,
                    _ => Prot::empty(),
                };
                Op::Protect(self.part(ledger, 24)?, prot)
            }
            12 => self.attach(ledger, device)?,
            13 => Op::Detach(self.space(ledger), device),
            14 => Op::Switch(device, self.rng.coin().then(|| self.space(ledger))),
            15 => Op::Evict(device, 1 + self.rng.index(6)),
            16 => return Some(Act::Background),
            17 => Op::Limit(device, ledger.shape.frames / 4 + self.rng.below(ledger.shape.frames)),
            18 => Op::Memory(device),
            19 => Op::KernelPin(Spot { offset: 0, len: 1, ..self.spot(ledger, None, Access::Read) }),
            20 => Op::KernelUnpin(self.held(ledger)?),
            21 => return self.dma(ledger, fill),
            22 => return self.fail(world),
            23 if self.faults != Faults::All => return None,
            23 if self.rng.coin() => Op::Lose(device, self.rng.coin()),
            23 => return Some(Act::Kill(device)),
            24 => return self.plug(world, ledger, device),
            _ => return Some(Act::Visit(device)),
        };
        Some(Act::Do(op))
    }

    fn space(&mut self, ledger: &Ledger) -> usize {
        // Most of what happens, happens in one address space.
        let count = ledger.shape.spaces.len();
        if self.rng.chance(500) { 0 } else { self.rng.index(count) }
    }

    /// A page that answers to `like`, if a few draws find one: often one of the first few, so that the same pages are fought over.
    fn page(&mut self, ledger: &Ledger, space: usize, like: impl Fn(&super::ledger::Page) -> bool) -> u64 {
        let pages = ledger.shape.spaces[space].pages;
        let near = self.rng.coin();
        let of = if near { self.near(ledger, space) } else { PageRun { space, first: 0, count: pages } };
        let mut page = 0;
        for _ in 0..8 {
            page = of.first + self.rng.below(of.count);
            if like(&ledger.pages[space][page as usize]) {
                break;
            }
        }
        page
    }

    /// The few pages that are fought over: small ones, or now and then some of the larger ones, of which there are few anyway and each costs much.
    fn near(&mut self, ledger: &Ledger, space: usize) -> PageRun {
        const EACH: [u32; 3] = [6, 2, 1];
        let runs: Vec<PageRun> = ledger.shape.runs(space).collect();
        let n = if runs.len() > 1 { self.rng.weighted(&EACH[..runs.len()]) } else { 0 };
        PageRun { count: runs[n].count.min(6), ..runs[n] }
    }

    fn spot(&mut self, ledger: &Ledger, device: Option<usize>, access: Access) -> Spot {
        let mut space = self.space(ledger);
        for _ in 0..4 {
            let fits = match device {
                Some(device) => ledger.links[space][device].attached.is(),
                None => ledger.shape.spaces[space].cpu_visible,
            };
            if fits {
                break;
            }
            space = self.rng.index(ledger.shape.spaces.len());
        }
        let wild = self.rng.chance(WILD_PER_MILLE);
        let page = self.page(ledger, space, |page| wild || page.may(access).is());
        let size = ledger.shape.size_of(space, page).bytes();
        let offset = self.rng.below(size);
        Spot { space, page, offset, len: 1 + self.rng.below((size - offset).min(64)) }
    }

    /// A part of a region, of at most so many pages.
    fn part(&mut self, ledger: &Ledger, most: u64) -> Option<PageRun> {
        let space = self.space(ledger);
        let first = self.page(ledger, space, |page| page.is_mapped());
        let left = ledger.shape.spaces[space].pages - first;
        let want = 1 + self.rng.below(left.min(most));
        let fits = |count: &u64| ledger.is_one_region(&PageRun { space, first, count: *count });
        (1..=want).rev().find(fits).map(|count| PageRun { space, first, count })
    }

    fn find(&mut self, ledger: &Ledger, like: impl Fn(&super::ledger::Page) -> bool) -> Option<PageRun> {
        let space = self.space(ledger);
        let from = self.rng.index(ledger.pages[space].len());
        let pages = ledger.pages[space].len();
        let found = (0..pages).map(|n| (from + n) % pages).find(|n| like(&ledger.pages[space][*n]))?;
        Some(PageRun { space, first: found as u64, count: 1 })
    }

    fn held(&mut self, ledger: &Ledger) -> Option<Spot> {
        let run = self.find(ledger, |page| page.held > 0)?;
        Some(Spot { space: run.space, page: run.first, offset: 0, len: 1 })
    }

    fn launch(&mut self, ledger: &Ledger, device: usize, fill: u8) -> Op {
        let spot = self.spot(ledger, Some(device), Access::Write);
        let most = (1..=6).rev().find(|count| {
            spot.page + count <= ledger.shape.spaces[spot.space].pages
                && ledger.is_one_region(&PageRun { space: spot.space, first: spot.page, count: *count })
        });
        let run = PageRun { space: spot.space, first: spot.page, count: 1 + self.rng.below(most.unwrap_or(1)) };
        Op::Launch(device, run, spot, fill)
    }

    fn prefetch(&mut self, ledger: &Ledger, device: usize) -> Op {
        let spot = self.spot(ledger, Some(device), Access::Read);
        let count = 1 + self.rng.below((ledger.shape.spaces[spot.space].pages - spot.page).min(6));
        Op::Prefetch(PageRun { space: spot.space, first: spot.page, count }, self.rng.chance(700).then_some(device))
    }

    fn map(&mut self, ledger: &Ledger) -> Option<Op> {
        let space = self.space(ledger);
        let first = self.page(ledger, space, |page| !page.is_mapped());
        let left = ledger.shape.spaces[space].pages - first;
        let want = 1 + self.rng.below(left.min(32));
        let fits = |count: &u64| ledger.is_free(&PageRun { space, first, count: *count });
        let count = (1..=want).rev().find(fits)?;
        let prot = if self.rng.chance(850) { Prot::RW } else { Prot::READ };
        let backing = match *ledger.shape.backings {
            [only] => only,
            ref all => all[self.rng.index(all.len())],
        };
        Some(Op::Map(PageRun { space, first, count }, prot, backing))
    }

    fn attach(&mut self, ledger: &Ledger, device: usize) -> Option<Op> {
        let space = self.space(ledger);
        let modes = &ledger.shape.devices[device];
        let mode = modes[self.rng.index(modes.len())];
        (!ledger.links[space][device].attached.is()).then_some(Op::Attach { space, device, mode, activate: self.rng.coin() })
    }

    fn dma(&mut self, ledger: &Ledger, fill: u8) -> Option<Act> {
        let at = self.held(ledger)?;
        let size = PageSize::Size4K.bytes();
        let offset = self.rng.below(size);
        let spot = Spot { offset, len: 1 + self.rng.below((size - offset).min(64)), ..at };
        Some(if self.rng.coin() { Act::DmaStore(spot, fill) } else { Act::DmaLoad(spot) })
    }

    fn fail(&mut self, world: &CoreWorld) -> Option<Act> {
        if self.faults == Faults::None {
            return None;
        }
        if self.rng.chance(SHORT_PER_MILLE) {
            let device = self.rng.coin().then(|| self.rng.index(world.members.len()));
            let steps = 200 + self.rng.below(800);
            return (!world.sim.is_short()).then_some(Act::Short(device, steps));
        }
        let callback = Callback::ALL[self.rng.index(Callback::ALL.len())];
        let errors = callback.errors();
        let error = errors[self.rng.index(errors.len())];
        let harmless = !is(error, DeviceError::NoAnswer) && !is(error, DeviceError::Dead) && callback != Callback::Fence;
        if self.faults == Faults::Some && !harmless || world.sim.is_to_fail(callback) {
            return None;
        }
        let of_device = callback < Callback::SpaceCreate && callback != Callback::DeviceStart;
        let device = of_device.then(|| self.rng.index(world.members.len())).filter(|_| self.rng.coin());
        Some(Act::Fail(callback, device, error))
    }

    fn plug(&mut self, world: &CoreWorld, ledger: &Ledger, device: usize) -> Option<Act> {
        let dead: Vec<usize> = (0..world.members.len()).filter(|d| world.members[*d].device().is_dead()).collect();
        if !dead.is_empty() && self.rng.chance(600) {
            return Some(Act::Revive(dead[self.rng.index(dead.len())]));
        }
        let gone: Vec<usize> = (0..world.members.len()).filter(|d| !ledger.present[*d]).collect();
        if !gone.is_empty() && self.rng.chance(600) {
            return Some(Act::Plug(gone[self.rng.index(gone.len())]));
        }
        Some(Act::Unplug(device))
    }
}

/// Whether an error says this about a device.
pub(super) fn is(error: Injected, wanted: DeviceError) -> bool {
    error == Injected::Device(wanted) || error == Injected::Peer(PeerError::Device(wanted))
}
