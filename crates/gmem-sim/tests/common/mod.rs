//! The core on a simulated machine, as a world that operations can be done to.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

mod check;
pub mod find;
mod refusal;

use gmem_core::{Core, MapRequest};
use gmem_hal::{Access, Capabilities, DeviceId, DeviceInfo, HnodeId, Mode, PageSize, RegionAttrs, SpaceId};
use gmem_sim::random::{self, Op, Outcome, PageRun, Refusal, Shape, Spot, World};
use gmem_sim::{Account, Canary, DeviceBuilder, Sim, SimDevice, SimHost, SimPlatform};
use refusal::{Refuse, outcome};
use std::sync::Arc;

/// A device of a world.
pub struct Member {
    pub device: Arc<SimDevice>,
    pub id: DeviceId,
    pub hnode: HnodeId,
}

/// The core, its machine, and the ids of what a [`Shape`] names by indices.
pub struct CoreWorld {
    pub sim: Arc<Sim>,
    pub core: Arc<Core<SimPlatform>>,
    pub host: SimHost,
    pub account: Arc<Account>,
    pub shape: Shape,
    pub spaces: Vec<SpaceId>,
    pub members: Vec<Member>,
    /// Several threads of control use it: a device may meet a revoke between its release and its invalidation.
    pub interleaved: bool,
    steps: u64,
}

impl CoreWorld {
    /// A world of this shape on `sim`, with one device per builder.
    pub fn new(sim: &Arc<Sim>, shape: &Shape, builders: Vec<DeviceBuilder>) -> Self {
        assert_eq!(shape.devices.len(), builders.len(), "the shape has as many devices as there are");
        let platform = SimPlatform::new(sim);
        let account = platform.account();
        let core = Core::new(platform);
        let members = builders.into_iter().map(|builder| member(&core, builder)).collect();
        let space = |i| {
            let range = shape.space_range(i).align_outward(PageSize::Size2M).expect("it does not wrap");
            core.space_create(range, shape.spaces[i].cpu_visible).expect("an address space can be made")
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

    /// The standard world: [`Shape::standard`] with four exclusive devices of 32 pages each that differ in everything else.
    pub fn standard(seed: u64) -> Self {
        Self::with_canary(seed, None)
    }

    /// The standard world, with a defect in each of its devices.
    pub fn with_canary(seed: u64, canary: Option<Canary>) -> Self {
        let sim = Sim::new(seed);
        let memory = PageSize::Size4K.bytes() * 32;
        let device = |name| SimDevice::builder(&sim, name).memory(gmem_hal::ByteLen(memory)).modes(gmem_hal::Modes::COHERENT_EXCLUSIVE);
        let builders = vec![
            device("plain").caches_absent(),
            device("small cache").tlb_entries(4).accessed_bits().reaches_peers(),
            device("own frames").own_frames().without_fence(),
            device("peer").capabilities(Capabilities::REPLAYABLE | Capabilities::PEER),
        ];
        let builders = builders.into_iter().map(|b| canary.into_iter().fold(b, DeviceBuilder::canary)).collect();
        Self::new(&sim, &Shape::standard(), builders)
    }

    fn load(&self, op: Op) -> Outcome {
        let (Op::CpuRead(spot) | Op::DevRead(_, spot)) = op else { unreachable!("{op:?} is no load") };
        let mut bytes = vec![0; spot.len as usize];
        let va = self.shape.va(&spot);
        let result = match op {
            Op::DevRead(device, spot) => match self.table(device, &spot) {
                Table::None => Err(gmem_hal::FaultError::NotAttached),
                Table::GivenUp => Err(gmem_hal::FaultError::Fenced),
                Table::Cpu => random::cpu_read(&self.host, &*self.core, va, &mut bytes),
                Table::Of(by, pmap) => {
                    random::device_read(&self.members[by].device, self.members[device].id, &*self.core, pmap, va, &mut bytes)
                }
            },
            _ => random::cpu_read(&self.host, &*self.core, va, &mut bytes),
        };
        match result {
            Ok(()) => Outcome::Loaded(bytes),
            Err(error) => Outcome::Refused(error.refuse()),
        }
    }

    fn store(&self, device: Option<usize>, spot: &Spot, fill: u8) -> Outcome {
        let va = self.shape.va(spot);
        let bytes = spot.bytes(fill);
        outcome(match device.map(|device| (device, self.table(device, spot))) {
            Some((_, Table::None)) => Err(gmem_hal::FaultError::NotAttached),
            Some((_, Table::GivenUp)) => Err(gmem_hal::FaultError::Fenced),
            None | Some((_, Table::Cpu)) => random::cpu_write(&self.host, &*self.core, va, &bytes),
            Some((device, Table::Of(by, pmap))) => {
                random::device_write(&self.members[by].device, self.members[device].id, &*self.core, pmap, va, &bytes)
            }
        })
    }

    /// The table by which a device sees an address space. The core tells a driver the table it made; here the devices are asked.
    fn table(&self, device: usize, spot: &Spot) -> Table {
        let space = self.spaces[spot.space];
        let member = &self.members[device];
        if let Some(pmap) = member.device.pmap_for(space) {
            // The core launches nothing on a context that it gave up.
            return if member.device.is_given_up(pmap) { Table::GivenUp } else { Table::Of(device, pmap) };
        }
        if !self.shape.devices[device].contains(&Mode::Share) {
            return Table::None;
        }
        let cookie = gmem_hal::Device::info(&*member.device).mmu_cookie;
        if cookie == DeviceInfo::CPU_COOKIE {
            return Table::Cpu;
        }
        let same = |m: &Member| gmem_hal::Device::info(&*m.device).mmu_cookie == cookie;
        let owner = self.members.iter().position(|m| same(m) && m.device.pmap_for(space).is_some());
        owner.and_then(|by| Some(Table::Of(by, self.members[by].device.pmap_for(space)?))).unwrap_or(Table::None)
    }

    fn map(&self, run: &PageRun, prot: gmem_hal::Prot, backing: gmem_hal::Backing) -> Outcome {
        let range = self.shape.range(run);
        let attrs = RegionAttrs { prot, page_size: self.shape.page_size, backing, ..RegionAttrs::default() };
        outcome(self.core.map(self.spaces[run.space], &MapRequest { len: range.len(), at: Some(range.start()), attrs }))
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
                let _ = self.core.detach(*space, member.id);
            }
            self.core.space_destroy(*space).unwrap_or_else(|e| panic!("{space} cannot be destroyed: {e}"));
        }
        for member in &self.members {
            assert_eq!(member.device.contexts(), 0, "{} has contexts left", member.id);
            self.core.device_destroy(member.id).unwrap_or_else(|e| panic!("{} cannot be destroyed: {e}", member.id));
        }
        assert_eq!(self.host.populated_bytes(), 0, "homes are left");
        let hazards = self.sim.hazards();
        assert_eq!(hazards.wild_accesses, 0, "a device reached memory that is gone");
        assert!(self.interleaved || hazards.stale_accesses == 0, "a device used {} stale translations", hazards.stale_accesses);
        drop(self.core);
        assert_eq!(self.account.charged(), 0, "bytes of metadata are charged and never given back");
    }
}

