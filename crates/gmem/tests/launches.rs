//! Launches: with faults that are replayed, and with ranges that are named, brought in and held.

mod common;

use common::*;
use gmem::hal::{Crash, FaultError, LaunchError};
use gmem::{
    Access, AddressSpace, Args, ByteLen, Context, Error, Kernel, Mode, PageSize, Prot, RangeError, Region, Residence, State, VirtAddr,
    accel,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

fn no_replay() -> World {
    World::new(accel::Discrete::builder().memory(4 * PAGE).cores(1).replay(false), Mode::CoherentExclusive)
}

/// The words of a part of a region, as launches name memory.
///
/// # Safety
/// The region outlives the answer, and nobody else has a reference to these words.
unsafe fn words(region: &Region, offset: u64, len: u64) -> &'static mut [u64] {
    // SAFETY: the caller's promise; regions are mapped readable and writable here.
    unsafe { std::slice::from_raw_parts_mut(at(region, offset) as *mut u64, len as usize / 8) }
}

fn held(world: &World, region: &Region) -> Vec<Residence> {
    world.space.residency(region.range()).unwrap().into_iter().filter(|r| r.pinned).collect()
}

/// Runs a kernel that touches what `named` says, by plain numbers.
fn run_naming(context: &Context, kernel: &Kernel, args: &[u64], named: Args<'_>) -> Result<(), Error> {
    let args = args.iter().fold(named, |args, n| args.number(*n));
    // SAFETY: the kernels take numbers; the addresses among them are of regions that live.
    unsafe { context.run(kernel, args) }
}

// Takes an address first that it does not touch, as `Args::writes` and `Args::touches` need none, then as STORE.
gmem::kernel!(STORE_AT = "store-at", |grid, args| {
    if grid.worker == 0 {
        (args[args.len() - 2] as *mut u64).write_volatile(args[args.len() - 1]);
    }
});

#[test]
fn exactly_the_named_pages_are_brought_in_and_held() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(6);
        (0..6).for_each(|page| set(at(&region, page * PAGE), 100 + page));
        let gate = KernelGate::new();
        // Page 1 is written, pages 3 and 4 are named by a slice that begins and ends inside them.
        // SAFETY: the region lives, and each slice is the only one to its words.
        let (first, second) = unsafe { (words(&region, PAGE, 8), words(&region, 4 * PAGE - 64, 128)) };
        world.context.scope(|scope| {
            let args = Args::new().write(first).number(gate.number()).touches(second);
            // SAFETY: `GATED` takes an address and a number.
            let launch = unsafe { scope.launch(&GATED, args) }.unwrap();
            let places = held(&world, &region);
            let ranges: Vec<_> = places.iter().map(|p| (p.range, p.state, p.device)).collect();
            let device = Some(world.device.id());
            let expected =
                [(part(&region, PAGE, PAGE), State::Device, device), (part(&region, 3 * PAGE, 2 * PAGE), State::Duplicated, device)];
            assert_eq!(ranges, expected, "held: what was named, and nothing else");
            assert_eq!(used(&world.device), 3 * PAGE);
            gate.open();
            launch.wait().unwrap();
        });
        assert_eq!(held(&world, &region), []);
        assert_eq!(world.gmem.stats().device_faults, 0, "nothing faulted: it was all there");
        assert_eq!((0..6).map(|page| get(at(&region, page * PAGE))).collect::<Vec<_>>(), [100, 2, 102, 103, 104, 105]);
    });
}

