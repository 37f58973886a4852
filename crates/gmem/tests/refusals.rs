//! What cannot be had is refused in words that say what was asked for, what there is, and what would work.

mod common;

use common::*;
use gmem::hal::{DeviceError, PhysRange};
use gmem::{
    Access, AttachError, Backing, ByteLen, Delivery, DeviceCallError, Error, FileError, FileSharing, Gmem, Mode, PageSize, VirtAddr, accel,
    hal,
};
use std::sync::Arc;

/// Checks that an error says all of these.
#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
}

#[test]
fn a_region_that_is_longer_than_its_address_space() {
    watched(|| {
        let space = Gmem::new().unwrap().address_space().create().unwrap();
        let refused = space.vec::<u8>(2 << 40).unwrap_err();
        assert!(matches!(refused, Error::NoRoom { len, space } if len.get() == 2 << 40 && space.get() == 1 << 40), "{refused:?}");
        says(&refused, &["2 TiB", "1 TiB", "SpaceBuilder::len"]);
        // What is left is too short, though the address space is not.
        let _half = space.region().map(1 << 39).unwrap();
        let refused = space.region().map((1 << 39) + PAGE).unwrap_err();
        assert!(matches!(refused, Error::NoRoom { len, .. } if len.get() == (1 << 39) + PAGE), "{refused:?}");
        // A place that was named is another matter.
        let refused = space.region().at(space.range().start()).map(PAGE);
        assert!(matches!(refused, Err(Error::Range(gmem::RangeError::NoAddressSpace))), "{refused:?}");
    });
}

#[test]
fn private_memory_whose_faults_no_signal_would_tell() {
    watched(|| {
        let space = Gmem::new().unwrap().address_space().create().unwrap();
        let refused = space.region().backing(Backing::Private).delivery(Delivery::InThread).map(PAGE).unwrap_err();
        assert!(matches!(refused, Error::PrivateInThread), "{refused:?}");
        says(&refused, &["private backing with in-thread delivery", "private backing with service delivery", "shared backing"]);
    });
}

#[test]
fn a_driver_that_is_a_device_already() {
    watched(|| {
        let (gmem, other) = (Gmem::new().unwrap(), Gmem::new().unwrap());
        let discrete: Arc<dyn hal::Device> = accel::Discrete::builder().memory(PAGE).cores(1).build().unwrap();
        let integrated: Arc<dyn hal::Device> = accel::Integrated::builder().cores(1).build().unwrap();
        for driver in [discrete, integrated] {
            let device = gmem.add_device(driver.clone()).unwrap();
            let name = device.info().name.clone();
            let again = |gmem: &Gmem, when| {
                let refused = gmem.add_device(driver.clone()).unwrap_err();
                let typed = matches!(refused, Error::Device(DeviceCallError::Device(DeviceError::AlreadyStarted)));
                assert!(typed, "{name}, {when}: {refused:?}");
                says(&refused, &["started before", "clone that Device", "another driver"]);
            };
            again(&gmem, "by the same gmem");
            again(&other, "by another");
            // It is none the worse for it.
            let space = gmem.address_space().create().unwrap();
            let mode = if device.memory().is_empty() { Mode::Share } else { Mode::CoherentExclusive };
            let context = space.attach(&device, mode).unwrap();
            let region = space.region().map(PAGE).unwrap();
            run(&context, &STORE, &[at(&region, 0), 7]).unwrap();
            assert_eq!(get(at(&region, 0)), 7);
            drop((context, region, space, device));
            again(&gmem, "after the device was removed");
        }
        verify(&gmem);
    });
}

#[test]
fn a_device_of_another_gmem() {
    watched(|| {
        let (mine, theirs) = (World::small(), World::small());
        assert_eq!(mine.device.id(), theirs.device.id(), "this is what makes it dangerous");
        let fresh = mine.gmem.address_space().create().unwrap();
        let region = mine.pages(1);
        let refused = [
            fresh.attach(&theirs.device, Mode::CoherentExclusive).map(drop),
            fresh.attach_inactive(&theirs.device, Mode::CoherentExclusive).map(drop),
            mine.space.prefetch(region.range(), Some(&theirs.device), Access::Read).map(drop),
            mine.device.switch(Some(&theirs.context)),
        ];
        for (n, refused) in refused.into_iter().enumerate() {
            let refused = refused.expect_err("it belongs to another gmem");
            assert!(matches!(refused, Error::OtherGmem), "call {n}: {refused:?}");
            says(&refused, &["another", "add all devices", "one Gmem"]);
        }
        assert_eq!(used(&mine.device), 0, "nothing was brought to the device that has the same number");
        fresh.attach(&mine.device, Mode::CoherentExclusive).unwrap();
        verify(&mine.gmem);
    });
}

