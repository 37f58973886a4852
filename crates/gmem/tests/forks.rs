//! What a child made by `fork` can do with the parent's gmem: nothing, and it is told so; nothing in it waits for ever, and the parent notices nothing.

mod common;

use common::*;
use gmem::{Access, Args, Error, FileSharing, Mode, PageSize, Prot, VirtAddr, accel};
use std::mem::forget;
use std::time::{Duration, Instant};

/// A child that was forked.
struct Child(i32);

/// Forks. `None` is what the child gets, which ends by [`exit`] or by a panic.
fn fork() -> Option<Child> {
    // SAFETY: the child runs ordinary code, which the C library permits as long as no lock of the test's is held by another thread; the parent waits for it.
    match unsafe { libc::fork() } {
        0 => {
            // A panic must not go on into the copy of the harness, where the child would end as if all were well.
            std::panic::set_hook(Box::new(|panic| {
                eprintln!("in the child: {panic}");
                // SAFETY: ends the process, and nothing else in it.
                unsafe { libc::_exit(1) }
            }));
            None
        }
        pid => Some(Child(pid)),
    }
}

/// Ends the child the ordinary way, destructors of the process and all.
fn exit(work: impl FnOnce()) -> ! {
    work();
    std::process::exit(0)
}

impl Child {
    /// Waits for it to end well, for ten seconds.
    #[track_caller]
    fn ends_well(self) {
        let until = Instant::now() + Duration::from_secs(10);
        let mut status = 0;
        // SAFETY: waits for the child that was just made.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) } == 0 {
            if Instant::now() > until {
                // SAFETY: ends it; nobody has waited for it yet.
                unsafe { libc::kill(self.0, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the child ended with status {status:#x}");
    }
}

#[track_caller]
fn forked<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Forked)), "{result:?}");
}

#[test]
fn every_call_in_a_child_is_refused_and_every_drop_does_nothing() {
    alone("every_call_in_a_child_is_refused_and_every_drop_does_nothing", || {
        let world = World::small();
        let file = std::env::temp_dir().join(format!("gmem-test-forks-{}", std::process::id()));
        std::fs::write(&file, [1; 4096]).unwrap();
        let open = std::fs::File::options().read(true).write(true).open(&file).unwrap();
        let region = world.pages(2);
        let of_file = world.space.region().map_file(&open, 0, 4096, FileSharing::Shared).unwrap();
        let vec = world.space.vec::<u64>(100).unwrap();
        world.run(&STORE, &[at(&region, PAGE), 70]).unwrap();
        set(at(&of_file, 0), 71);
        let pin = region.pin_for_io(part(&region, 0, PAGE)).unwrap();
        let hnode = world.device.hnodes()[0];
        let Some(child) = fork() else {
            drop(pin);
            exit(|| {
                forked(world.run(&NOTHING, &[]));
                forked(world.context.scope(|_| world.space.attach(&world.device, Mode::Replicate).map(drop)));
                assert!(world.context.is_fenced() && world.context.pmap().is_none());
                forked(world.gmem.add_device(accel::Discrete::builder().memory(PAGE).build().unwrap()).map(drop));
                forked(world.device.set_memory_limit(gmem::ByteLen(PAGE)));
                forked(world.device.switch(None));
                forked(world.device.unregister_memory(hnode));
                assert_eq!((world.device.evict(9), world.device.current(), world.device.hnodes().len()), (0, None, 0));
                assert!(world.device.memory().is_empty() && world.gmem.stats().hnodes.is_empty());
                world.gmem.verify().unwrap_err();
                forked(world.gmem.address_space().create().map(drop));
                forked(world.gmem.address_space().len(PAGE).at(VirtAddr::new(0x5000_0000_0000)).create().map(drop));
                forked(world.space.region().page_size(PageSize::Size4K).map(1).map(drop));
                forked(world.space.region().map_file(&open, 0, 4096, FileSharing::Private).map(drop));
                forked(world.space.prefetch(region.range(), None, Access::Read));
                forked(world.space.residency(region.range()));
                forked(world.space.pin(region.range()));
                forked(world.space.unpin(region.range()));
                forked(region.pin_for_io(region.range()).map(drop));
                forked(region.protect(region.range(), Prot::READ));
                forked(region.discard(region.range()));
                forked(region.unmap(region.range()));
                forked(of_file.sync());
                let World { context, device, driver, space, gmem } = world;
                let failed = context.detach().unwrap_err();
                assert!(failed.to_string().contains("fork"), "{failed}");
                drop((failed, vec, of_file));
                drop((region, space, device, gmem, driver));
                // A child may have its own, in the place of its parent's.
                let world = World::small();
                let region = world.pages(1);
                world.run(&STORE, &[at(&region, 0), 5]).unwrap();
                assert_eq!(get(at(&region, 0)), 5);
            })
        };
        child.ends_well();
        drop(pin);
        assert_eq!((get(at(&region, PAGE)), get(at(&of_file, 0)), vec.iter().sum::<u64>()), (70, 71, 0));
        world.run(&ADD, &[at(&region, PAGE), 1]).unwrap();
        assert_eq!(get(at(&region, PAGE)), 71);
        assert_eq!(std::fs::read(&file).unwrap(), [1; 4096], "the child wrote the parent's file");
        verify(&world.gmem);
        std::fs::remove_file(file).unwrap();
    });
}

