//! Sizes: address spaces far larger than what is used, more mappings than the kernel has, device processes that keep to their memory, and no cost while
//! nothing happens.

mod common;

use common::*;
use gmem::hal::{DeviceError, FaultError, HostError, LaunchError};
use gmem::{Access, Backing, Delivery, Error, Gmem, Mode, PageSize, RangeError, accel};
use std::time::Duration;

#[test]
fn a_tebibyte_is_used_sparsely_from_end_to_end() {
    // Alone, because it counts what the process has resident.
    alone("a_tebibyte_is_used_sparsely_from_end_to_end", || {
        for (size, backing) in [PageSize::Size2M, PageSize::Size4K].into_iter().flat_map(|s| [(s, Backing::Shared), (s, Backing::Private)])
        {
            let world = World::small();
            let before = resident("self");
            let space = world.gmem.address_space().len(1 << 40).create().unwrap();
            let device = discrete(&world.gmem, 4 * PAGE);
            let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
            let region = space.region().page_size(size).backing(backing).map(1 << 40).unwrap();
            let words = [0, PAGE, (1 << 39) + 8, (1 << 40) - PAGE, (1 << 40) - 8].map(|offset| at(&region, offset));
            for (n, word) in words.into_iter().enumerate() {
                set(word, n as u64);
                run(&context, &ADD, &[word, 100]).unwrap();
            }
            for (n, word) in words.into_iter().enumerate() {
                assert_eq!(get(word), 100 + n as u64, "{size} {backing:?}");
            }
            // One entry of eight bytes a page was asked for: 2 GiB for the small pages. What was touched is far less: five pages, which the program and the
            // copy engine both map, the device's memory, and a little of each table.
            let entries = (1u64 << 40) / size.bytes() * 8;
            assert!(world.gmem.metadata_charged() as u64 >= entries);
            let grown = resident("self").saturating_sub(before);
            assert!(grown < 64 << 20, "the process grew by {grown} bytes, {size} {backing:?}");
            // Looking at all entries takes longer than the tail of the last fault.
            eventually("all pages came home", || used(&device) == 0);
            verify(&world.gmem);
        }
    });
}

/// The resident memory of a process, in bytes.
fn resident(pid: &str) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_device_process_keeps_to_its_memory() {
    watched(|| {
        for (peer, size) in [(false, PageSize::Size2M), (false, PageSize::Size4K), (true, PageSize::Size64K)] {
            let memory = 16 << 20;
            let world = World::new(accel::Discrete::builder().memory(memory).cores(2).peer(peer), Mode::CoherentExclusive);
            let region = world.space.region().page_size(size).map(8 * memory).unwrap();
            for round in 0..2 {
                world.run(&STRIDE, &[at(&region, 0), round, 4096, 8 * memory / 4096]).unwrap();
                let now = world.driver.resident(world.context.pmap().unwrap()).unwrap().get();
                assert!(now <= memory + (64 << 20), "{now} bytes with {memory} of device memory, {size}, peer {peer}");
                assert!(used(&world.device) <= memory);
                assert!(world.device.memory()[0].peak.get() <= memory);
            }
        }
    });
}

/// Everything on which scattered pages could fail.
fn is_limit(error: &Error) -> bool {
    let fault = |e: &FaultError| {
        matches!(
            e,
            FaultError::Host(HostError::TooManyMappings) | FaultError::Device(DeviceError::TooManyMappings) | FaultError::NoDeviceMemory
        )
    };
    match error {
        Error::Launch(LaunchError::Fault { error, .. }) => fault(error),
        Error::Range(RangeError::Fault(_, error)) => fault(error),
        Error::Range(RangeError::Host(HostError::TooManyMappings)) => true,
        _ => false,
    }
}

/// More pages, every second of them on the device, than the kernel allows a process to have mappings.
fn scatter(backing: Backing, delivery: Delivery) {
    let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 100_000 {
        eprintln!("skipped: this machine allows {limit} mappings");
        return;
    }
    let pages = 2 * (limit + 2000);
    let memory = pages * 4096;
    let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
    let region = world.space.region().page_size(PageSize::Size4K).backing(backing).delivery(delivery).map(pages * 4096).unwrap();
    // Backwards in the device's memory relative to the addresses, so that no two neighbours lie side by side in both.
    let result = world.run(&STRIDE, &[at(&region, 0), 5, 8192, pages / 2]);
    let reached = match &result {
        Ok(()) => pages / 2,
        Err(e) => {
            assert!(is_limit(e), "{e:?}");
            used(&world.device) / 4096
        }
    };
    assert!(reached > 10_000, "only {reached} pages: {result:?}");
    // Whatever was reached is right on both sides, and there is room again after something went.
    for page in (0..reached.saturating_sub(1)).step_by(97) {
        assert_eq!(get(at(&region, page * 8192)), 5 + page, "{backing:?} {delivery:?}, page {page} of {reached}: {result:?}");
    }
    world.space.prefetch(part(&region, 0, reached * 8192), None, Access::Read).unwrap();
    world.run(&STORE, &[at(&region, (pages / 2 - 1) * 8192), 9]).unwrap();
    assert_eq!(get(at(&region, (pages / 2 - 1) * 8192)), 9);
    assert!(!world.context.is_fenced());
    verify(&world.gmem);
}

