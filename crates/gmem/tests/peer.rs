//! PEER devices: they have their own idea of which addresses are free and of which page goes, and every region must suit all of them.

mod common;

use common::*;
use gmem::hal::Capabilities;
use gmem::{AddressSpace, AttachError, ByteLen, Context, Device, Error, Gmem, Mode, PageSize, RangeError, VirtAddr, VirtRange, accel};

/// Where the address spaces of these tests lie, so that a device can have addresses in use before the address space exists. One each.
fn place(n: u64) -> u64 {
    0x5100_0000_0000 + (n << 36)
}

fn range(start: u64, pages: u64) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(start), ByteLen(pages * PAGE)).unwrap()
}

fn peer(memory: u64) -> accel::Builder {
    accel::Discrete::builder().memory(memory).cores(1).peer(true)
}

fn add(gmem: &Gmem, builder: accel::Builder) -> Device {
    gmem.add_device(builder.build().unwrap()).unwrap()
}

fn space_at(gmem: &Gmem, start: u64) -> AddressSpace {
    gmem.address_space().at(VirtAddr::new(start)).len(256 * PAGE).create().unwrap()
}

/// Checks that all contexts and the CPU can use a region.
fn works(contexts: &[Context], word: u64) {
    let before = get(word);
    for context in contexts {
        run(context, &ADD, &[word, 1]).unwrap();
    }
    assert_eq!(get(word), before + contexts.len() as u64);
}

#[test]
fn a_range_that_every_peer_has_free_is_found() {
    watched(|| {
        let start = place(0);
        let gmem = Gmem::new().unwrap();
        let space = space_at(&gmem, start);
        // The two agree on pages 5 and 6 only after passing over what either uses.
        let contexts = [
            peer(4 * PAGE).occupied(range(start, 2)).occupied(range(start + 4 * PAGE, 1)),
            peer(4 * PAGE).occupied(range(start + 2 * PAGE, 2)),
        ]
        .map(|builder| space.attach(&add(&gmem, builder), Mode::CoherentExclusive).unwrap());
        let region = space.region().map(2 * PAGE).unwrap();
        assert_eq!(region.range(), range(start + 6 * PAGE, 2), "candidates of two pages: 0, 2 and 4 conflict");
        works(&contexts, at(&region, PAGE));
        // The rolled-back ranges are free in both: each can be had by name as far as nobody's own system uses it.
        let conflict = space.region().at(VirtAddr::new(start)).map(PAGE);
        assert!(matches!(conflict, Err(Error::Range(RangeError::AddressConflict))), "{conflict:?}");
        let between = space.region().at(VirtAddr::new(start + 5 * PAGE)).map(PAGE).unwrap();
        works(&contexts, at(&between, 0));
        verify(&gmem);
    });
}

#[test]
fn after_ten_conflicts_the_mapping_fails_and_nothing_of_it_is_left() {
    watched(|| {
        let start = place(1);
        let gmem = Gmem::new().unwrap();
        let space = space_at(&gmem, start);
        // The first peer has everything free, so it is the one that must be rolled back ten times; the second uses eleven pages, then nothing.
        let first = space.attach(&add(&gmem, peer(4 * PAGE)), Mode::CoherentExclusive).unwrap();
        let second = space.attach(&add(&gmem, peer(4 * PAGE).occupied(range(start, 11))), Mode::CoherentExclusive).unwrap();
        let charged = gmem.metadata_charged();
        let refused = space.region().map(PAGE);
        assert!(matches!(refused, Err(Error::Range(RangeError::AddressConflict))), "{refused:?}");
        assert!(space.residency(space.range()).unwrap().is_empty());
        assert_eq!(gmem.metadata_charged(), charged);
        // One page more at a time finds a range at the sixth try.
        let region = space.region().map(2 * PAGE).unwrap();
        assert_eq!(region.range(), range(start + 12 * PAGE, 2));
        // And the first peer has kept none of the ten.
        second.detach().unwrap();
        let again = space.region().at(VirtAddr::new(start)).map(11 * PAGE).unwrap();
        works(&[first], at(&again, 10 * PAGE));
    });
}

#[test]
fn an_attach_that_conflicts_is_refused_and_changes_nothing() {
    watched(|| {
        let start = place(2);
        let gmem = Gmem::new().unwrap();
        let space = space_at(&gmem, start);
        let regions = [0, 1, 2].map(|n| space.region().at(VirtAddr::new(start + n * 4 * PAGE)).map(PAGE).unwrap());
        set(at(&regions[2], 0), 40);
        let device = add(&gmem, peer(4 * PAGE).occupied(range(start + 8 * PAGE, 1)));
        let refused = space.attach(&device, Mode::CoherentExclusive);
        assert!(matches!(refused, Err(Error::Attach(AttachError::AddressConflict(r))) if r == regions[2].range()), "{refused:?}");
        assert_eq!(get(at(&regions[2], 0)), 40);
        // Without the region in question it attaches.
        let [first, second, third] = regions;
        drop(third);
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        works(std::slice::from_ref(&context), at(&first, 0));
        works(std::slice::from_ref(&context), at(&second, 0));
        verify(&gmem);
    });
}

