//! What a program may do wrong, or leave to chance, without harm: each test was a hang or worse once.

mod common;

use common::watched;
use gmem::{Args, Error, Gmem, Mode, PageSize, VirtAddr, accel};

gmem::kernel!(FIRST = "misuse-first", |_grid, args| {
    *(args[0] as *mut u64) = 7;
});

#[test]
fn a_vector_needs_an_address_space_that_the_cpu_sees() {
    let gmem = Gmem::new().unwrap();
    let mine = vec![42u64; 1 << 20];
    let at = (mine.as_ptr() as u64 + (2 << 20)) & !((2 << 20) - 1);
    let space = gmem.address_space().devices_only().at(VirtAddr::new(at)).len(2 << 20).create().unwrap();
    let refused = space.region().page_size(PageSize::Size4K).vec::<u64>(512);
    assert!(matches!(refused, Err(Error::DevicesOnly)), "{refused:?}");
}

#[test]
fn a_vector_is_never_in_a_region_that_may_not_be_written() {
    let space = Gmem::new().unwrap().address_space().create().unwrap();
    for prot in [gmem::Prot::READ, gmem::Prot::empty()] {
        let refused = space.region().prot(prot).vec::<u64>(10);
        assert!(matches!(refused, Err(Error::VectorProt)), "{refused:?}");
    }
}

/// A device whose launches hold what they name, and one page of memory to name.
fn holding(memory: u64) -> (gmem::AddressSpace, gmem::Context) {
    let gmem = Gmem::new().unwrap();
    let device = gmem.add_device(accel::Discrete::builder().memory(memory).replay(false).build().unwrap()).unwrap();
    let space = gmem.address_space().create().unwrap();
    let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
    (space, context)
}

#[test]
fn a_launch_that_ended_lets_its_pages_go_before_anybody_waits_for_it() {
    watched(|| {
        let (space, context) = holding(8 << 20);
        let mut data = space.vec::<u64>(1024).unwrap();
        let (left, right) = data.split_at_mut(512);
        context.scope(|scope| {
            // SAFETY: the kernel writes the first word of `left`.
            let launch = unsafe { scope.launch(&FIRST, Args::new().write(left)) }.unwrap();
            // On the same page as the launch holds: this waits for the kernel, and for nothing else.
            right[0] = 1;
            launch.wait().unwrap();
        });
        assert_eq!((data[0], data[512]), (7, 1));
    });
}

#[test]
fn launches_that_do_not_fit_together_follow_each_other() {
    watched(|| {
        let (space, context) = holding(6 << 20);
        let mut vectors: Vec<_> = (0..4).map(|_| space.vec::<u64>(512 << 10).unwrap()).collect();
        context.scope(|scope| {
            for data in &mut vectors {
                // SAFETY: the kernel writes the first word of its vector.
                unsafe { scope.launch(&FIRST, Args::new().write(data)) }.expect("it fits once an earlier one has ended");
            }
        });
        assert!(vectors.iter().all(|v| v[0] == 7));
    });
}

#[test]
fn a_pin_for_io_keeps_its_memory_mapped_and_can_be_forgotten() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let region = space.region().map(4 << 20).unwrap();
        let pin = region.pin_for_io(region.range()).unwrap();
        assert!(matches!(region.unmap(region.range()), Err(Error::PinnedForIo)));
        assert!(matches!(region.discard(region.range()), Err(Error::PinnedForIo)));
        drop(pin);
        region.discard(region.range()).unwrap();
        let data = space.vec::<u64>(1024).unwrap();
        std::mem::forget(data.pin_for_io().unwrap());
        drop(data);
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
