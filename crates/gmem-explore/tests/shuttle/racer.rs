//! One thread of a race.

use super::arena::{Arena, LATE, PAGES, PEERS, POOLED, first, mode, spot};
use super::verb::Verb;
use gmem_core::HoldRange;
use gmem_hal::{Access, Backing, DeviceError, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun};
use gmem_sim::{Callback, Injected, Rng};

/// A thread that does one verb between accesses, and knows what its own bytes must be.
pub(crate) struct Racer<'a> {
    arena: &'a Arena,
    me: u64,
    rng: Rng,
    /// What is in its bytes of each page; `None` once they were seen to be given up.
    mine: [Option<u8>; PAGES as usize],
}

impl<'a> Racer<'a> {
    pub(crate) fn new(arena: &'a Arena, me: u64, seed: u64) -> Self {
        Self { arena, me, rng: Rng::stream(seed, 0x5000 + me), mine: std::array::from_fn(|page| Some(first(page as u64))) }
    }

    /// Runs; returns what must be in its bytes of each page.
    pub(crate) fn run(mut self, verb: Verb) -> [Option<u8>; PAGES as usize] {
        self.access();
        self.act(verb);
        self.access();
        self.mine
    }

    fn act(&mut self, verb: Verb) {
        let run = self.some_pages();
        let device = self.rng.index(LATE);
        match verb {
            Verb::Fault => (0..2).for_each(|_| self.access()),
            Verb::Evict => self.evict(),
            Verb::PeerEvict => {
                let peer = PEERS[self.rng.index(PEERS.len())];
                self.arena.world.members[peer].device().peer_evict(1 + self.rng.index(2));
            }
            Verb::Unmap => {
                self.arena.give_up(run);
                self.perform(Op::Unmap(run));
                // Somebody else may have mapped a page of it again.
                self.perform(Op::Map(run, Prot::RW, Backing::Shared));
            }
            Verb::Protect => {
                self.perform(Op::Protect(run, Prot::READ));
                self.access();
                self.perform(Op::Protect(run, Prot::RW));
            }
            Verb::Attach => {
                let mode = if self.rng.coin() { Mode::CoherentExclusive } else { Mode::Replicate };
                let activate = self.rng.coin();
                self.perform(Op::Attach { space: 0, device: LATE, mode, activate });
                self.access_by(Some(LATE));
            }
            Verb::Detach => {
                self.perform(Op::Detach(0, device));
                if self.rng.coin() {
                    self.perform(Op::Attach { space: 0, device, mode: mode(device), activate: true });
                }
            }
            Verb::Hold => self.hold(device, run),
            Verb::Pin => {
                if self.perform(Op::Pin(run)) == Outcome::Done {
                    self.evict();
                    self.perform(Op::Unpin(run));
                }
            }
            Verb::Discard => {
                self.arena.give_up(run);
                self.perform(Op::Discard(run));
            }
            Verb::Prefetch => {
                self.perform(Op::Prefetch(run, (mode(device) == Mode::CoherentExclusive).then_some(device)));
            }
            Verb::Lose => self.lose(device, run),
            Verb::Destroy => {
                // Others may have it destroyed first.
                self.arena.give_up(PageRun { space: 0, first: 0, count: PAGES });
                let _ = self.arena.world.core.space_destroy(self.arena.world.spaces[0]);
            }
            Verb::Memory => {
                let device = POOLED[self.rng.index(POOLED.len())];
                self.perform(Op::Memory(device));
                self.access_by(Some(device));
                self.perform(Op::Memory(device));
            }
            Verb::Unplug => self.unplug(device),
        }
    }

    fn some_pages(&mut self) -> PageRun {
        let first = self.rng.below(PAGES);
        PageRun { space: 0, first, count: 1 + self.rng.below(PAGES - first) }
    }

    /// Does it, and fails if it is refused without an excuse.
    fn perform(&self, op: Op) -> Outcome {
        let outcome = self.arena.world.perform(&op);
        if let Outcome::Refused(why) = outcome {
            assert!(self.arena.excuses(why), "racer {}: {op:?} was refused: {why:?}", self.me);
        }
        outcome
    }