#[test]
fn a_peer_evicts_by_itself_under_four_times_its_memory() {
    watched(|| {
        for size in PageSize::ALL {
            let memory = (8 * size.bytes()).max(2 * PAGE);
            let gmem = Gmem::new().unwrap();
            let device = add(&gmem, peer(memory));
            assert!(device.info().capabilities.contains(Capabilities::PEER));
            let space = gmem.address_space().create().unwrap();
            let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
            let region = space.region().page_size(size).map(4 * memory).unwrap();
            let pages = 4 * memory / size.bytes();
            (0..pages).for_each(|page| set(at(&region, page * size.bytes() + 8), page));
            for round in 1..=2 {
                run(&context, &STRIDE, &[at(&region, 0), round * 1000, size.bytes(), pages]).unwrap();
                assert!(used(&device) <= memory, "{size}");
            }
            let stats = gmem.stats();
            assert!(stats.evictions >= pages - memory / size.bytes(), "{size}: {stats:#?}");
            for page in 0..pages {
                let words = [get(at(&region, page * size.bytes())), get(at(&region, page * size.bytes() + 8))];
                assert_eq!(words, [2000 + page, page], "{size}, page {page}");
            }
            verify(&gmem);
            assert_eq!(stats.fences, 0, "{stats:#?}");
        }
    });
}

#[test]
fn a_peer_and_a_discrete_device_and_the_cpu_share_an_address_space() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let devices = [add(&gmem, peer(PAGE)), discrete(&gmem, 256 << 10), add(&gmem, peer(2 * PAGE))];
        let contexts = devices.each_ref().map(|device| space.attach(device, Mode::CoherentExclusive).unwrap());
        let region = space.region().page_size(PageSize::Size64K).map(4 * PAGE).unwrap();
        let pages = 4 * PAGE / (64 << 10);
        const ROUNDS: u64 = 3;
        std::thread::scope(|threads| {
            for (n, context) in contexts.iter().enumerate() {
                // Everybody has a word of its own in every page, so that a lost page is a lost write.
                let word = at(&region, 8 * n as u64);
                threads.spawn(move || {
                    for round in 0..ROUNDS {
                        run(context, &STRIDE, &[word, round * 1000, 64 << 10, pages]).unwrap();
                    }
                });
            }
            let region = &region;
            threads.spawn(move || {
                for round in 0..ROUNDS {
                    (0..pages).for_each(|page| set(at(region, page * (64 << 10) + 64), round + page));
                }
            });
        });
        for page in 0..pages {
            let words = [0, 8, 16, 64].map(|word| get(at(&region, page * (64 << 10) + word)));
            assert_eq!(words, [2000 + page, 2000 + page, 2000 + page, 2 + page], "page {page}");
        }
        verify(&gmem);
        assert!(gmem.stats().evictions > 0);
        drop(contexts);
        devices.iter().for_each(|device| assert_eq!(used(device), 0));
    });
}

#[test]
fn a_peer_gives_back_what_is_unmapped_in_parts() {
    watched(|| {
        let start = place(3);
        let gmem = Gmem::new().unwrap();
        let space = space_at(&gmem, start);
        let device = add(&gmem, peer(8 * PAGE));
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        for _ in 0..4 {
            let region = space.region().at(VirtAddr::new(start)).map(6 * PAGE).unwrap();
            run(&context, &STRIDE, &[at(&region, 0), 1, PAGE, 6]).unwrap();
            assert_eq!(used(&device), 6 * PAGE);
            region.unmap(part(&region, 2 * PAGE, 2 * PAGE)).unwrap();
            assert_eq!(used(&device), 4 * PAGE);
            // The addresses are free in the peer too, while the rest is in use.
            let hole = space.region().at(VirtAddr::new(start + 2 * PAGE)).map(2 * PAGE).unwrap();
            run(&context, &ADD, &[at(&hole, 0), 5]).unwrap();
            assert_eq!([0, PAGE, 2 * PAGE, 5 * PAGE].map(|offset| get(start + offset)), [1, 2, 5, 6]);
        }
        verify(&gmem);
    });
}

#[test]
fn a_peer_that_is_full_of_pinned_pages_says_so() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&add(&gmem, peer(2 * PAGE)), Mode::CoherentExclusive).unwrap();
        let region = space.region().map(4 * PAGE).unwrap();
        run(&context, &STRIDE, &[at(&region, 0), 1, PAGE, 2]).unwrap();
        space.pin(part(&region, 0, 2 * PAGE)).unwrap();
        let (va, error) = fault(run(&context, &STORE, &[at(&region, 2 * PAGE), 1]));
        assert_eq!((va, error), (at(&region, 2 * PAGE), gmem::hal::FaultError::NoDeviceMemory));
        space.unpin(part(&region, 0, PAGE)).unwrap();
        run(&context, &STORE, &[at(&region, 2 * PAGE), 3]).unwrap();
        assert_eq!([0, PAGE, 2 * PAGE].map(|offset| get(at(&region, offset))), [1, 2, 3]);
    });
}
