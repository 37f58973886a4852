//! What each operation is on the core and its machine.

use crate::refusal::{Refuse, outcome};
use crate::world::{CoreWorld, Member};
use gmem_core::{DeviceCallError, HoldRange, MapRequest, Residence};
use gmem_hal::{Access, ByteLen, DeviceId, FaultError, PageSize, PmapId, RegionAttrs};
use gmem_sim::SimDevice;
use gmem_sim::random::{self, Op, Outcome, PageRun, Refusal, Spot};
use std::sync::Arc;

/// What an operation did to memory.
#[derive(Clone, Copy, Debug)]
pub enum Touched<'a> {
    /// These bytes were loaded.
    Loaded(Spot, &'a [u8]),
    /// This was stored.
    Stored(Spot, u8),
    /// This was stored by a context that the core gave up meanwhile: it may have gone to memory that is quarantined, and is refused.
    Astray(Spot, u8),
}

enum Table {
    None,
    GivenUp,
    Cpu,
    Of(Arc<SimDevice>, PmapId),
}

/// What a context did that the core gave up meanwhile is nobody's: it may have touched memory that is quarantined.
fn unless_given_up(device: &SimDevice, pmap: PmapId) -> Result<(), FaultError> {
    if device.is_given_up(pmap) { Err(FaultError::Fenced) } else { Ok(()) }
}

impl CoreWorld {
    /// Does one operation, and then the background eviction that the core asked for; several threads of control may at once.
    pub fn perform(&self, op: &Op) -> Outcome {
        let outcome = self.act(op, &mut |_| {});
        self.background();
        outcome
    }

