//! A device's memory can be taken back and given again, and its contexts take turns.

mod common;

use common::*;
use gmem::hal::{HnodeId, PhysRange};
use gmem::{Access, DeviceCallError, Error, Gmem, Mode, PageSize};

const SMALL: u64 = 4096;

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
fn memory_that_the_device_has_not_is_refused() {
    watched(|| {
        let world = World::small();
        let capacity = world.device.memory()[0].capacity.get();
        for (begin, end) in [(capacity, 2 * capacity), (capacity, capacity + SMALL), (1 << 40, (1 << 40) + PAGE)] {
            let beyond = PhysRange { begin, end };
            let told = world.device.register_memory(beyond);
            assert!(matches!(told, Err(Error::Device(DeviceCallError::NoSuchMemory(range))) if range == beyond), "{told:?}");
        }
        let whole = world.device.hnodes()[0];
        assert_eq!(world.device.hnodes(), [whole]);
        world.device.unregister_memory(whole).unwrap();
        let across = world.device.register_memory(PhysRange { begin: capacity - PAGE, end: capacity + PAGE });
        assert!(matches!(across, Err(Error::Device(DeviceCallError::NoSuchMemory(_)))), "{across:?}");
        assert_eq!(world.device.hnodes(), []);
        world.device.register_memory(PhysRange { begin: capacity - PAGE, end: capacity }).unwrap();
        let region = world.pages(1);
        world.run(&ADD, &[at(&region, 0), 5]).unwrap();
        assert_eq!(get(at(&region, 0)), 5);
        verify(&world.gmem);
    });
}

#[test]
fn no_more_pages_are_evicted_than_was_asked_whatever_pools_they_are_in() {
    watched(|| {
        let world = World::new(gmem::accel::Discrete::builder().memory(16 * PAGE).cores(1), Mode::CoherentExclusive);
        let device = &world.device;
        device.unregister_memory(device.hnodes()[0]).unwrap();
        for page in [0, 8] {
            device.register_memory(PhysRange { begin: page * PAGE, end: (page + 8) * PAGE }).unwrap();
        }
        let region = world.pages(12);
        world.run(&STRIDE, &[at(&region, 0), 50, PAGE, 12]).unwrap();
        let used_by_pool = || device.memory().iter().map(|pool| pool.used.get() / PAGE).collect::<Vec<_>>();
        let pools = used_by_pool();
        assert!(pools.iter().all(|used| *used > 0), "both pools are in use: {pools:?}");
        let before: u64 = pools.iter().sum();
        assert_eq!(device.evict(2), 2);
        assert_eq!(used_by_pool().iter().sum::<u64>(), before - 2);
        // From more than one pool, if one has not so many.
        assert_eq!(device.evict(before as usize - 3), before as usize - 3);
        assert_eq!(device.evict(8), 1, "the last one");
        (0..12).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 50 + page));
        verify(&world.gmem);
    });
}

#[test]
fn memory_with_the_number_of_another_devices_old_memory_is_its_own() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let [first, second, third] =
            [(); 3].map(|()| gmem.add_device(gmem::accel::Discrete::builder().memory(4 * PAGE).cores(1).build().unwrap()).unwrap());
        let [a, b, c] = [&first, &second, &third].map(|device| space.attach(device, Mode::CoherentExclusive).unwrap());
        let whole = PhysRange { begin: 0, end: 4 * PAGE };
        let (old, other) = (first.hnodes()[0], second.hnodes()[0]);
        first.unregister_memory(old).unwrap();
        second.unregister_memory(other).unwrap();
        // The lowest number is free, and becomes that of the second device.
        assert_eq!(second.register_memory(whole).unwrap(), old);
        assert_eq!(first.register_memory(whole).unwrap(), other);
        let region = space.region().map(4 * PAGE).unwrap();
        let at = |page| at(&region, page * PAGE);
        run(&a, &STORE, &[at(0), 1]).unwrap();
        run(&b, &STORE, &[at(1), 2]).unwrap();
        // Straight from device to device, each way, by drivers that knew these numbers before.
        for (n, context) in [&b, &a, &c, &b, &c, &a].into_iter().enumerate() {
            [0, 1].into_iter().for_each(|page| run(context, &ADD, &[at(page), 10]).unwrap());
            if n % 2 == 1 {
                let sum = 10 * (n as u64 + 1);
                assert_eq!([get(at(0)), get(at(1))], [1 + sum, 2 + sum], "after {n}");
            }
        }
        assert!(gmem.stats().d2d_bytes > 0, "nothing went from device to device");
        verify(&gmem);
    });
}

#[test]
fn a_peer_uses_the_parts_of_its_memory_that_are_registered_and_evicts_when_they_are_full() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let peer = gmem::accel::Discrete::builder().memory(6 * PAGE).cores(1).peer(true).build().unwrap();
        let device = gmem.add_device(peer).unwrap();
        device.unregister_memory(device.hnodes()[0]).unwrap();
        let register = |begin, end| {
            device.register_memory(PhysRange { begin: begin * SMALL, end: end * SMALL }).unwrap();
        };
        // Page 1, pages 3 and 4 up to its middle, and three small pages at the end, of which two are of one part.
        let pages = PAGE / SMALL;
        let parts = [(pages, 2 * pages), (3 * pages, 4 * pages + pages / 2), (6 * pages - 4, 6 * pages - 3), (6 * pages - 2, 6 * pages)];
        parts.into_iter().for_each(|(begin, end)| register(begin, end));
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        let large = space.region().map(6 * PAGE).unwrap();
        let small = space.region().page_size(PageSize::Size4K).map(PAGE).unwrap();
        for round in 0..3 {
            (0..6).for_each(|n| run(&context, &STORE, &[at(&large, n * PAGE), 100 * round + n]).unwrap());
            (0..pages).for_each(|n| run(&context, &STORE, &[at(&small, n * SMALL), 1000 * round + n]).unwrap());
        }
        assert!(gmem.stats().evictions > 0, "more was used than is there");
        (0..6).for_each(|n| assert_eq!(get(at(&large, n * PAGE)), 200 + n));
        (0..pages).for_each(|n| assert_eq!(get(at(&small, n * SMALL)), 2000 + n));
        verify(&gmem);

        // A page for which no part is large enough has no place, and is told so.
        drop(context);
        device.hnodes().into_iter().for_each(|hnode| device.unregister_memory(hnode).unwrap());
        register(1, 1 + pages);
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        let told = run(&context, &STORE, &[at(&large, 0), 1]);
        assert!(told.is_err_and(|e| e.to_string().contains("smaller pages")), "a large page has no place");
        run(&context, &STORE, &[at(&small, 0), 3]).unwrap();
        assert_eq!((get(at(&large, 0)), get(at(&small, 0))), (200, 3));
        verify(&gmem);
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
