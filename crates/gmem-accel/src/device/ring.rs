//! Commands from the host: taken out of the ring in order, by one thread at a time, whichever is awake.

use super::{Device, peer, window};
use crate::shm::{Shared, command};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::hint;
use crate::wait::Bell;

/// What a command asks for.
pub(crate) mod op {
    /// Map `len` bytes at `va` to `frame` of the DRAM with `prot`.
    pub(crate) const ENTER: u32 = 1;
    /// The same with an offset in the host's memory.
    pub(crate) const ENTER_HOST: u32 = 2;
    /// Make `len` bytes at `va` absent.
    pub(crate) const RELEASE: u32 = 3;
    /// Change the access of `len` bytes at `va` to `prot`.
    pub(crate) const PROTECT: u32 = 4;
    /// Peer: reserve `len` bytes at `va`.
    pub(crate) const VA_ALLOC: u32 = 16;
    /// Peer: give them back.
    pub(crate) const VA_FREE: u32 = 17;
    /// Peer: these bytes of the DRAM (`frame`, `len`) are yours to allocate from.
    pub(crate) const GRANT: u32 = 18;
    /// Peer: find a frame for the page at `va`. `prot`'s bit 8: count it as recently used.
    pub(crate) const PREPARE: u32 = 19;
    /// Peer: the frame is filled; enter it.
    pub(crate) const COMMIT: u32 = 20;
    /// Peer: it could not be filled; free it.
    pub(crate) const ABORT: u32 = 21;
    /// Peer: take the page at `va` from the kernels, keep its frame.
    pub(crate) const DETACH: u32 = 22;
    /// Peer: its bytes are safe; free the frame.
    pub(crate) const FREE: u32 = 23;
    /// Peer: its bytes could not be saved; enter it again.
    pub(crate) const REATTACH: u32 = 24;
    /// Peer: choose a page to evict so that `len` contiguous bytes become free, and mark it.
    pub(crate) const VICTIM: u32 = 25;
    /// Peer: the eviction of the page at `va` was refused; count it as recently used.
    pub(crate) const SPARE: u32 = 26;
}

/// What became of it.
pub(crate) mod reply {
    pub(crate) const OK: u32 = 0;
    /// No room: a frame, a mapping, a table.
    pub(crate) const NO_MEMORY: u32 = 1;
    /// The command makes no sense.
    pub(crate) const BAD: u32 = 2;
    /// The addresses are in use.
    pub(crate) const CONFLICT: u32 = 3;
    /// The page is mapped already.
    pub(crate) const EXISTS: u32 = 4;
    /// The page is being evicted.
    pub(crate) const MIGRATING: u32 = 5;
    /// Nothing is mapped there.
    pub(crate) const ABSENT: u32 = 6;
    /// As many mappings as there can be.
    pub(crate) const TOO_MANY: u32 = 7;
}

/// A command, copied out of the ring.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) op: u32,
    pub(crate) prot: u32,
    pub(crate) va: u64,
    pub(crate) len: u64,
    pub(crate) frame: u64,
}

/// Whether commands wait.
pub(crate) fn pending(shm: &Shared) -> bool {
    shm.tail().load(Ordering::Relaxed) != shm.head().load(Ordering::SeqCst)
}

/// Carries out every command there is, unless another thread is at it. Async-signal-safe.
pub(super) fn drain(device: &Device) {
    drain_by(&device.shm, &device.draining, |command| perform(device, command));
}

/// The same, with `perform` for what a command does: it answers the result and a number that goes with it. `draining` is 1 while some thread is at it.
pub(crate) fn drain_by(shm: &Shared, draining: &AtomicU32, perform: impl Fn(&Command) -> (u32, u64)) {
    // The outer loop looks again after the lock was dropped: whoever posted in between found it taken by us and relies on us.
    while pending(shm) {
        // SeqCst, as the look before it and what ends the drain are: who finds it taken has seen a command that the other is sure to see after it.
        if draining.swap(1, Ordering::SeqCst) != 0 {
            hint::spin_loop(); // for callers who come again at once because there is something to do
            return;
        }
        let mut tail = shm.tail().load(Ordering::Relaxed);
        while tail != shm.head().load(Ordering::Acquire) {
            // The host wrote it before it counted the command.
            let record = shm.command_record(tail).load(Ordering::Relaxed);
            carry_out(shm, record, &perform);
            tail = tail.wrapping_add(1);
            shm.tail().store(tail, Ordering::SeqCst);
            // By now the record may be another command's; then this wakes somebody for nothing.
            Bell(shm.command(record).bell).ring();
        }
        draining.store(0, Ordering::SeqCst);
    }
}

fn carry_out(shm: &Shared, record: u32, perform: impl Fn(&Command) -> (u32, u64)) {
    let slot = shm.command(record);
    if slot.state.compare_exchange(command::PENDING, command::TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return; // cancelled
    }
    let c = Command {
        op: slot.op.load(Ordering::Relaxed),
        prot: slot.prot.load(Ordering::Relaxed),
        va: slot.va.load(Ordering::Relaxed),
        len: slot.len.load(Ordering::Relaxed),
        frame: slot.frame.load(Ordering::Relaxed),
    };
    let (result, value) = perform(&c);
    slot.result.store(result, Ordering::Relaxed);
    slot.value.store(value, Ordering::Relaxed);
    slot.state.store(command::DONE, Ordering::Release);
}

fn perform(device: &Device, c: &Command) -> (u32, u64) {
    match c.op {
        op::ENTER => (window::enter(device, c.va, c.len, c.frame, c.prot, false), 0),
        op::ENTER_HOST => (window::enter(device, c.va, c.len, c.frame, c.prot, true), 0),
        op::RELEASE => (revoked(device, window::release(device, c.va, c.len)), 0),
        op::PROTECT => {
            peer::protected(device, c);
            (revoked(device, window::protect(device, c.va, c.len, c.prot)), 0)
        }
        _ => peer::carry_out(device, c),
    }
}

/// Nobody waits for the result of a revoke; the invalidation that follows asks for this mark.
fn revoked(device: &Device, result: u32) -> u32 {
    if result != reply::OK {
        device.shm.revoke_failed().store(1, Ordering::SeqCst);
    }
    result
}
