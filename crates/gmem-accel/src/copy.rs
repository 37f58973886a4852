//! The copy engine: moves bytes between the host's memory, this device's, and other devices' of this driver in the same process.

use crate::machine::Machine;
use gmem_hal::{ByteLen, CopyEngine, DeviceError, HnodeId, PhysAddr};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// The most device memories one process can have and still copy between directly; more go by way of the host.
const MEMORIES: usize = 256;

/// A device's memory as other devices find it. The words are published by storing `key` last and withdrawn by clearing it first; who reads them looks afterwards
/// whether they were those of one memory.
struct Memory {
    /// Which hnode of its core; 0 if free, 1 while being filled.
    key: AtomicUsize,
    /// Counts the memories that were here.
    generation: AtomicUsize,
    core: AtomicUsize,
    base: AtomicUsize,
    len: AtomicUsize,
}

/// Every memory of this driver. Hnodes are numbered by core, and a process may hold several cores.
static MEMORY: [Memory; MEMORIES] = [const {
    Memory {
        key: AtomicUsize::new(FREE),
        generation: AtomicUsize::new(0),
        core: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MEMORIES];

const FREE: usize = 0;
const FILLING: usize = 1;

fn key(hnode: HnodeId) -> usize {
    usize::from(hnode.0) + 2
}

/// Makes a memory known to the other devices of `core` (any number that is the same for devices of one core).
pub(crate) fn publish(core: usize, hnode: HnodeId, base: usize, len: usize) {
    let free = |m: &&Memory| m.key.compare_exchange(FREE, FILLING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if let Some(memory) = MEMORY.iter().find(free) {
        // Who reads any word of this memory finds the generation changed afterwards, by the two fences.
        memory.generation.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        memory.core.store(core, Ordering::Relaxed);
        memory.base.store(base, Ordering::Relaxed);
        memory.len.store(len, Ordering::Relaxed);
        memory.key.store(key(hnode), Ordering::Release);
    }
}

/// Forgets what `publish` made known. No copy to or from it is under way.
pub(crate) fn withdraw(core: usize, hnode: HnodeId) {
    let ours = |m: &&Memory| m.key.load(Ordering::Acquire) == key(hnode) && m.core.load(Ordering::Relaxed) == core;
    if let Some(memory) = MEMORY.iter().find(ours) {
        memory.key.store(FREE, Ordering::Release);
    }
}

/// Base and length of another memory of the same core.
fn look_up(core: usize, hnode: HnodeId) -> Option<(usize, usize)> {
    MEMORY.iter().find_map(|m| {
        let generation = m.generation.load(Ordering::Acquire);
        let ours = || m.key.load(Ordering::Acquire) == key(hnode) && m.core.load(Ordering::Relaxed) == core;
        if !ours() {
            return None;
        }
        let found = (m.base.load(Ordering::Relaxed), m.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        // One that changed meanwhile was another's: ours is not withdrawn while it is copied to or from.
        (m.generation.load(Ordering::Relaxed) == generation && ours()).then_some(found)
    })
}

impl Machine {
    /// The pointer to `len` bytes at `at`, checked as far as this driver can.
    fn pointer(&self, at: PhysAddr, len: ByteLen) -> Result<*mut u8, DeviceError> {
        if at.hnode == HnodeId::HOST {
            return Ok(at.addr as *mut u8);
        }
        let own = self.own_memory(at.hnode);
        let (base, size) = own.or_else(|| look_up(self.core_key(), at.hnode)).ok_or(DeviceError::BadRequest)?;
        let end = at.addr.checked_add(len.get()).ok_or(DeviceError::BadRequest)?;
        if end > size as u64 { Err(DeviceError::BadRequest) } else { Ok((base + at.addr as usize) as *mut u8) }
    }
}

impl CopyEngine for Machine {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        if dst.hnode == HnodeId::HOST {
            return Err(DeviceError::BadRequest);
        }
        let to = self.pointer(dst, len)?;
        // SAFETY: `len` bytes from `to` lie inside a mapping of device memory that lives as long as this device; no table maps them, so
        // nobody else touches them meanwhile.
        unsafe { to.write_bytes(0, len.get() as usize) };
        Ok(())
    }

    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let (to, from) = (self.pointer(dst, len)?, self.pointer(src, len)?);
        // SAFETY: device addresses were checked to lie inside live mappings; host addresses are valid for the length of the call and source
        // and destination never overlap, by the contract of `CopyEngine`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len.get() as usize) };
        Ok(())
    }

    fn reaches(&self, hnode: HnodeId) -> bool {
        self.own_memory(hnode).is_some() || look_up(self.core_key(), hnode).is_some()
    }
}