#[test]
fn addresses_that_no_program_can_have() {
    watched(|| {
        let world = World::small();
        // The first holds null, where the system lets a privileged program have memory; to references of Rust it would be none.
        for (start, len) in [(0, 1 << 30), (0, PAGE), (1 << 63, PAGE), (u64::MAX - 2 * PAGE + 1, PAGE), (1 << 45, 1 << 63)] {
            let refused = world.gmem.address_space().len(len).at(VirtAddr::new(start)).create().unwrap_err();
            let typed = matches!(refused, Error::Space(gmem::SpaceError::Host(hal::HostError::NoSuchAddresses)));
            assert!(typed, "{start:#x}, {len:#x}: {refused:?}");
            says(&refused, &["2 MiB", "vm.mmap_min_addr", "128 TiB"]);
        }
        // What is named there works. Nobody else has the second 2 MiB: programs are linked to run anywhere, or at 4 MiB.
        let low = world.gmem.address_space().len(PAGE).at(VirtAddr::new(PAGE)).create().unwrap();
        let vec = low.vec::<u64>(1).unwrap();
        assert_eq!((vec.as_ptr() as u64, vec[0]), (PAGE, 0));
        // Addresses that are somebody's are another matter.
        let taken = world.gmem.address_space().len(PAGE).at(world.space.range().start()).create().unwrap_err();
        assert!(matches!(taken, Error::Space(gmem::SpaceError::Clash(_))), "{taken:?}");
    });
}

#[test]
fn more_than_any_address_space_has() {
    watched(|| {
        let world = World::small();
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("refusals-long-{}", std::process::id()));
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let bytes = i64::MAX as u64;
        let refused = world.space.region().map_file(&file, 0, bytes, FileSharing::Shared).unwrap_err();
        assert!(matches!(refused, Error::NoRoom { len, .. } if len.get() == bytes + 1), "{refused:?}");
        std::fs::remove_file(path).unwrap();
        // Neither does a place that was named make it a question of memory for metadata.
        let small = PageSize::Size4K;
        let refused = world.space.region().page_size(small).at(world.space.range().start()).map(1 << 62).unwrap_err();
        assert!(matches!(refused, Error::Range(gmem::RangeError::NoAddressSpace)), "{refused:?}");
        for limit in [u64::MAX, 4 * PAGE + 1] {
            let refused = world.device.set_memory_limit(ByteLen(limit)).unwrap_err();
            let typed = matches!(refused, Error::Device(DeviceCallError::LimitTooHigh(most)) if most.get() == 4 * PAGE);
            assert!(typed, "{refused:?}");
            says(&refused, &["8 MiB", "at most"]);
        }
        world.device.set_memory_limit(ByteLen(4 * PAGE)).unwrap();
        // Of two pools one is too small: the other keeps the limit that it had, and takes a page.
        drop(world.context);
        world.device.unregister_memory(world.device.hnodes()[0]).unwrap();
        let part = |begin, end| PhysRange { begin: begin * PAGE, end: end * PAGE };
        world.device.register_memory(part(0, 3)).unwrap();
        world.device.set_memory_limit(ByteLen(2 * PAGE)).unwrap();
        world.device.register_memory(part(3, 4)).unwrap();
        let refused = world.device.set_memory_limit(ByteLen(3 * PAGE)).unwrap_err();
        assert!(matches!(refused, Error::Device(DeviceCallError::LimitTooHigh(most)) if most.get() == PAGE), "{refused:?}");
        let context = world.space.attach(&world.device, Mode::CoherentExclusive).unwrap();
        let region = world.space.region().map(8 * PAGE).unwrap();
        (0..8).for_each(|page| run(&context, &STORE, &[at(&region, page * PAGE), page]).unwrap());
        let used: Vec<_> = world.device.memory().into_iter().map(|pool| pool.peak.get()).collect();
        assert_eq!(used, [2 * PAGE, PAGE]);
    });
}

