//! What a device can do wrong is confined to its context: no byte is lost, nobody waits for ever, and nothing is left behind.

mod common;

use common::*;
use gmem::hal::{
    self, Capabilities, Compute, CopyEngine, Crash, DeviceError, DeviceId, DeviceInfo, HnodeId, LaunchError, Mapping, Mmu, PhysRange,
    PmapId, PmapRequest, Upcalls,
};
use gmem::{Access, Args, ByteLen, Delivery, Error, Gmem, Mode, Prot, VirtRange, accel};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

fn patient(limit: Duration) -> accel::Builder {
    accel::Discrete::builder().memory(8 * PAGE).cores(1).time_limit(limit)
}

/// Kills the device in the middle of a launch, ten times at random moments. Everything it had stored is still there.
fn kill_ten_times(peer: bool) {
    let gmem = Gmem::new().unwrap();
    let driver = patient(Duration::from_secs(5)).peer(peer).build().unwrap();
    let device = gmem.add_device(driver.clone()).unwrap();
    let space = gmem.address_space().create().unwrap();
    let region = space.region().map(8 * PAGE).unwrap();
    // All pages are at home at the end of each round; how many mappings that takes depends on where they were before.
    (0..8).for_each(|page| set(at(&region, page * PAGE), 0));
    let before = census();
    let mut seed = 42 + u64::from(peer);
    for round in 1..=10u64 {
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        // Pages 1 to 6 are the device's and finished, page 0 is being written, page 7 tells it to stop, which nobody does.
        run(&context, &STRIDE, &[at(&region, PAGE), 100 * round, PAGE, 6]).unwrap();
        set(at(&region, 7 * PAGE), 0);
        let progress = get(at(&region, 0));
        let pid = driver.process(context.pmap().unwrap()).unwrap();
        let moment = Duration::from_micros(next(&mut seed) % 8000);
        let result = context.scope(|scope| {
            let args = Args::new().number(at(&region, 0)).number(at(&region, 7 * PAGE));
            // SAFETY: `SPIN` takes the addresses of two words of a region that lives.
            let launch = unsafe { scope.launch(&SPIN, args) }.unwrap();
            std::thread::sleep(moment);
            signal(pid, libc::SIGKILL);
            launch.wait()
        });
        let error = result.expect_err("a launch that never ends");
        assert!(error.is_device_gone(), "{error:?}");
        eventually("the context is fenced", || context.is_fenced());
        let again = run(&context, &STORE, &[at(&region, 0), 0]);
        assert!(matches!(again, Err(Error::Fenced)), "{again:?}");
        // By the CPU, straight from the dead device's memory; half of it before the context goes, half after.
        (1..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 100 * round + page - 1, "round {round}"));
        assert!(get(at(&region, 0)) >= progress, "round {round}");
        context.detach().unwrap();
        (4..7).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 100 * round + page - 1, "round {round}"));
        assert!(gone(pid));
        assert_nothing_left(&before);
        assert_eq!((used(&device), device.memory()[0].quarantined), (0, ByteLen(0)));
        verify(&gmem);
    }
    assert_eq!(gmem.stats().fences, 10);
}

#[test]
fn a_killed_device_loses_no_byte_and_leaves_nothing() {
    alone("a_killed_device_loses_no_byte_and_leaves_nothing", || {
        let before = census();
        kill_ten_times(false);
        assert_nothing_left(&before);
    });
}

#[test]
fn a_killed_peer_loses_no_byte_and_leaves_nothing() {
    alone("a_killed_peer_loses_no_byte_and_leaves_nothing", || {
        let before = census();
        kill_ten_times(true);
        assert_nothing_left(&before);
    });
}

