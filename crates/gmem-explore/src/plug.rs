//! Devices that leave the machine and come back, and address spaces that come and go.

use crate::CoreWorld;
use gmem_core::{DeviceCallError, MapRequest};
use gmem_hal::{ByteLen, Mode, PageSize, RegionAttrs, SpaceId, VirtAddr, VirtRange};
use gmem_sim::{current, random};

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
        let used = self.use_space(space, range, device);
        // Bytes that cannot leave a device go with the address space, so nothing can be in the way.
        self.core.space_destroy(space).map_err(|error| format!("an address space cannot be destroyed: {error}"))?;
        used
    }

    fn use_space(&self, space: SpaceId, range: VirtRange, device: usize) -> Result<(), String> {
        let attrs = RegionAttrs { page_size: self.shape.page_size, ..RegionAttrs::default() };
        let len = ByteLen(2 * self.shape.page_size.bytes());
        let Ok(region) = self.core.map(space, &MapRequest { len, at: Some(range.start()), attrs }) else { return Ok(()) };
        let at = region.start();
        let mut byte = [0];
        if random::cpu_write(&self.host, &*self.core, at, &[7]).is_err() {
            return Ok(());
        }
        let (driver, id) = (self.members[device].device(), self.members[device].id());
        let mode = self.shape.devices[device][0];
        if self.core.attach(space, id, mode, false).is_ok()
            && let Some(pmap) = driver.pmap_for(space).filter(|_| mode != Mode::Share)
            && random::device_read(&driver, id, &*self.core, pmap, at, &mut byte).is_ok()
            && !driver.is_given_up(pmap)
            && byte != [7]
        {
            return Err(format!("a device loaded {byte:?} where the CPU stored 7"));
        }
        if random::cpu_read(&self.host, &*self.core, at, &mut byte).is_ok() && byte != [7] {
            return Err(format!("the CPU loaded {byte:?} where it stored 7"));
        }
        Ok(())
    }
}