#[test]
fn more_scattered_pages_than_mappings_shared() {
    alone("more_scattered_pages_than_mappings_shared", || scatter(Backing::Shared, Delivery::Service));
}

#[test]
fn more_scattered_pages_than_mappings_in_thread() {
    alone("more_scattered_pages_than_mappings_in_thread", || scatter(Backing::Shared, Delivery::InThread));
}

#[test]
fn more_scattered_pages_than_mappings_private() {
    alone("more_scattered_pages_than_mappings_private", || scatter(Backing::Private, Delivery::Service));
}

#[test]
fn protecting_every_second_page_ends_in_an_error_and_not_in_a_crash() {
    alone("protecting_every_second_page_ends_in_an_error_and_not_in_a_crash", || {
        let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        if limit > 100_000 {
            return;
        }
        let world = World::small();
        let region = world.space.region().page_size(PageSize::Size4K).map(2 * (limit + 2000) * 4096).unwrap();
        set(at(&region, 4096), 8);
        let mut protected = 0;
        let refused = loop {
            if protected == limit + 2000 {
                break None;
            }
            if let Err(e) = region.protect(part(&region, protected * 8192, 4096), gmem::Prot::READ) {
                break Some(e);
            }
            protected += 1;
        };
        assert!(refused.as_ref().is_some_and(is_limit), "{protected}: {refused:?}");
        // The page that was refused is as it was, and so is everything else.
        set(at(&region, protected * 8192), 3);
        assert_eq!((get(at(&region, protected * 8192)), get(at(&region, 4096)), get(at(&region, 0))), (3, 8, 0));
        drop(region);
        let again = world.pages(2);
        world.run(&STORE, &[at(&again, 0), 1]).unwrap();
        assert_eq!(get(at(&again, 0)), 1);
    });
}

/// The CPU time of a process so far, user and system, in clock ticks of 10 ms.
fn ticks(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn nothing_happens_while_nobody_faults() {
    alone("nothing_happens_while_nobody_faults", || {
        let worlds = [(false, Mode::CoherentExclusive), (false, Mode::Replicate), (true, Mode::CoherentExclusive)].map(|(peer, mode)| {
            let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(2).peer(peer), mode);
            let region = world.pages(8);
            world.run(&STRIDE, &[at(&region, 0), 1, PAGE, 8]).unwrap();
            assert_eq!(get(at(&region, 0)), 1);
            (world, region)
        });
        let gmem = Gmem::new().unwrap();
        let integrated = gmem.add_device(accel::Integrated::builder().cores(2).build().unwrap()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&integrated, Mode::Share).unwrap();
        run(&context, &NOTHING, &[]).unwrap();
        // A loose check, on a machine that others use too: a thread that spins would show a hundred ticks in every second.
        let idle = || {
            let all = || ticks("self") + worlds.iter().map(|(world, _)| ticks(&world.pid().to_string())).sum::<u64>();
            let before = all();
            std::thread::sleep(Duration::from_secs(1));
            all() - before
        };
        let spent: Vec<_> = (0..5).map(|_| idle()).take_while(|ticks| *ticks > 1).collect();
        assert!(spent.len() < 5, "ticks of 10 ms in each of five seconds of idleness: {spent:?}");
    });
}

/// The CPU has no error to return: an access that cannot be resolved ends the program, like one to memory that is not there, and gmem says why.
#[test]
fn the_cpu_alone_can_reach_the_limit_on_mappings_by_in_thread_delivery() {
    const NAME: &str = "the_cpu_alone_can_reach_the_limit_on_mappings_by_in_thread_delivery";
    let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 100_000 {
        eprintln!("skipped: this machine allows {limit} mappings");
        return;
    }
    let touch = |delivery| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let pages = limit / 2 + 2000;
        let region = space.region().page_size(PageSize::Size4K).delivery(delivery).map(pages * 8192).unwrap();
        (0..pages).for_each(|page| set(at(&region, page * 8192), page));
        (0..pages).for_each(|page| assert_eq!(get(at(&region, page * 8192)), page));
    };
    if is_child(NAME) {
        touch(Delivery::InThread);
        return;
    }
    watched(|| {
        // With the default delivery there is no such limit: absent pages need no mapping of their own.
        touch(Delivery::Service);
        let output = child(NAME, "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGSEGV), "{}: {said}", output.status);
        assert!(said.contains("gmem: Write at 0x") && said.contains("vm.max_map_count"), "{said}");
    });
}
