//! Where pages are, and what one can ask of them: prefetch, pin, discard, protect, unmap, limits, and what one address space leaves to the next.

mod common;

use common::*;
use gmem::hal::{FaultError, PhysRange};
use gmem::{Access, Backing, ByteLen, Delivery, DeviceCallError, Error, Gmem, Mode, PageSize, Prot, RangeError, Region, State, accel};

/// Every way for the CPU to get at a region, with every page size.
fn kinds() -> Vec<(PageSize, Backing, Delivery)> {
    let pairs = [(Backing::Shared, Delivery::Service), (Backing::Shared, Delivery::InThread), (Backing::Private, Delivery::Service)];
    PageSize::ALL.into_iter().flat_map(|size| pairs.map(|(backing, delivery)| (size, backing, delivery))).collect()
}

/// A region of `pages` pages with a device of so many, and every second page on the device. Word 0 of each page is 100 and its number.
fn half_on_the_device(size: PageSize, backing: Backing, delivery: Delivery, pages: u64) -> (World, Region) {
    let world = World::new(accel::Discrete::builder().memory(pages * size.bytes()).cores(1), Mode::CoherentExclusive);
    let region = world.space.region().page_size(size).backing(backing).delivery(delivery).map(pages * size.bytes()).unwrap();
    (0..pages).for_each(|page| set(at(&region, page * size.bytes()), page));
    (0..pages).step_by(2).for_each(|page| world.run(&ADD, &[at(&region, page * size.bytes()), 100]).unwrap());
    (1..pages).step_by(2).for_each(|page| set(at(&region, page * size.bytes()), 100 + page));
    assert_eq!(used(&world.device), pages.div_ceil(2) * size.bytes());
    (world, region)
}

#[test]
fn a_partial_unmap_while_pages_are_on_a_device_leaves_the_rest_right() {
    watched(|| {
        for (size, backing, delivery) in kinds() {
            let (world, region) = half_on_the_device(size, backing, delivery, 8);
            let page = |n| at(&region, n * size.bytes());
            region.unmap(part(&region, 2 * size.bytes(), 3 * size.bytes())).unwrap();
            assert_eq!(used(&world.device), 2 * size.bytes(), "the frames of what is gone are free, {size} {backing:?} {delivery:?}");
            assert_eq!([0, 1, 5, 6, 7].map(|n| get(page(n))), [100, 101, 105, 106, 107], "{size} {backing:?} {delivery:?}");
            // Two of them were on the device, which must not find them there still.
            (2..5).for_each(|n| assert_eq!(fault(world.run(&LOAD, &[page(n)])), (page(n), FaultError::NotMapped)));
            world.run(&ADD, &[page(5), 1]).unwrap();
            assert_eq!(get(page(5)), 106);
            let mid = region.unmap(part(&region, 0, size.bytes() / 2));
            assert!(matches!(mid, Err(Error::Range(RangeError::Misaligned(s))) if s == size), "{mid:?}");
            // The hole is zero when it is used again.
            let again = world.space.region().page_size(size).at(region.range().start().checked_add(ByteLen(2 * size.bytes())).unwrap());
            let again = again.map(3 * size.bytes()).unwrap();
            (0..3).for_each(|n| assert_eq!(get(at(&again, n * size.bytes())), 0, "{size} {backing:?} {delivery:?}"));
            drop((region, again));
            assert_eq!(used(&world.device), 0);
            verify(&world.gmem);
        }
    });
}

#[test]
fn protection_holds_for_both_sides_while_pages_are_on_a_device() {
    watched(|| {
        for (size, backing, delivery) in kinds() {
            let (world, region) = half_on_the_device(size, backing, delivery, 4);
            let page = |n| at(&region, n * size.bytes());
            region.protect(region.range(), Prot::READ).unwrap();
            for n in 0..4 {
                let (va, error) = fault(world.run(&STORE, &[page(n), 1]));
                assert_eq!((va, error), (page(n), FaultError::Protection), "{size} {backing:?} {delivery:?}");
                assert_eq!(get(page(n)), 100 + n, "{size} {backing:?} {delivery:?}");
                world.run(&LOAD, &[page(n)]).unwrap();
            }
            region.protect(part(&region, 0, size.bytes()), Prot::empty()).unwrap();
            assert_eq!(fault(world.run(&LOAD, &[page(0)])), (page(0), FaultError::Protection));
            region.protect(region.range(), Prot::RW).unwrap();
            for n in 0..4 {
                world.run(&ADD, &[page(n), 1]).unwrap();
                set(page(n), get(page(n)) + 1);
                assert_eq!(get(page(n)), 102 + n, "{size} {backing:?} {delivery:?}");
            }
            let beyond = region.protect(part(&region, 3 * size.bytes(), 2 * size.bytes()), Prot::READ);
            assert!(matches!(beyond, Err(Error::Range(RangeError::NotMapped(_)))), "{beyond:?}");
        }
    });
}

