//! One thread of control: it does one act after the other, tells the ledger before and after, and judges how each ended.

use super::act::Act;
use super::draw::{Drawer, Faults};
use super::ledger::{Ledger, Step};
use super::pairs::Pairs;
use super::shortage::Shortage;
use crate::{CoreWorld, Touched};
use gmem_hal::{Access, Backing, Mode};
use gmem_sim::random::{Op, Outcome, PageRun, Refusal, Spot};
use gmem_sim::{Reason, current, yield_point};
use std::cell::RefCell;

/// What the threads of control of a campaign share.
pub(super) struct Shared {
    pub(super) world: CoreWorld,
    pub(super) ledger: RefCell<Ledger>,
    pub(super) pairs: RefCell<Pairs>,
    pub(super) faults: Faults,
    /// How much trouble each thread of control had met when its act began, by its number from 1.
    pub(super) before: RefCell<Vec<u64>>,
    /// Memory is short.
    pub(super) shortage: RefCell<Option<Shortage>>,
    /// What each did, in order.
    pub(super) done: RefCell<Vec<Vec<Act>>>,
    /// From this step on nobody begins anything.
    pub(super) until: Step,
}

/// Where a thread of control gets its acts from.
pub(super) enum Source {
    /// They are drawn until the time is over.
    Drawn(Box<Drawer>),
    /// They are given.
    Given(std::vec::IntoIter<Act>),
}

impl Shared {
    /// The life of the thread of control number `me`.
    pub(super) fn live(&self, me: usize, mut source: Source) {
        loop {
            let act = match &mut source {
                Source::Drawn(_) if self.ledger.borrow().now >= self.until => None,
                Source::Drawn(drawer) => Some(drawer.draw(&self.world, &self.ledger.borrow())),
                Source::Given(acts) => acts.next(),
            };
            let Some(act) = act else { return };
            self.done.borrow_mut()[me].push(act);
            self.pairs.borrow_mut().begin(me, act);
            if let Err(why) = self.perform(&act) {
                panic!("{act:?} of thread {me}: {why}");
            }
            self.pairs.borrow_mut().end(me);
            yield_point(Reason::Step);
        }
    }

    /// Whether the running act may be refused because a call that it made was: one that was made to fail, or one about what is gone with a device.
    fn excused(&self) -> bool {
        self.faults != Faults::None && self.world.sim.troubles() != self.before.borrow()[current() as usize]
    }

    /// Whether an act on a device may be refused besides because the device, or one whose table it may share, is dead, or was given up or put in the place of
    /// another since `since`.
    fn is_in_trouble(&self, space: usize, device: usize, since: Step) -> bool {
        // A device whose context goes away meanwhile does no more of it.
        let detached = |other: usize| self.ledger.borrow().links[space][other].attached.could_be(false, since);
        if self.faults == Faults::None {
            return detached(device);
        }
        let shares = self.world.shape.devices[device].contains(&Mode::Share);
        (0..self.world.members.len()).filter(|other| *other == device || shares).any(|other| {
            let member = &self.world.members[other];
            let driver = member.device();
            let context = self.world.core.context(self.world.spaces[space], member.id());
            let lost = context.is_some_and(|c| c.fenced || c.mode != Mode::Share && driver.pmap_for(self.world.spaces[space]) != c.pmap);
            lost || driver.is_dead() || detached(other)
        })
    }

    fn perform(&self, act: &Act) -> Result<(), String> {
        let world = &self.world;
        let since = self.ledger.borrow().now;
        self.before.borrow_mut()[current() as usize] = world.sim.troubles();
        match *act {
            Act::Do(op) => self.operate(&op, since),
            Act::Background => {
                world.background();
                Ok(())
            }
            Act::DmaStore(spot, fill) => {
                let done = world.host.dma_write(world.shape.va(&spot), &spot.bytes(fill));
                if done {
                    self.ledger.borrow_mut().store(&spot, fill);
                }
                self.judge_dma(&spot, done, since)
            }
            Act::DmaLoad(spot) => {
                let mut bytes = vec![0; spot.len as usize];
                let done = world.host.dma_read(world.shape.va(&spot), &mut bytes);
                if done {
                    self.ledger.borrow().load(&spot, &bytes)?;
                }
                self.judge_dma(&spot, done, since)
            }
            Act::Fail(callback, device, error) => {
                match device {
                    Some(device) => world.sim.fail_nth_on(world.members[device].device().number(), callback, 1, error),
                    None => world.sim.fail_nth(callback, 1, error),
                }
                Ok(())
            }
            Act::Short(device, steps) => {
                *self.shortage.borrow_mut() = Some(Shortage::new(since + steps));
                world.sim.begin_shortage(device.map(|device| world.members[device].device().number()));
                Ok(())
            }
            Act::Kill(device) => {
                world.members[device].device().kill();
                Ok(())
            }
            Act::Revive(device) => {
                let device = world.members[device].device();
                device.report_lost();
                device.revive();
                Ok(())
            }
            Act::Unplug(device) => {
                self.unplug(device);
                Ok(())
            }
            Act::Plug(device) => {
                let plugged = world.plug(device);
                self.ledger.borrow_mut().present[device] |= plugged;
                Ok(())
            }
            Act::Visit(device) => world.visit(device, || self.excused()),
        }
    }

