//! The copy engine.

use super::Reference;
use crate::Defect;
use gmem::hal::{ByteLen, CopyEngine, DeviceError, HnodeId, PageSize, PhysAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a broken driver lets its device go on after a copy.
const LATE: Duration = Duration::from_millis(1);

impl Reference {
    /// A host address is a pointer that the copy engine may use for the length of the call; a device address is one of ours.
    fn copy_pointer(&self, at: PhysAddr, len: ByteLen) -> Result<*mut u8, DeviceError> {
        let aligned = PageSize::from_bytes(len.get()).is_some() && at.addr.is_multiple_of(len.get());
        let pointer = match at.hnode {
            HnodeId::HOST => Some(std::ptr::with_exposed_provenance_mut(at.addr as usize)),
            // The memory of another device is out of reach.
            hnode => self.memory_of(hnode).and_then(|_| self.pointer(at.addr, len.get())),
        };
        pointer.filter(|_| aligned).ok_or_else(|| self.protocol_error(format_args!("a copy of {len} at {at:?}")))
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
        let dst = self.copy_pointer(dst, len)?;
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
        let (to, from) = (self.copy_pointer(dst, len)?, self.copy_pointer(src, len)?);
        if dst.hnode == HnodeId::HOST && src.hnode == HnodeId::HOST {
            return Err(self.protocol_error(format_args!("a copy from host memory to host memory")));
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
}