#[test]
fn the_cpu_dies_where_it_may_not_write() {
    const NAME: &str = "the_cpu_dies_where_it_may_not_write";
    if is_child(NAME) {
        let (size, backing, delivery) = kinds()[param().parse::<usize>().unwrap()];
        let (_world, region) = half_on_the_device(size, backing, delivery, 2);
        region.protect(region.range(), Prot::READ).unwrap();
        assert_eq!(get(at(&region, 0)), 100);
        println!("read");
        set(at(&region, 0), 1);
        println!("written");
        return;
    }
    watched(|| {
        for (n, kind) in kinds().iter().enumerate() {
            let output = child(NAME, &n.to_string());
            let said = String::from_utf8_lossy(&output.stdout);
            let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert!(signal == Some(libc::SIGSEGV) || signal == Some(libc::SIGBUS), "{kind:?}: {}", output.status);
            assert!(said.contains("read") && !said.contains("written"), "{kind:?}: {said}");
        }
    });
}

#[test]
fn prefetch_and_residency_agree() {
    watched(|| {
        let world = World::small();
        let region = world.pages(4);
        let (range, device) = (region.range(), Some(world.device.id()));
        let places = || world.space.residency(range).unwrap();
        assert_eq!(places().len(), 1);
        assert_eq!(places()[0].state, State::Unmapped);
        set(at(&region, PAGE), 5);
        let brought = world.space.prefetch(part(&region, 0, 2 * PAGE), Some(&world.device), Access::Write).unwrap();
        assert_eq!(brought, 2);
        let runs: Vec<_> = places().iter().map(|p| (p.range.len().get() / PAGE, p.state, p.device)).collect();
        assert_eq!(runs, [(2, State::Device, device), (2, State::Unmapped, None)]);
        let faults = world.gmem.stats().device_faults;
        world.run(&ADD, &[at(&region, PAGE), 1]).unwrap();
        assert_eq!(world.gmem.stats().device_faults, faults, "it was there");
        assert_eq!(world.space.prefetch(part(&region, 0, 2 * PAGE), None, Access::Read).unwrap(), 2);
        assert_eq!((places()[0].state, get(at(&region, PAGE))), (State::Host, 6));
        assert_eq!(world.space.prefetch(part(&region, 0, PAGE), Some(&world.device), Access::Read).unwrap(), 1);
        assert_eq!(places()[0].state, State::Duplicated, "for reading, both may have it");
        // Holes are left out of the answer, and refused by the call.
        region.unmap(part(&region, 2 * PAGE, PAGE)).unwrap();
        assert_eq!(places().iter().map(|p| p.range.len().get()).sum::<u64>(), 3 * PAGE);
        let hole = world.space.prefetch(range, Some(&world.device), Access::Read);
        assert!(matches!(hole, Err(Error::Range(RangeError::NotMapped(va))) if va.get() == at(&region, 2 * PAGE)), "{hole:?}");
        let stranger = discrete(&world.gmem, PAGE);
        let refused = world.space.prefetch(range, Some(&stranger), Access::Read);
        assert!(matches!(refused, Err(Error::Range(RangeError::NotAttached(id))) if id == stranger.id()), "{refused:?}");
    });
}

