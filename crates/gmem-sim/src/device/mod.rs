//! The simulated accelerator.

mod access;
mod builder;
mod contexts;
mod copy;
mod dram;
mod frames;
mod mmu;
mod peer;
mod table;
mod tlb;

#[cfg(test)]
mod tests;

pub use access::{DeviceFault, FaultKind};
pub use builder::{Canary, DeviceBuilder};
pub(crate) use dram::Dram;

use crate::sim::{Sim, lock};
use crate::{Callback, Change, Injected, sched};
use contexts::Contexts;
use frames::FrameMap;
use gmem_hal::{
    Capabilities, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, Frames, HnodeId, Mmu, Modes, Peer, PeerError, PhysAddr, PhysRange,
    PmapId, Prot, SpaceId, Upcalls, VirtAddr, VirtRange,
};
use peer::PeerState;
use std::sync::{Arc, Mutex, Weak};

/// What happens to a device over its life.
#[derive(Default)]
struct Life {
    core: Option<(DeviceId, Weak<dyn Upcalls>)>,
    memory: Vec<(HnodeId, PhysRange)>,
    current: Option<PmapId>,
    switches: u64,
    /// What a device that invalidates late still has to invalidate.
    owed: Vec<(PmapId, VirtRange)>,
    /// The last switch was made to fail, hence what is current is not the core's choice.
    switch_refused: bool,
    dead: bool,
    stopped: bool,
}

/// An accelerator of a simulated machine. It panics, with numbers, when the core breaks a contract.
pub struct SimDevice {
    is: DeviceBuilder,
    number: u32,
    dram: Arc<Dram>,
    contexts: Mutex<Contexts>,
    life: Mutex<Life>,
    frames: Mutex<FrameMap>,
    peer: Mutex<PeerState>,
}

/// Whether an error says that the device is gone.
fn is_death(error: Injected) -> bool {
    matches!(error, Injected::Device(DeviceError::Dead) | Injected::Peer(PeerError::Device(DeviceError::Dead)))
}

impl SimDevice {
    /// Begins to make a device: replayable, all page sizes and modes, 1 MiB of memory.
    pub fn builder(sim: &Arc<Sim>, name: &str) -> DeviceBuilder {
        DeviceBuilder::new(sim, name)
    }

    /// Its number in the order of making, as [`Sim::fail_nth_on`] takes it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its memory: what to register.
    pub fn memory(&self) -> PhysRange {
        self.is.memory
    }

    /// The id the core gave it.
    pub fn id(&self) -> Option<DeviceId> {
        lock(&self.life).core.as_ref().map(|(id, _)| *id)
    }

    /// The way to call the core, while the core lives.
    pub fn upcalls(&self) -> Option<Arc<dyn Upcalls>> {
        lock(&self.life).core.as_ref().and_then(|(_, upcalls)| upcalls.upgrade())
    }

    /// The current context.
    pub fn current(&self) -> Option<PmapId> {
        lock(&self.life).current
    }

    /// How often the current context was switched.
    pub fn switches(&self) -> u64 {
        lock(&self.life).switches
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        lock(&self.life).dead
    }

    /// How many contexts it has, without those whose destruction failed.
    pub fn contexts(&self) -> usize {
        lock(&self.contexts).live.values().filter(|context| !context.disowned).count()
    }

    /// How many translations it caches.
    pub fn cached_translations(&self) -> usize {
        lock(&self.contexts).tlb.len()
    }

    /// Bytes that neither a peer's pages nor its own frame allocator took.
    pub fn free_bytes(&self) -> u64 {
        lock(&self.frames).free_bytes()
    }

    /// Contexts that it still knows, dead ones included, and bytes of its memory that somebody still has: what should be nothing once the core has given all
    /// back. `None` if a context of this machine could not be stopped: the core must not give back what that one may still use.
    pub fn left_behind(&self) -> Option<(usize, u64)> {
        if self.is.sim.has_runaways() {
            return None;
        }
        let contexts = lock(&self.contexts);
        let known = contexts.live.len() + contexts.gone.len();
        drop(contexts);
        Some((known, self.is.memory.len().get() - self.free_bytes()))
    }

    /// The table it has for an address space.
    pub fn pmap_for(&self, space: SpaceId) -> Option<PmapId> {
        lock(&self.contexts).live.iter().find(|(_, c)| c.request.space == space && !c.disowned).map(|(pmap, _)| *pmap)
    }

    /// Whether the core gave `pmap` up, because a revoke failed: it was stopped by force, or it could not be stopped and the device might still use it.
    pub fn is_given_up(&self, pmap: PmapId) -> bool {
        self.is.sim.is_runaway(pmap) || lock(&self.contexts).live.get(&pmap).is_some_and(|context| context.fenced)
    }