    /// Does one operation. `touched` is called at the moment a store or a load was made, before anybody else can touch those bytes.
    pub fn act(&self, op: &Op, touched: &mut dyn FnMut(Touched<'_>)) -> Outcome {
        let core = &self.core;
        let space = |run: &PageRun| self.spaces[run.space];
        let range = |run: &PageRun| self.shape.range(run);
        let id = |device: usize| self.members[device].id();
        match *op {
            Op::Map(run, prot, backing) => self.map(&run, prot, backing),
            Op::Unmap(run) => outcome(core.unmap(space(&run), range(&run))),
            Op::Protect(run, prot) => outcome(core.protect(space(&run), range(&run), prot)),
            // The address may be another space's, which is what the CPU would touch.
            Op::CpuRead(spot) | Op::CpuWrite(spot, _) if !self.shape.spaces[spot.space].cpu_visible => Outcome::Refused(Refusal::Invalid),
            Op::CpuRead(_) => self.load(*op, touched),
            Op::DevRead(device, spot) => self.named(device, &spot, Access::Read, || self.load(*op, touched)),
            Op::CpuWrite(spot, fill) => self.store(None, &spot, fill, touched),
            Op::DevWrite(device, spot, fill) => self.named(device, &spot, Access::Write, || self.store(Some(device), &spot, fill, touched)),
            Op::Attach { space, device, mode, activate } => outcome(core.attach(self.spaces[space], id(device), mode, activate)),
            Op::Detach(space, device) => outcome(core.detach(self.spaces[space], id(device))),
            Op::Evict(device, pages) => {
                self.evict(device, pages);
                Outcome::Done
            }
            Op::Prefetch(run, device) => outcome(core.prefetch(space(&run), range(&run), device.map(id), Access::Read)),
            Op::Discard(run) => outcome(core.discard(space(&run), range(&run))),
            Op::Pin(run) => outcome(core.pin(space(&run), range(&run))),
            Op::Unpin(run) => outcome(core.unpin(space(&run), range(&run))),
            Op::Switch(device, space) => outcome(core.switch(id(device), space.map(|space| self.spaces[space]))),
            Op::Launch(device, run, spot, fill) => self.launch(device, &run, &spot, fill, touched),
            Op::Lose(device, told) => self.lose(device, told),
            Op::Limit(device, pages) => self.limit(device, pages),
            Op::Memory(device) => self.toggle_memory(device),
            Op::KernelPin(spot) => self.kernel_pin(&spot),
            Op::KernelUnpin(spot) => {
                if self.shape.spaces[spot.space].cpu_visible {
                    self.host.unpin(self.shape.va(&spot), ByteLen(1));
                }
                Outcome::Done
            }
        }
    }

    /// Does an access by a device. One that cannot replay faults does it in a launch that names the page, sees the page meanwhile, and does not afterwards.
    fn named(&self, device: usize, spot: &Spot, access: Access, act: impl FnOnce() -> Outcome) -> Outcome {
        if self.members[device].replays() {
            return act();
        }
        let (space, id) = (self.spaces[spot.space], self.members[device].id());
        let page = PageRun { space: spot.space, first: spot.page, count: 1 };
        let held = [HoldRange { range: self.shape.range(&page), access }];
        if let Err(error) = self.core.hold(space, Some(id), &held) {
            return Outcome::Refused(error.refuse());
        }
        let faults = self.core.stats().device_faults;
        let outcome = act();
        // Others can change what may be touched between a fault and its resolution.
        let unseen = !self.interleaved && !matches!(outcome, Outcome::Refused(_)) && self.core.stats().device_faults != faults;
        assert!(!unseen, "{id} had to fault for {spot:?}, which a launch of it holds");
        self.core.unhold(space, Some(id), &held).expect("an address space is not destroyed while pages of it are held");
        if !self.interleaved {
            self.check_unheld(device, &page);
        }
        outcome
    }

    /// A device that cannot replay faults sees nothing of pages that no launch holds.
    fn check_unheld(&self, device: usize, run: &PageRun) {
        let driver = self.members[device].device();
        let Some(pmap) = driver.pmap_for(self.spaces[run.space]).filter(|pmap| !driver.is_given_up(*pmap)) else { return };
        for page in self.shape.range(run).pages(self.shape.size_of(run.space, run.first)) {
            let prot = driver.table_prot(pmap, page.start());
            assert!(prot.is_empty(), "{} may use {} ({prot:?}), which no launch holds", self.members[device].id(), page.start());
        }
    }

    fn load(&self, op: Op, touched: &mut dyn FnMut(Touched<'_>)) -> Outcome {
        let (Op::CpuRead(spot) | Op::DevRead(_, spot)) = op else { unreachable!("{op:?} is no load") };
        let mut bytes = vec![0; spot.len as usize];
        let va = self.shape.va(&spot);
        let result = match op {
            Op::DevRead(device, spot) => match self.table(device, &spot) {
                Table::None => Err(FaultError::NotAttached),
                Table::GivenUp => Err(FaultError::Fenced),
                Table::Cpu => random::cpu_read(&self.host, &*self.core, va, &mut bytes),
                Table::Of(by, pmap) => {
                    let result = random::device_read(&by, self.members[device].id(), &*self.core, pmap, va, &mut bytes);
                    result.and_then(|()| unless_given_up(&by, pmap))
                }
            },
            _ => random::cpu_read(&self.host, &*self.core, va, &mut bytes),
        };
        match result {
            Ok(()) => {
                touched(Touched::Loaded(spot, &bytes));
                Outcome::Loaded(bytes)
            }
            Err(error) => Outcome::Refused(error.refuse()),
        }
    }

    fn store(&self, device: Option<usize>, spot: &Spot, fill: u8, touched: &mut dyn FnMut(Touched<'_>)) -> Outcome {
        let va = self.shape.va(spot);
        let bytes = spot.bytes(fill);
        let result = match device.map(|device| (device, self.table(device, spot))) {
            Some((_, Table::None)) => Err(FaultError::NotAttached),
            Some((_, Table::GivenUp)) => Err(FaultError::Fenced),
            None | Some((_, Table::Cpu)) => random::cpu_write(&self.host, &*self.core, va, &bytes),
            Some((device, Table::Of(by, pmap))) => {
                let result = random::device_write(&by, self.members[device].id(), &*self.core, pmap, va, &bytes);
                let counts = unless_given_up(&by, pmap);
                if result.is_ok() && counts.is_err() {
                    touched(Touched::Astray(*spot, fill));
                }
                result.and(counts)
            }
        };
        if result.is_ok() {
            touched(Touched::Stored(*spot, fill));
        }
        outcome(result)
    }

    /// The table by which a device sees an address space, as the core tells it to whoever launches there.
    fn table(&self, device: usize, spot: &Spot) -> Table {
        let space = self.spaces[spot.space];
        let Some(context) = self.core.context(space, self.members[device].id()) else { return Table::None };
        let Some(pmap) = context.pmap else { return Table::Cpu };
        let owner = self.members.iter().map(Member::device).find(|device| device.pmap_for(space) == Some(pmap));
        match owner {
            // The core launches nothing on a context that it gave up, and a dead device runs nothing.
            Some(by) if !context.fenced && !by.is_given_up(pmap) => Table::Of(by, pmap),
            _ => Table::GivenUp,
        }
    }

    fn map(&self, run: &PageRun, prot: gmem_hal::Prot, backing: gmem_hal::Backing) -> Outcome {
        let range = self.shape.range(run);
        let attrs = RegionAttrs { prot, page_size: self.shape.size_of(run.space, run.first), backing, ..RegionAttrs::default() };
        outcome(self.core.map(self.spaces[run.space], &MapRequest { len: range.len(), at: Some(range.start()), attrs }))
    }

    fn evict(&self, device: usize, pages: usize) {
        let member = &self.members[device];
        for hnode in self.core.hnodes_of(member.id()) {
            self.core.evict(hnode, pages);
        }
        member.device().peer_evict(pages);
    }

    /// A launch that names what it touches. The page it stores to is held, so memory can be as short as it likes meanwhile.
    fn launch(&self, device: usize, run: &PageRun, spot: &Spot, fill: u8, touched: &mut dyn FnMut(Touched<'_>)) -> Outcome {
        let (space, range, id) = (self.spaces[run.space], self.shape.range(run), self.members[device].id());
        let held = [HoldRange { range, access: Access::Write }];
        if let Err(error) = self.core.hold(space, Some(id), &held) {
            return Outcome::Refused(error.refuse());
        }
        let before = self.whereabouts(run);
        self.evict(device, 64);
        let owned = self.core.hnodes_of(id).iter().filter_map(|hnode| self.core.hnode_stats(*hnode)).find(|stats| stats.used.get() > 0);
        // Others could give the last frame up meanwhile.
        if let Some(stats) = owned.filter(|_| !self.interleaved) {
            let taken = self.core.device_unregister_memory(id, stats.hnode);
            assert!(
                matches!(taken, Err(DeviceCallError::MemoryInUse(_) | DeviceCallError::InUse { .. })),
                "{} with {} in use was taken back",
                stats.hnode,
                stats.used
            );
        }
        let outcome = self.store(Some(device), spot, fill, touched);
        // Somebody else may hold a page of it too, or have pinned it; nobody may have moved one.
        let after = self.whereabouts(run);
        assert_eq!(before, after, "pages that {id} holds were moved");
        assert!(after.iter().all(|(_, pinned)| *pinned), "pages that {id} holds are not: {after:?}");
        self.core.unhold(space, Some(id), &held).expect("the address space is there");
        if !self.interleaved && !self.members[device].replays() {
            self.check_unheld(device, run);
        }
        outcome
    }

    /// On which device each page is, and whether it is held there.
    fn whereabouts(&self, run: &PageRun) -> Vec<(Option<DeviceId>, bool)> {
        let runs = self.core.residency(self.spaces[run.space], self.shape.range(run)).expect("the address space is there");
        let size = self.shape.size_of(run.space, run.first);
        let pages = |run: &Residence| run.range.pages(size).len();
        runs.iter().flat_map(|run| std::iter::repeat_n((run.device, run.pinned), pages(run))).collect()
    }

    /// The device dies and is started again. What it held is still in its memory.
    fn lose(&self, device: usize, told: bool) -> Outcome {
        let device = self.members[device].device();
        device.kill();
        if told {
            device.report_lost();
        }
        device.revive();
        Outcome::Done
    }

    fn limit(&self, device: usize, pages: u64) -> Outcome {
        let (range, hnode) = self.members[device].pools()[0];
        let limit = (pages * self.shape.page_size.bytes()).min(range.len().get());
        let Some(hnode) = hnode else { return Outcome::Refused(Refusal::Invalid) };
        outcome(self.core.hnode_set_limit(hnode, ByteLen(limit)).map(drop))
    }

    /// Takes the last of several pools back, or registers it again.
    fn toggle_memory(&self, device: usize) -> Outcome {
        let member = &self.members[device];
        let last = member.pools().len() - 1;
        if last == 0 {
            return Outcome::Refused(Refusal::Invalid);
        }
        let toggled = member.alone(|| {
            let (range, hnode) = member.pools()[last];
            let result = match hnode {
                Some(hnode) => self.core.device_unregister_memory(member.id(), hnode).map(|()| None),
                None => self.core.device_register_memory(member.id(), range).map(Some),
            };
            result.map(|now| member.pools()[last].1 = now)
        });
        toggled.map_or(Outcome::Refused(Refusal::Invalid), outcome)
    }

    fn kernel_pin(&self, spot: &Spot) -> Outcome {
        let va = self.shape.va(spot);
        if !self.shape.spaces[spot.space].cpu_visible {
            return Outcome::Refused(Refusal::Invalid);
        }
        // What the kernel does for a driver: touch the page, then hold it, until both succeed.
        loop {
            match self.host.pin(va, ByteLen(1)) {
                Ok(()) => return Outcome::Done,
                Err(fault) => {
                    let mut byte = [0];
                    if let Err(error) = random::cpu_read(&self.host, &*self.core, fault.va.align_down(PageSize::Size4K), &mut byte) {
                        return Outcome::Refused(error.refuse());
                    }
                }
            }
        }
    }
}
