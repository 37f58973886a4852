//! The memory of a device.

use crate::sim::lock;
use gmem_hal::PhysRange;
use std::sync::Mutex;

/// What memory holds before anything was written: never zero, so that a page handed out without being filled is seen.
const POWER_ON: u8 = 0xa5;
/// What a failed copy or fill leaves behind.
const SCRIBBLE: u8 = 0xee;

/// Loss is kept at this grain: half of the smallest page, because copies come in halves.
const LOSS_GRAIN: usize = 2048;

/// The bytes of one device, at the addresses of its [`PhysRange`].
pub(crate) struct Dram {
    owner: u32,
    range: PhysRange,
    bytes: Mutex<Vec<u8>>,
    /// Grains whose bytes were lost, and that were not written whole since. Empty as long as nothing was lost.
    lost: Mutex<Vec<bool>>,
}

impl Dram {
    pub(super) fn new(owner: u32, range: PhysRange) -> Self {
        Self { owner, range, bytes: Mutex::new(vec![POWER_ON; range.len().get() as usize]), lost: Mutex::default() }
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
        let mut lost = lock(&self.lost);
        if !lost.is_empty() {
            let at = addr.wrapping_sub(self.range.begin) as usize;
            let whole = at.div_ceil(LOSS_GRAIN)..at.saturating_add(buf.len()) / LOSS_GRAIN;
            lost.get_mut(whole).into_iter().for_each(|grains| grains.fill(false));
        }
        self.with(addr, buf.len(), |part| part.copy_from_slice(buf))
    }

    /// Its bytes are freed.
    pub(crate) fn give_up(&self) {
        *lock(&self.bytes) = Vec::new();
    }

    /// All of it is lost.
    pub(super) fn power_cycle(&self) {
        let mut bytes = lock(&self.bytes);
        bytes.fill(POWER_ON);
        *lock(&self.lost) = vec![true; bytes.len().div_ceil(LOSS_GRAIN)];
    }

    /// Whether some of these bytes were lost, and nobody wrote there since.
    pub(crate) fn is_lost(&self, addr: u64, len: u64) -> bool {
        let lost = lock(&self.lost);
        let at = addr.wrapping_sub(self.range.begin) as usize;
        let grains = at / LOSS_GRAIN..at.saturating_add(len as usize).div_ceil(LOSS_GRAIN);
        lost.get(grains).is_some_and(|grains| grains.contains(&true))
    }
}

/// `len` bytes that no program wrote.
pub(super) fn scribble(len: usize) -> Vec<u8> {
    vec![SCRIBBLE; len]
}
