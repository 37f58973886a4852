//! Operations as bytes: what a fuzzer writes, and what its corpus is made of.
//!
//! ```text
//! kind of world | seed | failures: count, then callback, error, which call (2 bytes) each | operations: a letter and its operands, each
//! ```
//!
//! Any bytes mean something, and most mean something that makes sense: a page below 128 is that page of its address space, one above is one of the
//! pages that are mapped, and every index is taken modulo what there is. What is missing at the end is zero.

mod read;
mod write;

pub use write::Script;

use crate::injected;
use crate::judged::{Judged, Point};
use crate::worlds::{ALL, Kind};
use gmem_hal::PageSize;
use gmem_sim::random::Op;
use gmem_sim::{Canary, Sim};
use read::Bytes;

/// Bytes of pages that a run may be about, at most: a page is compared whole after each store.
const MOST_BYTES: u64 = 2 << 20;
/// The most operations of a run.
const MOST_OPS: u64 = 600;

/// How often each pick of a kind is not one with 2 MiB pages, which are slow: 15 in 16.
fn kind(byte: u8) -> &'static Kind {
    let large = byte >= 240;
    let kinds: Vec<_> = ALL.iter().filter(|kind| (kind.page_size == PageSize::Size2M) == large).collect();
    kinds[usize::from(byte) % kinds.len()]
}

/// Does what the bytes say to a fresh world, the failures included; judges each operation, then lets everything recover, and takes the world apart.
/// Answers what was done. With `GMEM_FUZZ_TELL` in the environment it tells each before it is done.
///
/// # Panics
/// If the core does what it must not.
pub fn run(data: &[u8]) -> Vec<Op> {
    run_with(data, None)
}

/// The same, with a defect in each device.
///
/// # Panics
/// If the core does what it must not, or the defect is noticed.
pub fn run_with(data: &[u8], canary: Option<Canary>) -> Vec<Op> {
    let tell = std::env::var_os("GMEM_FUZZ_TELL").is_some();
    let mut bytes = Bytes::new(data);
    let kind = kind(bytes.byte());
    let sim = Sim::new(bytes.byte().into());
    let points: Vec<Point> = bytes.points();
    if tell {
        eprintln!("{}, {points:?}", kind.name);
    }
    points.iter().for_each(|point| sim.fail_nth(point.callback, point.n, point.error));
    let breaks = points.iter().any(|point| !point.leaves_it_working());
    let mut run = Judged::new(kind.make_with(&sim, canary));
    let most = (MOST_BYTES / kind.page_size.bytes()).clamp(40, MOST_OPS);
    let mut done = Vec::new();
    while done.len() < most as usize
        && let Some(op) = bytes.op(&run.model)
    {
        if tell {
            eprintln!("    {op:?}");
        }
        let broken = breaks && injected(&sim) > 0;
        run.step(&op, broken).unwrap_or_else(|why| panic!("{}, operation {}, {why}", kind.name, done.len()));
        done.push(op);
    }
    run.recover().unwrap_or_else(|why| panic!("{}, at the end, {why}", kind.name));
    run.world.tear_down();
    done
}
