//! The copy engine.

use super::pmap::Pmap;
use super::{Reference, bus};
use crate::Defect;
use gmem::hal::{ByteLen, CopyEngine, DeviceError, HnodeId, PageSize, PhysAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a broken driver lets its device go on after a copy.
const LATE: Duration = Duration::from_millis(1);

impl Reference {
    /// A host address is a pointer that the copy engine may use for the length of the call; a device address is one of ours, or of the `other` device.
    fn copy_pointer(&self, at: PhysAddr, len: ByteLen, other: Option<&Reference>) -> Result<*mut u8, DeviceError> {
        let aligned = PageSize::from_bytes(len.get()).is_some() && at.addr.is_multiple_of(len.get());
        let pointer = match at.hnode {
            HnodeId::HOST => Some(std::ptr::with_exposed_provenance_mut(at.addr as usize)),
            own if self.memory_of(own).is_some() => self.pointer(at.addr, len.get()),
            _ => other.and_then(|other| other.pointer(at.addr, len.get())),
        };
        pointer.filter(|_| aligned).ok_or_else(|| self.protocol_error(format_args!("a copy of {len} at {at:?}")))
    }

    /// The other device that has the memory `hnode`, if it is one that we reach.
    fn other(&self, hnode: HnodeId) -> Option<Arc<Reference>> {
        if hnode == HnodeId::HOST || self.memory_of(hnode).is_some() { None } else { bus::device(hnode) }
    }

    /// What a broken driver makes of a copy from another device.
    fn transfer_directly(&self, dst: *mut u8, src: *const u8, beside: Option<*mut u8>, len: u64) {
        match beside {
            Some(beside) if self.has(Defect::DirectWrongFrame) => self.transfer(dst, beside, len),
            _ if self.has(Defect::DirectHalfCopied) => self.transfer(dst, src, len / 2),
            _ => self.transfer(dst, src, len),
        }
    }

    /// A broken driver leaves nothing of what a context that it stops had, or tears the word that its device may have had in hand.
    pub(super) fn spoil(&self, context: &Pmap) {
        for entry in context.lock().table.inside(context.range) {
            let len = entry.page.len().get();
            if let Some(frame) = self.pointer(entry.frame.addr, len).filter(|_| entry.frame.hnode != HnodeId::HOST) {
                // SAFETY: `pointer` saw that the frame is inside our memory, and the table is held, through which alone it can be touched.
                unsafe {
                    match () {
                        () if self.has(Defect::WipedWhenStopped) => frame.write_bytes(0, len as usize),
                        () => frame.add(15).write(0x7f),
                    }
                }
            }
        }
    }

    /// The engine moves the bytes; what a broken driver makes of it is above and below.
    fn transfer(&self, dst: *mut u8, src: *const u8, len: u64) {
        // SAFETY: the core owns both sides for the length of the call, they do not overlap, and `copy_pointer` saw that ours is inside our memory. Should a
        // device still write the source, which a correct one cannot, the bytes read are whatever they are.
        unsafe { dst.copy_from_nonoverlapping(src, len as usize) };
    }
}

impl CopyEngine for Reference {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let dst = self.copy_pointer(dst, len, None)?;
        let zeroed = match () {
            () if self.has(Defect::BlankNotZeroed) => 0,
            () if self.has(Defect::HalfZeroed) => len.get() / 2,
            () => len.get(),
        };
        // SAFETY: the core owns the frame, nobody can reach it now, and `copy_pointer` saw that it is inside our memory.
        unsafe { dst.write_bytes(0, zeroed as usize) };
        Ok(())
    }

    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let (source, target) = (self.other(src.hnode), self.other(dst.hnode));
        let (to, from) = (self.copy_pointer(dst, len, target.as_deref())?, self.copy_pointer(src, len, source.as_deref())?);
        if [dst, src].iter().all(|side| self.memory_of(side.hnode).is_none()) {
            return Err(self.protocol_error(format_args!("a copy from {src:?} to {dst:?}, neither of which is ours")));
        }
        if let Some(source) = source {
            let beside = source.pointer(src.addr ^ len.get(), len.get());
            self.transfer_directly(to, from, beside, len.get());
            return Ok(());
        }
        let nth = self.copies.fetch_add(1, Ordering::Relaxed);
        match () {
            () if self.has(Defect::CopySkipped) => {}
            () if self.has(Defect::HalfCopied) => self.transfer(to, from, len.get() / 2),
            // A copy that failed, of which nobody is told.
            () if self.has(Defect::ErrorSwallowed) && nth % 4 == 3 => {}
            () => self.transfer(to, from, len.get()),
        }
        if self.has(Defect::CopiedBeforeUnmapped) {
            std::thread::sleep(LATE);
            let pmaps: Vec<_> = self.pmaps().clone();
            pmaps.iter().for_each(|pmap| pmap.lock().catch_up());
        }
        Ok(())
    }

    fn reaches(&self, hnode: HnodeId) -> bool {
        bus::reaches(hnode)
    }
}