#[test]
fn the_cpu_waits_for_the_launch_that_holds_a_page() {
    watched(|| {
        for delivery in [gmem::Delivery::Service, gmem::Delivery::InThread] {
            let world = no_replay();
            let region = world.space.region().delivery(delivery).map(2 * PAGE).unwrap();
            let gate = KernelGate::new();
            let opened = AtomicBool::new(false);
            // SAFETY: the region lives; the reader below uses no reference.
            let named = unsafe { words(&region, 0, 8) };
            let (value, after) = world.context.scope(|scope| {
                // SAFETY: `GATED` takes an address and a number.
                let _launch = unsafe { scope.launch(&GATED, Args::new().write(named).number(gate.number())) }.unwrap();
                std::thread::scope(|threads| {
                    let reader = threads.spawn(|| (get(at(&region, 0)), opened.load(Ordering::SeqCst)));
                    // Other pages are nobody's.
                    assert_eq!(get(at(&region, PAGE)), 0);
                    std::thread::sleep(Duration::from_millis(30));
                    assert!(!reader.is_finished(), "a held page came home");
                    opened.store(true, Ordering::SeqCst);
                    gate.open();
                    // The launch is waited for by nobody else yet: the hold ends with the scope, and so does the reader's wait.
                    let wait = threads.spawn(move || _launch.wait());
                    wait.join().unwrap().unwrap();
                    reader.join().unwrap()
                })
            });
            assert_eq!((value, after), (2, true), "the CPU saw the middle of a launch, {delivery:?}");
        }
    });
}

#[test]
fn an_access_outside_what_was_named_ends_the_launch_and_names_the_address() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(3);
        set(at(&region, 2 * PAGE), 5);
        for outside in [at(&region, 2 * PAGE + 48), at(&region, PAGE)] {
            // SAFETY: the region lives.
            let named = unsafe { words(&region, 0, 8) };
            let result = run_naming(&world.context, &STORE_AT, &[outside, 1], Args::new().writes(named));
            let told = result.as_ref().map_err(ToString::to_string);
            assert!(told.clone().is_err_and(|e| e.contains("Args")), "{told:?}");
            assert_eq!(fault(result), (outside, FaultError::NotNamed));
            assert_eq!(held(&world, &region), [], "a failed launch holds nothing");
        }
        assert!(!world.context.is_fenced());
        assert_eq!((get(at(&region, 2 * PAGE)), get(at(&region, 2 * PAGE + 48))), (5, 0), "nothing was written");
        // The context is as good as before.
        // SAFETY: the region lives.
        let named = unsafe { words(&region, 2 * PAGE, 8) };
        run_naming(&world.context, &STORE_AT, &[at(&region, 2 * PAGE), 6], Args::new().writes(named)).unwrap();
        assert_eq!(get(at(&region, 2 * PAGE)), 6);
        // A launch that names nothing can do what needs no memory, and nothing else.
        world.run(&NOTHING, &[]).unwrap();
        assert_eq!(get(at(&region, 0)), 0);
        assert_eq!(fault(world.run(&STORE, &[at(&region, 0), 1])), (at(&region, 0), FaultError::NotNamed));
    });
}

#[test]
fn a_page_that_was_named_once_is_not_seen_by_a_launch_that_does_not_name_it() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(3);
        // One page is left in the device's memory by a launch, another was brought there by a prefetch.
        // SAFETY: the region lives.
        let first = || unsafe { words(&region, 0, 8) };
        run_naming(&world.context, &STORE_AT, &[at(&region, 0), 7], Args::new().writes(first())).unwrap();
        world.space.prefetch(part(&region, PAGE, PAGE), Some(&world.device), Access::Write).unwrap();
        assert_eq!(used(&world.device), 2 * PAGE);
        for outside in [at(&region, 8), at(&region, PAGE)] {
            assert_eq!(fault(world.run(&STORE, &[outside, 8])), (outside, FaultError::NotNamed));
        }
        assert_eq!(used(&world.device), 2 * PAGE, "both are still there");
        let before = world.gmem.stats().migrations;
        run_naming(&world.context, &STORE_AT, &[at(&region, 8), 9], Args::new().writes(first())).unwrap();
        assert_eq!(world.gmem.stats().migrations, before, "a page that is there already does not move");
        assert_eq!([0, 8, PAGE].map(|offset| get(at(&region, offset))), [7, 9, 0]);
    });
}