    /// What the table of `pmap` holds at `va`, caches aside: the memory and the access.
    pub fn table_entry(&self, pmap: PmapId, va: VirtAddr) -> Option<(PhysAddr, Prot)> {
        lock(&self.contexts).translation(pmap, va)
    }

    /// What the table of `pmap` allows at `va`, caches aside: nothing if the page is absent.
    pub fn table_prot(&self, pmap: PmapId, va: VirtAddr) -> Prot {
        lock(&self.contexts).translation(pmap, va).map_or(Prot::empty(), |(_, prot)| prot)
    }

    /// It dies: it touches no memory again, and answers [`DeviceError::Dead`] to everything until it is revived. Unless its memory survives, all of its
    /// content is lost. Nobody is told; see [`SimDevice::report_lost`].
    pub fn kill(&self) {
        self.is.sim.event("kill", [u64::from(self.number), 0, 0, 0]);
        let died = !std::mem::replace(&mut lock(&self.life).dead, true);
        if died && !self.is.memory_survives {
            self.is.sim.changes.note(Change::Power);
            self.dram.power_cycle();
        }
        let mut contexts = lock(&self.contexts);
        let mut index = lock(&self.is.sim.index);
        let all: Vec<PmapId> = contexts.live.keys().copied().collect();
        for pmap in all {
            contexts.forget(&mut index, pmap);
            if contexts.live.remove(&pmap).is_some_and(|context| context.suspect) {
                // The core gave it up before it died, and may not know what it holds.
                self.is.sim.add_runaway(pmap);
            }
            contexts.gone.insert(pmap);
        }
    }

    /// It works again, without any context. Calls about contexts from before still answer [`DeviceError::Dead`]; which frames they have, its driver still
    /// knows, though what was in them is lost unless its memory survives.
    pub fn revive(&self) {
        self.is.sim.event("revive", [u64::from(self.number), 0, 0, 0]);
        let mut life = lock(&self.life);
        life.dead = false;
        life.current = None;
    }

    /// The driver noticed the death: it tells the core for each of the contexts that the device had.
    pub fn report_lost(&self) {
        let Some(id) = self.id() else { return };
        let gone: Vec<PmapId> = lock(&self.contexts).gone.iter().copied().collect();
        for pmap in gone {
            sched::yield_point(sched::Reason::Step);
            if let Some(core) = self.upcalls() {
                core.device_lost(id, pmap);
            }
        }
    }

    /// The beginning of every callback.
    fn call(&self, callback: Callback, args: [u64; 3]) -> Result<(), DeviceError> {
        self.peer_call(callback, args).map_err(|error| match error {
            PeerError::Device(error) => error,
            other => unreachable!("{other:?} was refused when it was asked for"),
        })
    }

    /// The same for callbacks with errors of their own.
    fn peer_call(&self, callback: Callback, args: [u64; 3]) -> Result<(), PeerError> {
        let injected = self.is.sim.callback(callback, Some(self.number), args);
        self.assert_running(callback.name());
        self.invalidate_owed();
        let outlives = self.is.memory_survives && matches!(callback, Callback::Zero | Callback::Copy);
        if self.is_dead() && !outlives {
            if let Some(error) = injected.filter(|error| !is_death(*error)) {
                self.is.sim.forestalled(callback, error);
            }
            return Err(self.gone().into());
        }
        let error = match injected {
            None => return Ok(()),
            Some(Injected::Device(error)) => PeerError::Device(error),
            Some(Injected::Peer(error)) => error,
            Some(other) => unreachable!("{other:?} was refused when it was asked for"),
        };
        if error == PeerError::Device(DeviceError::Dead) {
            self.kill();
        }
        Err(error)
    }

    /// The answer to a call about what died with it.
    fn gone(&self) -> DeviceError {
        self.is.sim.trouble();
        DeviceError::Dead
    }

    /// Whether it has this defect.
    fn has(&self, canary: Canary) -> bool {
        self.is.canary == Some(canary)
    }

    /// Whether it has this defect, and one call in `n` shows it now.
    fn shows(&self, canary: Canary, n: u64) -> bool {
        self.has(canary) && lock(&self.contexts).rng.below(n) == 0
    }

    fn invalidate_owed(&self) {
        if !self.has(Canary::InvalidatesLate) {
            return;
        }
        let owed = std::mem::take(&mut lock(&self.life).owed);
        let mut contexts = lock(&self.contexts);
        for (pmap, range) in owed {
            contexts.invalidate(&mut lock(&self.is.sim.index), pmap, range);
        }
    }

