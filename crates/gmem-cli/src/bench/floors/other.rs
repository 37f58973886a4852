//! The floors with another process: it maps 2 MiB on request, or faults and has 2 MiB brought.

use super::memory::{PAGE, Window, memory_object};
use super::ring::{Request, Ring, advance, spin};
use crate::bench::{OTHER_PROCESS, Timed};
use crate::failure::Failure;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The memory object the processes share: the ring's page, then the homes, then the frames of the other process.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) pages: usize,
}

impl Layout {
    /// The layout of an object of this many bytes.
    pub(crate) fn of(bytes: u64) -> Self {
        Self { pages: (bytes as usize / PAGE - 1) / 2 }
    }

    pub(crate) fn object_pages(self) -> usize {
        1 + 2 * self.pages
    }

    pub(crate) fn home(self, page: usize) -> usize {
        1 + page
    }

    pub(crate) fn frame(self, page: usize) -> usize {
        1 + self.pages + page
    }
}

/// The other process, as its parent sees it.
pub(crate) struct OtherProcess {
    child: Child,
    ring: Window,
    homes: Window,
    frames: Window,
    next: usize,
}

impl OtherProcess {
    /// Starts it, with `pages` pages taken in turn.
    pub(crate) fn start(pages: usize) -> Result<Self, Failure> {
        let layout = Layout { pages };
        let object = memory_object(layout.object_pages())?;
        let ring = Window::on(object.as_fd(), 0, 1)?;
        let homes = Window::on(object.as_fd(), layout.home(0), pages)?;
        let frames = Window::on(object.as_fd(), layout.frame(0), pages)?;
        homes.populate(false);
        frames.populate(true);
        let starting = |e: std::io::Error| Failure::while_doing("starting the other process of the floor", e);
        let program = std::env::current_exe().map_err(starting)?;
        // The object is the child's standard input: the one descriptor that needs no name.
        let child = Command::new(program).arg(OTHER_PROCESS).stdin(Stdio::from(object)).stdout(Stdio::null()).spawn().map_err(starting)?;
        let mut other = Self { child, ring, homes, frames, next: 0 };
        other.ask(Request::Wake, 0)?;
        Ok(other)
    }

    fn ring(&self) -> &Ring {
        // SAFETY: the ring's page is mapped for as long as `self` lives; it consists of atomics, which two processes may share, and began as zeros.
        unsafe { &*self.ring.page(0).cast::<Ring>() }
    }

    /// Asks and waits for the end, resolving the fault the request may lead to.
    fn ask(&mut self, request: Request, page: usize) -> Result<(), Failure> {
        let child = &mut self.child;
        // SAFETY: as in `ring`; borrowed apart from `child`.
        let ring = unsafe { &*self.ring.page(0).cast::<Ring>() };
        ring.request.store(request as u32, Ordering::Relaxed);
        ring.page.store(page as u32, Ordering::Relaxed);
        advance(&ring.asked);
        let asked = ring.asked.load(Ordering::Relaxed);
        let (homes, frames) = (&self.homes, &self.frames);
        let ready = || {
            if ring.faulted.load(Ordering::Acquire) != ring.resolved.load(Ordering::Relaxed) {
                // SAFETY: both windows have the page and do not overlap; the other process waits for this copy and touches neither.
                unsafe { std::ptr::copy_nonoverlapping(homes.page(page), frames.page(page), PAGE) };
                ring.resolved.fetch_add(1, Ordering::Release);
            }
            ring.done.load(Ordering::Acquire) == asked
        };
        spin(ready, || matches!(child.try_wait(), Ok(None)))?;
        match ring.failed.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Failure::Failed(format!("the hand-written floor: the other process could not do {request:?}"))),
        }
    }

    /// The page whose turn it is, with the other process awake and looking.
    fn begin(&mut self) -> Result<usize, Failure> {
        let page = self.next;
        self.next = (page + 1) % self.homes.pages();
        self.ask(Request::Wake, 0)?;
        Ok(page)
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        // It holds nothing that could be left half done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The floor of a REPLICATE fault: the other process maps a page of host memory and touches it.
pub(crate) struct MapElsewhere(pub(crate) OtherProcess);

impl Timed for MapElsewhere {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.0.begin()?;
        let started = Instant::now();
        self.0.ask(Request::MapHome, page)?;
        let nanoseconds = started.elapsed().as_nanos() as f64;
        self.0.ask(Request::Unmap, page)?;
        Ok(nanoseconds)
    }
}

/// The floor of an EXCLUSIVE fault of a device: the other process touches an absent page, says so, gets a copy of 2 MiB and maps it. Timed there.
pub(crate) struct FaultElsewhere(pub(crate) OtherProcess);

impl Timed for FaultElsewhere {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.0.begin()?;
        self.0.ask(Request::Touch, page)?;
        let nanoseconds = self.0.ring().nanoseconds.load(Ordering::Relaxed) as f64;
        self.0.ask(Request::Unmap, page)?;
        Ok(nanoseconds)
    }
}
