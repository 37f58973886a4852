//! Faults through gmem, timed one at a time.

use super::kernels::{TOUCH, TOUCH_TIMED};
use crate::bench::Timed;
use crate::engine::Engine;
use crate::failure::Failure;
use gmem::Args;
use std::time::Instant;

/// A CPU fault on a page that a device holds.
pub(crate) struct CpuFault<'e, E: Engine> {
    engine: &'e E,
    pages: Pages<E>,
}

impl<'e, E: Engine> CpuFault<'e, E> {
    /// `count` pages of `page` bytes, `stride` bytes apart, taken in turn so that none is in a cache when its turn comes.
    pub(crate) fn new(engine: &'e E, count: usize, page: usize, stride: usize) -> Result<Self, Failure> {
        Ok(Self { engine, pages: Pages::new(engine, count, page, stride)? })
    }
}

impl<E: Engine> Timed for CpuFault<'_, E> {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.pages.next();
        let len = page.len();
        touch_on_device(self.engine, page, len)?;
        let started = Instant::now();
        touch_here(page);
        Ok(started.elapsed().as_nanos() as f64)
    }
}

/// A device's fault on a page that it has no mapping of, timed on the device.
pub(crate) struct DeviceFault<'e, E: Engine, P> {
    engine: &'e E,
    pages: Pages<E>,
    nanoseconds: E::Buffer<u64>,
    /// Makes the device fault on the page at its next access.
    prepare: P,
}

impl<'e, E: Engine, P: FnMut(&mut [u8]) -> Result<(), Failure>> DeviceFault<'e, E, P> {
    /// As [`CpuFault::new`]; `prepare` gets a page and takes it, or its mapping, from the device.
    pub(crate) fn new(engine: &'e E, count: usize, page: usize, prepare: P) -> Result<Self, Failure> {
        Ok(Self { engine, pages: Pages::new(engine, count, page, page)?, nanoseconds: engine.zeroed(1)?, prepare })
    }
}

impl<E: Engine, P: FnMut(&mut [u8]) -> Result<(), Failure>> Timed for DeviceFault<'_, E, P> {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.pages.next();
        (self.prepare)(page)?;
        let args = Args::new().write(page).write(&mut self.nanoseconds);
        // SAFETY: these are the arguments of `TOUCH_TIMED`: a byte and a number, both writable.
        unsafe { self.engine.launch(&TOUCH_TIMED, args)? };
        Ok(self.nanoseconds[0] as f64)
    }
}

/// The pages of a bench, in turn.
struct Pages<E: Engine> {
    buffer: E::Buffer<u8>,
    page: usize,
    stride: usize,
    next: usize,
}

impl<E: Engine> Pages<E> {
    fn new(engine: &E, count: usize, page: usize, stride: usize) -> Result<Self, Failure> {
        let buffer = engine.zeroed::<u8>(count * stride)?;
        let mut pages = Self { buffer, page, stride, next: 0 };
        // A first touch makes memory; what is timed is the movement of memory that exists.
        for _ in 0..count {
            touch_here(pages.next());
        }
        Ok(pages)
    }

    fn next(&mut self) -> &mut [u8] {
        let at = self.next;
        self.next = (at + self.stride) % self.buffer.len();
        &mut self.buffer[at..at + self.page]
    }
}

/// Has the device write to every page of `memory`, which brings it there.
pub(crate) fn touch_on_device<E: Engine>(engine: &E, memory: &mut [u8], page: usize) -> Result<(), Failure> {
    let len = memory.len();
    // SAFETY: the arguments of `TOUCH` are writable memory, its length, and the distance between touches.
    unsafe { engine.launch(&TOUCH, Args::new().write(memory).number(len).number(page)) }
}

/// Writes to the page on the CPU, in a way the compiler cannot leave out.
pub(crate) fn touch_here(page: &mut [u8]) {
    let byte: *mut u8 = &mut page[0];
    // SAFETY: the byte is borrowed for writing.
    unsafe { byte.write_volatile(byte.read_volatile().wrapping_add(1)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Plain;

    #[test]
    fn pages_are_taken_in_turn_and_touched_by_both_sides() {
        let engine = Plain { workers: 2 };
        let mut fault = CpuFault::new(&engine, 3, 16, 64).unwrap();
        for _ in 0..4 {
            fault.once().unwrap();
        }
        let first_bytes: Vec<u8> = fault.pages.buffer.iter().step_by(64).copied().collect();
        // One touch at the start, then two a turn.
        assert_eq!(first_bytes, [5, 3, 3]);
        assert!(fault.pages.buffer.iter().enumerate().all(|(i, b)| i % 64 == 0 || *b == 0));
    }

    #[test]
    fn a_fault_of_the_device_is_timed_on_the_device() {
        let engine = Plain { workers: 2 };
        let mut prepared = 0;
        let mut fault = DeviceFault::new(&engine, 2, 64, |_: &mut [u8]| {
            prepared += 1;
            Ok(())
        })
        .unwrap();
        fault.once().unwrap();
        fault.once().unwrap();
        assert_eq!(fault.pages.buffer[0], 2);
        drop(fault);
        assert_eq!(prepared, 2);
    }
}
