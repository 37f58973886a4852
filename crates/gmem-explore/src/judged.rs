//! A world and its model side by side, while calls are made to fail: which refusals are excused, and what must work again when nothing fails any more.

use crate::{CoreWorld, injected};
use gmem_hal::{DeviceError, Mode, PeerError};
use gmem_sim::random::{Model, Op, Outcome, PageRun, Tolerance, World};
use gmem_sim::{Callback, Injected};

/// One call that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Which call.
    pub callback: Callback,
    /// The how manieth of them, from one.
    pub n: u64,
    /// What it answers.
    pub error: Injected,
}

impl Point {
    /// Whether the call answers with this error of a device.
    pub fn answers(&self, wanted: DeviceError) -> bool {
        self.error == Injected::Device(wanted) || self.error == Injected::Peer(PeerError::Device(wanted))
    }

    /// Whether the device goes on as if nothing had happened: a grant that was refused is undone. One that was not answered may have been carried out, so its
    /// context is fenced, as after a revoke that was not answered.
    pub fn leaves_it_working(&self) -> bool {
        !self.answers(DeviceError::NoAnswer) && !self.answers(DeviceError::Dead) && self.callback != Callback::Fence
    }
}

/// A world, and what must be true of it.
pub struct Judged {
    /// The world.
    pub world: CoreWorld,
    /// Its model.
    pub model: Model,
}

impl Judged {
    /// A fresh world.
    pub fn new(world: CoreWorld) -> Self {
        let model = Model::new(world.shape.clone());
        Self { world, model }
    }

    /// Does one operation and judges what came of it. Any refusal is excused with `failures`; else one of an operation that a failure hit.
    pub fn step(&mut self, op: &Op, failures: bool) -> Result<(), String> {
        let before = injected(&self.world.sim);
        let outcome = self.world.apply(op);
        let hit = injected(&self.world.sim) != before;
        let tolerance = Tolerance { failures: failures || hit };
        let judged = self.model.judge(op, &outcome, tolerance).and_then(|()| self.world.verify());
        let judged = if hit { judged.and_then(|()| self.world.check_tables()) } else { judged };
        judged.map_err(|why| match outcome {
            // A whole page, perhaps; what is wrong with it has been said.
            Outcome::Loaded(_) => format!("{op:?}: {why}"),
            _ => format!("{op:?}: {why} ({outcome:?})"),
        })
    }

    /// Everything that can be repaired is, and then all must work and every byte be there.
    pub fn recover(&mut self) -> Result<(), String> {
        self.world.sim.clear_failures();
        for member in self.world.members.iter().filter(|member| member.device().is_dead()) {
            member.device().report_lost();
            member.device().revive();
        }
        let shape = self.model.shape().clone();
        for (space, size) in shape.spaces.iter().enumerate() {
            for page in 0..size.pages {
                let one = PageRun { space, first: page, count: 1 };
                while self.model.is_pinned(&one) {
                    self.step(&Op::Unpin(one), false)?;
                }
            }
        }
        // Those who share a table go before the one whose it is.
        for share in [true, false] {
            self.each_context(|run, space, device, mode| match mode {
                Some(mode) if (mode == Mode::Share) == share => run.step(&Op::Detach(space, device), false),
                _ => Ok(()),
            })?;
        }
        self.each_context(|run, space, device, _| {
            run.step(&Op::Attach { space, device, mode: shape.devices[device][0], activate: true }, false)
        })?;
        for op in self.model.sweep() {
            self.step(&op, false)?;
        }
        Ok(())
    }

    fn each_context(&mut self, mut f: impl FnMut(&mut Self, usize, usize, Option<Mode>) -> Result<(), String>) -> Result<(), String> {
        for space in 0..self.model.shape().spaces.len() {
            for device in 0..self.model.shape().devices.len() {
                f(self, space, device, self.model.attached(space, device))?;
            }
        }
        Ok(())
    }
}