    /// The beginning of a callback that cannot fail.
    fn note(&self, what: &'static str, args: [u64; 3]) {
        sched::assert_no_lock_held(what);
        sched::yield_point(sched::Reason::Callback(what));
        self.is.sim.event(what, [u64::from(self.number), args[0], args[1], args[2]]);
        self.assert_running(what);
    }

    fn assert_running(&self, what: &str) {
        let life = lock(&self.life);
        assert!(life.core.is_some() || what == "device_start", "{what} on device {:?} before it was started", self.is.info.name);
        assert!(!life.stopped, "{what} on device {:?} after it was stopped", self.is.info.name);
    }

    /// It is taken out of the machine: nothing of it reaches memory any more, and nothing reaches its memory.
    fn vanish(&self) {
        let mut contexts = lock(&self.contexts);
        let mut index = lock(&self.is.sim.index);
        let all: Vec<PmapId> = contexts.live.keys().chain(&contexts.gone).copied().collect();
        for pmap in all {
            contexts.forget(&mut index, pmap);
            self.is.sim.forget_runaway(pmap);
        }
        contexts.live.clear();
        contexts.gone.clear();
        lock(&self.is.sim.pools).retain(|_, dram| dram.owner() != self.number);
        lock(&self.peer).clear();
    }

    /// The range of a registered pool of its memory.
    fn registered(&self, hnode: HnodeId) -> Option<PhysRange> {
        lock(&self.life).memory.iter().find(|(h, _)| *h == hnode).map(|(_, range)| *range)
    }
}

impl Device for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.is.info
    }

    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        self.call(Callback::DeviceStart, [u64::from(id.0), 0, 0])?;
        let mut life = lock(&self.life);
        assert!(life.core.is_none(), "device {:?} is started twice", self.is.info.name);
        life.core = Some((id, upcalls));
        Ok(())
    }

    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        self.note("memory_registered", [u64::from(hnode.0), range.begin, range.end]);
        let memory = self.is.memory;
        if range.begin < memory.begin || memory.end < range.end {
            return Err(DeviceError::BadRequest);
        }
        lock(&self.life).memory.push((hnode, range));
        let before = lock(&self.is.sim.pools).insert(hnode, self.dram.clone());
        assert!(before.is_none(), "{hnode} was given to two memories");
        Ok(())
    }

    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        self.note("memory_unregistered", [u64::from(hnode.0), range.begin, range.end]);
        lock(&self.life).memory.retain(|memory| *memory != (hnode, range));
        let dram = lock(&self.is.sim.pools).remove(&hnode);
        assert!(
            dram.is_some_and(|dram| dram.owner() == self.number),
            "{hnode} was taken back, and is not of device {:?}",
            self.is.info.name
        );
    }

    fn stop(&self) {
        self.note("device_stop", [0; 3]);
        let contexts = lock(&self.contexts);
        let left = contexts.live.iter().find(|(_, c)| !c.suspect && !c.fenced);
        assert!(left.is_none(), "device {:?} is stopped with {:?} still alive", self.is.info.name, left.map(|(pmap, _)| pmap));
        drop(contexts);
        lock(&self.life).stopped = true;
        self.vanish();
    }

    fn mmu(&self) -> &dyn Mmu {
        self
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.is.info.capabilities.contains(Capabilities::PEER).then_some(self as &dyn Peer)
    }

    fn frames(&self) -> Option<&dyn Frames> {
        self.is.own_frames.then_some(self as &dyn Frames)
    }

    fn switch_context(&self, pmap: Option<PmapId>) -> Result<(), DeviceError> {
        let called = self.call(Callback::SwitchContext, [pmap.map_or(0, |p| p.0), 0, 0]);
        lock(&self.life).switch_refused = called.is_err();
        called?;
        if let Some(pmap) = pmap {
            let mut contexts = lock(&self.contexts);
            if contexts.gone.contains(&pmap) {
                return Err(self.gone());
            }
            // In SHARE mode the table is another device's, which alone knows it.
            if !self.is.info.modes.contains(Modes::SHARE) {
                contexts.context(pmap);
            }
        }
        let mut life = lock(&self.life);
        life.current = pmap;
        life.switches += 1;
        Ok(())
    }

    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let called = self.call(Callback::Fence, [pmap.0, 0, 0]);
        let mut contexts = lock(&self.contexts);
        if contexts.gone.contains(&pmap) {
            return Ok(());
        }
        let context = contexts.context(pmap);
        assert!(!context.fenced, "{pmap} is fenced twice");
        context.suspect = true;
        let able = if self.is.can_fence { Ok(()) } else { Err(DeviceError::Unsupported) };
        if let Err(error) = called.and(able) {
            self.is.sim.add_runaway(pmap);
            return Err(error);
        }
        context.fenced = true;
        contexts.forget(&mut lock(&self.is.sim.index), pmap);
        Ok(())
    }
}
