//! Address spaces and devices: several of each, made, refused, attached and torn down in every order.

mod common;

use common::*;
use gmem::hal::{FaultError, HostError};
use gmem::{AttachError, ByteLen, DeviceCallError, Error, Gmem, Mode, PageSize, RangeError, SpaceError, VirtAddr, accel};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn several_address_spaces_on_several_devices_keep_apart() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let devices = [4 * PAGE, 2 * PAGE].map(|memory| discrete(&gmem, memory));
        let spaces: Vec<_> = (0..3).map(|_| gmem.address_space().len(64 * PAGE).create().unwrap()).collect();
        for (n, one) in spaces.iter().enumerate() {
            assert!(spaces[n + 1..].iter().all(|other| !one.range().overlaps(other.range())), "{spaces:?}");
        }
        let worlds: Vec<_> = spaces
            .iter()
            .map(|space| {
                let contexts = devices.each_ref().map(|device| space.attach(device, Mode::CoherentExclusive).unwrap());
                (contexts, space.region().map(4 * PAGE).unwrap())
            })
            .collect();
        for round in 0..3u64 {
            for (n, (contexts, region)) in worlds.iter().enumerate() {
                for page in 0..4 {
                    let word = at(region, page * PAGE);
                    run(&contexts[(page + round) as usize % 2], &ADD, &[word, 10 * (n as u64 + 1) + page]).unwrap();
                }
            }
        }
        for (n, (_, region)) in worlds.iter().enumerate() {
            (0..4).for_each(|page| assert_eq!(get(at(region, page * PAGE)), 3 * (10 * (n as u64 + 1) + page)));
        }
        // A device reaches what it is attached to, not its other address spaces.
        let (foreign, own) = (at(&worlds[1].1, 0), &worlds[0].0[0]);
        let result = run(own, &LOAD, &[foreign]);
        assert!(matches!(result, Err(Error::Launch(_))), "{result:?}");
        verify(&gmem);
    });
}

#[test]
fn address_spaces_that_clash_are_refused() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let first = gmem.address_space().len(4 * PAGE).create().unwrap();
        let start = first.range().start();
        let inside = VirtAddr::new(start.get() + 2 * PAGE);
        for place in [start, inside] {
            let clash = gmem.address_space().len(4 * PAGE).at(place).create();
            assert!(matches!(clash, Err(Error::Space(SpaceError::Clash(id))) if id == first.id()), "{clash:?}");
        }
        // Another gmem of the same process knows nothing of the first; the kernel does.
        let other = Gmem::new().unwrap();
        let clash = other.address_space().len(4 * PAGE).at(inside).create();
        assert!(matches!(clash, Err(Error::Space(SpaceError::Host(HostError::AddressInUse)))), "{clash:?}");
        let code = (address_spaces_that_clash_are_refused as *const () as u64) & !(PAGE - 1);
        let clash = gmem.address_space().len(PAGE).at(VirtAddr::new(code)).create();
        assert!(matches!(clash, Err(Error::Space(SpaceError::Host(HostError::AddressInUse)))), "over the program: {clash:?}");
        let misaligned = gmem.address_space().len(PAGE).at(VirtAddr::new(start.get() + (8 << 30) + 4096)).create();
        assert!(matches!(misaligned, Err(Error::Space(SpaceError::Misaligned))), "{misaligned:?}");
        assert!(matches!(gmem.address_space().len(0).create(), Err(Error::Length)));
        drop(first);
        gmem.address_space().len(4 * PAGE).at(inside).create().unwrap();
    });
}

/// The length that was asked for, and the ends of the places.
fn no_place(result: Result<gmem::AddressSpace, Error>) -> (u64, VirtAddr, VirtAddr) {
    match result {
        Err(Error::NoPlace { len, first, last }) => (len.get(), first, last),
        other => panic!("there was a place: {other:?}"),
    }
}

