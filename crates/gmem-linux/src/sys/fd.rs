//! A descriptor that lives in gmem's own table.

use crate::Threads;
use core::mem::ManuallyDrop;
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
}

impl AsFd for GmemFd {
    /// The descriptor, meaningful in gmem's own threads, and in threads that those started, which inherit the table. Nothing checks it: the calls
    /// that end here are documented to be made there, and in the program's threads they would meet a wrong descriptor, which refuses them.
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
