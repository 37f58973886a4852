//! The world that races happen in: few pages, one device of each kind, little memory.

use super::verb::Verb;
use gmem_explore::CoreWorld;
use gmem_explore::worlds::{Kind, STANDARD};
use gmem_hal::{Backing, Capabilities, Mode, Prot};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot};
use gmem_sim::{Canary, Rng, Sim};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Pages that are fought over. The space has more of them, for whoever maps again.
pub(crate) const PAGES: u64 = 3;
/// Threads that fight at once; each has its own bytes of every page.
pub(crate) const RACERS: u64 = 3;
/// Where in a page the bytes of each racer are: at its beginning, at its end, and across its middle.
const OFFSETS: [u64; RACERS as usize] = [7, 4079, 2040];

/// Two exclusive devices that reach each other or not, a peer, a replica, a device and a peer that cannot replay faults, and one more that is attached during the
/// race only.
const KIND: Kind = Kind {
    name: "arena",
    pages: 16,
    frames: 64,
    pools: 2,
    devices: &[
        (&[Mode::CoherentExclusive], |d| d.caches_absent()),
        (&[Mode::CoherentExclusive], |d| d.tlb_entries(4).accessed_bits().reaches_peers()),
        (&[Mode::CoherentExclusive], |d| d.capabilities(Capabilities::REPLAYABLE.union(Capabilities::PEER))),
        (&[Mode::Replicate], |d| d.tlb_entries(2)),
        (&[Mode::CoherentExclusive], |d| d.capabilities(Capabilities::empty()).tlb_entries(2)),
        (&[Mode::CoherentExclusive], |d| d.capabilities(Capabilities::PEER)),
        (&[Mode::CoherentExclusive, Mode::Replicate], |d| d.own_frames().without_fence()),
    ],
    ..STANDARD
};

/// The devices that run their own memory.
pub(crate) const PEERS: [usize; 2] = [2, 5];
/// The device that is a replica.
const REPLICA: usize = 3;
/// The devices whose memory the core runs.
pub(crate) const POOLED: [usize; 4] = [0, 1, 4, LATE];
/// The device that is not attached at first.
pub(crate) const LATE: usize = 6;

/// The world of one run, and what is going on in it.
pub(crate) struct Arena {
    pub(crate) world: CoreWorld,
    /// What the racers do.
    pub(crate) verbs: Vec<Verb>,
    /// Whether the devices have fewer frames than there are pages.
    tight: bool,
    /// The pages whose contents somebody gives up, a bit for each.
    given_up: AtomicU64,
}

impl Arena {
    /// A world in which every page is somewhere, with the first bytes of each racer in it.
    pub(crate) fn new(verbs: &[Verb], rng: &mut Rng, canary: Option<Canary>) -> Self {
        let mut world = KIND.make_with(&Sim::new(rng.draw()), canary);
        world.interleaved = true;
        let tight = rng.coin();
        let mut arena = Self { world, verbs: verbs.to_vec(), tight, given_up: AtomicU64::new(0) };
        for device in 0..LATE {
            arena.must(Op::Attach { space: 0, device, mode: mode(device), activate: true });
        }
        if arena.tight {
            for device in POOLED {
                arena.must(Op::Limit(device, 2));
                arena.must(Op::Memory(device));
            }
        }
        arena.map(PageRun { space: 0, first: 0, count: PAGES });
        for page in 0..PAGES {
            arena.place(page, rng);
        }
        arena
    }

    /// Maps pages for reading and writing.
    pub(crate) fn map(&mut self, run: PageRun) {
        self.must(Op::Map(run, Prot::RW, Backing::Shared));
    }

    fn must(&self, op: Op) {
        let outcome = self.world.perform(&op);
        assert!(matches!(outcome, Outcome::Done | Outcome::Loaded(_)), "{op:?} in a world at peace: {outcome:?}");
    }

    /// Stores every racer's first byte in a page from somewhere, which is where the page is then, and perhaps has another look at it.
    fn place(&self, page: u64, rng: &mut Rng) {
        let writer = rng.index(LATE);
        for me in 0..RACERS {
            let spot = spot(me, page);
            self.must(if writer == REPLICA { Op::CpuWrite(spot, first(page)) } else { Op::DevWrite(writer, spot, first(page)) });
        }
        match rng.index(LATE + 2) {
            reader @ 0..LATE => self.must(Op::DevRead(reader, spot(0, page))),
            LATE => self.must(Op::CpuRead(spot(0, page))),
            _ => {}
        }
    }

    /// Whether something of this race explains that an operation was refused.
    pub(crate) fn excuses(&self, why: Refusal) -> bool {
        let any = |of: &[Verb]| self.verbs.iter().any(|verb| of.contains(verb));
        match why {
            // Memory in use is not taken back.
            Refusal::Invalid => any(&[Verb::Unmap, Verb::Protect, Verb::Attach, Verb::Detach, Verb::Destroy, Verb::Unplug, Verb::Memory]),
            Refusal::Failed => any(&[Verb::Lose, Verb::Detach, Verb::Attach, Verb::Destroy, Verb::Unplug]),
            Refusal::NoRoom => self.tight,
        }
    }

    /// Somebody is about to give the contents of these pages up.
    pub(crate) fn give_up(&self, run: PageRun) {
        let pages = (run.first..run.first + run.count).fold(0, |pages, page| pages | 1 << page);
        self.given_up.fetch_or(pages, Relaxed);
    }

    /// Whether the contents of a page may have been given up.
    pub(crate) fn is_given_up(&self, page: u64) -> bool {
        self.given_up.load(Relaxed) & 1 << page != 0
    }
}

/// How a device is attached.
pub(crate) fn mode(device: usize) -> Mode {
    if device == REPLICA { Mode::Replicate } else { Mode::CoherentExclusive }
}

/// The bytes of racer `me` in a page. Those of the first two lie in different halves of a copy.
pub(crate) fn spot(me: u64, page: u64) -> Spot {
    Spot { space: 0, page, offset: OFFSETS[me as usize], len: 16 }
}

/// What is in a page at first.
pub(crate) fn first(page: u64) -> u8 {
    0x80 + page as u8
}
