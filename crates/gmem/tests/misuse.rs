//! Reviewer's proofs.
#![allow(missing_docs, dead_code)]
mod common;
use common::watched;
use gmem::{Args, Gmem, Mode, PageSize, VirtAddr, accel};

gmem::kernel!(FILL = "review_fill", |grid, args| {
    let _ = grid;
    *(args[0] as *mut u64) = 7;
});

/// No unsafe code here.
#[test]
fn devices_only_vec_aliases_the_programs_own_memory() {
    let gmem = Gmem::new().unwrap();
    let victim = vec![42u64; 1 << 20]; // 8 MiB of the program's
    let at = (victim.as_ptr() as u64 + (2 << 20)) & !((2 << 20) - 1);
    let space = gmem.address_space().devices_only().at(VirtAddr::new(at)).len(2 << 20).create().unwrap();
    let mut forged = space.region().page_size(PageSize::Size4K).vec::<u64>(512).unwrap();
    forged[0] = 666;
    assert!(victim.iter().all(|x| *x == 42), "safe code wrote into somebody else's Vec");
}

#[test]
fn a_launch_that_ended_keeps_its_pages() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let device = gmem.add_device(accel::Discrete::builder().memory(8 << 20).replay(false).build().unwrap()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        let mut data = space.vec::<u64>(1024).unwrap();
        let (left, right) = data.split_at_mut(512);
        context.scope(|scope| {
            // SAFETY: the kernel writes the first word of `left`.
            let launch = unsafe { scope.launch(&FILL, Args::new().write(left)) }.unwrap();
            std::thread::sleep(std::time::Duration::from_secs(1)); // it ended long ago
            right[0] = 1; // ours
            launch.wait().unwrap();
        });
    });
}

#[test]
fn io_pin_then_drop() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let data = space.vec::<u64>(1024).unwrap();
        let pin = space.pin_for_io(data.range()).unwrap();
        drop(data);
        drop(pin);
    });
}

#[test]
fn residency_while_a_vec_is_dropped() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().len(1 << 30).create().unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            let (sp, st) = (&space, &stop);
            s.spawn(move || {
                while !st.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = sp.residency(sp.range());
                }
            });
            for _ in 0..3000 {
                drop(space.region().page_size(PageSize::Size4K).vec::<u64>(1 << 15).unwrap());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}
