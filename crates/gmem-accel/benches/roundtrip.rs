//! What the accelerators cost: an empty launch, a fault answered at once, a fault with a copy of 2 MiB, beside the floors of this machine.
//!
//! `cargo bench -p gmem-accel`. Medians; the copy in the floor is the one of the pager, between the same buffers.

#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use gmem_accel::Discrete;
use gmem_hal::*;
use std::time::Instant;

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Microseconds that `f` takes, the median of `n` runs.
fn time(n: usize, mut f: impl FnMut(usize)) -> f64 {
    let samples = (0..n).map(|i| {
        let start = Instant::now();
        f(i);
        start.elapsed().as_secs_f64() * 1e6
    });
    median(samples.collect())
}

/// Microseconds per page to touch `pages` pages in one launch on one core, the median of `n`; everything is taken away in between.
fn touch(pager: &Pager, pages: u64, n: usize) -> f64 {
    let empty = time(200, |_| pager.launch("nothing", &[]).unwrap());
    let samples = (0..n).map(|_| {
        let start = Instant::now();
        pager.launch("touch", &[pager.start(), pages, pager.page]).unwrap();
        let took = start.elapsed().as_secs_f64() * 1e6 - empty;
        pager.bring_home();
        took / pages as f64
    });
    median(samples.collect())
}

fn main() {
    let wide = |no_copy| Pager::new(Discrete::builder().memory(32 * PAGE).cores(1), PAGE, 32, |p: &mut Pager| p.no_copy = no_copy);
    let pager = wide(false);
    println!("empty launch, 1 core          {:8.1} us", time(2000, |_| pager.launch("nothing", &[]).unwrap()));
    let frame = |i: usize| PhysAddr { hnode: HNODE, addr: (i as u64 % 32) * PAGE };
    (0..32).for_each(|i| pager.set(i * PAGE / 8, 1));
    let engine = pager.device.copy_engine();
    let copy = |i: usize| engine.copy(frame(i), pager.home(i as u64 % 32), ByteLen(PAGE)).unwrap();
    let back = |i: usize| engine.copy(pager.home(i as u64 % 32), frame(i), ByteLen(PAGE)).unwrap();
    // All pages one way, then all the other way, as the pager does: what the caches hold is the same.
    let floor = (0..30).map(|_| {
        let start = Instant::now();
        (0..32).for_each(copy);
        let took = start.elapsed().as_secs_f64() * 1e6 / 32.0;
        (0..32).for_each(back);
        took
    });
    println!("copy of 2 MiB                 {:8.1} us", median(floor.collect()));
    let enter = time(320, |i| pager.enter(i as u64 % 32, frame(i).addr, Prot::RW).unwrap());
    println!("enter, nobody awake           {enter:8.1} us");
    let all = pager.range;
    let revoke = time(320, |i| {
        let page = pager.page_range(i as u64 % 32);
        pager.mmu().pmap_release(pager.pmap(), page).unwrap();
        pager.mmu().tlb_invalidate(pager.pmap(), page).unwrap();
    });
    println!("release and invalidate        {revoke:8.1} us");
    pager.mmu().pmap_release(pager.pmap(), all).unwrap();
    pager.mmu().tlb_invalidate(pager.pmap(), all).unwrap();
    println!("fault with copy, 2 MiB        {:8.1} us", touch(&pager, 32, 60));
    pager.destroy();
    let pager = wide(true);
    println!("fault answered at once, 2 MiB {:8.1} us", touch(&pager, 32, 200));
    pager.destroy();
    let small = Pager::new(Discrete::builder().memory(512 * 4096).cores(1), 4096, 512, |p: &mut Pager| p.no_copy = true);
    println!("fault answered at once, 4 KiB {:8.1} us", touch(&small, 512, 50));
    small.destroy();
    let two = Pager::new(Discrete::builder().memory(32 * PAGE).cores(2), PAGE, 32, |_| {});
    println!("empty launch, 2 cores         {:8.1} us", time(2000, |_| two.launch("nothing", &[]).unwrap()));
    println!("fault with copy, 2 cores      {:8.1} us", touch(&two, 32, 60));
    two.destroy();
    let made = time(20, |_| {
        let pager = Pager::without_context(Discrete::builder().memory(2 * PAGE).cores(1), PAGE, 1, |_| {});
        let start = Instant::now();
        pager.attach().unwrap();
        let create = start.elapsed();
        pager.destroy();
        assert!(create.as_secs() < 5);
    });
    println!("device and context, whole life {made:7.1} us");
}