    /// What the kernel holds stays where it is.
    fn judge_dma(&self, spot: &Spot, done: bool, since: Step) -> Result<(), String> {
        let ledger = self.ledger.borrow();
        let page = ledger.page(spot);
        let left = page.held == 0 || page.may(Access::Read).could_be(false, since);
        if done || left { Ok(()) } else { Err("a page that the kernel holds has left its home".into()) }
    }

    fn operate(&self, op: &Op, since: Step) -> Result<(), String> {
        match *op {
            Op::Map(run, ..) => self.change(op, &run, false),
            Op::Unmap(run) => self.change(op, &run, true),
            Op::Protect(run, _) => self.change(op, &run, false),
            Op::Discard(run) => self.discard(op, &run),
            Op::Attach { space, device, .. } | Op::Detach(space, device) => self.link(op, space, device),
            Op::CpuRead(spot) => self.access(op, None, &spot, Access::Read, since),
            Op::CpuWrite(spot, _) => self.access(op, None, &spot, Access::Write, since),
            Op::DevRead(device, spot) => self.access(op, Some(device), &spot, Access::Read, since),
            Op::DevWrite(device, spot, _) | Op::Launch(device, _, spot, _) => self.access(op, Some(device), &spot, Access::Write, since),
            _ => self.other(op, since),
        }
    }

    fn act(&self, op: &Op) -> Outcome {
        self.act_and_judge(op).0
    }

    /// Does it, and says whether what it loaded was there.
    fn act_and_judge(&self, op: &Op) -> (Outcome, Result<(), String>) {
        let mut right = Ok(());
        let outcome = self.world.act(op, &mut |touched| match touched {
            Touched::Stored(spot, _) if self.ledger.borrow().is_lost(spot.space, spot.page as usize) => {
                right = Err(format!("page {} of space {} was stored to, but its bytes are lost", spot.page, spot.space));
            }
            Touched::Stored(spot, fill) => self.ledger.borrow_mut().store(&spot, fill),
            Touched::Astray(spot, fill) => self.ledger.borrow_mut().stray_store(&spot, fill),
            Touched::Loaded(spot, bytes) => right = self.ledger.borrow().load(&spot, bytes),
        });
        (outcome, right)
    }

