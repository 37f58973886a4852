//! What kernels on the device do: loads and stores through its MMU.

use super::{Canary, SimDevice};
use crate::sched::{self, Reason};
use crate::sim::lock;
use gmem_hal::{Access, PageSize, PhysAddr, PmapId, VirtAddr};

/// Why a device access faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// No translation.
    Absent,
    /// The translation does not allow the access.
    Protection,
    /// The context was stopped, destroyed or died: a launch on it ends.
    Stopped,
}

/// A device access that could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFault {
    /// In which table.
    pub pmap: PmapId,
    /// The first byte that could not be accessed. The bytes before it were.
    pub va: VirtAddr,
    /// What was wanted.
    pub access: Access,
    /// Why not.
    pub kind: FaultKind,
}

impl SimDevice {
    /// A kernel in the context `pmap` loads `buf.len()` bytes. On a fault the bytes before it were read.
    pub fn read(&self, pmap: PmapId, va: VirtAddr, buf: &mut [u8]) -> Result<(), DeviceFault> {
        sched::yield_point(Reason::Access);
        let mut done = 0;
        let mut result = Ok(());
        while done < buf.len() && result.is_ok() {
            let part = part_of(va, done, buf.len());
            result = self.translate(pmap, VirtAddr::new(va.get() + done as u64), Access::Read).map(|at| {
                self.is.sim.memory_read(at, &mut buf[done..done + part], Some(pmap));
                done += part;
            });
        }
        self.is.sim.event_bytes("dev_read", [pmap.0, va.get(), done as u64, u64::from(self.number)], buf);
        result
    }

    /// A kernel in the context `pmap` stores `buf`. On a fault the bytes before it were written.
    pub fn write(&self, pmap: PmapId, va: VirtAddr, buf: &[u8]) -> Result<(), DeviceFault> {
        sched::yield_point(Reason::Access);
        let mut done = 0;
        let mut result = Ok(());
        while done < buf.len() && result.is_ok() {
            let part = part_of(va, done, buf.len());
            result = self.translate(pmap, VirtAddr::new(va.get() + done as u64), Access::Write).map(|mut at| {
                if self.shows(Canary::StoresAstray, 16) {
                    at.addr ^= PageSize::Size4K.bytes();
                }
                self.is.sim.memory_write(at, &buf[done..done + part], Some(pmap));
                done += part;
            });
        }
        self.is.sim.event_bytes("dev_write", [pmap.0, va.get(), done as u64, u64::from(self.number)], buf);
        result
    }

    /// Where `va` is for the device: by what it cached, whatever the table says by now, else by the table.
    fn translate(&self, pmap: PmapId, va: VirtAddr, access: Access) -> Result<PhysAddr, DeviceFault> {
        let fault = |kind| DeviceFault { pmap, va, access, kind };
        let mut contexts = lock(&self.contexts);
        let mut index = lock(&self.is.sim.index);
        if contexts.live.get(&pmap).is_none_or(|context| context.fenced) {
            return Err(fault(FaultKind::Stopped));
        }
        if let Some((start, entry)) = contexts.tlb.get(pmap, va.get()) {
            let at = PhysAddr { addr: entry.frame.addr + (va.get() - start), ..entry.frame };
            let now = contexts.translation(pmap, va);
            if !entry.prot.allows(access) {
                // As real MMUs do, the fault drops the entry, so that it happens at most once after an upgrade.
                contexts.uncache(&mut index, pmap, start);
                return Err(fault(FaultKind::Protection));
            }
            if !now.is_some_and(|(frame, prot)| frame == at && prot.allows(access)) {
                self.is.sim.stale_access();
            }
            return Ok(at);
        }
        if contexts.tlb.take_absent(pmap, va.get()) {
            return Err(fault(FaultKind::Absent));
        }
        let Some((start, leaf)) = contexts.context(pmap).table.get(va.get()).filter(|(_, leaf)| !leaf.prot.is_empty()) else {
            contexts.tlb.remember_absent(pmap, va.get());
            return Err(fault(FaultKind::Absent));
        };
        if !leaf.prot.allows(access) {
            return Err(fault(FaultKind::Protection));
        }
        contexts.cache(&mut index, pmap, start, leaf);
        Ok(PhysAddr { addr: leaf.frame.addr + (va.get() - start), ..leaf.frame })
    }
}

/// How many bytes an access of `len` bytes from `va` makes in the 4 KiB page it has reached after `done`.
fn part_of(va: VirtAddr, done: usize, len: usize) -> usize {
    let inside = (va.get() + done as u64) % PageSize::Size4K.bytes();
    (len - done).min((PageSize::Size4K.bytes() - inside) as usize)
}