#[test]
fn pinned_pages_stay_and_exhaustion_is_an_error() {
    watched(|| {
        let world = World::small();
        let region = world.pages(8);
        let pinned = part(&region, 0, 3 * PAGE);
        world.run(&STRIDE, &[at(&region, 0), 10, PAGE, 3]).unwrap();
        world.space.pin(pinned).unwrap();
        // Everything else goes through the one frame that is left.
        world.run(&STRIDE, &[at(&region, 3 * PAGE), 13, PAGE, 5]).unwrap();
        let there = world.space.residency(pinned).unwrap();
        assert!(there.iter().all(|p| p.pinned && p.state == State::Device), "{there:?}");
        assert_eq!(world.device.evict(10), 1, "what is not pinned");
        // All pinned: a typed error, for a kernel and for a prefetch, and nobody waits for ever.
        world.space.pin(part(&region, 3 * PAGE, PAGE)).unwrap();
        world.run(&STORE, &[at(&region, 3 * PAGE), 13]).unwrap();
        assert_eq!(fault(world.run(&STORE, &[at(&region, 5 * PAGE), 1])), (at(&region, 5 * PAGE), FaultError::NoDeviceMemory));
        let refused = world.space.prefetch(part(&region, 5 * PAGE, PAGE), Some(&world.device), Access::Read);
        assert!(matches!(refused, Err(Error::Range(RangeError::Fault(_, FaultError::NoDeviceMemory)))), "{refused:?}");
        assert!(!world.context.is_fenced());
        // Coherence comes before pins, and one pin is taken back by one unpin.
        (0..8).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 10 + page));
        world.space.unpin(part(&region, 0, 4 * PAGE)).unwrap();
        let again = world.space.unpin(pinned);
        assert!(matches!(again, Err(Error::Range(RangeError::NotPinned(va))) if va == pinned.start()), "{again:?}");
        world.run(&STRIDE, &[at(&region, 0), 20, PAGE, 8]).unwrap();
        (0..8).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 20 + page));
        verify(&world.gmem);
    });
}

#[test]
fn discarded_pages_read_as_zero_on_both_sides() {
    watched(|| {
        for (size, backing, delivery) in kinds() {
            let (world, region) = half_on_the_device(size, backing, delivery, 4);
            let page = |n| at(&region, n * size.bytes());
            region.discard(part(&region, 0, 2 * size.bytes())).unwrap();
            assert_eq!(used(&world.device), size.bytes());
            world.run(&ADD, &[page(0), 3]).unwrap();
            assert_eq!([0, 1, 2, 3].map(|n| get(page(n))), [3, 0, 102, 103], "{size} {backing:?} {delivery:?}");
        }
    });
}

#[test]
fn a_memory_limit_is_kept() {
    watched(|| {
        let world = World::small();
        world.device.set_memory_limit(ByteLen(2 * PAGE)).unwrap();
        let region = world.pages(6);
        world.run(&STRIDE, &[at(&region, 0), 1, PAGE, 6]).unwrap();
        assert_eq!(world.device.memory()[0].peak, ByteLen(2 * PAGE));
        let below = world.device.set_memory_limit(ByteLen(PAGE));
        assert!(matches!(below, Err(Error::Device(DeviceCallError::MemoryInUse(used))) if used.get() == 2 * PAGE), "{below:?}");
        let above = world.device.set_memory_limit(ByteLen(5 * PAGE));
        assert!(matches!(above, Err(Error::Device(DeviceCallError::LimitTooHigh(most))) if most.get() == 4 * PAGE), "{above:?}");
        world.device.set_memory_limit(ByteLen(4 * PAGE)).unwrap();
        world.run(&STRIDE, &[at(&region, 0), 1, PAGE, 6]).unwrap();
        assert_eq!(world.device.memory()[0].peak, ByteLen(4 * PAGE));
        (0..6).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 1 + page));
    });
}

#[test]
fn four_thousand_regions() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(1 << 20).cores(1), Mode::CoherentExclusive);
        let regions: Vec<_> = (0..4000u64)
            .map(|n| {
                let region = world.space.region().page_size(PageSize::Size4K).map(4096).unwrap();
                set(at(&region, 0), n);
                region
            })
            .collect();
        // They lie side by side, so one launch finds them all: four thousand pages through 256 frames.
        let start = regions.iter().map(|r| r.range().start().get()).min().unwrap();
        let sum = world.space.region().page_size(PageSize::Size4K).map(4096).unwrap();
        world.run(&SUM, &[at(&sum, 0), start, 4096, 4000]).unwrap();
        assert_eq!(get(at(&sum, 0)), 3999 * 4000 / 2);
        regions.iter().enumerate().for_each(|(n, region)| assert_eq!(get(at(region, 0)), n as u64));
        verify(&world.gmem);
        drop(regions);
        eventually("only the sum's page may be left", || used(&world.device) <= 4096);
        let left = world.space.residency(world.space.range()).unwrap();
        assert_eq!(left.iter().map(|run| run.range.len().get()).sum::<u64>(), 4096, "only the sum's page is mapped: {left:?}");
    });
}