enum Table {
    None,
    GivenUp,
    Cpu,
    Of(usize, gmem_hal::PmapId),
}

fn member(core: &Arc<Core<SimPlatform>>, builder: DeviceBuilder) -> Member {
    let device = builder.build();
    let id = core.device_create(device.clone()).expect("a device can be made");
    let hnode = core.device_register_memory(id, device.memory()).expect("its memory can be registered");
    Member { device, id, hnode }
}

impl CoreWorld {
    /// Does one operation; several threads of control may at once.
    pub fn perform(&self, op: &Op) -> Outcome {
        let core = &self.core;
        let space = |run: &PageRun| self.spaces[run.space];
        let range = |run: &PageRun| self.shape.range(run);
        let id = |device: usize| self.members[device].id;
        let outcome = match *op {
            Op::Map(run, prot, backing) => self.map(&run, prot, backing),
            Op::Unmap(run) => outcome(core.unmap(space(&run), range(&run))),
            Op::Protect(run, prot) => outcome(core.protect(space(&run), range(&run), prot)),
            // The address may be another space's, which is what the CPU would touch.
            Op::CpuRead(spot) | Op::CpuWrite(spot, _) if !self.shape.spaces[spot.space].cpu_visible => Outcome::Refused(Refusal::Invalid),
            Op::CpuRead(_) | Op::DevRead(..) => self.load(*op),
            Op::CpuWrite(spot, fill) => self.store(None, &spot, fill),
            Op::DevWrite(device, spot, fill) => self.store(Some(device), &spot, fill),
            Op::Attach { space, device, mode, activate } => outcome(core.attach(self.spaces[space], id(device), mode, activate)),
            Op::Detach(space, device) => outcome(core.detach(self.spaces[space], id(device))),
            Op::Evict(device, pages) => {
                core.evict(self.members[device].hnode, pages);
                self.members[device].device.peer_evict(pages);
                Outcome::Done
            }
            Op::Prefetch(run, device) => outcome(core.prefetch(space(&run), range(&run), device.map(id), Access::Read)),
            Op::Discard(run) => outcome(core.discard(space(&run), range(&run))),
            Op::Pin(run) => outcome(core.pin(space(&run), range(&run))),
            Op::Unpin(run) => outcome(core.unpin(space(&run), range(&run))),
            Op::Switch(device, space) => outcome(core.switch(id(device), space.map(|space| self.spaces[space]))),
        };
        self.background();
        outcome
    }
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