#[test]
fn a_device_that_is_killed_while_many_fault_hangs_nobody() {
    alone("a_device_that_is_killed_while_many_fault_hangs_nobody", || {
        let mut seed = 7;
        for mode in [Mode::CoherentExclusive, Mode::Replicate, Mode::CoherentExclusive] {
            let world = World::new(patient(Duration::from_secs(5)).memory(2 * PAGE), mode);
            let other = discrete(&world.gmem, 2 * PAGE);
            let second = world.space.attach(&other, Mode::CoherentExclusive).unwrap();
            let region = world.pages(6);
            let words = region.range().len().get() / 8;
            let pid = world.pid();
            let moment = Duration::from_millis(5 + next(&mut seed) % 30);
            std::thread::scope(|threads| {
                let (world, region, second) = (&world, &region, &second);
                threads.spawn(move || {
                    // Ends with an error, or before the kill.
                    let _ = world.run(&HAMMER, &[at(region, 0), words, 1_000_000, 1]);
                });
                threads.spawn(move || run(second, &HAMMER, &[at(region, 0), words, 500, 2]).unwrap());
                // SAFETY: everybody adds atomically to words of the region.
                threads.spawn(move || unsafe { hammer(at(region, 0) as *mut u64, words as usize, 500, 3) });
                std::thread::sleep(moment);
                signal(pid, libc::SIGKILL);
            });
            eventually("the context is fenced", || world.context.is_fenced());
            run(&second, &ADD, &[at(&region, 0), 1]).unwrap();
            assert!((0..6).map(|page| get(at(&region, page * PAGE))).sum::<u64>() > 0);
            verify(&world.gmem);
        }
    });
}

#[test]
fn a_hung_device_is_found_out_within_its_time_limit() {
    alone("a_hung_device_is_found_out_within_its_time_limit", || {
        for (peer, delivery) in [(false, Delivery::Service), (false, Delivery::InThread), (true, Delivery::Service)] {
            let limit = Duration::from_millis(400);
            let world = World::new(patient(limit).peer(peer), Mode::CoherentExclusive);
            let region = world.space.region().delivery(delivery).map(4 * PAGE).unwrap();
            world.run(&STRIDE, &[at(&region, 0), 50, PAGE, 4]).unwrap();
            let pid = world.pid();
            signal(pid, libc::SIGSTOP);
            let start = Instant::now();
            assert_eq!(get(at(&region, PAGE)), 51, "peer {peer}, {delivery:?}");
            let took = start.elapsed();
            // Once for the answer that does not come, and a moment for the end of the process; with room for a busy machine.
            assert!(took < 10 * limit, "the CPU waited {took:?}, peer {peer}, {delivery:?}");
            assert!(world.context.is_fenced());
            let refused = world.run(&NOTHING, &[]);
            assert!(matches!(refused, Err(Error::Fenced)), "{refused:?}");
            assert!(refused.unwrap_err().is_device_gone());
            // The others come at once, and so does the end.
            (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 50 + page));
            eventually("the hung process is ended", || gone(pid));
            world.context.detach().unwrap();
            let context = world.space.attach(&world.device, Mode::CoherentExclusive).unwrap();
            run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
            assert_eq!(get(at(&region, 0)), 51);
            verify(&world.gmem);
        }
    });
}

#[test]
fn a_machine_that_stands_still_does_not_make_a_device_late() {
    alone("a_machine_that_stands_still_does_not_make_a_device_late", || {
        let world = World::new(patient(Duration::from_secs(2)), Mode::CoherentExclusive);
        let region = world.pages(1);
        set(at(&region, 0), 7);
        let (device, program) = (world.pid(), std::process::id());
        // The device stops first and goes on last, so that the program finds the time over and the device not yet awake.
        let script =
            format!("kill -STOP {device}; sleep 0.3; kill -STOP {program}; sleep 3; kill -CONT {program}; sleep 0.1; kill -CONT {device}");
        let mut sleeper = std::process::Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
        let state = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1.starts_with('T');
        eventually("the device stands still", || state(device));
        world.space.prefetch(region.range(), Some(&world.device), Access::Write).unwrap();
        run(&world.context, &ADD, &[at(&region, 0), 5]).unwrap();
        assert_eq!(get(at(&region, 0)), 12);
        assert!(sleeper.wait().unwrap().success());
        verify(&world.gmem);
    });
}