/// Where no other test of this process is placed by default.
const PLACE: gmem::VirtAddr = gmem::VirtAddr::new(0x5200_0000_0000);

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

// Counts the words of the args[2] bytes at args[1] that are not zero, and stores the number at args[0].
gmem::kernel!(COUNT = "count", |grid, args| {
    if grid.worker == 0 {
        let found = (0..args[2] / 8).filter(|i| ((args[1] + i * 8) as *const u64).read_volatile() != 0).count();
        (args[0] as *mut u64).write_volatile(found as u64);
    }
});

#[test]
fn nothing_of_one_address_space_is_seen_in_the_next() {
    watched(|| {
        for (peer, backing) in [(false, Backing::Shared), (false, Backing::Private), (true, Backing::Shared)] {
            for size in PageSize::ALL {
                let gmem = Gmem::new().unwrap();
                let builder = accel::Discrete::builder().memory(4 * PAGE).cores(1).peer(peer);
                let device = gmem.add_device(builder.build().unwrap()).unwrap();
                let victim = gmem.address_space().at(PLACE).len(64 * PAGE).create().unwrap();
                let context = victim.attach(&device, Mode::CoherentExclusive).unwrap();
                // Secrets in every frame of the device and in as much of the host.
                let region = victim.region().page_size(size).backing(backing).map(8 * PAGE).unwrap();
                run(&context, &STRIDE, &[at(&region, 0), SECRET, 4096, 8 * PAGE / 4096]).unwrap();
                let place = region.range().start();
                drop((region, context, victim));
                // The same place and the same frames, for somebody else.
                let spy = gmem.address_space().at(PLACE).len(64 * PAGE).create().unwrap();
                let context = spy.attach(&device, Mode::CoherentExclusive).unwrap();
                let region = spy.region().page_size(size).backing(backing).at(place).map(4 * PAGE).unwrap();
                let answer = spy.region().page_size(size).map(size.bytes()).unwrap();
                run(&context, &COUNT, &[at(&answer, 0), at(&region, 0), 2 * PAGE]).unwrap();
                assert_eq!(get(at(&answer, 0)), 0, "the device sees a secret, {size} {backing:?} peer {peer}");
                for word in (0..4 * PAGE).step_by(4096) {
                    assert_eq!(get(at(&region, word)), 0, "the CPU sees a secret, {size} {backing:?} peer {peer}");
                }
            }
        }
    });
}

#[test]
fn a_refusal_of_the_device_reaches_the_launch_as_an_error() {
    watched(|| {
        let builder = || accel::Discrete::builder().cores(1);
        let no_such_frame = |world: &World| {
            let region = world.pages(1);
            let result = world.run(&STORE, &[at(&region, 0), 1]);
            let said = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert_eq!(fault(result), (at(&region, 0), FaultError::PageTooLarge));
            assert!(said.contains("smaller pages"), "{said}");
            assert_eq!(get(at(&region, 0)), 0);
        };
        // Pages larger than the whole device, also one that has its own allocator; than each of its pools; and than what its limit leaves.
        no_such_frame(&World::new(builder().memory(64 << 10), Mode::CoherentExclusive));
        no_such_frame(&World::new(builder().memory(64 << 10).peer(true), Mode::CoherentExclusive));
        let world = World::new(builder().memory(PAGE), Mode::CoherentExclusive);
        world.device.unregister_memory(world.device.hnodes()[0]).unwrap();
        for begin in [0, PAGE / 2] {
            world.device.register_memory(PhysRange { begin, end: begin + PAGE / 2 }).unwrap();
        }
        no_such_frame(&world);
        let world = World::small();
        let small = world.space.region().page_size(PageSize::Size64K).map(64 << 10).unwrap();
        world.run(&STORE, &[at(&small, 0), 1]).unwrap();
        world.device.set_memory_limit(ByteLen(64 << 10)).unwrap();
        no_such_frame(&world);
        assert_eq!(used(&world.device), 64 << 10, "no page left in vain");
        drop(small);
        world.device.set_memory_limit(ByteLen(PAGE)).unwrap();
        let region = world.pages(2);
        (0..2).for_each(|page| world.run(&STORE, &[at(&region, page * PAGE), 1]).unwrap());
    });
}