    /// Has pages evicted: as a thread that is short of memory does, or in the background.
    fn evict(&mut self) {
        let (device, pages) = (POOLED[self.rng.index(POOLED.len() - 1)], 1 + self.rng.index(2));
        let world = &self.arena.world;
        if self.rng.coin() {
            self.perform(Op::Evict(device, pages));
        } else {
            for hnode in world.core.hnodes_of(world.members[device].id()) {
                world.core.evict_background(hnode);
            }
        }
    }

    /// A device dies, or does not answer when something is taken from it, which is what the core finds out next.
    fn lose(&mut self, device: usize, run: PageRun) {
        const REVOKES: [Callback; 3] = [Callback::PmapRelease, Callback::TlbInvalidate, Callback::TlbInvalidateCoalesced];
        if self.rng.coin() {
            let told = self.rng.coin();
            self.perform(Op::Lose(device, told));
            return;
        }
        let world = &self.arena.world;
        let revoke = REVOKES[self.rng.index(REVOKES.len())];
        world.sim.fail_nth_on(world.members[device].device().number(), revoke, 1, Injected::Device(DeviceError::NoAnswer));
        self.perform(Op::Prefetch(run, None));
        self.evict();
    }

    /// A device goes, and another of its kind comes in its place.
    fn unplug(&mut self, device: usize) {
        let world = &self.arena.world;
        // Whoever attaches it meanwhile keeps it there, and somebody else may be at it.
        if world.unplug(device) {
            self.access_by(Some(device));
        }
        world.plug(device);
        self.perform(Op::Attach { space: 0, device, mode: mode(device), activate: true });
        self.access_by(Some(device));
    }

    /// A launch on a device that names its pages, or the kernel's I/O on them.
    fn hold(&mut self, device: usize, run: PageRun) {
        let page = run.first + self.rng.below(run.count);
        if mode(device) == Mode::CoherentExclusive && self.rng.coin() {
            let value = self.rng.draw() as u8;
            if self.perform(Op::Launch(device, run, spot(self.me, page), value)) == Outcome::Done {
                self.mine[page as usize] = Some(value);
            }
            return;
        }
        let world = &self.arena.world;
        let range = world.shape.range(&run);
        let held = [HoldRange { range, access: Access::Read }];
        if world.core.hold(world.spaces[0], None, &held).is_ok() {
            self.access_page(None, page);
            // The address space waits for it.
            world.core.unhold(world.spaces[0], None, &held).expect("an address space is not destroyed while pages of it are held");
        }
    }

    fn access(&mut self) {
        let by = self.rng.index(LATE + 2);
        self.access_by((by < LATE).then_some(by));
    }

    /// One access by a device, or by the CPU.
    fn access_by(&mut self, by: Option<usize>) {
        let page = self.rng.below(PAGES);
        self.access_page(by, page);
    }

    fn access_page(&mut self, by: Option<usize>, page: u64) {
        let (spot, value) = (spot(self.me, page), self.rng.draw() as u8);
        let op = match (by, self.rng.coin()) {
            (None, true) => Op::CpuWrite(spot, value),
            (None, false) => Op::CpuRead(spot),
            (Some(device), true) => Op::DevWrite(device, spot, value),
            (Some(device), false) => Op::DevRead(device, spot),
        };
        match self.perform(op) {
            Outcome::Done => self.mine[page as usize] = Some(value),
            Outcome::Loaded(bytes) => {
                let mine = &mut self.mine[page as usize];
                check(self.arena, self.me, page, mine, &bytes);
            }
            Outcome::Refused(_) => {}
        }
    }
}

/// The bytes of racer `me` in a page are what it stored last, or zeros for good if something gave contents up.
pub(crate) fn check(arena: &Arena, me: u64, page: u64, mine: &mut Option<u8>, bytes: &[u8]) {
    let zero = bytes.iter().all(|byte| *byte == 0);
    match mine {
        Some(value) if *bytes == spot(me, page).bytes(*value) => {}
        _ if zero && (mine.is_none() || arena.is_given_up(page)) => *mine = None,
        _ => panic!("racer {me}: page {page} holds {bytes:x?} instead of {mine:x?} (as stored)"),
    }
}
