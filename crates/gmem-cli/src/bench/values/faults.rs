//! Faults through gmem, timed one at a time.
//!
//! All pages are put on the far side in one go, and then taken in turn. So between a page's two journeys lie those of all others, and no copy finds its
//! page in a cache, as no copy of the floors does.

use super::kernels::{TOUCH, TOUCH_TIMED};
use crate::bench::Timed;
use crate::engine::{Engine, Unified};
use crate::failure::Failure;
use gmem::{Args, Prot, Region};
use std::time::Instant;

/// A CPU fault on a page that a device holds and has written to.
pub(crate) struct CpuFault<'e, E: Engine> {
    engine: &'e E,
    pages: Pages<E>,
}

impl<'e, E: Engine> CpuFault<'e, E> {
    /// `count` pages of `page` bytes, `stride` bytes apart.
    pub(crate) fn new(engine: &'e E, count: usize, page: usize, stride: usize) -> Result<Self, Failure> {
        Ok(Self { engine, pages: Pages::new(engine, count, page, stride)? })
    }
}

impl<E: Engine> Timed for CpuFault<'_, E> {
    fn once(&mut self) -> Result<f64, Failure> {
        if self.pages.next == 0 {
            let stride = self.pages.stride;
            touch_on_device(self.engine, &mut self.pages.buffer, stride)?;
        }
        let page = self.pages.next();
        let started = Instant::now();
        read_here(page);
        Ok(started.elapsed().as_nanos() as f64)
    }
}

/// A device's fault on a page that the CPU holds and has written to: the page is copied to the device. Timed on the device.
pub(crate) struct DeviceFault<'e, E: Engine> {
    engine: &'e E,
    pages: Pages<E>,
    nanoseconds: E::Buffer<u64>,
}

impl<'e, E: Engine> DeviceFault<'e, E> {
    /// As [`CpuFault::new`], with pages that lie side by side.
    pub(crate) fn new(engine: &'e E, count: usize, page: usize) -> Result<Self, Failure> {
        Ok(Self { engine, pages: Pages::new(engine, count, page, page)?, nanoseconds: engine.zeroed(1)? })
    }
}

impl<E: Engine> Timed for DeviceFault<'_, E> {
    fn once(&mut self) -> Result<f64, Failure> {
        if self.pages.next == 0 {
            self.pages.touch_all();
        }
        let page = self.pages.next();
        // The number is on the side of the CPU now, so writing to it is the fault that wakes whoever resolves faults.
        let number = self.nanoseconds.as_ptr().expose_provenance();
        let args = Args::new().number(number).read(page).number(1u32).number(0u32).write(&mut self.nanoseconds);
        // SAFETY: these are the arguments of `TOUCH_TIMED`: a readable byte, another one, and a writable number.
        unsafe { self.engine.launch(&TOUCH_TIMED, args)? };
        Ok(self.nanoseconds[0] as f64)
    }
}

/// A device's faults on pages of the host that its table does not have, in REPLICATE mode: nothing is copied. Timed on the device, several in a row,
/// because that is how they come: a single one after a pause is mostly the time it takes to wake those who resolve it.
pub(crate) struct ReplicaFaults<'e> {
    unified: &'e Unified,
    region: Region,
    page: usize,
    count: usize,
    next: usize,
    nanoseconds: <Unified as Engine>::Buffer<u64>,
}

/// The pages of one launch: the first is not timed.
const ROW: usize = 16;

impl<'e> ReplicaFaults<'e> {
    /// `count` pages, a multiple of 16, of `page` bytes, the page size of `unified`.
    pub(crate) fn new(unified: &'e Unified, count: usize, page: usize) -> Result<Self, Failure> {
        assert!(count.is_multiple_of(ROW));
        let region = unified.region((count * page) as u64)?;
        for at in 0..count {
            // SAFETY: `at < count`, the region has `count` pages and is readable and writable, and nobody else uses it.
            unsafe { region.as_ptr().add(at * page).write_volatile(1) };
        }
        Ok(Self { unified, region, page, count, next: 0, nanoseconds: unified.zeroed(1)? })
    }

    /// Takes every page from the device's table. The host keeps the data.
    fn forget(&self) -> Result<(), Failure> {
        self.region.protect(self.region.range(), Prot::empty())?;
        self.region.protect(self.region.range(), Prot::RW)?;
        Ok(())
    }
}

impl Timed for ReplicaFaults<'_> {
    fn once(&mut self) -> Result<f64, Failure> {
        if self.next == 0 {
            self.forget()?;
        }
        let first = self.region.range().start().get() as usize + self.next * self.page;
        self.next = (self.next + ROW) % self.count;
        let timed = Args::new().number(first).number(first + self.page).number(ROW - 1).number(self.page);
        // SAFETY: these are the arguments of `TOUCH_TIMED`: the addresses of `ROW` pages of the region, which is readable again, and a writable number.
        unsafe { self.unified.launch(&TOUCH_TIMED, timed.write(&mut self.nanoseconds))? };
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
        pages.touch_all();
        Ok(pages)
    }

    /// The CPU writes to every page.
    fn touch_all(&mut self) {
        let (page, stride) = (self.page, self.stride);
        self.buffer.chunks_mut(stride).for_each(|chunk| touch_here(&mut chunk[..page]));
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

/// Reads from the page on the CPU, in a way the compiler cannot leave out.
fn read_here(page: &[u8]) -> u8 {
    // SAFETY: the byte is borrowed for reading.
    unsafe { (&raw const page[0]).read_volatile() }
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
        // One touch by the CPU at the start, one by the device for each of two rounds.
        assert_eq!(first_bytes, [3, 3, 3]);
        assert!(fault.pages.buffer.iter().enumerate().all(|(i, b)| i % 64 == 0 || *b == 0));
    }

    #[test]
    fn a_fault_of_the_device_is_timed_on_the_device() {
        let engine = Plain { workers: 2 };
        let mut fault = DeviceFault::new(&engine, 2, 64).unwrap();
        for _ in 0..3 {
            fault.once().unwrap();
        }
        // The CPU touches at the start, and before each of two rounds.
        assert_eq!(fault.pages.buffer[0], 3);
    }
}
