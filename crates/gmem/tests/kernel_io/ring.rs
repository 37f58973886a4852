//! An io_uring whose registered buffers are unified memory.

use io_uring::{IoUring, opcode, types};
use std::os::fd::AsRawFd;

pub(crate) struct Ring {
    ring: IoUring,
    buffers: Vec<(u64, u32)>,
}

impl Ring {
    /// With these buffers registered (address and length), which has the kernel hold their pages until the ring is dropped. `None`, with a line that says so, where io_uring is not
    /// permitted.
    pub(crate) fn with_buffers(buffers: &[(u64, u32)]) -> Option<Self> {
        let ring = match IoUring::new(8) {
            Ok(ring) => ring,
            Err(e) => {
                eprintln!("skipped: io_uring is not permitted here: {e}");
                return None;
            }
        };
        let vectors: Vec<_> = buffers.iter().map(|(va, len)| libc::iovec { iov_base: *va as *mut _, iov_len: *len as usize }).collect();
        // SAFETY: the tests pass memory of regions that outlive the ring.
        unsafe { ring.submitter().register_buffers(&vectors) }.unwrap();
        Some(Self { ring, buffers: buffers.to_vec() })
    }

    fn submit(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: the entry names a registered buffer and a file that lives until the test has waited.
        unsafe { self.ring.submission().push(entry) }.unwrap();
        self.ring.submit().unwrap();
    }

    /// Has the kernel write a buffer to a file. Does not wait.
    pub(crate) fn write(&mut self, file: &std::fs::File, buffer: usize, offset: u64) {
        let (va, len) = self.buffers[buffer];
        let entry = opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), va as *const u8, len, buffer as u16);
        self.submit(&entry.offset(offset).build());
    }

    /// Has the kernel read into a buffer from a file. Does not wait.
    pub(crate) fn read(&mut self, file: &std::fs::File, buffer: usize, offset: u64) {
        let (va, len) = self.buffers[buffer];
        let entry = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), va as *mut u8, len, buffer as u16);
        self.submit(&entry.offset(offset).build());
    }

    /// Waits for one request and returns its result: bytes, or a negative errno.
    pub(crate) fn wait(&mut self) -> i32 {
        self.ring.submit_and_wait(1).unwrap();
        self.ring.completion().next().expect("waited for").result()
    }
}
