//! Which pages are evicted, as the counters show it.

mod common;

use common::watched;
use gmem::{Args, Gmem, Mode, PageSize, accel};

gmem::kernel!(ADD = "eviction-add", |grid, args| {
    let (a, b, c, len) = (args[0] as *const u64, args[1] as *const u64, args[2] as *mut u64, args[3] as usize);
    for chunk in grid.chunks(len, 512) {
        for i in chunk {
            c.add(i).write(a.add(i).read() + b.add(i).read());
        }
    }
});

/// Streams two vectors of `pages` pages through a device of `memory` pages into a third.
fn stream(pages: usize, memory: u64) -> gmem::Stats {
    let gmem = Gmem::new().unwrap();
    let device = gmem.add_device(accel::Discrete::builder().memory(memory * 4096).cores(2).build().unwrap()).unwrap();
    let space = gmem.address_space().create().unwrap();
    let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
    let vec = || space.region().page_size(PageSize::Size4K).vec::<u64>(pages * 512).unwrap();
    let (mut a, mut b, mut c) = (vec(), vec(), vec());
    a.fill(1);
    b.fill(2);
    let len = c.len();
    // SAFETY: the kernel takes the addresses of three vectors of `len` integers and their length, and writes the third.
    unsafe { context.run(&ADD, Args::new().read(&a).read(&b).write(&mut c).number(len as u64)) }.unwrap();
    let stats = gmem.stats();
    assert!(c.iter().all(|x| *x == 3));
    stats
}

#[test]
fn a_stream_brings_each_input_once_and_keeps_its_results() {
    watched(|| {
        let (pages, memory) = (256, 128);
        let stats = stream(pages, memory);
        let (in_pages, out_pages) = (stats.h2d_fault_bytes / 4096, stats.d2h_evict_bytes / 4096);
        assert!((512..=512 + 51).contains(&in_pages), "each input page goes in once, give or take a few: {stats:#?}");
        // What does not fit must go out; what was read only must not. An eighth of the memory holds the pages being worked on.
        let must = pages as u64 - memory;
        assert!((must..=must + memory / 4).contains(&out_pages), "{out_pages} of {pages} result pages went out, {must} had to: {stats:#?}");
        assert!(stats.clean_evictions > 300, "inputs are dropped without a copy: {stats:#?}");
    });
}

#[test]
fn a_small_memory_keeps_the_pages_being_worked_on() {
    watched(|| {
        // Two workers use three pages each at any moment; twelve pages have room for them.
        let stats = stream(64, 12);
        let in_pages = stats.h2d_fault_bytes / 4096;
        assert!((128..=128 + 32).contains(&in_pages), "each input page goes in once, give or take a few: {stats:#?}");
    });
}
