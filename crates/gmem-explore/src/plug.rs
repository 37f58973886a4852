//! Devices that leave the machine and come back, and address spaces that come and go.

use crate::CoreWorld;
use crate::refusal::Refuse;
use gmem_core::{AttachError, DeviceCallError, HoldRange, MapRequest};
use gmem_hal::{Access, ByteLen, DeviceId, Mode, PageSize, RegionAttrs, SpaceId, VirtAddr, VirtRange};
use gmem_sim::random::{self, Refusal};
use gmem_sim::{SimDevice, current};
use std::fmt::Display;

/// Where the address spaces of visits lie, one for each thread of control.
const VISITS: u64 = 0x40_0000_0000;
const VISIT_LEN: u64 = PageSize::Size2M.bytes();

impl CoreWorld {
    /// Takes a device out of the machine: detaches it everywhere and destroys it. Answers whether it is out; not if it holds a page that cannot leave it, or
    /// another shares its table, or somebody attaches it meanwhile.
    pub fn unplug(&self, device: usize) -> bool {
        let member = &self.members[device];
        let out = member.alone(|| {
            let id = member.id();
            for space in &self.spaces {
                let _ = self.core.detach(*space, id);
            }
            let out = self.core.device_destroy(id).is_ok();
            if out {
                member.pools().iter_mut().for_each(|(_, hnode)| *hnode = None);
            }
            out
        });
        out == Some(true)
    }

    /// Puts another device of the same kind in the place of one that was taken out. Answers whether there is one now; not if the core refuses it.
    pub fn plug(&self, device: usize) -> bool {
        let member = &self.members[device];
        let plugged = member.alone(|| {
            match self.core.device_destroy(member.id()) {
                // It was not out; it is now.
                Ok(()) => member.pools().iter_mut().for_each(|(_, hnode)| *hnode = None),
                Err(DeviceCallError::NoSuchDevice(_)) => {}
                Err(_) => return false,
            }
            let new = member.build();
            let Ok(id) = self.core.device_create(new.clone()) else { return false };
            member.plug(new, id);
            let count = member.pools().len();
            for n in 0..count {
                let range = member.pools()[n].0;
                let hnode = self.core.device_register_memory(id, range).ok();
                member.pools()[n].1 = hnode;
            }
            true
        });
        plugged == Some(true)
    }

    /// Makes an address space, uses it from the CPU and from a device, and destroys it.
    ///
    /// # Errors
    /// If bytes are wrong in it, or unless it is `excused` then if a call fails.
    pub fn visit(&self, device: usize, excused: impl Fn() -> bool) -> Result<(), String> {
        let range =
            VirtRange::from_len(VirtAddr::new(VISITS + u64::from(current()) * VISIT_LEN), ByteLen(VISIT_LEN)).expect("it does not wrap");
        let space = match self.core.space_create(range, true) {
            Ok(space) => space,
            Err(_) if excused() => return Ok(()),
            Err(error) => return Err(format!("an address space was refused: {error}")),
        };
        let used = self.use_space(space, range, device, &excused);
        // Bytes that cannot leave a device go with the address space, so nothing can be in the way.
        self.core.space_destroy(space).map_err(|error| format!("an address space cannot be destroyed: {error}"))?;
        used
    }

    fn use_space(&self, space: SpaceId, range: VirtRange, device: usize, excused: &dyn Fn() -> bool) -> Result<(), String> {
        let refused = |what: &str, why: &dyn Display| if excused() { Ok(()) } else { Err(format!("{what} was refused: {why}")) };
        let attrs = RegionAttrs { page_size: self.shape.page_size, ..RegionAttrs::default() };
        let len = ByteLen(2 * self.shape.page_size.bytes());
        let region = match self.core.map(space, &MapRequest { len, at: Some(range.start()), attrs }) {
            Ok(region) => region,
            Err(error) => return refused("a region", &error),
        };
        let at = region.start();
        if let Err(error) = random::cpu_write(&self.host, &*self.core, at, &[7]) {
            return refused("a store by the CPU", &error);
        }
        let (driver, id) = (self.members[device].device(), self.members[device].id());
        let mode = self.shape.devices[device][0];
        let attached = match self.core.attach(space, id, mode, false) {
            Ok(()) => true,
            // It was taken out, or there is no table of another device that it could share.
            Err(AttachError::NoSuchDevice(_)) => false,
            Err(error) if mode == Mode::Share && error.refuse() == Refusal::Invalid => false,
            // Its memory was not registered yet.
            Err(AttachError::NoDeviceMemory) if self.members[device].pools().iter().all(|(_, hnode)| hnode.is_none()) => false,
            Err(_) if driver.is_dead() => false,
            Err(error) => return refused("an attach", &error),
        };
        // It died, was given up, or was taken out.
        let gone = || attached && self.is_gone(space, &driver, id);
        if attached {
            match self.load_by_device(space, &driver, id, device, at) {
                Ok(None | Some(7)) => {}
                Ok(Some(byte)) => return Err(format!("a device loaded {byte} where the CPU stored 7")),
                // Others have its memory.
                Err((_, Refusal::NoRoom)) => {}
                Err(_) if gone() => {}
                Err((what, why)) => refused(what, &format_args!("{why:?}"))?,
            }
        }
        let mut byte = [0];
        match random::cpu_read(&self.host, &*self.core, at, &mut byte) {
            Ok(()) if byte != [7] => Err(format!("the CPU loaded {byte:?} where it stored 7")),
            Ok(()) => Ok(()),
            Err(_) if gone() => Ok(()),
            Err(error) => refused("a load by the CPU", &error),
        }
    }

