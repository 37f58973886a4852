//! A world in which one device is killed again and again, while others use the same memory and the same device.

use super::common::*;
use gmem::{AddressSpace, Backing, Context, Delivery, Device, Gmem, Mode, PageSize, Region, accel};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Every block of so many bytes has one word for the victim, one for the bystander and one for the CPU; the other bytes stay what they were.
pub(crate) const BLOCK: u64 = 4096;
const VICTIM: u64 = 0;
const BYSTANDER: u64 = 8;
const CPU: u64 = 16;
/// The device's memory, in pages; the region is three times as large.
const MEMORY: u64 = 4;

/// What the victim is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    peer: bool,
    mode: Mode,
    size: PageSize,
    backing: Backing,
    delivery: Delivery,
}

const fn kind(peer: bool, mode: Mode, size: PageSize, backing: Backing, delivery: Delivery) -> Kind {
    Kind { peer, mode, size, backing, delivery }
}

pub(crate) const KINDS: [Kind; 9] = {
    use Backing::*;
    use Delivery::*;
    use Mode::*;
    use PageSize::*;
    [
        kind(false, CoherentExclusive, Size2M, Shared, Service),
        kind(false, CoherentExclusive, Size4K, Shared, Service),
        kind(true, CoherentExclusive, Size2M, Shared, Service),
        kind(true, CoherentExclusive, Size4K, Shared, Service),
        kind(false, Replicate, Size2M, Shared, Service),
        kind(false, Replicate, Size4K, Shared, Service),
        kind(false, CoherentExclusive, Size2M, Private, Service),
        kind(false, CoherentExclusive, Size4K, Private, Service),
        kind(false, CoherentExclusive, Size2M, Shared, InThread),
    ]
};

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.peer, self.mode) {
            (true, _) => "peer",
            (_, Mode::Replicate) => "replicate",
            _ => "exclusive",
        };
        let backing = if self.backing == Backing::Private { ", private" } else { "" };
        let delivery = if self.delivery == Delivery::InThread { ", in-thread" } else { "" };
        write!(f, "{what}, {}{backing}{delivery}", self.size)
    }
}

/// The first address and the length in bytes of a part of the region.
pub(crate) type Span = (u64, u64);

pub(crate) struct Arena {
    pub(crate) gmem: Gmem,
    pub(crate) driver: Arc<accel::Discrete>,
    pub(crate) device: Device,
    pub(crate) space: AddressSpace,
    pub(crate) region: Region,
    pub(crate) mode: Mode,
    /// Another device in the same address space.
    pub(crate) bystander: Context,
    /// The same device in another address space, where it must not even notice.
    neighbour: (Context, Region),
    /// What each block holds for the victim, the bystander and the CPU.
    victim: Vec<u64>,
    other: Vec<u64>,
    cpu: Vec<u64>,
    turn: u64,
}

/// A value no other turn and no other block has.
fn value(turn: u64, block: u64) -> u64 {
    turn << 32 | block
}