#[test]
fn when_every_place_is_taken_the_error_says_so_and_what_would_work() {
    alone("when_every_place_is_taken_the_error_says_so_and_what_would_work", || {
        let (gmem, other) = (Gmem::new().unwrap(), Gmem::new().unwrap());
        let (len, first, last) = no_place(gmem.address_space().len(1 << 60).create());
        assert_eq!(len, 1 << 60);
        assert_eq!(no_place(gmem.address_space().len(last.get() - first.get()).create()).1, first, "gmem takes as many again elsewhere");
        // All but the last half of what is asked for is in use, and what lies beyond the places is not.
        let blocked = (last.get() - first.get()) as usize - (1 << 39);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: this replaces no mapping, and nothing uses the one it makes.
        let at = unsafe { libc::mmap(first.get() as *mut _, blocked, libc::PROT_NONE, flags, -1, 0) };
        assert_eq!(at as u64, first.get());
        assert_eq!(no_place(gmem.address_space().create()).0, 1 << 40);
        // SAFETY: the mapping just made.
        assert_eq!(unsafe { libc::munmap(at, blocked) }, 0);
        let mut taken = Vec::new();
        let refused = loop {
            match gmem.address_space().create() {
                Ok(space) => taken.push(space),
                Err(e) => break Err(e),
            }
            assert!(taken.len() < 100);
        };
        // To one gmem the others are address spaces of its own, to the other something of the program's.
        for refused in [refused, other.address_space().create()] {
            let said = refused.as_ref().unwrap_err().to_string();
            assert_eq!(no_place(refused), (1 << 40, first, last));
            for word in ["1 TiB", &first.to_string(), &last.to_string(), "SpaceBuilder::len", "SpaceBuilder::at"] {
                assert!(said.contains(word), "`{word}` is not in: {said}");
            }
        }
        let shorter = [&gmem, &other].map(|gmem| gmem.address_space().len(PAGE).create().unwrap());
        assert!(shorter.iter().all(|s| s.range().start() > first && s.range().end() <= last));
        taken.remove(0);
        assert_eq!(gmem.address_space().create().unwrap().range().start(), first);
    });
}

#[test]
fn address_spaces_of_devices_alone_may_overlap() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        // Where no other test of this process is placed by default.
        let place = VirtAddr::new(0x5000_0000_0000);
        let make = || gmem.address_space().len(8 * PAGE).at(place).devices_only().create().unwrap();
        let (one, two) = (make(), make());
        assert_eq!(one.range(), two.range());
        let device = discrete(&gmem, 2 * PAGE);
        let contexts = [&one, &two].map(|space| space.attach(&device, Mode::CoherentExclusive).unwrap());
        let regions = [&one, &two].map(|space| space.region().at(place).map(4 * PAGE).unwrap());
        for (n, context) in contexts.iter().enumerate() {
            run(context, &STRIDE, &[place.get(), 100 * (n as u64 + 1), PAGE, 4]).unwrap();
        }
        for (n, context) in contexts.iter().enumerate() {
            let sum = place.get() + 8;
            run(context, &SUM, &[sum, place.get(), PAGE, 4]).unwrap();
            // The sum is compared by the device: only it sees these addresses.
            let expected = 4 * 100 * (n as u64 + 1) + 6;
            run(context, &ADD, &[sum, 0u64.wrapping_sub(expected)]).unwrap();
            run(context, &EXPECT_ZERO, &[sum]).unwrap();
        }
        assert!(gmem.stats().evictions > 0, "eight pages went through two frames");
        // The CPU does not see them, and may use the addresses.
        let visible = gmem.address_space().len(8 * PAGE).at(place).create().unwrap();
        let region = visible.region().at(place).map(PAGE).unwrap();
        assert_eq!(get(at(&region, 0)), 0);
        // Nor does it keep others from being made there.
        assert_eq!(make().range(), visible.range());
        drop((regions, contexts));
        verify(&gmem);
    });
}

