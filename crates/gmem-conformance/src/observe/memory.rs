//! The calls on memory: copies, and the driver's own frames.

use super::{Observed, rules};
use gmem::hal::{ByteLen, CopyEngine, DeviceError, Frames, HnodeId, PageSize, PhysAddr};

impl CopyEngine for Observed {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            if !shadow.owns(dst, len.get()) {
                shadow.breach(rules::COPY_SHAPE, format_args!("zero of {len} at {dst:?}"));
            }
            shadow.check_copy("zero", dst, len.get(), true);
        };
        self.pass("zero", None, before, || self.refuse("zero").and_then(|()| self.inner.copy_engine().zero(dst, len)), |_, _| {})
    }

    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            let within =
                |at: PhysAddr| at.hnode == HnodeId::HOST || shadow.owns(at, len.get()) || self.inner.copy_engine().reaches(at.hnode);
            if !shadow.owns(dst, len.get()) && !shadow.owns(src, len.get()) || !within(dst) || !within(src) {
                shadow.breach(rules::COPY_SHAPE, format_args!("copy of {len} from {src:?} to {dst:?}"));
            }
            shadow.check_copy("copy to", dst, len.get(), true);
            shadow.check_copy("copy from", src, len.get(), false);
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            let copied = match (src.hnode, dst.hnode) {
                _ if answer.is_err() => return,
                (HnodeId::HOST, _) => &mut shadow.copied.down,
                (_, HnodeId::HOST) => &mut shadow.copied.home,
                _ => &mut shadow.copied.across,
            };
            *copied += len.get();
        };
        let name = if dst.hnode == HnodeId::HOST { "copy home" } else { "copy" };
        self.pass(name, None, before, || self.refuse("copy").and_then(|()| self.inner.copy_engine().copy(dst, src, len)), after)
    }

    fn reaches(&self, hnode: HnodeId) -> bool {
        self.inner.copy_engine().reaches(hnode)
    }
}

impl Frames for Observed {
    fn alloc_frame(&self, hnode: HnodeId, size: PageSize) -> Result<PhysAddr, DeviceError> {
        let frames = || {
            self.refuse("alloc_frame")?;
            self.inner.frames().map_or(Err(DeviceError::Unsupported), |frames| frames.alloc_frame(hnode, size))
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<PhysAddr, DeviceError>| {
            if let Ok(frame) = *answer {
                shadow.check_taken(hnode, frame, size.bytes());
            }
        };
        self.pass("alloc_frame", None, |_| {}, frames, after)
    }

    fn free_frame(&self, frame: PhysAddr, size: PageSize) {
        let before = |shadow: &mut super::Shadow| shadow.check_free(frame, size.bytes());
        let free = || {
            if let Some(frames) = self.inner.frames() {
                frames.free_frame(frame, size);
            }
        };
        self.pass("free_frame", None, before, free, |_, ()| {});
    }
}
