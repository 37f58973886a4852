//! Short lists of operations written by hand that together reach every callback.

use gmem_hal::{Backing, Mode, Prot};
use gmem_sim::random::{Op, PageRun, Spot};

fn run(space: usize, first: u64, count: u64) -> PageRun {
    PageRun { space, first, count }
}

fn at(space: usize, page: u64) -> Spot {
    Spot { space, page, offset: 2040, len: 16 }
}

fn attach(space: usize, device: usize, mode: Mode) -> Op {
    Op::Attach { space, device, mode, activate: true }
}

/// For the standard world: device 1 reaches the memory of others, device 2 allocates its frames itself and cannot be stopped by force, device 3 is a peer.
pub fn exclusive() -> Vec<Op> {
    let mut ops = vec![Op::Map(run(0, 0, 12), Prot::RW, Backing::Shared)];
    ops.extend((0..4).map(|device| attach(0, device, Mode::CoherentExclusive)));
    ops.extend([
        attach(2, 0, Mode::CoherentExclusive),
        attach(2, 3, Mode::CoherentExclusive),
        Op::Map(run(2, 0, 40), Prot::RW, Backing::Shared),
        Op::Map(run(0, 12, 6), Prot::RW, Backing::Shared),
        Op::Switch(0, Some(0)),
        // Host to device, for reading, then for writing; back; and from device to device, directly and by way of home.
        Op::CpuWrite(at(0, 0), 1),
        Op::DevRead(0, at(0, 0)),
        Op::DevWrite(0, at(0, 0), 2),
        Op::DevWrite(1, at(0, 0), 3),
        Op::DevWrite(2, at(0, 0), 4),
        Op::DevRead(3, at(0, 0)),
        Op::DevWrite(3, at(0, 0), 5),
        Op::DevRead(0, at(0, 0)),
        Op::CpuRead(at(0, 0)),
        // Pages that nobody wrote before.
        Op::DevRead(0, at(0, 1)),
        Op::DevWrite(1, at(0, 2), 6),
        Op::DevWrite(2, at(0, 3), 7),
        Op::DevWrite(3, at(0, 4), 8),
        Op::CpuRead(at(0, 4)),
        Op::DevWrite(3, at(2, 4), 8),
        Op::Launch(0, run(0, 5, 3), at(0, 6), 9),
        // Too many pages: somebody must go.
        Op::Prefetch(run(2, 0, 40), Some(0)),
        Op::DevWrite(0, at(2, 1), 10),
        Op::DevWrite(0, at(2, 39), 10),
        Op::DevRead(0, at(2, 0)),
        Op::Evict(0, 9),
        Op::Evict(3, 2),
        // Taking access away where devices have it.
        Op::DevWrite(0, at(0, 8), 11),
        Op::DevWrite(0, at(0, 9), 11),
        Op::DevWrite(2, at(0, 10), 11),
        Op::DevWrite(3, at(0, 13), 11),
        Op::Protect(run(0, 7, 8), Prot::READ),
        Op::DevRead(0, at(0, 8)),
        Op::DevWrite(3, at(0, 13), 12),
        Op::CpuRead(at(0, 9)),
        Op::Protect(run(0, 7, 8), Prot::RW),
        Op::Discard(run(0, 8, 4)),
        Op::DevRead(1, at(0, 8)),
        Op::Unmap(run(0, 1, 2)),
        Op::Unmap(run(2, 30, 10)),
        Op::Switch(0, None),
        Op::Detach(0, 2),
        Op::Detach(2, 3),
        Op::Lose(0, false),
        Op::CpuRead(at(0, 8)),
        Op::Detach(0, 0),
        attach(0, 0, Mode::CoherentExclusive),
        Op::DevWrite(0, at(0, 5), 13),
    ]);
    ops
}

/// For the world of all modes: device 0 has a table that device 1 can share, 2 and 3 are replicas, 4 shares the CPU's table, 5 is a peer.
pub fn all_modes() -> Vec<Op> {
    vec![
        Op::Map(run(0, 0, 8), Prot::RW, Backing::Shared),
        Op::CpuWrite(at(0, 0), 1),
        Op::CpuWrite(at(0, 1), 1),
        attach(0, 0, Mode::CoherentExclusive),
        attach(0, 1, Mode::Share),
        attach(0, 2, Mode::Replicate),
        attach(0, 3, Mode::Replicate),
        attach(0, 4, Mode::Share),
        attach(0, 5, Mode::CoherentExclusive),
        attach(2, 2, Mode::Replicate),
        attach(2, 0, Mode::CoherentExclusive),
        Op::Map(run(2, 0, 4), Prot::RW, Backing::Shared),
        Op::Map(run(0, 8, 4), Prot::RW, Backing::Shared),
        // A replica reads and writes where the page is, and keeps it when another does.
        Op::DevRead(2, at(0, 0)),
        Op::DevWrite(3, at(0, 0), 2),
        Op::DevRead(4, at(0, 0)),
        Op::DevWrite(2, at(0, 2), 3),
        Op::DevWrite(2, at(2, 0), 3),
        // An exclusive device takes it from all of them, and gives it back to all.
        Op::DevRead(0, at(0, 0)),
        Op::DevWrite(1, at(0, 0), 4),
        Op::DevRead(2, at(0, 0)),
        Op::DevWrite(5, at(0, 0), 5),
        Op::DevRead(3, at(0, 0)),
        Op::DevWrite(4, at(0, 1), 6),
        Op::Launch(1, run(0, 0, 3), at(0, 1), 7),
        Op::Launch(2, run(0, 0, 3), at(0, 1), 8),
        Op::Launch(4, run(0, 0, 3), at(0, 1), 9),
        Op::Protect(run(0, 0, 10), Prot::READ),
        Op::DevRead(2, at(0, 1)),
        Op::DevRead(0, at(0, 1)),
        Op::Protect(run(0, 0, 10), Prot::RW),
        Op::DevWrite(2, at(0, 1), 10),
        Op::Discard(run(0, 0, 2)),
        Op::DevRead(3, at(0, 1)),
        Op::DevWrite(5, at(0, 9), 11),
        Op::Evict(5, 1),
        Op::Detach(0, 1),
        Op::Detach(0, 3),
        attach(0, 3, Mode::CoherentExclusive),
        Op::DevWrite(0, at(0, 3), 12),
        Op::DevWrite(3, at(0, 3), 12),
        Op::DevRead(2, at(0, 3)),
        Op::Unmap(run(0, 4, 6)),
        Op::Lose(2, true),
        Op::DevWrite(0, at(0, 2), 13),
        Op::Detach(0, 2),
        attach(0, 2, Mode::Replicate),
        Op::DevRead(2, at(0, 2)),
        Op::Detach(2, 2),
        Op::Detach(0, 5),
    ]
}
