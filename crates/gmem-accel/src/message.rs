//! What a kernel said when it panicked, and its way to the host.
//!
//! The host trusts neither the length nor the bytes: it copies what fits, takes what is no text for the replacement character, and lets nothing through that
//! a terminal would obey.

use crate::shm::{MESSAGE, Shared};
use crate::sync::atomic::Ordering;
use std::any::Any;

/// The text of a panic; empty if it panicked with something else, which is left where it is: dropping it would run code of the program's that may panic again.
pub(crate) fn of(panic: Box<dyn Any + Send>) -> String {
    let other = match panic.downcast::<String>() {
        Ok(text) => return *text,
        Err(other) => other,
    };
    match other.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(other) => {
            std::mem::forget(other);
            String::new()
        }
    }
}

/// Writes the beginning of `text` into the record of a launch, whole characters only. Returns its length in bytes.
pub(crate) fn write(shm: &Shared, record: u32, text: &str) -> u64 {
    let bytes = &text.as_bytes()[..text.floor_char_boundary(MESSAGE)];
    for (i, chunk) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        shm.launch_message(record, i).store(u64::from_ne_bytes(word), Ordering::Relaxed);
    }
    bytes.len() as u64
}

/// Reads what the device wrote into the record of a launch, `len` bytes as it says.
pub(crate) fn read(shm: &Shared, record: u32, len: u64) -> String {
    let len = usize::try_from(len).map_or(MESSAGE, |len| len.min(MESSAGE));
    let bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|i| shm.launch_message(record, i).load(Ordering::Relaxed).to_ne_bytes()).collect();
    clean(&String::from_utf8_lossy(&bytes[..len]))
}

/// `text` without what a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::LAUNCHES;

    fn memory() -> Shared {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, Shared::LEN as u64).unwrap();
        Shared::map(&fd).unwrap()
    }

    #[test]
    fn a_message_survives_or_loses_its_end() {
        let shm = memory();
        for text in ["", "a", "seven b", "eight by", "left: 1\n\tright: 2", "grün ✓"] {
            let len = write(&shm, LAUNCHES as u32 - 1, text);
            assert_eq!(read(&shm, LAUNCHES as u32 - 1, len), text);
        }
        // Three bytes each: the last that would fit in part is left out.
        let long = "✓".repeat(MESSAGE);
        let len = write(&shm, 3, &long);
        assert_eq!((len, read(&shm, 3, len)), (510, "✓".repeat(170)));
    }

    #[test]
    fn neither_the_length_nor_the_bytes_are_trusted() {
        let shm = memory();
        for i in 0..MESSAGE / 8 {
            shm.launch_message(0, i).store(u64::from_ne_bytes(*b"\x1b[2J\xff\xc3\0\r"), Ordering::Relaxed);
        }
        for len in [MESSAGE as u64 + 1, u64::MAX] {
            let text = read(&shm, 0, len);
            assert_eq!(text, "\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}".repeat(MESSAGE / 8));
        }
        assert_eq!(read(&shm, 0, 2), "\u{fffd}[");
    }
}