#[test]
fn what_was_named_for_reading_cannot_be_written() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(1);
        set(at(&region, 0), 5);
        // SAFETY: the region lives.
        let named = unsafe { words(&region, 0, 8) };
        let (va, _) = fault(run_naming(&world.context, &STORE_AT, &[at(&region, 0), 1], Args::new().touches(named)));
        assert_eq!((va, get(at(&region, 0))), (at(&region, 0), 5));
    });
}

#[test]
fn ranges_that_do_not_fit_are_refused_and_nothing_stays_held() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(6);
        (0..6).for_each(|page| set(at(&region, page * PAGE), page));
        // SAFETY: the region lives.
        let all = unsafe { words(&region, 0, 5 * PAGE) };
        let result = run_naming(&world.context, &NOTHING, &[], Args::new().writes(all));
        let (five, four) = (ByteLen(5 * PAGE), ByteLen(4 * PAGE));
        assert!(matches!(result, Err(Error::Range(RangeError::DoesNotFit { asked, room })) if (asked, room) == (five, four)), "{result:?}");
        assert_eq!(held(&world, &region), []);
        (0..6).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), page, "the CPU does not wait"));
        // SAFETY: the region lives.
        let four = unsafe { words(&region, 0, 4 * PAGE) };
        run_naming(&world.context, &NOTHING, &[], Args::new().writes(four)).unwrap();
        // What two names have in common is needed once; what somebody else has pinned there is missing for now.
        world.space.prefetch(part(&region, 5 * PAGE, PAGE), Some(&world.device), Access::Write).unwrap();
        world.space.pin(part(&region, 5 * PAGE, PAGE)).unwrap();
        // SAFETY: the region lives; `NOTHING` uses neither.
        let (both, again) = unsafe { (words(&region, 0, 4 * PAGE), words(&region, 3 * PAGE, PAGE)) };
        let result = run_naming(&world.context, &NOTHING, &[], Args::new().writes(both).touches(again));
        let fourth = VirtAddr::new(at(&region, 3 * PAGE));
        assert!(matches!(result, Err(Error::Range(RangeError::Fault(va, FaultError::NoDeviceMemory))) if va == fourth), "{result:?}");
        world.space.unpin(part(&region, 5 * PAGE, PAGE)).unwrap();
        // A range with a hole is refused too, before the kernel runs.
        region.unmap(part(&region, PAGE, PAGE)).unwrap();
        // SAFETY: never read.
        let hole = unsafe { words(&region, 0, 2 * PAGE) };
        let result = run_naming(&world.context, &NOTHING, &[], Args::new().writes(hole));
        assert!(matches!(result, Err(Error::Range(RangeError::NotMapped(va))) if va.get() == at(&region, PAGE)), "{result:?}");
        assert_eq!(held(&world, &region), []);
        verify(&world.gmem);
    });
}

#[test]
fn held_pages_are_not_evicted_while_others_are() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(6);
        let gate = KernelGate::new();
        // SAFETY: the region lives; each slice is the only one to its words.
        let (word, rest) = unsafe { (words(&region, 0, 8), words(&region, PAGE, 2 * PAGE)) };
        world.context.scope(|scope| {
            // SAFETY: `GATED` takes an address and a number.
            let launch = unsafe { scope.launch(&GATED, Args::new().write(word).number(gate.number()).writes(rest)) }.unwrap();
            // One frame is left, and everybody else goes through it.
            for page in 3..6 {
                let moved = world.space.prefetch(part(&region, page * PAGE, PAGE), Some(&world.device), Access::Write).unwrap();
                assert_eq!(moved, 1);
            }
            assert_eq!(world.device.evict(10), 1, "the one page that is not held");
            assert_eq!(held(&world, &region).iter().map(|r| r.range.len().get()).sum::<u64>(), 3 * PAGE);
            gate.open();
            launch.wait().unwrap();
        });
        assert_eq!(get(at(&region, 0)), 2);
    });
}

