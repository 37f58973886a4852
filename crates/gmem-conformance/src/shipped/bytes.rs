//! A memory object by which a kernel in another process gets bytes and gives them back, without touching unified memory for it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// An object of the program's, which another process opens as `/proc/<process>/fd/<descriptor>`.
pub(super) struct Bytes(File);

impl Bytes {
    /// Of `len` zeros.
    pub(super) fn of_len(len: usize) -> Self {
        // SAFETY: makes a descriptor, which is ours if there is one.
        let file = unsafe {
            let fd = libc::memfd_create(c"gmem-conformance".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "no memory object: {}", std::io::Error::last_os_error());
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(len as u64).expect("a memory object can have any length");
        Self(file)
    }

    /// With these bytes.
    pub(super) fn holding(bytes: &[u8]) -> Self {
        let object = Self::of_len(bytes.len());
        object.0.write_all_at(bytes, 0).expect("a memory object can be written");
        object
    }

    /// Changes one of its words.
    pub(super) fn set_word(&self, number: u64, word: u64) {
        self.0.write_all_at(&word.to_ne_bytes(), 8 * number).expect("a memory object can be written");
    }

    /// One of its words.
    pub(super) fn word(&self, number: u64) -> u64 {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, 8 * number).expect("a memory object can be read");
        u64::from_ne_bytes(word)
    }

    /// What it holds now.
    pub(super) fn read(&self, bytes: &mut [u8]) {
        self.0.read_exact_at(bytes, 0).expect("a memory object can be read");
    }

    /// How a kernel is told: process, descriptor, length.
    pub(super) fn words(&self, len: usize) -> [u64; 3] {
        [u64::from(std::process::id()), self.0.as_raw_fd() as u64, len as u64]
    }
}
