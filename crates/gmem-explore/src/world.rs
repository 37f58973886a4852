//! The core on a simulated machine, as a world that operations can be done to.

use crate::worlds;
use gmem_core::{Core, DeviceCallError};
use gmem_hal::{Capabilities, Device, DeviceId, HnodeId, PageSize, PhysRange, SpaceId};
use gmem_sim::random::{Op, Outcome, Shape, World};
use gmem_sim::{Account, Callback, Canary, DeviceBuilder, Sim, SimDevice, SimHost, SimPlatform};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device of a world. It can be taken out of the machine and put back, upon which it is another device of the same kind.
pub struct Member {
    builder: DeviceBuilder,
    plugged: Mutex<(Arc<SimDevice>, DeviceId)>,
    /// The pools of its memory; the last one comes and goes.
    pools: Mutex<Vec<(PhysRange, Option<HnodeId>)>>,
    /// Somebody is changing its pools, or taking it out or putting it back.
    changing: AtomicBool,
}

impl Member {
    /// The pools, for a look or a change between two calls.
    pub fn pools(&self) -> MutexGuard<'_, Vec<(PhysRange, Option<HnodeId>)>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugged(&self) -> MutexGuard<'_, (Arc<SimDevice>, DeviceId)> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the machine has.
    pub fn device(&self) -> Arc<SimDevice> {
        self.plugged().0.clone()
    }

    /// What the core calls it; what it called it last, if it was taken out.
    pub fn id(&self) -> DeviceId {
        self.plugged().1
    }

    /// Whether the device can wait for a fault to be resolved. One that cannot, attached exclusively, touches what its launches name.
    pub fn replays(&self) -> bool {
        self.device().info().capabilities.contains(Capabilities::REPLAYABLE)
    }

    /// Runs `change` unless somebody else changes the same device's memory or presence.
    pub(crate) fn alone<R>(&self, change: impl FnOnce() -> R) -> Option<R> {
        if self.changing.swap(true, Relaxed) {
            return None;
        }
        let result = change();
        self.changing.store(false, Relaxed);
        Some(result)
    }

    pub(crate) fn plug(&self, device: Arc<SimDevice>, id: DeviceId) {
        *self.plugged() = (device, id);
    }

    pub(crate) fn build(&self) -> Arc<SimDevice> {
        self.builder.clone().build()
    }
}

/// The core, its machine, and the ids of what a [`Shape`] names by indices.
pub struct CoreWorld {
    /// The machine.
    pub sim: Arc<Sim>,
    /// The core under test.
    pub core: Arc<Core<SimPlatform>>,
    /// The CPU and its page table.
    pub host: SimHost,
    /// What the core told its platform.
    pub account: Arc<Account>,
    /// Its size.
    pub shape: Shape,
    /// The address spaces, by index.
    pub spaces: Vec<SpaceId>,
    /// The devices, by index.
    pub members: Vec<Member>,
    /// Several threads of control use it: a device may meet a revoke between its release and its invalidation.
    pub interleaved: bool,
    steps: u64,
}

/// How many calls were made to fail so far.
pub fn injected(sim: &Sim) -> u64 {
    Callback::ALL.iter().map(|callback| sim.coverage(*callback).failed).sum()
}

/// Makes a call until it works; each time that it does not, an injection must have refused it.
fn insist<T, E: Debug>(sim: &Sim, device: Option<&SimDevice>, call: impl Fn() -> Result<T, E>) -> T {
    const MOST: usize = 1000;
    for _ in 0..MOST {
        let before = injected(sim);
        match call() {
            Ok(done) => return done,
            Err(error) => assert_ne!(injected(sim), before, "a call failed by itself: {error:?}"),
        }
        if let Some(device) = device.filter(|device| device.is_dead()) {
            device.report_lost();
            device.revive();
        }
    }
    panic!("a call was made to fail {MOST} times");
}