gmem::kernel!(EXPECT_ZERO = "expect-zero", |grid, args| {
    if grid.worker == 0 {
        assert_eq!((args[0] as *const u64).read_volatile(), 0);
    }
});

#[test]
fn everything_attached_goes_with_the_address_space() {
    alone("everything_attached_goes_with_the_address_space", || {
        let gmem = Gmem::new().unwrap();
        let devices = [4 * PAGE, 4 * PAGE].map(|memory| discrete(&gmem, memory));
        let before = census();
        for round in 0..3 {
            let space = gmem.address_space().create().unwrap();
            let contexts =
                [space.attach(&devices[0], Mode::CoherentExclusive).unwrap(), space.attach(&devices[1], Mode::Replicate).unwrap()];
            let region = space.region().map(8 * PAGE).unwrap();
            run(&contexts[0], &STRIDE, &[at(&region, 0), 1, PAGE, 3]).unwrap();
            run(&contexts[1], &STORE, &[at(&region, 7 * PAGE), 1]).unwrap();
            // In every order: what is needed longest is kept by who needs it.
            match round {
                0 => drop((space, contexts, region)),
                1 => drop((region, contexts, space)),
                _ => drop((contexts, region, space)),
            }
            assert_nothing_left(&before);
            devices.iter().for_each(|device| assert_eq!(used(device), 0));
            verify(&gmem);
        }
    });
}

#[test]
fn a_device_in_use_is_not_destroyed_and_goes_with_its_last_context() {
    alone("a_device_in_use_is_not_destroyed_and_goes_with_its_last_context", || {
        let before = census();
        {
            let gmem = Gmem::new().unwrap();
            let space = gmem.address_space().create().unwrap();
            let device = discrete(&gmem, 4 * PAGE);
            let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
            // Contexts keep their device: the facade cannot destroy it under one.
            drop(device);
            let region = space.region().map(PAGE).unwrap();
            run(&context, &STORE, &[at(&region, 0), 5]).unwrap();
            assert_eq!(gmem.stats().hnodes.len(), 1);
            drop(context);
            assert_eq!((gmem.stats().hnodes.len(), get(at(&region, 0))), (0, 5), "the device is gone, its pages are not");
        }
        assert_nothing_left(&before);
    });
}

#[test]
fn a_second_attach_is_refused_and_another_mode_after_detaching_is_not() {
    watched(|| {
        let world = World::small();
        for mode in [Mode::CoherentExclusive, Mode::Replicate] {
            let again = world.space.attach(&world.device, mode);
            assert!(matches!(again, Err(Error::Attach(AttachError::AlreadyAttached))), "{again:?}");
        }
        let World { context, device, space, gmem, .. } = world;
        let region = space.region().map(4 * PAGE).unwrap();
        run(&context, &STRIDE, &[at(&region, 0), 9, PAGE, 4]).unwrap();
        assert_eq!(used(&device), 4 * PAGE);
        context.detach().unwrap();
        assert_eq!(used(&device), 0, "the pages came home");
        (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 9 + page));
        let replica = space.attach(&device, Mode::Replicate).unwrap();
        run(&replica, &ADD, &[at(&region, 0), 1]).unwrap();
        assert_eq!(get(at(&region, 0)), 10);
        verify(&gmem);
    });
}