    /// Maps, unmaps or protects, unless somebody else does something like it to the same pages.
    fn change(&self, op: &Op, run: &PageRun, unmapping: bool) -> Result<(), String> {
        let fits = match op {
            Op::Map(..) => self.ledger.borrow().is_free(run),
            _ => self.ledger.borrow().is_one_region(run),
        };
        if !fits {
            return Ok(());
        }
        self.ledger.borrow_mut().begin_change(run, unmapping);
        let since = self.ledger.borrow().now;
        let outcome = self.act(op);
        let mut ledger = self.ledger.borrow_mut();
        match (op, &outcome) {
            (Op::Map(_, prot, backing), Outcome::Done) => ledger.end_map(run, *prot, *backing),
            (Op::Unmap(_), Outcome::Done) => ledger.end_unmap(run),
            (Op::Protect(_, prot), Outcome::Done) => ledger.end_protect(run, *prot),
            _ => ledger.end_unchanged(run),
        }
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Refused(Refusal::Failed | Refusal::NoRoom) if self.excused() => Ok(()),
            // Nobody can give a replica private memory.
            Outcome::Refused(Refusal::Invalid)
                if matches!(op, Op::Map(_, _, Backing::Private)) && ledger.could_have_replica(run.space, since) =>
            {
                Ok(())
            }
            // The kernel does not give private memory out of its hands.
            Outcome::Refused(Refusal::Failed)
                if matches!(op, Op::Protect(..))
                    && ledger.run(run).iter().any(|page| page.backing == Backing::Private && page.was_held(since)) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}, but it makes sense and nothing stood in its way")),
        }
    }

    fn discard(&self, op: &Op, run: &PageRun) -> Result<(), String> {
        let since = self.ledger.borrow_mut().begin_discard(run);
        let outcome = self.act(op);
        let held = self.ledger.borrow().run(run).iter().any(|page| page.was_held(since));
        self.ledger.borrow_mut().end_discard(run, since, outcome == Outcome::Done)?;
        match outcome {
            Outcome::Refused(Refusal::Invalid) => Err("a discard that makes sense was refused as invalid".into()),
            Outcome::Refused(why) if !self.excused() && !held => Err(format!("{why:?}, but nothing stood in its way")),
            _ => Ok(()),
        }
    }

    /// Attaches or detaches. Others may at the same time; whoever ends last asks the core how it is now.
    fn link(&self, op: &Op, space: usize, device: usize) -> Result<(), String> {
        let before = self.ledger.borrow().links[space][device];
        self.ledger.borrow_mut().begin_link(space, device);
        let outcome = self.act(op);
        let (attached, alone) = self.settle_link(space, device, before.changes + 1);
        let (is, was) = (attached, before.attached.is());
        let right = match (op, &outcome) {
            (Op::Attach { .. }, Outcome::Done) => is,
            (Op::Detach(..), Outcome::Done) => !is,
            _ => is == was,
        };
        if alone && !right {
            return Err(format!("{outcome:?}, but the device is {}attached", if attached { "" } else { "not " }));
        }
        match outcome {
            Outcome::Refused(Refusal::Failed | Refusal::NoRoom) if !self.excused() => {
                Err(format!("{outcome:?}, but nothing stood in its way"))
            }
            _ => Ok(()),
        }
    }

    /// Ends a change of a link. Answers whether the device is attached, and whether nobody else changed the link since it had changed `changes` times.
    fn settle_link(&self, space: usize, device: usize, changes: u64) -> (bool, bool) {
        loop {
            let before = self.ledger.borrow().links[space][device].changes;
            let context = self.world.core.context(self.world.spaces[space], self.world.members[device].id());
            let mut ledger = self.ledger.borrow_mut();
            if ledger.links[space][device].changes == before || !ledger.is_only_changer(space, device) {
                let alone = before == changes && ledger.is_only_changer(space, device);
                ledger.links[space][device].mode = context.map(|context| context.mode);
                ledger.end_link(space, device, context.is_some());
                return (context.is_some(), alone);
            }
        }
    }

    fn unplug(&self, device: usize) {
        for space in 0..self.world.spaces.len() {
            self.ledger.borrow_mut().begin_link(space, device);
        }
        if self.world.unplug(device) {
            self.ledger.borrow_mut().present[device] = false;
        }
        for space in 0..self.world.spaces.len() {
            self.settle_link(space, device, u64::MAX);
        }
    }

    fn access(&self, op: &Op, device: Option<usize>, spot: &Spot, access: Access, since: Step) -> Result<(), String> {
        let (outcome, right) = self.act_and_judge(op);
        right?;
        let excused = self.excused() || device.is_some_and(|device| self.is_in_trouble(spot.space, device, since));
        let ledger = self.ledger.borrow();
        // Whether it is allowed, and whether it is not: at some moment both can be.
        let run = if let Op::Launch(_, run, ..) = op { *run } else { PageRun { space: spot.space, first: spot.page, count: 1 } };
        let could = |so: bool, page: &super::ledger::Page| page.may(access).could_be(so, since);
        let linked = |so: bool| device.is_some_and(|device| ledger.links[spot.space][device].attached.could_be(so, since));
        let visible = device.is_some() || ledger.shape.spaces[spot.space].cpu_visible;
        match outcome {
            Outcome::Done | Outcome::Loaded(_) if !visible => Err("it was done, but the CPU does not see that address space".into()),
            Outcome::Done | Outcome::Loaded(_) if !could(true, ledger.page(spot)) => Err("it was done, but is not allowed".into()),
            Outcome::Done | Outcome::Loaded(_) if device.is_some() && !linked(true) => {
                Err("it was done, but the device is not attached".into())
            }
            Outcome::Refused(Refusal::Invalid) => {
                let reason = !visible || linked(false) || ledger.run(&run).iter().any(|page| could(false, page));
                if reason { Ok(()) } else { Err("it was refused as invalid, but is allowed".into()) }
            }
            Outcome::Refused(why) if !excused => {
                let held = ledger.run(&run).iter().any(|page| page.was_held(since));
                let contended = device.is_some() && why == Refusal::NoRoom;
                // A kernel whose context goes away under it ends.
                if held || contended || linked(false) {
                    Ok(())
                } else {
                    Err(format!("it was refused ({why:?}), but nothing stood in its way"))
                }
            }
            _ => Ok(()),
        }
    }

    fn other(&self, op: &Op, since: Step) -> Result<(), String> {
        let outcome = self.act(op);
        let device = if let Op::Prefetch(run, Some(device)) = op { Some((run.space, *device)) } else { None };
        let excused = self.excused() || device.is_some_and(|(space, device)| self.is_in_trouble(space, device, since));
        let mut ledger = self.ledger.borrow_mut();
        match (op, &outcome) {
            (Op::Pin(run), Outcome::Done) => ledger.pin(run, true),
            (Op::Unpin(run), Outcome::Done) => ledger.pin(run, false),
            (Op::KernelPin(spot), Outcome::Done) => ledger.hold(spot),
            (Op::KernelUnpin(spot), Outcome::Done) => ledger.unhold(spot),
            _ => {}
        }
        match (op, &outcome) {
            _ if excused => Ok(()),
            (Op::Prefetch(run, _), Outcome::Refused(Refusal::Failed)) if ledger.run(run).iter().any(|page| page.was_held(since)) => Ok(()),
            (_, Outcome::Refused(Refusal::Failed)) => Err("it failed, but nothing stood in its way".into()),
            _ => Ok(()),
        }
    }
}
