//! What threads of control do in a campaign: the operations of one, and what only makes sense when there are several.

use gmem_sim::random::{Op, PageRun, Spot};
use gmem_sim::{Callback, Injected};

/// One act.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// An operation.
    Do(Op),
    /// The background eviction that the core asked for.
    Background,
    /// An I/O device of the kernel stores to a page that the kernel pins, past every page table.
    DmaStore(Spot, u8),
    /// It loads from there.
    DmaLoad(Spot),
    /// The next call of this callback fails: any device's, or this one's.
    Fail(Callback, Option<usize>, Injected),
    /// For so many steps memory is short: a device's, or the host's.
    Short(Option<usize>, u64),
    /// A device dies, and nobody is told.
    Kill(usize),
    /// Its death is noticed, and it is started again.
    Revive(usize),
    /// A device is taken out of the machine: detached everywhere, destroyed.
    Unplug(usize),
    /// Another one is put in its place.
    Plug(usize),
    /// An address space is made, used on this device, and destroyed.
    Visit(usize),
}

/// The kinds of acts that a campaign pairs.
pub const KINDS: [&str; 17] = [
    "fault", "evict", "map", "unmap", "protect", "attach", "detach", "switch", "launch", "prefetch", "discard", "pin", "memory", "io",
    "death", "plug", "space",
];

impl Act {
    /// Which of [`KINDS`] it is; making a call fail is none.
    pub fn kind(&self) -> Option<usize> {
        let name = match self {
            Act::Do(op) => match op {
                Op::CpuRead(_) | Op::CpuWrite(..) | Op::DevRead(..) | Op::DevWrite(..) => "fault",
                Op::Evict(..) => "evict",
                Op::Map(..) => "map",
                Op::Unmap(_) => "unmap",
                Op::Protect(..) => "protect",
                Op::Attach { .. } => "attach",
                Op::Detach(..) => "detach",
                Op::Switch(..) => "switch",
                Op::Launch(..) => "launch",
                Op::Prefetch(..) => "prefetch",
                Op::Discard(_) => "discard",
                Op::Pin(_) | Op::Unpin(_) => "pin",
                Op::Limit(..) | Op::Memory(_) => "memory",
                Op::KernelPin(_) | Op::KernelUnpin(_) => "io",
                Op::Lose(..) => "death",
            },
            Act::Background => "evict",
            Act::DmaStore(..) | Act::DmaLoad(_) => "io",
            Act::Kill(_) | Act::Revive(_) => "death",
            Act::Unplug(_) | Act::Plug(_) => "plug",
            Act::Visit(_) => "space",
            Act::Fail(..) | Act::Short(..) => return None,
        };
        KINDS.iter().position(|kind| *kind == name)
    }

    /// Whether it changes what regions an address space has.
    fn changes_regions(&self) -> bool {
        matches!(self, Act::Do(Op::Map(..) | Op::Unmap(_) | Op::Protect(..)))
    }

    /// The pages and the device it is about, where it is about some. Who attaches, detaches or maps is about all of an address space.
    fn subject(&self) -> (Option<PageRun>, Option<usize>) {
        let page = |spot: Spot| Some(PageRun { space: spot.space, first: spot.page, count: 1 });
        let all = |space| Some(PageRun { space, first: 0, count: u64::MAX });
        match *self {
            Act::Do(op) => match op {
                Op::Map(run, ..) => (all(run.space), None),
                Op::Unmap(run) | Op::Protect(run, _) | Op::Discard(run) | Op::Pin(run) | Op::Unpin(run) => (Some(run), None),
                Op::CpuRead(spot) | Op::CpuWrite(spot, _) | Op::KernelPin(spot) | Op::KernelUnpin(spot) => (page(spot), None),
                Op::DevRead(device, spot) | Op::DevWrite(device, spot, _) => (page(spot), Some(device)),
                Op::Attach { space, device, .. } | Op::Detach(space, device) => (all(space), Some(device)),
                Op::Evict(device, _) | Op::Lose(device, _) | Op::Limit(device, _) | Op::Memory(device) => (None, Some(device)),
                Op::Prefetch(run, device) => (Some(run), device),
                Op::Switch(device, space) => (space.and_then(all), Some(device)),
                Op::Launch(device, run, ..) => (Some(run), Some(device)),
            },
            Act::DmaStore(spot, _) | Act::DmaLoad(spot) => (page(spot), None),
            Act::Kill(device) | Act::Revive(device) | Act::Unplug(device) | Act::Plug(device) | Act::Visit(device) => (None, Some(device)),
            Act::Background | Act::Fail(..) | Act::Short(..) => (None, None),
        }
    }

    /// Whether two acts can get in each other's way: if they name pages, the same ones, or else the same device, as far as each names one.
    /// Two that change regions meet wherever in the address space they do: one at the same pages would have to wait for the other.
    pub fn meets(&self, other: &Act) -> bool {
        match (self.subject(), other.subject()) {
            ((Some(a), _), (Some(b), _)) if self.changes_regions() && other.changes_regions() => a.space == b.space,
            ((Some(a), _), (Some(b), _)) => {
                a.space == b.space && a.first < b.first.saturating_add(b.count) && b.first < a.first.saturating_add(a.count)
            }
            ((_, Some(a)), (_, Some(b))) => a == b,
            _ => true,
        }
    }
}
