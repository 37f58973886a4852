//! The modes differ in what can be observed: who moves pages, how often, and who has a table.

mod common;

use common::*;
use gmem::{AttachError, Backing, Delivery, Error, Gmem, Mode, PageSize, RangeError, State, accel};

const ROUNDS: u64 = 5;

/// Alternates between the sides, storing on both, and checks that each change of side moved the page exactly once.
fn alternate(size: PageSize, memory: u64, backing: Backing, delivery: Delivery) {
    let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
    let region = world.space.region().page_size(size).backing(backing).delivery(delivery).map(4 * size.bytes()).unwrap();
    let word = at(&region, size.bytes() + 8);
    set(word, 100);
    let before = stats_when(&world.gmem, |s| s.migrations == 1);
    for round in 0..ROUNDS {
        assert_eq!(get(word), 100 + round, "{size} {backing:?} {delivery:?}");
        world.run(&STORE, &[word, 7]).unwrap();
        assert_eq!(used(&world.device), size.bytes(), "exactly one page is on the device");
        assert_eq!(get(word), 7);
        set(word, 101 + round);
    }
    let after = stats_when(&world.gmem, |s| s.migrations == before.migrations + 2 * ROUNDS);
    let case = format!("{size} {backing:?} {delivery:?}: {after:#?}");
    assert_eq!(after.migrations - before.migrations, 2 * ROUNDS, "{case}");
    assert_eq!(after.device_faults - before.device_faults, ROUNDS, "{case}");
    // One each, but for a wake that comes before the page.
    assert!(after.cpu_faults - before.cpu_faults <= ROUNDS + 1, "{case}");
    assert_eq!(after.h2d_fault_bytes - before.h2d_fault_bytes, ROUNDS * size.bytes(), "{case}");
    assert_eq!(after.d2h_fault_bytes - before.d2h_fault_bytes, ROUNDS * size.bytes(), "{case}");
    assert_eq!(bytes_moved(&world.gmem), 2 * ROUNDS * size.bytes(), "nothing else moved, {case}");
    eventually("the last page is home", || used(&world.device) == 0);
    verify(&world.gmem);
}

#[test]
fn exclusive_moves_a_page_once_per_change_of_side() {
    watched(|| {
        for (size, memory) in sizes() {
            alternate(size, memory, Backing::Shared, Delivery::Service);
            alternate(size, memory, Backing::Shared, Delivery::InThread);
            alternate(size, memory, Backing::Private, Delivery::Service);
        }
    });
}

#[test]
fn in_thread_delivery_of_private_backing_is_refused() {
    watched(|| {
        let space = Gmem::new().unwrap().address_space().create().unwrap();
        let refused = space.region().backing(Backing::Private).delivery(Delivery::InThread).map(PAGE);
        assert!(matches!(refused, Err(Error::PrivateInThread)), "{refused:?}");
    });
}

#[test]
fn what_the_device_only_read_is_not_copied_back() {
    watched(|| {
        let world = World::small();
        let region = world.pages(2);
        set(at(&region, 0), 5);
        world.run(&LOAD, &[at(&region, 0)]).unwrap();
        assert_eq!(world.space.residency(region.range()).unwrap()[0].state, State::Duplicated);
        let before = stats_when(&world.gmem, |s| s.migrations == 2).migrations;
        assert_eq!(get(at(&region, 0)), 5);
        let after = stats_when(&world.gmem, |s| s.migrations == before + 1);
        assert_eq!((after.d2h_fault_bytes, after.migrations - before), (0, 1), "the home was current: {after:#?}");
        assert_eq!(used(&world.device), 0);
    });
}

#[test]
fn exclusive_devices_pass_a_page_on_without_the_host() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let contexts = [0; 2].map(|_| space.attach(&discrete(&gmem, 2 * PAGE), Mode::CoherentExclusive).unwrap());
        let region = space.region().map(PAGE).unwrap();
        run(&contexts[0], &STORE, &[at(&region, 0), 41]).unwrap();
        for round in 0..4 {
            run(&contexts[(round + 1) % 2], &ADD, &[at(&region, 0), 1]).unwrap();
            assert_eq!(used(contexts[(round + 1) % 2].device()), PAGE);
            assert_eq!(used(contexts[round % 2].device()), 0, "an exclusive page is in one place");
        }
        let stats = gmem.stats();
        assert_eq!((stats.d2d_bytes, stats.h2d_fault_bytes, stats.d2h_other_bytes), (4 * PAGE, 0, 0), "{stats:#?}");
        assert_eq!(get(at(&region, 0)), 45);
    });
}

