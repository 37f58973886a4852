//! Lines on stderr from places that must not allocate or lock.

use core::fmt::{self, Write};
use gmem_hal::{Access, HostFault, VirtAddr, Wait};
use std::os::fd::AsFd;

/// A line of bounded length, built without allocation. What does not fit is cut off.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // One byte is kept for the newline.
        let room = self.bytes.len() - 1 - self.len;
        let n = s.len().min(room);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Writes one line to stderr. Async-signal-safe: formats into the stack and makes one `write` system call, whose failure is ignored because there is
/// nowhere to report it.
pub(crate) fn line(args: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 256], len: 0 };
    let _ = line.write_fmt(args);
    line.bytes[line.len] = b'\n';
    let _ = rustix::io::write(std::io::stderr().as_fd(), &line.bytes[..=line.len]);
}

/// Says why a thread is about to die of an access: the signal alone would not.
pub(crate) fn failed_access(va: VirtAddr, access: Access, why: &HostFault) {
    match why {
        HostFault::Failed(error) => line(format_args!("gmem: {access:?} at {va} failed: {error}")),
        _ => line(format_args!("gmem: {access:?} at {va} failed: no address space there")),
    }
}

/// Says that a wait has lasted longer than a second.
pub(crate) fn long_wait(what: &Wait) {
    let kind = what.kind;
    match what.space {
        Some(space) => line(format_args!("gmem: waiting more than 1 s: {kind:?} at {} of {space}, held by {}", what.at, what.owner)),
        None => line(format_args!("gmem: waiting more than 1 s: {kind:?} at {}, held by {}", what.at, what.owner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_fit_is_cut() {
        let mut line = Line { bytes: [0; 256], len: 0 };
        for _ in 0..100 {
            line.write_str("12345678").expect("never fails");
        }
        assert_eq!(line.len, 255);
    }
}
