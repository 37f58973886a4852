//! What the calls cost, printed: `cargo bench -p gmem-linux --bench costs`. Every figure stands beside the memcpy
//! measured in the same run, because machines differ and are shared.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Rig, triples, watchdog};
use gmem_hal::{Host, Pages};
use std::sync::atomic::Ordering::*;
use std::time::Instant;

/// The median of the microseconds that `step` takes, for each of `pages`.
fn median(pages: usize, mut step: impl FnMut(usize)) -> f64 {
    let mut times: Vec<f64> = (0..pages)
        .map(|page| {
            let began = Instant::now();
            step(page);
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[pages / 2]
}

fn main() {
    // `cargo test --all-targets` runs benchmarks too, without this flag: there is nothing to check.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let _w = watchdog(120);
    let threads = gmem_linux::Threads::start().expect("threads");
    println!("a call on a gmem thread and back: {:.1} µs", median(1000, |_| threads.run(|| ())));
    println!(
        "medians in µs: populate, again after discard, cpu_map first, touch, cpu_unmap, cpu_map, touch, whole fault, whole taking, memcpy of the page"
    );
    for attrs in triples() {
        const PAGES: usize = 64;
        let rig = Rig::new(attrs, PAGES as u64);
        let (host, space) = (&rig.pager.host, &rig.pager.space);
        let page = |i: usize| -> Pages { rig.pager.page(i) };
        // Of memory that the hypervisor has given out before.
        rig.threads.run(|| {
            host.populate(space, &rig.pager.region).expect("populated");
            host.discard(space, &rig.pager.region);
        });
        let mut row = rig.threads.run(|| {
            let populate = median(PAGES, |i| host.populate(space, &page(i)).expect("populated"));
            let first = median(PAGES, |i| host.cpu_map(space, &page(i)).expect("mapped"));
            let touch = || {
                median(PAGES, |i| {
                    rig.word(i, 0).load(SeqCst);
                })
            };
            let touch_first = touch();
            let unmap = median(PAGES, |i| host.cpu_unmap(space, &page(i)).expect("unmapped"));
            let map = median(PAGES, |i| host.cpu_map(space, &page(i)).expect("mapped"));
            let touch_again = touch();
            host.cpu_unmap(space, &rig.pager.region).expect("unmapped");
            host.discard(space, &rig.pager.region);
            let again = median(PAGES, |i| host.populate(space, &page(i)).expect("populated"));
            vec![populate, again, first, touch_first, unmap, map, touch_again]
        });
        rig.pager.state.iter().for_each(|s| *s.lock() = common::At::Home);
        (0..PAGES).for_each(|p| rig.to_device(p).expect("to the device"));
        for p in 0..PAGES {
            rig.word(p, 0).load(SeqCst);
            rig.to_device(p).expect("to the device");
        }
        row.push(median(PAGES, |p| {
            rig.word(p, 0).load(SeqCst);
        }));
        row.push(rig.threads.run(|| median(PAGES, |p| rig.pager.to_device(p).expect("to the device"))));
        let len = rig.page_bytes() as usize;
        let (a, mut b) = (vec![1u8; len * PAGES], vec![1u8; len * PAGES]);
        row.push(median(PAGES, |p| b[p * len..(p + 1) * len].copy_from_slice(&a[p * len..(p + 1) * len])));
        let row: Vec<_> = row.iter().map(|t| format!("{t:8.1}")).collect();
        println!("{:?} {:?} {:>7}: {}", attrs.backing, attrs.delivery, attrs.page_size.to_string(), row.join(" "));
    }
}
