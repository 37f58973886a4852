//! The thread that resolves CPU faults for everybody.
//!
//! It reads the service userfaultfd and asks the core. It never touches managed memory, allocates nothing per fault, and takes no lock that a
//! program thread can hold. The userfaultfd does not ask for events about unmapping and zapping, so this thread may do both itself.
//!
//! A fault that cannot be resolved must not hang its thread, nor give it zeros. The base page is **poisoned**: the access dies with
//! SIGBUS, a system call on it fails with `EFAULT`. Before Linux 6.6 there is no poison, and access to the base page is taken away instead, which gives
//! SIGSEGV. Either ends when the page is next mapped, or with its region.

use crate::fault::Faults;
use crate::report;
use crate::sys::area;
use crate::sys::uffd::{Message, Uffd};
use arrayvec::ArrayVec;
use gmem_hal::{FaultError, HostError, HostFault, PageSize, VirtRange};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;

/// Serves faults until `stop` becomes readable.
pub(crate) fn serve(uffd: &Uffd, faults: &Faults, stop: impl AsFd) {
    let _guard = DiesWithUs;
    let mut messages = ArrayVec::new();
    loop {
        let mut fds = [PollFd::new(uffd.fd(), PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                panic!("the fault service cannot poll: errno {}", e.raw_os_error());
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        // EAGAIN: the faulter went away, or a wake was quicker.
        loop {
            // Before they are read: whoever is in a message waits until it is.
            let epoch = faults.epoch();
            if uffd.read(&mut messages).is_err() || messages.is_empty() {
                break;
            }
            messages.iter().for_each(|m| one(uffd, faults, epoch, m));
        }
    }
}

/// Ends the process if the service panics: without it every thread that faults would hang, and nobody would know why.
struct DiesWithUs;

impl Drop for DiesWithUs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report::line(format_args!("gmem: the fault service panicked; no fault can be resolved any more"));
            std::process::abort();
        }
    }
}

fn one(uffd: &Uffd, faults: &Faults, epoch: u64, message: &Message) {
    let page = VirtRange::page(message.va, PageSize::Size4K).expect("a user address");
    match faults.resolve(message.va, message.access, false) {
        // Mapping woke its waiters; this one may have come after that and before the page was there.
        HostFault::Resolved => uffd.wake(page),
        // The core wakes it when the page is free.
        HostFault::Pending => {}
        // The program is moving registered memory elsewhere and waits until we read of it, which is next; until then the kernel maps nothing.
        HostFault::Failed(FaultError::Host(HostError::Os(e))) if e == Errno::AGAIN.raw_os_error() => uffd.wake(page),
        failed @ (HostFault::NotOurs | HostFault::Failed(_)) => {
            let mut dies = false;
            faults.poison(page.start(), epoch, || {
                dies = match uffd.poison(page.start()) {
                    Ok(()) => true,
                    // Present after all: the access can be tried again.
                    Err(Errno::EXIST) => false,
                    // Nothing of ours is registered there any more: the access meets what is there now.
                    Err(Errno::NOENT) => false,
                    Err(_) => area::forbid(page),
                };
                dies
            });
            if dies {
                report::failed_access(message.va, message.access, &failed);
            }
            uffd.wake(page);
        }
    }
}
