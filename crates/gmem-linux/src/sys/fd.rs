//! A descriptor that lives in gmem's own table.

use crate::Threads;
use core::mem::ManuallyDrop;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor opened by a gmem thread. It may be dropped by any thread: closing happens on a gmem thread, because in the program's table
/// the same number is something else.
#[derive(Debug)]
pub(crate) struct GmemFd {
    fd: ManuallyDrop<OwnedFd>,
    threads: Arc<Threads>,
}

impl GmemFd {
    /// Takes a descriptor that the calling gmem thread has just opened.
    pub(crate) fn new(fd: OwnedFd, threads: &Arc<Threads>) -> Self {
        assert!(threads.is_current(), "a descriptor of gmem was opened outside its threads");
        Self { fd: ManuallyDrop::new(fd), threads: threads.clone() }
    }

    /// The descriptor; `EBADF` in a thread that has another table, where the same number is nothing, or something else.
    pub(crate) fn here(&self) -> Result<BorrowedFd<'_>, Errno> {
        if self.threads.lend_descriptors() { Ok(self.fd.as_fd()) } else { Err(Errno::BADF) }
    }
}

impl AsFd for GmemFd {
    /// The descriptor, for gmem's own threads. Nothing checks that it is one: what others may call takes [`GmemFd::here`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for GmemFd {
    fn drop(&mut self) {
        // SAFETY: this is drop, so nobody uses `fd` after it was taken.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        self.threads.run(move || drop(fd));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_there_for_threads_that_have_the_table_and_for_no_others() {
        let threads = Arc::new(Threads::start().expect("threads"));
        let fd = threads.run(|| {
            let file = rustix::fs::memfd_create("gmem-test", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
            Arc::new(GmemFd::new(file, &threads))
        });
        // The same number in the program's table is nothing, or a file of the program's.
        assert_eq!(fd.here().err(), Some(Errno::BADF));
        assert!(threads.run(|| fd.here().is_ok()), "one of the threads");
        let for_child = fd.clone();
        let child = threads.run(|| std::thread::spawn(move || (for_child.here().is_ok(), for_child.here().is_ok())));
        assert_eq!(child.join().expect("it ends"), (true, true), "a thread that one of them started");
    }
}