#[test]
fn a_device_that_hangs_in_a_launch_does_not_keep_a_scope_for_ever() {
    alone("a_device_that_hangs_in_a_launch_does_not_keep_a_scope_for_ever", || {
        let world = World::new(patient(Duration::from_millis(300)), Mode::CoherentExclusive);
        let region = world.pages(2);
        let pid = world.pid();
        let result = world.context.scope(|scope| {
            let args = Args::new().number(at(&region, 0)).number(at(&region, PAGE));
            // SAFETY: `SPIN` takes the addresses of two words of a region that lives.
            let launch = unsafe { scope.launch(&SPIN, args) }.unwrap();
            eventually("it runs", || used(&world.device) == 2 * PAGE);
            signal(pid, libc::SIGSTOP);
            // A launch may take as long as it wants; that the device hangs comes out when somebody wants a page back.
            set(at(&region, PAGE), 1);
            launch.wait()
        });
        assert!(matches!(result, Err(Error::Launch(LaunchError::Device(DeviceError::Dead)))), "{result:?}");
        assert!(gone(pid));
    });
}

// ---- a driver that cannot say that its device is dead ----

/// A discrete device whose driver, once told to, gets no answer to an invalidation, and cannot confirm that a fenced context has ended.
struct Unsure {
    inner: Arc<accel::Discrete>,
    info: DeviceInfo,
    silent: AtomicBool,
}

impl Unsure {
    fn silent(&self) -> Result<(), DeviceError> {
        if self.silent.load(Ordering::SeqCst) { Err(DeviceError::NoAnswer) } else { Ok(()) }
    }
}

impl hal::Device for Unsure {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        hal::Device::start(&*self.inner, id, upcalls)
    }
    fn stop(&self) {
        hal::Device::stop(&*self.inner);
    }
    fn physical_memory(&self) -> Vec<PhysRange> {
        hal::Device::physical_memory(&*self.inner)
    }
    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        hal::Device::memory_registered(&*self.inner, hnode, range)
    }
    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        hal::Device::memory_unregistered(&*self.inner, hnode, range);
    }
    fn fence(&self, _pmap: PmapId) -> Result<(), DeviceError> {
        Err(DeviceError::NoAnswer)
    }
    fn mmu(&self) -> &dyn Mmu {
        self
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        hal::Device::copy_engine(&*self.inner)
    }
    fn compute(&self) -> Option<&dyn Compute> {
        hal::Device::compute(&*self.inner)
    }
}

impl Mmu for Unsure {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        hal::Device::mmu(&*self.inner).pmap_create(request)
    }
    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.silent()?;
        hal::Device::mmu(&*self.inner).pmap_destroy(pmap)
    }
    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        hal::Device::mmu(&*self.inner).pmap_enter(pmap, mapping)
    }
    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        hal::Device::mmu(&*self.inner).pmap_release(pmap, range)
    }
    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        hal::Device::mmu(&*self.inner).pmap_protect(pmap, range, prot)
    }
    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        self.silent()?;
        hal::Device::mmu(&*self.inner).tlb_invalidate(pmap, range)
    }
}

/// A world with such a device, four pages of which are in use.
fn unsure() -> (Gmem, Arc<Unsure>, gmem::Device, gmem::AddressSpace, gmem::Context, gmem::Region) {
    let gmem = Gmem::new().unwrap();
    let inner = patient(Duration::from_secs(5)).build().unwrap();
    let info = DeviceInfo { capabilities: Capabilities::REPLAYABLE, ..hal::Device::info(&*inner).clone() };
    let driver = Arc::new(Unsure { inner, info, silent: AtomicBool::new(false) });
    let device = gmem.add_device(driver.clone()).unwrap();
    let space = gmem.address_space().create().unwrap();
    let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
    let region = space.region().map(4 * PAGE).unwrap();
    run(&context, &STRIDE, &[at(&region, 0), 70, PAGE, 4]).unwrap();
    (gmem, driver, device, space, context, region)
}