#[test]
fn unknown_kernels_and_too_many_arguments_are_refused() {
    watched(|| {
        for world in [World::small(), no_replay()] {
            let region = world.pages(1);
            let unknown = Kernel { name: "nobody registered this", run: |_, _| {} };
            // SAFETY: the region lives.
            let named = unsafe { words(&region, 0, 8) };
            let result = run_naming(&world.context, &unknown, &[], Args::new().write(named));
            assert!(matches!(result, Err(Error::Launch(LaunchError::UnknownKernel))), "{result:?}");
            assert_eq!(held(&world, &region), []);
            let result = world.run(&NOTHING, &[0; accel::MAX_ARGS + 1]);
            let (given, most) = (accel::MAX_ARGS + 1, accel::MAX_ARGS);
            assert!(matches!(&result, Err(Error::Launch(e)) if *e == LaunchError::TooManyArgs { given, most }), "{result:?}");
            let said = result.unwrap_err().to_string();
            assert!(said.contains("17 arguments") && said.contains("the 16 a kernel can have"), "{said}");
            world.run(&NOTHING, &[0; accel::MAX_ARGS]).unwrap();
        }
    });
}

#[test]
fn a_replayable_launch_ends_with_the_address_it_may_not_touch() {
    watched(|| {
        let world = World::small();
        let region = world.pages(2);
        let beyond = region.range().end().get() + 64;
        assert_eq!(fault(world.run(&STORE, &[beyond, 1])), (beyond, FaultError::NotMapped));
        region.protect(part(&region, PAGE, PAGE), Prot::READ).unwrap();
        let readable = at(&region, PAGE + 8);
        assert_eq!(fault(world.run(&STORE, &[readable, 1])), (readable, FaultError::Protection));
        world.run(&LOAD, &[readable]).unwrap();
        let crashed = |result: Result<(), Error>| match result {
            Err(Error::Launch(LaunchError::Crashed(crash))) => crash,
            other => panic!("no crash: {other:?}"),
        };
        assert_eq!(crashed(world.run(&STORE, &[16, 1])), Crash::Access(VirtAddr::new(16)), "outside the address space");
        assert_eq!(crashed(world.run(&STORE, &[1 << 63, 1])), Crash::NoAddress);
        let panicked = world.run(&PANIC, &[]);
        let said = |e: &LaunchError| *e == LaunchError::Panicked("a kernel panics, as the test wants".into());
        assert!(matches!(&panicked, Err(Error::Launch(e)) if said(e)), "{panicked:?}");
        assert!(!world.context.is_fenced());
        world.run(&STORE, &[at(&region, 0), 3]).unwrap();
        assert_eq!((get(at(&region, 0)), get(readable)), (3, 0));
    });
}

#[test]
fn the_launches_of_a_scope_run_in_order_beside_the_cpu() {
    watched(|| {
        for cores in [1, 2] {
            let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(cores), Mode::CoherentExclusive);
            let region = world.pages(2);
            let word = at(&region, 0);
            let gate = KernelGate::new();
            world.context.scope(|scope| {
                let launch = |kernel, args: &[u64]| {
                    let args = args.iter().fold(Args::new(), |args, n| args.number(*n));
                    // SAFETY: the kernels take numbers and an address of a region that lives.
                    unsafe { scope.launch(kernel, args) }.unwrap()
                };
                let first = launch(&GATED, &[word, gate.number()]);
                let all: Vec<_> = (0..5).map(|n| launch(&STRIDE, &[word + 8 + 8 * n, n, 8, 1])).collect();
                // They wait behind the first; the CPU does not.
                set(at(&region, PAGE), 77);
                assert_eq!(get(word + 8), 0);
                gate.open();
                // In any order.
                all.into_iter().rev().for_each(|launch| launch.wait().unwrap());
                first.wait().unwrap();
                // Not waited for: the scope does.
                launch(&ADD, &[word, 40]);
            });
            let words: Vec<_> = (0..6).map(|n| get(word + 8 * n)).collect();
            assert_eq!(words, [42, 0, 1, 2, 3, 4]);
        }
    });
}