#[test]
fn attaching_and_detaching_while_others_map_unmap_and_write() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let lasting = space.region().page_size(PageSize::Size4K).map(64 << 10).unwrap();
        let stop = AtomicBool::new(false);
        let rounds = std::thread::scope(|threads| {
            let mappers: Vec<_> = (0..2u64)
                .map(|n| {
                    let (space, stop) = (&space, &stop);
                    threads.spawn(move || {
                        let mut rounds = 0;
                        while !stop.load(Ordering::Relaxed) {
                            let size = PageSize::ALL[rounds as usize % 3];
                            let region = space.region().page_size(size).map(2 * size.bytes()).unwrap();
                            set(at(&region, 0), rounds + n);
                            set(at(&region, size.bytes()), rounds);
                            assert_eq!(get(at(&region, 0)), rounds + n);
                            region.unmap(part(&region, 0, size.bytes())).unwrap();
                            assert_eq!(get(at(&region, size.bytes())), rounds);
                            rounds += 1;
                        }
                        rounds
                    })
                })
                .collect();
            let attachers: Vec<_> = [Mode::CoherentExclusive, Mode::Replicate, Mode::CoherentExclusive]
                .into_iter()
                .enumerate()
                .map(|(n, mode)| {
                    let (gmem, space, word) = (&gmem, &space, at(&lasting, 4096 * n as u64));
                    threads.spawn(move || {
                        let device = discrete(gmem, 64 << 10);
                        for round in 1..=8 {
                            let context = space.attach(&device, mode).unwrap();
                            run(&context, &ADD, &[word, 1]).unwrap();
                            context.detach().unwrap();
                            assert_eq!(get(word), round, "{mode:?}");
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = attachers.into_iter().map(|a| a.join()).collect();
            stop.store(true, Ordering::Relaxed);
            let rounds = mappers.into_iter().map(|m| m.join().unwrap()).collect::<Vec<_>>();
            assert!(ended.iter().all(Result::is_ok));
            rounds
        });
        assert!(rounds.iter().all(|n| *n > 3), "the threads hardly met: {rounds:?}");
        verify(&gmem);
    });
}

#[test]
fn off_by_the_environment_or_by_a_call() {
    const NAME: &str = "off_by_the_environment_or_by_a_call";
    if is_child(NAME) {
        let refused = Gmem::new();
        assert!(matches!(refused, Err(Error::Disabled)), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("GMEM=off"));
        return;
    }
    watched(|| {
        let output = child_with(NAME, "", &[("GMEM", "off")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let world = World::small();
        let region = world.pages(1);
        world.run(&STORE, &[at(&region, 0), 5]).unwrap();
        world.gmem.set_enabled(false);
        assert!(matches!(world.gmem.address_space().create(), Err(Error::Space(SpaceError::Disabled))));
        assert!(matches!(world.space.region().map(PAGE), Err(Error::Range(RangeError::Disabled))));
        assert!(matches!(world.space.attach(&world.device, Mode::Replicate), Err(Error::Attach(AttachError::Disabled))));
        let device = world.gmem.add_device(accel::Discrete::builder().build().unwrap());
        assert!(matches!(device, Err(Error::Device(DeviceCallError::Disabled))));
        // And one that has no memory to be refused.
        let device = world.gmem.add_device(accel::Integrated::builder().cores(1).build().unwrap());
        assert!(matches!(device, Err(Error::Device(DeviceCallError::Disabled))));
        // What exists goes on.
        assert_eq!(get(at(&region, 0)), 5);
        world.run(&ADD, &[at(&region, 0), 1]).unwrap();
        assert_eq!(get(at(&region, 0)), 6);
        world.gmem.set_enabled(true);
        world.space.region().map(PAGE).unwrap();
    });
}

#[test]
fn metadata_is_limited_and_a_refused_call_leaves_nothing() {
    watched(|| {
        let gmem = Gmem::builder().metadata_limit(64 << 10).start().unwrap();
        let space = gmem.address_space().create().unwrap();
        let before = gmem.metadata_charged();
        // Eight bytes an entry: 64 KiB are 8 192 pages.
        let refused = space.region().page_size(PageSize::Size4K).map(64 << 20);
        assert!(matches!(refused, Err(Error::Range(RangeError::OutOfMemory(_)))), "{refused:?}");
        let refused = gmem.add_device(accel::Discrete::builder().memory(64 << 20).build().unwrap());
        assert!(matches!(refused, Err(Error::Device(DeviceCallError::OutOfMemory(_)))), "{refused:?}");
        assert_eq!((gmem.metadata_charged(), gmem.stats().hnodes.len()), (before, 0));
        let region = space.region().page_size(PageSize::Size4K).map(16 << 20).unwrap();
        set(at(&region, 0), 1);
        assert!(gmem.metadata_charged() >= before + (16 << 20) / 4096 * 8);
        drop(region);
        assert_eq!(gmem.metadata_charged(), before, "given back");
    });
}

#[test]
fn a_device_that_cannot_be_built_is_refused_with_the_reason() {
    let builder = accel::Discrete::builder;
    let refused = [
        (builder().memory(0), accel::BuildError::Memory),
        (builder().memory(4097), accel::BuildError::Memory),
        (builder().cores(0), accel::BuildError::Cores),
        (builder().cores(65), accel::BuildError::Cores),
        (builder().time_limit(std::time::Duration::ZERO), accel::BuildError::TimeLimit),
    ];
    for (builder, why) in refused {
        assert_eq!(builder.build().err(), Some(why));
    }
    watched(|| {
        let gmem = Gmem::new().unwrap();
        // More than the machine has: this would end in the system's out-of-memory killer.
        let (asked, has) = (ByteLen(1 << 50), accel::machine_memory());
        let huge = accel::Discrete::builder().memory(asked.get()).build().map(|_| ()).unwrap_err();
        assert_eq!(huge, accel::BuildError::MoreThanMachine { asked, has });
        let said = Error::from(huge).to_string();
        assert!(said.contains(&asked.to_string()) && said.contains(&has.to_string()), "{said}");
        // And pages smaller than the device has are refused where they would be mapped.
        let large = accel::Discrete::builder().memory(2 * PAGE).page_sizes(gmem::hal::PageSizes::from_bitmap(PAGE));
        let device = gmem.add_device(large.build().unwrap()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let small = space.region().page_size(PageSize::Size4K).map(4096).unwrap();
        assert!(matches!(space.attach(&device, Mode::CoherentExclusive), Err(Error::Attach(AttachError::PageSizeUnsupported(..)))));
        drop(small);
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        let refused = space.region().page_size(PageSize::Size4K).map(4096);
        assert!(matches!(refused, Err(Error::Range(RangeError::PageSizeUnsupported(..)))), "{refused:?}");
        // A limit on what is used is the device's from then on.
        device.set_memory_limit(ByteLen(PAGE)).unwrap();
        let region = space.region().map(2 * PAGE).unwrap();
        run(&context, &STRIDE, &[at(&region, 0), 4, PAGE, 2]).unwrap();
        assert_eq!(device.memory()[0].peak, ByteLen(PAGE));
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (4, 5));
        region.protect(region.range(), gmem::Prot::empty()).unwrap();
        assert_eq!(fault(run(&context, &LOAD, &[at(&region, 0)])).1, FaultError::Protection);
    });
}

#[test]
fn a_hole_in_a_region_is_not_its_any_more() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let region = space.region().map(3 * PAGE).unwrap();
        region.unmap(part(&region, PAGE, PAGE)).unwrap();
        let other = space.region().map(PAGE).unwrap();
        assert_eq!(other.range(), part(&region, PAGE, PAGE), "the hole is used again");
        set(at(&other, 0), 7);
        let refused = region.protect(region.range(), gmem::Prot::READ);
        assert!(matches!(refused, Err(Error::Range(RangeError::NotMapped(va))) if va == other.range().start()), "{refused:?}");
        region.discard(region.range()).unwrap();
        region.unmap(other.range()).unwrap();
        assert_eq!(get(at(&other, 0)), 7, "it belongs to somebody else");
        drop(region);
        set(at(&other, 0), get(at(&other, 0)) + 1);
        assert_eq!(get(at(&other, 0)), 8);
    });
}
