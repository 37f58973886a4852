//! A world: gmem, an address space, and the devices attached to it.

use super::defect::{Broken, Defect};
use super::participant::CORES;
use super::plan::{Kind, Plan};
use gmem::{AddressSpace, ByteLen, Context, Device, Error, Gmem, Mode, PageSize, accel};
use std::fmt::Write;
use std::sync::Arc;

/// The memory of a device, in bytes; rounds allow themselves less.
const MEMORY: u64 = 8 << 20;
/// How many of a world's largest pages a peer has room for: one for each of its cores.
const ROOM_OF_A_PEER: u64 = 2;

/// A device of a world.
pub(crate) struct Unit {
    pub(crate) kind: Kind,
    pub(crate) context: Context,
    pub(crate) device: Device,
    /// Its process, if it has one.
    pub(crate) process: Option<u32>,
}

pub(crate) struct World {
    pub(crate) units: Vec<Unit>,
    pub(crate) space: AddressSpace,
    /// The largest page that its regions may have.
    pub(crate) largest: PageSize,
    pub(crate) gmem: Gmem,
}

impl World {
    /// A world of such devices, for pages of size `largest` at most. A defect is had by all that have a driver to break; those are made exclusive ones.
    pub(crate) fn new(kinds: &[Kind], largest: PageSize, defect: Option<Defect>) -> Result<Self, Error> {
        let gmem = Gmem::new()?;
        let space = gmem.address_space().create()?;
        let units = kinds.iter().map(|kind| unit(&gmem, &space, *kind, largest, defect)).collect::<Result<_, _>>()?;
        Ok(Self { units, space, largest, gmem })
    }

    /// The kinds of its devices.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.units.iter().map(|unit| unit.kind).collect()
    }

    /// The processes of its devices.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.units.iter().filter_map(|unit| unit.process).collect()
    }

    /// How its devices are, for a person who wants to know why a round failed.
    pub(crate) fn condition(&self) -> String {
        let mut text = format!("{} contexts were stopped since it was made", self.gmem.stats().fences);
        for (number, unit) in self.units.iter().enumerate() {
            let Unit { kind, context, process, .. } = unit;
            let stopped = if context.is_fenced() { "stopped" } else { "well" };
            let ended = process.filter(|process| !std::path::Path::new(&format!("/proc/{process}")).exists());
            let ended = ended.map_or(String::new(), |process| format!(", its process {process} has ended"));
            let _ = write!(text, "; device {number} ({kind:?}) is {stopped}{ended}");
        }
        text
    }

    /// Leaves the devices so little memory that they have to evict. Pages of the round before may still be on their way out, and then the old limit stays.
    pub(crate) fn limit(&self, plan: &Plan) {
        // A peer counts its pages itself and was given little memory when it was made; replicas have none.
        for unit in self.units.iter().filter(|unit| unit.kind == Kind::Exclusive) {
            let _ = unit.device.set_memory_limit(ByteLen((plan.room * plan.largest_page()).min(MEMORY)));
        }
    }
}

fn unit(gmem: &Gmem, space: &AddressSpace, kind: Kind, largest: PageSize, defect: Option<Defect>) -> Result<Unit, Error> {
    if kind == Kind::Integrated {
        let device = gmem.add_device(accel::Integrated::builder().cores(CORES).build()?)?;
        let context = space.attach(&device, Mode::Share)?;
        return Ok(Unit { kind, context, device, process: None });
    }
    let memory = if kind == Kind::Peer { ROOM_OF_A_PEER * largest.bytes() } else { MEMORY };
    let driver = accel::Discrete::builder().memory(memory).cores(CORES).peer(kind == Kind::Peer).build()?;
    let device = match defect {
        Some(defect) if kind == Kind::Exclusive => gmem.add_device(Arc::new(Broken::new(driver.clone(), defect)))?,
        _ => gmem.add_device(driver.clone())?,
    };
    let context = space.attach(&device, if kind == Kind::Replicate { Mode::Replicate } else { Mode::CoherentExclusive })?;
    let process = context.pmap().and_then(|pmap| driver.process(pmap));
    Ok(Unit { kind, context, device, process })
}