#[test]
fn more_address_spaces_with_in_thread_delivery_than_a_process_can_have() {
    alone("more_address_spaces_with_in_thread_delivery_than_a_process_can_have", || {
        let gmem = Gmem::new().unwrap();
        let mut spaces: Vec<_> = (0..65).map(|_| gmem.address_space().len(2 * PAGE).create().unwrap()).collect();
        let map = |space: &gmem::AddressSpace| space.region().delivery(Delivery::InThread).map(PAGE);
        let regions: Vec<_> = spaces[..64].iter().map(|space| map(space).unwrap()).collect();
        let refused = map(&spaces[64]).unwrap_err();
        assert!(matches!(refused, Error::Range(gmem::RangeError::Host(hal::HostError::TooManyInThread))), "{refused:?}");
        says(&refused, &["64 address spaces", "in-thread delivery", "service delivery"]);
        let service = spaces[64].region().map(PAGE).unwrap();
        set(at(&service, 0), 5);
        assert_eq!(get(at(&service, 0)), 5);
        // Another that goes makes room.
        drop(regions);
        spaces.swap_remove(0);
        let region = map(&spaces[0]).unwrap();
        set(at(&region, 0), 6);
        assert_eq!(get(at(&region, 0)), 6);
    });
}

/// Lowers the limit on descriptors of this process, which is a child made for that.
fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: 4096 };
    // SAFETY: only lowers a limit, and raises it again up to what it may be.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn more_files_than_a_process_may_have_open() {
    alone("more_files_than_a_process_may_have_open", || {
        limit_descriptors(1024);
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("refusals-{}", std::process::id()));
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let world = World::small();
        let spare = accel::Discrete::builder().memory(PAGE).cores(1).build().unwrap();
        // In both tables, the program's and gmem's, every number below is taken.
        limit_descriptors(4);
        let refused = [
            world.gmem.address_space().create().map(drop).unwrap_err(),
            world.gmem.add_device(spare).map(drop).unwrap_err(),
            world.space.region().map_file(&file, 0, 4096, FileSharing::Shared).map(drop).unwrap_err(),
            Gmem::new().map(drop).unwrap_err(),
        ];
        limit_descriptors(1024);
        refused.iter().for_each(|e| says(e, &["too many open files", "ulimit -n"]));
        assert!(matches!(refused[0], Error::Space(gmem::SpaceError::Host(hal::HostError::TooManyFiles))), "{refused:?}");
        assert!(matches!(refused[1], Error::Device(DeviceCallError::Device(DeviceError::TooManyFiles))), "{refused:?}");
        assert!(matches!(refused[2], Error::File(FileError::TooManyFiles)), "{refused:?}");
        assert!(matches!(refused[3], Error::Start(_)), "{refused:?}");
        // A process of a device needs numbers beyond those that others have.
        let second = world.gmem.address_space().create().unwrap();
        limit_descriptors(20);
        let refused = second.attach(&world.device, Mode::CoherentExclusive).unwrap_err();
        assert!(matches!(refused, Error::Attach(AttachError::Device(DeviceError::TooManyFiles))), "{refused:?}");
        // At no limit does gmem start with less than it would have, as if the system refused that.
        for limit in 3..16 {
            limit_descriptors(limit);
            match Gmem::new() {
                Err(e) => says(&e, &["ulimit -n"]),
                Ok(gmem) => {
                    let mapped = gmem.address_space().create().and_then(|space| space.region().map(PAGE).map(drop));
                    mapped.err().iter().for_each(|e| says(e, &["ulimit -n"]));
                }
            }
        }
        limit_descriptors(1024);
        let context = second.attach(&world.device, Mode::CoherentExclusive).unwrap();
        let region = second.region().map(PAGE).unwrap();
        run(&context, &STORE, &[at(&region, 0), 7]).unwrap();
        assert_eq!(get(at(&region, 0)), 7);
        std::fs::remove_file(path).unwrap();
        verify(&world.gmem);
    });
}