// Waits for the gate args[0].
gmem::kernel!(WAIT = "forks-wait", |grid, args| {
    if grid.worker == 0 {
        wait_at_gate(args[0]);
    }
});

#[test]
fn a_child_made_while_others_are_inside_calls_waits_for_none_of_them() {
    alone("a_child_made_while_others_are_inside_calls_waits_for_none_of_them", || {
        for replay in [false, true] {
            let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(1).replay(replay), Mode::CoherentExclusive);
            let region = world.pages(1);
            let gate = KernelGate::new();
            let (inside, calls) = (&region, &world);
            let child = world.context.scope(|scope| {
                let args = Args::new().number(gate.number()).range(region.range().start(), region.range().len(), Access::Write);
                // SAFETY: the kernel takes a number.
                let mut launch = Some(unsafe { scope.launch(&WAIT, args) }.unwrap());
                std::thread::scope(|threads| {
                    // Waits for the launch, which holds the page, and has the region's lists locked meanwhile.
                    let pins = threads.spawn(move || inside.pin_for_io(inside.range()).map(drop));
                    eventually("the other thread is inside", || !calls.space.residency(inside.range()).unwrap().is_empty());
                    std::thread::sleep(Duration::from_millis(50));
                    assert_eq!(pins.is_finished(), replay, "a launch of a device without replay holds what it names");
                    let Some(child) = fork() else {
                        // The thread's scope would wait for a thread that is not here, and so would its handle.
                        forget(pins);
                        exit(|| {
                            forked(launch.take().map_or(Ok(()), gmem::Launch::wait));
                            forked(inside.pin_for_io(inside.range()).map(drop));
                            forked(inside.protect(inside.range(), Prot::READ));
                            // Moved out of the parent's frames, which this child never returns to.
                            // SAFETY: the child ends before anybody uses them again.
                            let (region, world) = unsafe { (std::ptr::read(inside), std::ptr::read(calls)) };
                            drop(region);
                            drop(world);
                        })
                    };
                    child.ends_well();
                    gate.open();
                    pins.join().unwrap().unwrap();
                });
                launch.map_or(Ok(()), gmem::Launch::wait).unwrap();
                fork()
            });
            // The child returned from its scope like the parent, and ends like it.
            let Some(child) = child else {
                forget(gate);
                exit(|| drop((region, world)))
            };
            child.ends_well();
            world.run(&STORE, &[at(&region, 0), 7]).unwrap_or_else(|e| assert!(!replay, "{e}"));
            verify(&world.gmem);
        }
    });
}

#[test]
fn a_child_returns_from_a_scope_whose_kernel_still_runs() {
    alone("a_child_returns_from_a_scope_whose_kernel_still_runs", || {
        let world = World::small();
        let gate = KernelGate::new();
        let mut child = None;
        let mut is_child = false;
        world.context.scope(|scope| {
            // SAFETY: the kernel takes a number.
            let _launch = unsafe { scope.launch(&WAIT, Args::new().number(gate.number())) }.unwrap();
            child = fork();
            is_child = child.is_none();
            if let Some(child) = child.take() {
                child.ends_well();
                gate.open();
            }
        });
        if is_child {
            forget(gate);
            exit(|| drop(world));
        }
        world.run(&NOTHING, &[]).unwrap();
        verify(&world.gmem);
    });
}
