//! The floor of a CPU fault that a thread resolves: userfaultfd, one copy of 2 MiB, one call that lets the page be mapped.

use super::memory::{PAGE, Pair, Window, byte_of, failed};
use crate::bench::Timed;
use crate::failure::Failure;
use linux_raw_sys::general::{
    _UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER, UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_MINOR_SHMEM,
    UFFD_FEATURE_MISSING_SHMEM, UFFD_USER_MODE_ONLY, UFFDIO, uffd_msg, uffdio_api, uffdio_range, uffdio_register,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::mm::{Advice, UserfaultfdFlags, madvise, userfaultfd};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

const API: u32 = opcode::read_write::<uffdio_api>(UFFDIO as u8, _UFFDIO_API as u8);
const REGISTER: u32 = opcode::read_write::<uffdio_register>(UFFDIO as u8, _UFFDIO_REGISTER as u8);
const UNREGISTER: u32 = opcode::read::<uffdio_range>(UFFDIO as u8, _UFFDIO_UNREGISTER as u8);

/// `UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR`: a page that is in the object and not in the page table is reported.
const MISSING_OR_MINOR: u64 = 1 | 1 << 2;

/// What the faulting and the resolving thread share.
struct Shared {
    pair: Pair,
    window: Window,
    faults: OwnedFd,
}

/// The floor.
pub(crate) struct ServiceFault {
    shared: Arc<Shared>,
    next: usize,
    // Closing this end is how the thread is told to end.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl ServiceFault {
    /// With `pages` pages, taken in turn so that none is in a cache when its turn comes.
    pub(crate) fn new(pages: usize) -> Result<Self, Failure> {
        let pair = Pair::new(pages)?;
        let window = Window::on(pair.object.as_fd(), 0, pages)?;
        // No system call touches the window, so faults of user code are enough; those may be had without privileges.
        let user_only = UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | user_only;
        // SAFETY: the descriptor is used on `window` alone.
        let faults = unsafe { userfaultfd(flags) }.map_err(failed("userfaultfd"))?;
        let mut api =
            uffdio_api { api: UFFD_API.into(), features: u64::from(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM), ioctls: 0 };
        // SAFETY: `API` takes and fills an `uffdio_api`.
        unsafe { ioctl(&faults, Updater::<API, _>::new(&mut api)) }.map_err(failed("UFFDIO_API"))?;
        let shared = Arc::new(Shared { pair, window, faults });
        for page in 0..pages {
            shared.take(page)?;
        }
        let (stopped, stop) = std::io::pipe().map_err(|e| Failure::while_doing("a pipe", e))?;
        let resolver = Arc::clone(&shared);
        let thread = std::thread::spawn(move || resolver.resolve(&stopped));
        Ok(Self { shared, next: 0, stop: Some(stop), thread: Some(thread) })
    }
}

impl Timed for ServiceFault {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.next;
        self.next = (page + 1) % self.shared.window.pages();
        let at = self.shared.window.page(page);
        let started = Instant::now();
        // SAFETY: the page is mapped for reading; the access waits until the thread has resolved it.
        let byte = unsafe { at.read_volatile() };
        let nanoseconds = started.elapsed().as_nanos() as f64;
        assert_eq!(byte, byte_of(page), "the frame's content came home");
        self.shared.take(page)?;
        Ok(nanoseconds)
    }
}

impl Drop for ServiceFault {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its own failure has shown itself already: the fault it did not resolve would not have returned.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Takes a page from the CPU, so that the next access is a fault.
    fn take(&self, page: usize) -> Result<(), Failure> {
        let at = self.window.page(page);
        let range = uffdio_range { start: at.addr() as u64, len: PAGE as u64 };
        let mut register = uffdio_register { range, mode: MISSING_OR_MINOR, ioctls: 0 };
        // SAFETY: `REGISTER` takes and fills an `uffdio_register`; the page is ours.
        unsafe { ioctl(&self.faults, Updater::<REGISTER, _>::new(&mut register)) }.map_err(failed("UFFDIO_REGISTER"))?;
        // SAFETY: the page belongs to the window; the memory object keeps the bytes, only the mapping goes.
        unsafe { madvise(at.cast(), PAGE, Advice::LinuxDontNeed) }.map_err(failed("MADV_DONTNEED"))
    }

    /// The thread: waits for faults until `stopped` closes.
    fn resolve(&self, stopped: &PipeReader) -> Result<(), Failure> {
        loop {
            let mut waits = [PollFd::new(&self.faults, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            poll(&mut waits, None).map_err(failed("poll"))?;
            if !waits[1].revents().is_empty() {
                return Ok(());
            }
            let mut message = [0u8; size_of::<uffd_msg>()];
            match rustix::io::read(&self.faults, &mut message) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => continue,
                Err(e) => return Err(failed("reading a fault")(e)),
            }
            // SAFETY: the kernel wrote a whole `uffd_msg`, of which any bytes are a valid value; the buffer need not be aligned.
            let message: uffd_msg = unsafe { message.as_ptr().cast::<uffd_msg>().read_unaligned() };
            if u32::from(message.event) != UFFD_EVENT_PAGEFAULT {
                continue;
            }
            // SAFETY: for this event the union holds the page fault.
            let address = unsafe { message.arg.pagefault.address } as usize;
            let Some(page) = self.window.find(address) else { continue };
            self.pair.bring_home(page);
            let mut range = uffdio_range { start: self.window.page(page).addr() as u64, len: PAGE as u64 };
            // SAFETY: `UNREGISTER` takes an `uffdio_range`; afterwards the kernel maps the home by itself, and whoever waits is woken.
            unsafe { ioctl(&self.faults, Updater::<UNREGISTER, _>::new(&mut range)) }.map_err(failed("UFFDIO_UNREGISTER"))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_brings_the_frame_home_each_time() {
        let Ok(mut floor) = ServiceFault::new(2) else {
            eprintln!("skipped: userfaultfd is not permitted here");
            return;
        };
        for _ in 0..6 {
            assert!(floor.once().unwrap() > 0.0);
        }
    }
}
