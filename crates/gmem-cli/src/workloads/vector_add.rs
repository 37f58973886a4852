//! `vector-add`: the CPU fills two vectors, the device adds them into a third, the CPU checks every element.

use crate::engine::Engine;
use crate::failure::Failure;
use crate::progress;
use crate::setup::{Needs, Setup};
use gmem::Args;
use gmem::{Grid, kernel};
use gmem::{Mode, PageSize};
use std::time::{Duration, Instant};

/// 100 Mi elements: three vectors of 800 MiB.
pub(crate) const DEFAULT_ELEMENTS: u64 = 100 << 20;

/// Elements that a core adds in memory of its own, its stack, so that it needs a page of one vector at a time: 4 KiB of each. However few pages the
/// device has room for, there is then one fault for many elements.
const TILE: usize = 4096 / size_of::<u64>();

/// Elements of one piece of work of one core: 2 MiB of each vector.
const CHUNK: usize = (2 << 20) / size_of::<u64>();

/// The same if the device has no room for so many pages at a time: all cores then work in the same three pages.
const SMALL_CHUNK: usize = TILE;

kernel!(pub(crate) VECTOR_ADD = "vector-add", |grid, args| {
    // SAFETY: only `add` launches this, with the arguments in this order.
    unsafe { add_chunks(grid, args[0], args[1], args[2], args[3] as usize, args[4] as usize) }
});

/// Cores take chunks in turn (core 0 the first, core 1 the second, ...) rather than halves of the vectors: the cores then work side by side,
/// and the pages in use at any moment are few and next to each other.
///
/// # Safety
/// `a` and `b` are the addresses of `len` readable elements, `c` of `len` writable ones that nobody else touches meanwhile; `chunk` is not zero.
unsafe fn add_chunks(grid: Grid, a: u64, b: u64, c: u64, len: usize, chunk: usize) {
    let a = std::ptr::with_exposed_provenance::<u64>(a as usize);
    let b = std::ptr::with_exposed_provenance::<u64>(b as usize);
    let c = std::ptr::with_exposed_provenance_mut::<u64>(c as usize);
    for range in grid.chunks(len, chunk) {
        for start in range.clone().step_by(TILE) {
            let len = TILE.min(range.end - start);
            let mut tile = [0u64; TILE];
            // SAFETY: `start + len <= range.end`, so all three addresses are inside what the caller vouches for; each element is written by one core.
            unsafe {
                for (i, sum) in tile[..len].iter_mut().enumerate() {
                    *sum = a.add(start + i).read();
                }
                for (i, sum) in tile[..len].iter_mut().enumerate() {
                    *sum = sum.wrapping_add(b.add(start + i).read());
                }
                for (i, sum) in tile[..len].iter().enumerate() {
                    c.add(start + i).write(*sum);
                }
            }
        }
    }
}

/// Adds on the device, whose cores take `chunk` elements at a time.
fn add<E: Engine>(engine: &E, a: &[u64], b: &[u64], c: &mut [u64], chunk: usize) -> Result<(), Failure> {
    assert!(a.len() == c.len() && b.len() == c.len() && chunk > 0);
    let len = c.len();
    // SAFETY: these are the arguments of `VECTOR_ADD`, and all three slices have `len` elements.
    unsafe { engine.launch(&VECTOR_ADD, Args::new().read(a).read(b).write(c).number(len).number(chunk)) }
}

/// The bytes vector-add uses.
pub(crate) fn needs(elements: u64) -> Needs {
    let len = elements.saturating_mul(8);
    Needs { page_size: PageSize::Size2M, buffers: vec![len; 3], launches: vec![vec![len.min(2 << 20); 3]] }
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The time on the device.
    pub(crate) device: Duration,
    /// The first element that is wrong, if one is.
    pub(crate) mismatch: Option<Mismatch>,
}

/// An element that is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) index: usize,
    pub(crate) expected: u64,
    pub(crate) found: u64,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "element {} should be {:#x} and is {:#x}", self.index, self.expected, self.found)
    }
}

/// Two sequences that differ in every element, so that a page in the wrong place cannot pass the check.
fn pattern(index: usize) -> (u64, u64) {
    let i = index as u64;
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15), (i ^ 0x5851_f42d).wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

/// The bytes that must cross whatever a system does: both inputs to the device, and of the result what does not fit in the device.
pub(crate) fn bytes_that_must_cross(elements: u64, device_memory: u64) -> u64 {
    16 * elements + (8 * elements).saturating_sub(device_memory)
}

/// How many elements a core takes at a time. Cores that work in pages of their own fault and copy side by side, which is faster as long as the device
/// has room for the pages of all of them twice: those in use, and those that come next. With less, cores would take pages from each other again and again.
fn chunk(setup: &Setup) -> usize {
    let pages = 2 * 3 * setup.cores as u64;
    let cramped = setup.mode == Mode::CoherentExclusive && setup.device_memory < pages * setup.page_size.bytes();
    if cramped { SMALL_CHUNK } else { CHUNK }
}