#[test]
fn a_panic_in_a_scope_still_waits_for_the_launches() {
    watched(|| {
        for world in [World::small(), no_replay()] {
            let region = world.pages(2);
            let gate = KernelGate::new();
            let step = AtomicUsize::new(0);
            // SAFETY: the region lives.
            let named = unsafe { words(&region, 0, 8) };
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    while step.load(Ordering::SeqCst) == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    // The panic is on its way out of the scope.
                    std::thread::sleep(Duration::from_millis(30));
                    step.store(2, Ordering::SeqCst);
                    gate.open();
                });
                let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    world.context.scope(|scope| {
                        // SAFETY: `GATED` takes an address and a number.
                        unsafe { scope.launch(&GATED, Args::new().write(named).number(gate.number())) }.unwrap();
                        step.store(1, Ordering::SeqCst);
                        std::panic::resume_unwind(Box::new("as the test wants"));
                    })
                }));
                assert!(panicked.is_err());
                assert_eq!(step.load(Ordering::SeqCst), 2, "the scope ended before its launch could");
            });
            assert_eq!(held(&world, &region), []);
            assert_eq!(get(at(&region, 0)), 2, "the launch had not ended");
        }
    });
}

/// More launches than a device has records for: a launch waits until there is one again, which those that ended give back whether or not anybody waited for them.
#[test]
fn any_number_of_launches_can_be_started() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(1), Mode::CoherentExclusive);
        let region = world.pages(1);
        let word = at(&region, 0);
        let gate = KernelGate::new();
        world.context.scope(|scope| {
            let launch = |kernel, args: &[u64]| {
                let args = args.iter().fold(Args::new(), |args, n| args.number(*n));
                // SAFETY: the kernels take numbers and an address of a region that lives.
                unsafe { scope.launch(kernel, args) }.unwrap()
            };
            let first = launch(&GATED, &[word, gate.number()]);
            let started = AtomicUsize::new(0);
            std::thread::scope(|threads| {
                let (gate, started) = (&gate, &started);
                threads.spawn(move || {
                    while started.load(Ordering::SeqCst) < 200 {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(Duration::from_millis(50));
                    assert!(started.load(Ordering::SeqCst) < 300, "what runs is counted");
                    gate.open();
                });
                // Nobody waits for these before the scope does.
                for _ in 0..600 {
                    launch(&ADD, &[word, 1]);
                    started.fetch_add(1, Ordering::SeqCst);
                }
            });
            first.wait().unwrap();
        });
        let first = get(word);
        std::thread::scope(|threads| {
            for _ in 0..300 {
                threads.spawn(|| (0..3).for_each(|_| world.run(&ADD, &[word, 1]).unwrap()));
            }
        });
        assert_eq!((first, get(word)), (2 + 600, 2 + 1500));
    });
}

/// Launches of which each finds room for itself alone take turns: they do not take a part each, and take it from each other, for ever.
#[test]
fn launches_that_fit_alone_take_turns() {
    const SMALL: u64 = 64 << 10;
    const THREADS: u64 = 16;
    const ROUNDS: u64 = 10;
    const PAGES: u64 = 20;
    watched(|| {
        for peer in [false, true] {
            let device = accel::Discrete::builder().memory(32 * SMALL).cores(1).replay(false).peer(peer);
            let world = World::new(device, Mode::CoherentExclusive);
            let region = || world.space.region().page_size(PageSize::Size64K).map(PAGES * SMALL).unwrap();
            let regions: Vec<Region> = (0..THREADS).map(|_| region()).collect();
            let together = std::sync::Barrier::new(THREADS as usize);
            std::thread::scope(|threads| {
                for region in &regions {
                    threads.spawn(|| {
                        for _ in 0..ROUNDS {
                            together.wait();
                            // SAFETY: the region lives, and this is the only slice of its words.
                            let all = unsafe { words(region, 0, PAGES * SMALL) };
                            // SAFETY: `ADD` takes an address and a number.
                            unsafe { world.context.run(&ADD, Args::new().write(all).number(1u64)) }.unwrap();
                        }
                    });
                }
            });
            regions.iter().for_each(|region| assert_eq!(get(at(region, 0)), ROUNDS));
            // Each page crosses once for each launch, and a few times more for those that tried before they queued.
            let moved = world.gmem.stats().migrations;
            assert!(
                moved < 2 * THREADS * ROUNDS * PAGES,
                "{moved} pages were moved for {} that the launches needed",
                THREADS * ROUNDS * PAGES
            );
            verify(&world.gmem);
        }
    });
}

