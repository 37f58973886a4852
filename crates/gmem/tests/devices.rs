//! A device's memory can be taken back and given again, and its contexts take turns.

mod common;

use common::*;
use gmem::hal::{HnodeId, PhysRange};
use gmem::{Access, DeviceCallError, Error, Mode};

#[test]
fn memory_is_taken_back_when_nothing_is_in_it_and_can_be_given_again() {
    watched(|| {
        let world = World::small();
        let (device, region) = (&world.device, world.space.region().map(2 * PAGE).unwrap());
        let capacity = device.memory()[0].capacity.get();
        let whole = PhysRange { begin: 0, end: capacity };
        let hnode = device.hnodes()[0];

        world.run(&ADD, &[at(&region, 0), 5]).unwrap();
        let in_use = device.unregister_memory(hnode);
        assert!(matches!(in_use, Err(Error::Device(DeviceCallError::MemoryInUse(len))) if len.get() == PAGE), "{in_use:?}");
        let other = device.unregister_memory(HnodeId(999));
        assert!(matches!(other, Err(Error::Device(DeviceCallError::NoSuchHnode))), "{other:?}");

        world.space.prefetch(region.range(), None, Access::Read).unwrap();
        device.unregister_memory(hnode).unwrap();
        assert_eq!(device.hnodes(), []);
        let nowhere = world.run(&ADD, &[at(&region, 0), 5]);
        assert!(nowhere.is_err(), "a device without memory was given a page");

        let half = PhysRange { begin: 0, end: capacity / 2 };
        let rest = PhysRange { begin: capacity / 2, end: capacity };
        let (first, second) = (device.register_memory(half).unwrap(), device.register_memory(rest).unwrap());
        assert_eq!(device.hnodes(), [first, second]);
        let overlap = device.register_memory(whole);
        assert!(matches!(overlap, Err(Error::Device(DeviceCallError::Overlap))), "{overlap:?}");
        world.run(&ADD, &[at(&region, 0), 5]).unwrap();
        assert_eq!(get(at(&region, 0)), 10);
        verify(&world.gmem);
    });
}

#[test]
fn contexts_take_turns_on_their_device() {
    watched(|| {
        let world = World::small();
        let second = world.gmem.address_space().create().unwrap();
        let idle = second.attach_inactive(&world.device, Mode::CoherentExclusive).unwrap();
        assert_eq!(world.device.current(), Some(world.space.id()));
        world.device.switch(Some(&idle)).unwrap();
        assert_eq!(world.device.current(), Some(second.id()));
        world.device.switch(None).unwrap();
        assert_eq!(world.device.current(), None);

        let other = discrete(&world.gmem, 4 * PAGE);
        let foreign = other.switch(Some(&idle));
        assert!(matches!(foreign, Err(Error::Device(DeviceCallError::NotAttached(space))) if space == second.id()), "{foreign:?}");

        world.device.switch(Some(&idle)).unwrap();
        idle.detach().unwrap();
        assert_eq!(world.device.current(), None, "a context that is gone is current");
    });
}