/// The most elements one launch may name: three vectors' pages have to fit in `held`.
fn piece(held: u64, page: PageSize) -> Result<usize, Failure> {
    let pages = held / page.bytes() / 3;
    if pages == 0 {
        return Err(Failure::Usage(format!(
            "without replay a launch holds a page of each of the three vectors: --device-memory must be at least 3 pages of {page}"
        )));
    }
    Ok((pages * page.bytes() / 8) as usize)
}

/// Fills, adds, checks.
pub(crate) fn run<E: Engine>(engine: &E, setup: &Setup, elements: usize) -> Result<Outcome, Failure> {
    let piece = setup.held_at_once().map_or(Ok(elements), |held| piece(held, setup.page_size))?;
    let chunk = chunk(setup);
    let mut a = engine.zeroed::<u64>(elements)?;
    let mut b = engine.zeroed::<u64>(elements)?;
    let mut c = engine.zeroed::<u64>(elements)?;

    let phase = progress::phase("the CPU fills", elements as u64);
    for (chunk, (a, b)) in a.chunks_mut(CHUNK).zip(b.chunks_mut(CHUNK)).enumerate() {
        for (i, (a, b)) in a.iter_mut().zip(b.iter_mut()).enumerate() {
            (*a, *b) = pattern(chunk * CHUNK + i);
        }
        phase.advance(a.len() as u64);
    }
    drop(phase);

    let pieces = elements.div_ceil(piece) as u64;
    let phase = progress::phase("the device adds", if pieces > 1 { pieces } else { 0 });
    let started = Instant::now();
    for ((a, b), c) in a.chunks(piece).zip(b.chunks(piece)).zip(c.chunks_mut(piece)) {
        add(engine, a, b, c, chunk)?;
        phase.advance(1);
    }
    let device = started.elapsed();
    drop(phase);

    let phase = progress::phase("the CPU checks", elements as u64);
    let mut mismatch = None;
    for (chunk, c) in c.chunks(CHUNK).enumerate() {
        mismatch = first_mismatch(c, chunk * CHUNK);
        phase.advance(c.len() as u64);
        if mismatch.is_some() {
            break;
        }
    }
    Ok(Outcome { device, mismatch })
}

fn first_mismatch(c: &[u64], base: usize) -> Option<Mismatch> {
    let expected = |i: usize| {
        let (a, b) = pattern(base + i);
        a.wrapping_add(b)
    };
    let at = c.iter().enumerate().position(|(i, found)| *found != expected(i))?;
    Some(Mismatch { index: base + at, expected: expected(at), found: c[at] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Plain;

    #[test]
    fn every_element_is_added_once_whatever_the_cores() {
        for workers in [1, 2, 3, 7] {
            for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
                let a: Vec<u64> = (0..len).map(|i| pattern(i).0).collect();
                let b: Vec<u64> = (0..len).map(|i| pattern(i).1).collect();
                let mut c = vec![0; len];
                for chunk in [SMALL_CHUNK, CHUNK] {
                    c.fill(0);
                    add(&Plain { workers }, &a, &b, &mut c, chunk).unwrap();
                    assert_eq!(first_mismatch(&c, 0), None, "{workers} workers, {len} elements");
                }
            }
        }
    }

    #[test]
    fn the_check_finds_the_first_wrong_element() {
        let mut c: Vec<u64> = (100..200).map(|i| pattern(i).0.wrapping_add(pattern(i).1)).collect();
        assert_eq!(first_mismatch(&c, 100), None);
        c[50] ^= 1;
        c[60] ^= 1;
        let found = first_mismatch(&c, 100).unwrap();
        assert_eq!((found.index, found.expected ^ found.found), (150, 1));
        assert!(found.to_string().starts_with("element 150 should be 0x"));
    }

    #[test]
    fn the_bytes_that_must_cross_are_those_of_the_paper() {
        assert_eq!(bytes_that_must_cross(DEFAULT_ELEMENTS, 600 << 20), (1600 + 200) << 20);
        assert_eq!(bytes_that_must_cross(DEFAULT_ELEMENTS, 4 << 30), 1600 << 20);
    }

    #[test]
    fn by_default_the_device_holds_a_quarter_of_the_data() {
        assert_eq!(needs(DEFAULT_ELEMENTS).device_memory(PageSize::Size2M), 600 << 20);
        assert_eq!(needs(1000).device_memory(PageSize::Size2M), 10 << 20);
        assert_eq!(needs(1000).device_memory(PageSize::Size4K), 32 << 10);
    }

    #[test]
    fn a_launch_without_replay_names_no_more_than_fits() {
        assert_eq!(piece(6 << 20, PageSize::Size2M).unwrap(), CHUNK);
        assert_eq!(piece(16 << 20, PageSize::Size2M).unwrap(), 2 * CHUNK);
        assert!(matches!(piece(4 << 20, PageSize::Size2M), Err(Failure::Usage(_))));
    }
}