/// What the bytes that nobody writes hold.
fn filler(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl Arena {
    pub(crate) fn new(kind: Kind) -> Self {
        let gmem = Gmem::new().unwrap();
        // Four pages of 2 MiB, or as many bytes as a quarter of one in small pages.
        let memory = if kind.size == PageSize::Size2M { MEMORY * PAGE } else { MEMORY * PAGE / 16 };
        // A peer hands its memory to its contexts in blocks: one for the neighbour, which comes first. Two cores could ask for one each.
        let block = if kind.peer { (16 * kind.size.bytes()).max(PAGE) } else { 0 };
        let driver =
            accel::Discrete::builder().memory(block + memory).cores(if kind.peer { 1 } else { 2 }).peer(kind.peer).build().unwrap();
        let device = gmem.add_device(driver.clone()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let bystander = space.attach(&discrete(&gmem, memory), Mode::CoherentExclusive).unwrap();
        let region = space.region().page_size(kind.size).backing(kind.backing).delivery(kind.delivery).map(3 * memory).unwrap();
        let elsewhere = gmem.address_space().create().unwrap();
        let away = elsewhere.region().page_size(kind.size).map(memory / 4).unwrap();
        let neighbour = (elsewhere.attach(&device, Mode::CoherentExclusive).unwrap(), away);
        for word in 0..3 * memory / 8 {
            set(at(&region, 8 * word), if word % (BLOCK / 8) < 3 { 0 } else { filler(word) });
        }
        let blocks = vec![0; (3 * memory / BLOCK) as usize];
        let (victim, other, cpu) = (blocks.clone(), blocks.clone(), blocks);
        let arena = Self { gmem, driver, device, space, region, mode: kind.mode, bystander, neighbour, victim, other, cpu, turn: 1 };
        // Its memory takes a mapping of its own from the first use on.
        arena.neighbour_runs();
        arena
    }

    /// The whole region, the part of it that fits into the device, and the rest.
    pub(crate) fn spans(&self) -> (Span, Span, Span) {
        let (start, len) = (self.region.range().start().get(), self.region.range().len().get());
        ((start, len), (start, len / 3), (start + len / 3, len - len / 3))
    }

    /// Takes a new turn: its values are in memory nowhere yet.
    pub(crate) fn next_turn(&mut self) {
        self.turn += 1;
    }

    fn first_block(&self, span: Span) -> u64 {
        (span.0 - self.region.range().start().get()) / BLOCK
    }

    /// The arguments by which `FILL` stores this turn's values into the victim's words of `span`, so often.
    pub(crate) fn victim_args(&self, span: Span, passes: u64) -> [u64; 5] {
        [span.0 + VICTIM, value(self.turn, self.first_block(span)), BLOCK, span.1 / BLOCK, passes]
    }

    /// Has the bystander store this turn's values into its words of `span`.
    pub(crate) fn bystander_runs(&self, span: Span) {
        run(&self.bystander, &FILL, &[span.0 + BYSTANDER, value(self.turn, self.first_block(span)), BLOCK, span.1 / BLOCK, 1])
            .expect("a device that nobody killed");
    }

    /// Has the same device work for another address space.
    pub(crate) fn neighbour_runs(&self) {
        let (context, region) = &self.neighbour;
        let blocks = region.range().len().get() / BLOCK;
        run(context, &FILL, &[at(region, 0), value(self.turn, 0), BLOCK, blocks, 2]).expect("a context that nobody killed");
        for block in 0..blocks {
            assert_eq!(get(at(region, block * BLOCK)), value(self.turn, block), "the neighbour's block {block}");
        }
    }

    /// Counts in the CPU's words of `span` until told to stop. Returns what all of the CPU's words hold then.
    pub(crate) fn cpu_counts(&self, span: Span, stop: &AtomicBool) -> Vec<u64> {
        let (mut words, first) = (self.cpu.clone(), self.first_block(span));
        loop {
            for block in 0..span.1 / BLOCK {
                let (va, word) = (span.0 + block * BLOCK + CPU, &mut words[(first + block) as usize]);
                assert_eq!(get(va), *word, "a write of the CPU was lost in block {}", first + block);
                *word += 1;
                set(va, *word);
            }
            if stop.load(Ordering::SeqCst) {
                return words;
            }
        }
    }

    /// Notes that the bystander has stored this turn's values in `span`, and what the CPU's words hold.
    pub(crate) fn others_done(&mut self, span: Span, cpu: Vec<u64>) {
        for block in self.first_block(span)..self.first_block(span) + span.1 / BLOCK {
            self.other[block as usize] = value(self.turn, block);
        }
        self.cpu = cpu;
    }

    /// Notes that the victim has stored this turn's values in `span`, wholly.
    pub(crate) fn victim_done(&mut self, span: Span) {
        for block in self.first_block(span)..self.first_block(span) + span.1 / BLOCK {
            self.victim[block as usize] = value(self.turn, block);
        }
    }

    /// Checks every byte of `span`. Where the victim was cut off, in `cut`, each of its words is what it was or what this turn stores; which of the two is
    /// noted, and counted.
    pub(crate) fn check(&mut self, span: Span, cut: Option<Span>, case: &str) -> (u64, u64) {
        let (mut old, mut new) = (0, 0);
        let inside = |va: u64| cut.is_some_and(|(start, len)| (start..start + len).contains(&va));
        for va in (span.0..span.0 + span.1).step_by(8) {
            let word = (va - self.region.range().start().get()) / 8;
            let (block, seen) = (word * 8 / BLOCK, get(va));
            let expected = match word * 8 % BLOCK {
                VICTIM => self.victim[block as usize],
                BYSTANDER => self.other[block as usize],
                CPU => self.cpu[block as usize],
                _ => filler(word),
            };
            let fresh = value(self.turn, block);
            if word * 8 % BLOCK == VICTIM && inside(va) && seen == fresh {
                self.victim[block as usize] = fresh;
                new += 1;
                continue;
            }
            old += u64::from(word * 8 % BLOCK == VICTIM && inside(va));
            assert_eq!(seen, expected, "{case}: word {} of block {block}, this turn's value is {fresh:#x}", word % (BLOCK / 8));
        }
        (old, new)
    }
}

// Stores args[1] + i at args[0] + i * args[2], for i below args[3], args[4] times over.
gmem::kernel!(pub(crate) FILL = "kills-fill", |grid, args| {
    for _ in 0..args[4] {
        for i in grid.share(args[3] as usize) {
            ((args[0] + i as u64 * args[2]) as *mut u64).write_volatile(args[1] + i as u64);
        }
    }
});
