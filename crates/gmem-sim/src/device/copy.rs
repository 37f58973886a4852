//! The copy engine: it takes simulated time, others go on while it works, and it can fail half-way.

use super::contexts::assert_frame;
use super::dram::scribble;
use super::{Canary, SimDevice};
use crate::Callback;
use crate::sched::{self, Reason};
use crate::sim::lock;
use gmem_hal::{ByteLen, CopyEngine, DeviceError, HnodeId, PhysAddr};

impl SimDevice {
    /// Whether copy engine and MMU reach the memory of `hnode` on another device.
    pub(super) fn reaches_hnode(&self, hnode: HnodeId) -> bool {
        let pools = lock(&self.is.sim.pools);
        self.is.reaches_peers && pools.get(&hnode).is_some_and(|dram| dram.owner() != self.number)
    }

    fn owns(&self, at: PhysAddr, len: ByteLen) -> bool {
        self.registered(at.hnode).is_some_and(|range| range.begin <= at.addr && at.addr + len.get() <= range.end)
    }

    /// Panics if the memory must not be written by a copy now.
    pub(super) fn assert_target(&self, at: PhysAddr, len: ByteLen, doing: &str) {
        self.is.sim.assert_unreachable(at, len, doing);
        if at.hnode == HnodeId::HOST {
            lock(&self.is.sim.host).assert_copyable(at, len.get(), true);
        }
    }

    /// Panics if the memory must not be read by a copy now.
    pub(super) fn assert_source(&self, at: PhysAddr, len: ByteLen, doing: &str) {
        self.is.sim.assert_unwritable(at, len, doing);
        if at.hnode == HnodeId::HOST {
            lock(&self.is.sim.host).assert_copyable(at, len.get(), false);
        }
    }

    /// Moves bytes in two halves, with time and other threads of control in between. Both sides are looked at before, between and after. `src` of
    /// `None` is zeros. With `fail`, or if the device dies meanwhile, the second half ends as garbage.
    pub(super) fn transfer(&self, dst: PhysAddr, src: Option<PhysAddr>, len: ByteLen, fail: bool) -> Result<(), DeviceError> {
        let half = len.get() / 2;
        let moved = |at: u64| {
            let mut bytes = vec![0; half as usize];
            if let Some(src) = src {
                self.is.sim.memory_read(PhysAddr { addr: src.addr + at, ..src }, &mut bytes, None);
            }
            self.is.sim.memory_write(PhysAddr { addr: dst.addr + at, ..dst }, &bytes, None);
        };
        let check = || {
            self.assert_target(dst, len, "a copy into");
            if let Some(src) = src {
                self.assert_source(src, len, "a copy from");
            }
        };
        // What was lost with its device is nowhere to be copied from, whoever asks.
        let gone = || src.is_some_and(|src| self.is.sim.is_lost(src, len));
        let was_dead = self.is_dead();
        check();
        if gone() {
            self.is.sim.trouble();
            return Err(DeviceError::CopyFailed);
        }
        self.is.sim.clock().advance_ns(self.is.latency_ns + len.get() * 1000 / self.is.bytes_per_us);
        moved(0);
        sched::yield_point(Reason::Inside("copy"));
        check();
        let died = self.is_dead() && !was_dead && !self.is.memory_survives;
        let gone = gone();
        if fail || died || gone {
            self.is.sim.memory_write(PhysAddr { addr: dst.addr + half, ..dst }, &scribble(half as usize), None);
            if died || gone {
                self.is.sim.trouble();
            }
            return match () {
                () if died => Err(DeviceError::Dead),
                () if gone => Err(DeviceError::CopyFailed),
                () => Ok(()),
            };
        }
        let torn = src.is_some() && self.shows(Canary::TearsCopies, 8);
        if !torn {
            moved(half);
        }
        sched::yield_point(Reason::Inside("copy"));
        check();
        Ok(())
    }
}

impl CopyEngine for SimDevice {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let called = self.call(Callback::Zero, [u64::from(dst.hnode.0), dst.addr, len.get()]);
        assert_frame("zero", dst, len);
        assert!(self.owns(dst, len), "zero of {dst:?} ({len}), which is not registered memory of this device");
        if self.has(Canary::LeavesGarbage) {
            return called;
        }
        self.transfer(dst, None, len, called.is_err()).and(called)
    }

    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        let called = self.call(Callback::Copy, [dst.addr, src.addr, len.get()]);
        for (what, at) in [("a copy into", dst), ("a copy from", src)] {
            assert_frame(what, at, len);
            let reached = at.hnode == HnodeId::HOST || self.owns(at, len) || self.reaches_hnode(at.hnode);
            assert!(reached, "{what} {at:?} ({len}), which device {:?} does not reach", self.is.info.name);
        }
        assert!(self.owns(dst, len) || self.owns(src, len), "a copy from {src:?} to {dst:?}, neither of which is the device's own");
        let apart = dst.hnode != src.hnode || dst.addr.abs_diff(src.addr) >= len.get();
        assert!(apart, "a copy of {len} from {src:?} to {dst:?}, which overlap");
        self.transfer(dst, Some(src), len, called.is_err()).and(called)
    }

    fn reaches(&self, hnode: HnodeId) -> bool {
        self.reaches_hnode(hnode)
    }
}