#[test]
fn frames_are_quarantined_until_the_death_is_certain() {
    watched(|| {
        let (gmem, driver, device, _space, context, region) = unsure();
        driver.silent.store(true, Ordering::SeqCst);
        assert_eq!(get(at(&region, 0)), 70, "the CPU gets the data");
        assert!(context.is_fenced());
        eventually("the frame is quarantined", || device.memory()[0].quarantined == ByteLen(PAGE));
        assert_eq!(get(at(&region, PAGE)), 71);
        eventually("and the next", || device.memory()[0].quarantined == ByteLen(2 * PAGE));
        let memory = device.memory()[0];
        assert_eq!(memory.used.get() + memory.free.get() + memory.quarantined.get(), memory.capacity.get());
        // The driver finds its tongue: the table is destroyed in order, so the frames are free.
        driver.silent.store(false, Ordering::SeqCst);
        context.detach().unwrap();
        assert_eq!((device.memory()[0].quarantined, device.memory()[0].free), (ByteLen(0), memory.capacity));
        (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 70 + page));
        verify(&gmem);
    });
}

#[test]
fn what_stays_uncertain_stays_quarantined_and_the_rest_works() {
    watched(|| {
        let (gmem, driver, device, space, context, region) = unsure();
        driver.silent.store(true, Ordering::SeqCst);
        context.detach().unwrap();
        assert_eq!(device.memory()[0].quarantined, ByteLen(4 * PAGE), "nobody confirmed anything");
        (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 70 + page));
        driver.silent.store(false, Ordering::SeqCst);
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        run(&context, &STRIDE, &[at(&region, 0), 80, PAGE, 4]).unwrap();
        assert_eq!(device.memory()[0].free, ByteLen(0), "four of eight pages are in use, four held back");
        (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 80 + page));
        verify(&gmem);
    });
}

// Stores args[1] at args[0], and never ends.
gmem::kernel!(ENDLESS = "failures-endless", |grid, args| {
    if grid.worker == 0 {
        (args[0] as *mut u64).write_volatile(args[1]);
    }
    loop {
        std::hint::spin_loop();
    }
});

#[test]
fn a_kernel_that_never_ends_can_be_stopped() {
    alone("a_kernel_that_never_ends_can_be_stopped", || {
        let exclusive = Mode::CoherentExclusive;
        for (mode, peer, replay) in
            [(exclusive, false, true), (Mode::Replicate, false, true), (exclusive, true, true), (exclusive, false, false)]
        {
            let world = World::new(patient(Duration::from_secs(5)).peer(peer).replay(replay), mode);
            let (region, third) = (world.pages(2), world.pages(1));
            let all = |args: Args<'static>| args.range(region.range().start(), region.range().len(), Access::Write);
            // SAFETY: the kernel takes the address of a word of a region that lives, and a number.
            unsafe { world.context.run(&STORE, all(Args::new().number(at(&region, PAGE)).number(70u64))) }.unwrap();
            let result = std::thread::scope(|threads| {
                let args =
                    all(Args::new().number(at(&region, 0)).number(71u64)).range(third.range().start(), third.range().len(), Access::Write);
                // SAFETY: as above.
                let launch = threads.spawn(|| unsafe { world.context.run(&ENDLESS, args) });
                // What a launch holds the CPU would wait for; then it is enough that it holds it.
                eventually("it runs", || if replay { get(at(&region, 0)) == 71 } else { used(&world.device) == 3 * PAGE });
                // Somebody waits for what the launch holds, and keeps others from changing the address space.
                let unmaps = threads.spawn(|| third.unmap(third.range()));
                std::thread::sleep(Duration::from_millis(30));
                assert!(!launch.is_finished());
                world.context.stop().unwrap();
                unmaps.join().unwrap().unwrap();
                launch.join().unwrap()
            });
            let error = result.expect_err("it never ended");
            assert!(error.is_device_gone(), "{mode:?}, peer {peer}, replay {replay}: {error:?}");
            assert!(world.context.is_fenced());
            assert!(matches!(world.run(&NOTHING, &[]), Err(Error::Fenced)));
            world.context.stop().expect("it is stopped already");
            let (stored, before) = (get(at(&region, 0)), get(at(&region, PAGE)));
            assert!(stored == 71 || stored == 0 && !replay, "{mode:?}, peer {peer}: {stored}");
            assert_eq!(before, 70, "{mode:?}, peer {peer}, replay {replay}");
            let World { context, device, space, gmem, .. } = world;
            context.detach().unwrap();
            let context = space.attach(&device, mode).unwrap();
            run(&context, &NOTHING, &[]).unwrap();
            assert_eq!((device.memory()[0].quarantined, gmem.stats().fences), (ByteLen(0), 1));
            verify(&gmem);
        }
    });
}