/// Runs `ADD` over a whole region.
fn add_to(context: &Context, region: &Region) -> Result<(), Error> {
    // SAFETY: the region lives, and this is the only slice of its words.
    let all = unsafe { words(region, 0, region.range().len().get()) };
    // SAFETY: `ADD` takes an address and a number.
    unsafe { context.run(&ADD, Args::new().write(all).number(1u64)) }
}

/// A kernel that holds all of `region` until the gate is open, in a thread of `threads`; on return it runs.
fn hold_in<'scope>(
    threads: &'scope std::thread::Scope<'scope, '_>,
    world: &'scope World,
    region: &'scope Region,
    gate: &'scope KernelGate,
) {
    threads.spawn(|| {
        // SAFETY: the region lives, and this is the only slice of its words; `GATED` takes an address and a number.
        unsafe { world.context.run(&GATED, Args::new().write(words(region, 0, region.range().len().get())).number(gate.number())) }
            .unwrap();
    });
    until(|| held(world, region).iter().map(|run| run.range.len().get()).sum::<u64>() == region.range().len().get());
}

/// Another address space with the device of `world`.
fn beside(world: &World) -> (AddressSpace, Context) {
    let other = world.gmem.address_space().create().unwrap();
    let context = other.attach(&world.device, Mode::CoherentExclusive).unwrap();
    (other, context)
}