#[test]
fn replicate_moves_nothing_and_hardly_faults() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(PAGE).cores(1), Mode::Replicate);
        for (size, _) in sizes() {
            let region = world.space.region().page_size(size).map(16 * size.bytes()).unwrap();
            (0..15).for_each(|page| set(at(&region, page * size.bytes()), page + 1));
            let before = world.gmem.stats().device_faults;
            world.run(&SUM, &[at(&region, 8), at(&region, 0), size.bytes(), 15]).unwrap();
            assert_eq!(get(at(&region, 8)), 120, "{size}");
            world.run(&STRIDE, &[at(&region, 0), 1000, size.bytes(), 15]).unwrap();
            (0..15).for_each(|page| assert_eq!(get(at(&region, page * size.bytes())), 1000 + page, "{size}"));
            let stats = world.gmem.stats();
            // What the CPU touched was entered into the device's table at that moment.
            assert!(stats.device_faults - before <= 1, "{size}: {stats:#?}");
            // The device is the first to touch the last page: one fault, and the CPU finds the bytes.
            world.run(&STORE, &[at(&region, 15 * size.bytes()), 9]).unwrap();
            assert_eq!(get(at(&region, 15 * size.bytes())), 9);
            assert!(world.gmem.stats().device_faults - before <= 2);
        }
        assert_eq!(bytes_moved(&world.gmem), 0);
        assert_eq!(used(&world.device), 0, "the device's own memory stays empty");
        verify(&world.gmem);
    });
}

#[test]
fn replicate_is_told_of_what_was_mapped_before_it_came() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let region = space.region().map(8 * PAGE).unwrap();
        (0..8).for_each(|page| set(at(&region, page * PAGE), page));
        let context = space.attach(&discrete(&gmem, PAGE), Mode::Replicate).unwrap();
        run(&context, &SUM, &[at(&region, 8), at(&region, 0), PAGE, 8]).unwrap();
        assert_eq!((get(at(&region, 8)), gmem.stats().device_faults), (28, 0), "{:#?}", gmem.stats());
    });
}

#[test]
fn replicate_and_private_backing_refuse_each_other() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let device = discrete(&gmem, 2 * PAGE);
        let private = space.region().backing(Backing::Private).map(PAGE).unwrap();
        set(at(&private, 0), 3);
        let refused = space.attach(&device, Mode::Replicate);
        assert!(matches!(refused, Err(Error::Attach(AttachError::PrivateBacking(range))) if range == private.range()), "{refused:?}");
        // Nothing of it is left: the device attaches otherwise, and reads the page.
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        run(&context, &ADD, &[at(&private, 0), 1]).unwrap();
        assert_eq!(get(at(&private, 0)), 4);
        context.detach().unwrap();
        drop(private);
        let context = space.attach(&device, Mode::Replicate).unwrap();
        let refused = space.region().backing(Backing::Private).map(PAGE);
        assert!(matches!(refused, Err(Error::Range(RangeError::PrivateBacking))), "{refused:?}");
        assert!(space.residency(space.range()).unwrap().is_empty(), "a refused region is not mapped");
        let shared = space.region().map(PAGE).unwrap();
        run(&context, &STORE, &[at(&shared, 0), 8]).unwrap();
        assert_eq!(get(at(&shared, 0)), 8);
    });
}

#[test]
fn share_has_no_table_and_no_memory_of_its_own() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let device = gmem.add_device(accel::Integrated::builder().cores(2).build().unwrap()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&device, Mode::Share).unwrap();
        assert_eq!((context.mode(), context.pmap(), device.memory().len()), (Mode::Share, None, 0));
        for backing in [Backing::Shared, Backing::Private] {
            for (size, _) in sizes() {
                let region = space.region().page_size(size).backing(backing).map(4 * size.bytes()).unwrap();
                set(at(&region, 0), 5);
                run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
                run(&context, &STRIDE, &[at(&region, size.bytes()), 20, size.bytes(), 3]).unwrap();
                let words = [0, 1, 2, 3].map(|page| get(at(&region, page * size.bytes())));
                assert_eq!(words, [6, 20, 21, 22], "{size} {backing:?}");
                let home = || space.residency(region.range()).unwrap().iter().all(|p| p.state == State::Host);
                eventually("every page is home", home);
            }
        }
        let stats = stats_when(&gmem, |s| s.cpu_faults >= 24);
        // Its faults are the CPU's.
        assert_eq!((bytes_moved(&gmem), stats.device_faults, stats.zeroed_bytes), (0, 0, 0), "{stats:#?}");
        assert!(stats.cpu_faults >= 24, "{stats:#?}");
    });
}

#[test]
fn share_beside_an_exclusive_device_brings_pages_home() {
    watched(|| {
        let world = World::small();
        let shared = world.gmem.add_device(accel::Integrated::builder().cores(1).build().unwrap()).unwrap();
        let sharing = world.space.attach(&shared, Mode::Share).unwrap();
        let region = world.pages(1);
        for round in 0..4 {
            world.run(&ADD, &[at(&region, 0), 1]).unwrap();
            assert_eq!(used(&world.device), PAGE);
            run(&sharing, &ADD, &[at(&region, 0), 10]).unwrap();
            assert_eq!(get(at(&region, 0)), 11 * (round + 1));
            eventually("the page is home", || used(&world.device) == 0);
        }
    });
}

#[test]
fn a_mode_the_device_cannot_do_is_refused_by_name() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let integrated = gmem.add_device(accel::Integrated::builder().cores(1).build().unwrap()).unwrap();
        for (device, mode) in
            [(&integrated, Mode::CoherentExclusive), (&integrated, Mode::Replicate), (&discrete(&gmem, PAGE), Mode::Share)]
        {
            let refused = space.attach(device, mode);
            let modes = device.info().modes;
            assert!(matches!(refused, Err(Error::Attach(AttachError::ModeUnsupported(m))) if m == modes), "{refused:?}");
        }
        assert!(space.attach(&integrated, Mode::Share).is_ok());
    });
}
