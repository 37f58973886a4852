//! From bytes to numbers that mean something here.

use super::rig::{FOREIGN, PAGE, START};

/// The bytes that are left.
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; zero at the end.
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number: small, an address in the window, an offset in the memory of this context or another, a power of two, one of the last, or anything.
    pub(super) fn number(&mut self) -> u64 {
        let (kind, byte) = (self.byte() % 8, u64::from(self.byte()));
        match kind {
            0 => byte,
            1 => START + byte * PAGE,
            2 => byte * PAGE,
            3 => FOREIGN + byte * PAGE,
            4 => 1 << (byte % 64),
            5 => u64::MAX - byte,
            6 => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            _ => (START + byte * PAGE) | u64::from(self.byte()),
        }
    }

    /// A page of the window: many of 4 KiB, some of 64 KiB, one of 2 MiB. Its address and its length; they never overlap.
    pub(super) fn page(&mut self) -> (u64, u64) {
        let n = u64::from(self.byte());
        match n {
            0..240 => (START + n % 32 * PAGE, PAGE),
            240..255 => (START + (1 << 20) + n % 16 * (64 << 10), 64 << 10),
            _ => (START + (2 << 20), 2 << 20),
        }
    }
}