#[test]
fn what_cannot_be_stopped_goes_on() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let device = gmem.add_device(accel::Integrated::builder().cores(1).build().unwrap()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&device, Mode::Share).unwrap();
        let refused = context.stop();
        assert!(matches!(refused, Err(Error::Device(gmem::DeviceCallError::Device(DeviceError::Unsupported)))), "{refused:?}");
        run(&context, &NOTHING, &[]).unwrap();
        let (_gmem, _driver, _device, _space, context, region) = unsure();
        let refused = context.stop();
        assert!(matches!(refused, Err(Error::Device(gmem::DeviceCallError::Device(DeviceError::NoAnswer)))), "{refused:?}");
        assert!(context.is_fenced());
        (0..4).for_each(|page| assert_eq!(get(at(&region, page * PAGE)), 70 + page));
    });
}

#[test]
fn a_kernel_that_aborts_costs_its_context_and_no_data() {
    watched(|| {
        let world = World::small();
        let region = world.pages(2);
        world.run(&STRIDE, &[at(&region, 0), 7, PAGE, 2]).unwrap();
        let error = world.run(&ABORT, &[]).unwrap_err();
        assert!(matches!(&error, Error::Launch(LaunchError::Crashed(Crash::Abort))), "{error:?}");
        assert!(error.is_device_gone() && error.to_string().contains("aborted"), "{error}");
        eventually("the context is fenced", || world.context.is_fenced());
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (7, 8));
        let World { context, device, space, gmem, .. } = world;
        context.detach().unwrap();
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
        assert_eq!(get(at(&region, 0)), 8);
        verify(&gmem);
    });
}

/// Whoever is told by a launch that the device is gone may ask the context at once.
#[test]
fn a_launch_whose_device_is_gone_leaves_a_fenced_context() {
    watched(|| {
        let World { gmem, space, device, driver, context, .. } = World::small();
        context.detach().unwrap();
        let region = space.region().map(2 * PAGE).unwrap();
        for round in 0..40 {
            let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
            let result = if round % 2 == 0 {
                run(&context, &ABORT, &[])
            } else {
                let pid = driver.process(context.pmap().unwrap()).unwrap();
                context.scope(|scope| {
                    let args = Args::new().number(at(&region, 0)).number(at(&region, PAGE));
                    // SAFETY: `SPIN` takes the addresses of two words of a region that lives.
                    let launch = unsafe { scope.launch(&SPIN, args) }.unwrap();
                    signal(pid, libc::SIGKILL);
                    launch.wait()
                })
            };
            let (error, fenced) = (result.unwrap_err(), context.is_fenced());
            assert!(error.is_device_gone() && fenced, "round {round}: {error}, fenced: {fenced}");
            let next = run(&context, &NOTHING, &[]);
            assert!(matches!(next, Err(Error::Fenced)), "round {round}: {next:?}");
            context.detach().unwrap();
        }
        verify(&gmem);
    });
}