    /// Has a device load a byte. `None` if what it loaded is nobody's.
    fn load_by_device(
        &self,
        space: SpaceId,
        driver: &SimDevice,
        id: DeviceId,
        device: usize,
        at: VirtAddr,
    ) -> Result<Option<u8>, (&'static str, Refusal)> {
        let mut byte = [0];
        let Some(pmap) = self.core.context(space, id).and_then(|context| context.pmap) else {
            // It uses the CPU's.
            let loaded = random::cpu_read(&self.host, &*self.core, at, &mut byte);
            return loaded.map(|()| Some(byte[0])).map_err(|error| ("a load by the CPU's table", error.refuse()));
        };
        let size = self.shape.page_size;
        let page = VirtRange::from_len(at.align_down(size), size.len()).expect("it does not wrap");
        // One that cannot replay faults is given what its launches name.
        let held = [HoldRange { range: page, access: Access::Read }];
        let held = if self.members[device].replays() { &held[..0] } else { &held[..] };
        self.core.hold(space, Some(id), held).map_err(|error| ("a hold", error.refuse()))?;
        let loaded = random::device_read(driver, id, &*self.core, pmap, at, &mut byte);
        self.core.unhold(space, Some(id), held).expect("the address space is there");
        match loaded {
            Ok(()) => Ok(Some(byte[0]).filter(|_| !driver.is_given_up(pmap))),
            Err(error) => Err(("a load by a device", error.refuse())),
        }
    }

    /// Whether the device is not what it was: dead, given up there, or taken out.
    fn is_gone(&self, space: SpaceId, driver: &SimDevice, id: DeviceId) -> bool {
        let context = self.core.context(space, id);
        let lost = context.is_none_or(|c| c.fenced || c.mode != Mode::Share && driver.pmap_for(space) != c.pmap);
        lost || driver.is_dead()
    }
}

#[cfg(test)]
mod tests {
    use crate::worlds;
    use gmem_hal::{DeviceError, HostError};
    use gmem_sim::{Callback, Injected, Sim};

    #[test]
    fn every_device_is_used_by_a_visit() {
        let world = worlds::CAMPAIGN.make(&Sim::new(1));
        let copied = || world.core.stats().h2d_fault_bytes + world.core.stats().h2d_prefetch_bytes;
        let moved = |device: usize| {
            let before = copied();
            assert_eq!(world.visit(device, || false), Ok(()), "device {device}");
            copied() > before
        };
        let used: Vec<usize> = (0..world.members.len()).filter(|device| moved(*device)).collect();
        // The others share a table that nobody has there, use the host's memory, and use the CPU's table.
        assert_eq!(used, [0, 3, 5, 6, 7, 8]);
        world.tear_down();
    }

    #[test]
    fn a_call_of_a_visit_that_is_refused_must_be_excused() {
        let world = worlds::CAMPAIGN.make(&Sim::new(1));
        for (callback, error, told) in [
            (Callback::RegionMap, Injected::Host(HostError::NoMemory), "a region"),
            (Callback::Populate, Injected::Host(HostError::NoMemory), "a store by the CPU"),
            (Callback::PmapCreate, Injected::Device(DeviceError::NoMemory), "an attach"),
            (Callback::PmapEnter, Injected::Device(DeviceError::NoMemory), "a load by a device"),
        ] {
            for excused in [false, true] {
                world.sim.fail_chance(callback, 1000, error);
                let visited = world.visit(0, || excused);
                world.sim.clear_failures();
                match visited {
                    Ok(()) => assert!(excused, "{}: nobody was told", callback.name()),
                    Err(why) => assert!(!excused && why.starts_with(&format!("{told} was refused")), "{}: {why}", callback.name()),
                }
            }
        }
        world.tear_down();
    }
}
