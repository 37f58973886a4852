//! The memory of a device.

use crate::sim::lock;
use gmem_hal::PhysRange;
use std::sync::Mutex;

/// What memory holds before anything was written: never zero, so that a page handed out without being filled is seen.
const POWER_ON: u8 = 0xa5;
/// What a failed copy or fill leaves behind.
const SCRIBBLE: u8 = 0xee;

/// The bytes of one device, at the addresses of its [`PhysRange`].
pub(crate) struct Dram {
    owner: u32,
    range: PhysRange,
    bytes: Mutex<Vec<u8>>,
}

impl Dram {
    pub(super) fn new(owner: u32, range: PhysRange) -> Self {
        Self { owner, range, bytes: Mutex::new(vec![POWER_ON; range.len().get() as usize]) }
    }

    /// The number of the device it belongs to.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    fn with(&self, addr: u64, len: usize, f: impl FnOnce(&mut [u8])) -> bool {
        let at = addr.wrapping_sub(self.range.begin) as usize;
        let mut bytes = lock(&self.bytes);
        match at.checked_add(len).and_then(|end| bytes.get_mut(at..end)) {
            Some(part) => {
                f(part);
                true
            }
            None => false,
        }
    }

    /// Shows bytes to `f`; `None` if the addresses are not this memory's.
    pub(crate) fn inspect<R>(&self, addr: u64, len: usize, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let at = addr.wrapping_sub(self.range.begin) as usize;
        let bytes = lock(&self.bytes);
        f(at.checked_add(len).and_then(|end| bytes.get(at..end)))
    }

    /// Reads. False if the addresses are not this memory's.
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.with(addr, buf.len(), |part| buf.copy_from_slice(part))
    }

    /// Writes. False if the addresses are not this memory's.
    pub(crate) fn write(&self, addr: u64, buf: &[u8]) -> bool {
        self.with(addr, buf.len(), |part| part.copy_from_slice(buf))
    }

    /// Its bytes are freed.
    pub(crate) fn give_up(&self) {
        *lock(&self.bytes) = Vec::new();
    }

    /// All of it is lost.
    pub(super) fn power_cycle(&self) {
        lock(&self.bytes).fill(POWER_ON);
    }
}

/// `len` bytes that no program wrote.
pub(super) fn scribble(len: usize) -> Vec<u8> {
    vec![SCRIBBLE; len]
}