impl CoreWorld {
    /// A world of this shape on `sim`, with one device per builder, each with so many pools of memory.
    pub fn new(sim: &Arc<Sim>, shape: &Shape, builders: Vec<DeviceBuilder>, pools: u64) -> Self {
        assert_eq!(shape.devices.len(), builders.len(), "the shape has as many devices as there are");
        let platform = SimPlatform::new(sim);
        let account = platform.account();
        let core = Core::new(platform);
        let members = builders.into_iter().map(|builder| member(sim, &core, builder, pools)).collect();
        let space = |i: usize| {
            let range = shape.space_range(i).align_outward(PageSize::Size2M).expect("it does not wrap");
            insist(sim, None, || core.space_create(range, shape.spaces[i].cpu_visible))
        };
        let spaces = (0..shape.spaces.len()).map(space).collect();
        Self {
            sim: sim.clone(),
            host: SimHost::new(sim),
            account,
            shape: shape.clone(),
            spaces,
            members,
            core,
            interleaved: false,
            steps: 0,
        }
    }

    /// The standard world of a seed.
    pub fn standard(seed: u64) -> Self {
        worlds::STANDARD.make(&Sim::new(seed))
    }

    /// The standard world, with a defect in each of its devices.
    pub fn with_canary(seed: u64, canary: Option<Canary>) -> Self {
        worlds::STANDARD.make_with(&Sim::new(seed), canary)
    }

    /// What a service thread would do between operations.
    pub fn background(&self) {
        for hnode in self.account.take_pressure() {
            self.core.evict_background(hnode);
        }
    }

    /// Takes everything apart, and checks that nothing is left.
    pub fn tear_down(self) {
        for space in &self.spaces {
            for member in &self.members {
                let _ = self.core.detach(*space, member.id());
            }
            insist(&self.sim, None, || self.core.space_destroy(*space));
        }
        for member in &self.members {
            let (device, id) = (member.device(), member.id());
            assert_eq!(device.contexts(), 0, "{id} has contexts left");
            if let Some((contexts, bytes)) = device.left_behind() {
                assert_eq!((contexts, bytes), (0, 0), "{id} has contexts or bytes of memory left that nobody gave back");
            }
            match self.core.device_destroy(id) {
                // It was taken out, and never put back.
                Ok(()) | Err(DeviceCallError::NoSuchDevice(_)) => {}
                Err(error) => panic!("{id} cannot be destroyed: {error}"),
            }
        }
        assert_eq!(self.host.populated_bytes(), 0, "homes are left");
        let hazards = self.sim.hazards();
        assert_eq!(hazards.wild_accesses, 0, "a device reached memory that is gone");
        assert!(self.interleaved || hazards.stale_accesses == 0, "a device used {} stale translations", hazards.stale_accesses);
        drop(self.core);
        assert_eq!(self.account.charged(), 0, "bytes of metadata are charged and never given back");
    }
}

fn member(sim: &Sim, core: &Arc<Core<SimPlatform>>, builder: DeviceBuilder, pools: u64) -> Member {
    let device = builder.clone().build();
    let id = insist(sim, Some(&device), || core.device_create(device.clone()));
    let all = device.memory();
    let each = all.len().get() / pools;
    let pool = |n| PhysRange { begin: all.begin + n * each, end: all.begin + (n + 1) * each };
    let register = |range| (range, Some(insist(sim, Some(&device), || core.device_register_memory(id, range))));
    let pools = Mutex::new((0..pools).map(pool).map(register).collect());
    Member { builder, plugged: Mutex::new((device, id)), pools, changing: AtomicBool::new(false) }
}

impl World for CoreWorld {
    fn apply(&mut self, op: &Op) -> Outcome {
        self.perform(op)
    }

    fn verify(&mut self) -> Result<(), String> {
        self.core.verify().map_err(|violation| violation.0)?;
        self.steps += 1;
        // The walk over all tables costs a thousand times an operation.
        if self.steps.is_multiple_of(16) { self.check_tables() } else { Ok(()) }
    }
}