fn until(what: impl Fn() -> bool) {
    while !what() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One that waits for a page which is pinned for I/O keeps nobody from memory that is free: the pin may be dropped only when the other launch is over.
#[test]
fn a_launch_that_waits_for_a_page_keeps_nobody_else_waiting() {
    watched(|| {
        let world = no_replay();
        let (pinned, free) = (world.pages(4), world.pages(2));
        std::thread::scope(|threads| {
            // The last one: it has not taken those before it meanwhile.
            let pin = pinned.pin_for_io(part(&pinned, 3 * PAGE, PAGE)).unwrap();
            let waiting = threads.spawn(|| add_to(&world.context, &pinned).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            add_to(&world.context, &free).unwrap();
            assert!(!waiting.is_finished(), "what is pinned for I/O was taken");
            drop(pin);
        });
        assert_eq!([&pinned, &free].map(|region| get(at(region, 0))), [1, 1]);
        std::thread::scope(|threads| {
            let _pin = pinned.pin_for_io(part(&pinned, 3 * PAGE, PAGE)).unwrap();
            let waiting = threads.spawn(|| add_to(&world.context, &pinned));
            std::thread::sleep(Duration::from_millis(50));
            world.context.stop().unwrap();
            let ended = waiting.join().unwrap();
            assert!(ended.as_ref().is_err_and(Error::is_device_gone), "{ended:?}");
        });
    });
}

/// A launch that does not fit for now waits; those that do, also of other address spaces, do not wait with it.
#[test]
fn a_launch_that_fits_goes_before_one_that_does_not() {
    watched(|| {
        let world = no_replay();
        let (held, large) = (world.pages(2), world.pages(3));
        let (other, second) = beside(&world);
        let small = other.region().map(PAGE).unwrap();
        let gate = KernelGate::new();
        std::thread::scope(|threads| {
            hold_in(threads, &world, &held, &gate);
            let waiting = threads.spawn(|| add_to(&world.context, &large).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            (0..3).for_each(|_| add_to(&second, &small).unwrap());
            assert!(!waiting.is_finished());
            gate.open();
        });
        assert_eq!((get(at(&large, 0)), get(at(&small, 0))), (1, 3));
    });
}

/// Those that go before it are counted, so that it comes to its turn however many there are.
#[test]
fn a_large_launch_among_small_ones_comes_to_its_turn() {
    watched(|| {
        let world = no_replay();
        let (held, large, went_before) = (world.pages(1), world.pages(4), AtomicUsize::new(0));
        let (other, second) = beside(&world);
        let small = other.region().map(PAGE).unwrap();
        let gate = KernelGate::new();
        std::thread::scope(|threads| {
            hold_in(threads, &world, &held, &gate);
            threads.spawn(|| add_to(&world.context, &large).unwrap());
            // It has tried.
            until(|| world.space.residency(large.range()).unwrap().iter().any(|run| run.device.is_some()));
            threads.spawn(|| {
                for _ in 0..200 {
                    add_to(&second, &small).unwrap();
                    went_before.fetch_add(1, Ordering::SeqCst);
                }
            });
            until(|| went_before.load(Ordering::SeqCst) >= 64);
            std::thread::sleep(Duration::from_millis(200));
            let so_far = went_before.load(Ordering::SeqCst);
            gate.open();
            assert_eq!(so_far, 64);
        });
        assert_eq!((get(at(&large, 0)), get(at(&small, 0))), (1, 200));
    });
}

#[test]
fn a_launch_that_waits_for_memory_ends_when_its_context_is_stopped() {
    watched(|| {
        let world = no_replay();
        let (held, first) = (world.pages(2), world.pages(3));
        let (other, second) = beside(&world);
        let large = other.region().map(3 * PAGE).unwrap();
        let gate = KernelGate::new();
        std::thread::scope(|threads| {
            hold_in(threads, &world, &held, &gate);
            // Another one waits before it.
            threads.spawn(|| add_to(&world.context, &first).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            let waiting = threads.spawn(|| add_to(&second, &large));
            std::thread::sleep(Duration::from_millis(50));
            second.stop().unwrap();
            let ended = waiting.join().unwrap();
            assert!(ended.as_ref().is_err_and(Error::is_device_gone), "{ended:?}");
            gate.open();
        });
    });
}

/// Memory becomes free in other ways than by the end of a launch.
#[test]
fn a_launch_that_waits_for_memory_sees_that_some_is_unpinned() {
    watched(|| {
        let world = no_replay();
        let (held, pinned) = (world.pages(2), world.pages(1));
        let (other, second) = beside(&world);
        let wanted = other.region().map(2 * PAGE).unwrap();
        let gate = KernelGate::new();
        world.space.prefetch(pinned.range(), Some(&world.device), Access::Write).unwrap();
        world.space.pin(pinned.range()).unwrap();
        std::thread::scope(|threads| {
            hold_in(threads, &world, &held, &gate);
            let waiting = threads.spawn(|| add_to(&second, &wanted).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            world.space.unpin(pinned.range()).unwrap();
            waiting.join().unwrap();
            gate.open();
        });
    });
}

/// As many launches as can be counted hold a page; others wait.
#[test]
fn any_number_of_launches_can_name_one_page() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(1);
        let (gate, started) = (KernelGate::new(), AtomicUsize::new(0));
        // SAFETY: the region lives. The kernels run one after the other, and nobody uses these slices.
        let word = || unsafe { words(&region, 0, 8) };
        std::thread::scope(|threads| {
            threads.spawn(|| {
                until(|| started.load(Ordering::SeqCst) == 255);
                std::thread::sleep(Duration::from_millis(50));
                assert_eq!(started.load(Ordering::SeqCst), 255);
                gate.open();
            });
            world.context.scope(|scope| {
                for n in 0..300 {
                    let (kernel, number) = if n == 0 { (&GATED, gate.number()) } else { (&ADD, 1) };
                    // SAFETY: both take an address and a number.
                    unsafe { scope.launch(kernel, Args::new().write(word()).number(number)) }.unwrap();
                    started.fetch_add(1, Ordering::SeqCst);
                }
            });
        });
        assert_eq!(get(at(&region, 0)), 2 + 299);
    });
}

/// What can never fit is refused before anything leaves for it, and what can is not refused for good.
#[test]
fn what_never_fits_is_known_beforehand() {
    watched(|| {
        let does_not_fit = |result: Result<(), Error>| match result {
            Err(Error::Range(RangeError::DoesNotFit { asked, room })) => (asked.get(), room.get()),
            other => panic!("{other:?}"),
        };
        let world = no_replay();
        let (there, huge) = (world.pages(4), world.pages(5));
        world.space.prefetch(there.range(), Some(&world.device), Access::Write).unwrap();
        assert_eq!(does_not_fit(add_to(&world.context, &huge)), (5 * PAGE, 4 * PAGE));
        assert_eq!((world.gmem.stats().evictions, used(&world.device)), (0, 4 * PAGE), "pages left in vain");
        // Two memories of a page and a half have two frames for pages.
        let world = World::new(accel::Discrete::builder().memory(3 * PAGE).cores(1).replay(false), Mode::CoherentExclusive);
        world.device.unregister_memory(world.device.hnodes()[0]).unwrap();
        for begin in [0, 3 * PAGE / 2] {
            world.device.register_memory(gmem::hal::PhysRange { begin, end: begin + 3 * PAGE / 2 }).unwrap();
        }
        let three = world.pages(3);
        assert_eq!(does_not_fit(add_to(&world.context, &three)), (3 * PAGE, 2 * PAGE));
        let small = world.space.region().page_size(PageSize::Size64K).map(3 * PAGE).unwrap();
        add_to(&world.context, &small).unwrap();
        // A peer keeps its own books: no limit of the core's, and no second of trying.
        let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(1).replay(false).peer(true), Mode::CoherentExclusive);
        world.device.set_memory_limit(ByteLen(2 * PAGE)).unwrap();
        let (three, five) = (world.pages(3), world.pages(5));
        add_to(&world.context, &three).unwrap();
        assert_eq!(does_not_fit(add_to(&world.context, &five)), (5 * PAGE, 4 * PAGE));
        // Beyond what is named, nothing is counted.
        let large = world.space.region().page_size(PageSize::Size4K).map(1 << 37).unwrap();
        assert_eq!(does_not_fit(add_to(&world.context, &large)), (1 << 37, 4 * PAGE));
    });
}

/// A launch holds a page once, however often it names it, and for all that it does there.
#[test]
fn a_page_can_be_named_any_number_of_times() {
    watched(|| {
        let world = no_replay();
        let region = world.pages(2);
        set(at(&region, 0), 5);
        // SAFETY: the region lives, and the slices have nothing in common.
        let slice = |n: u64| unsafe { words(&region, n * 64, 8) };
        let args = (0..300).fold(Args::new(), |args, n| if n % 2 == 0 { args.touches(slice(n)) } else { args.writes(slice(n)) });
        world.context.scope(|scope| {
            let gate = KernelGate::new();
            // SAFETY: `GATED` takes an address and a number.
            let launch = unsafe { scope.launch(&GATED, args.write(words(&region, 300 * 64, PAGE)).number(gate.number())) }.unwrap();
            assert_eq!(held(&world, &region).iter().map(|run| run.range.len().get()).sum::<u64>(), 2 * PAGE);
            gate.open();
            launch.wait().unwrap();
        });
        assert_eq!(held(&world, &region), []);
        assert_eq!([0, 300 * 64].map(|offset| get(at(&region, offset))), [5, 2]);
        // What fails half way lets go of each once, too.
        let huge = world.pages(6);
        // SAFETY: never read.
        let result = run_naming(
            &world.context,
            &NOTHING,
            &[],
            Args::new().writes(slice(0)).writes(slice(1)).writes(unsafe { words(&huge, 0, 6 * PAGE) }),
        );
        assert!(result.is_err());
        region.unmap(part(&region, PAGE, PAGE)).unwrap();
        // SAFETY: never read.
        let args = Args::new().writes(slice(0)).writes(slice(1)).writes(unsafe { words(&region, PAGE / 2, PAGE) });
        assert!(matches!(run_naming(&world.context, &NOTHING, &[], args), Err(Error::Range(RangeError::NotMapped(_)))));
        assert_eq!(held(&world, &region), []);
        verify(&world.gmem);
    });
}
