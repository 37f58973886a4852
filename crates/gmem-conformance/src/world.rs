//! A small world for a check: gmem, an address space, a device, and accesses by either side.

use crate::check::Stop;
use crate::observe::Observed;
use crate::subject::{Specimen, Storing};
use gmem::hal::FaultError;
use gmem::{AddressSpace, ByteLen, Context, Device, Gmem, PageSize, Region, Residence, VirtAddr, VirtRange};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A device attached to an address space.
pub struct Unit {
    /// The context.
    pub context: Context,
    /// The device.
    pub device: Device,
    /// What stands between gmem and the driver: it can make callbacks fail, and call the core as the driver would.
    pub observed: Arc<Observed>,
    pub(crate) specimen: Arc<dyn Specimen>,
}

impl Unit {
    /// The device loads bytes.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn read(&self, va: u64, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.specimen.read(&self.context, VirtAddr::new(va), bytes)
    }

    /// The device stores bytes.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn write(&self, va: u64, bytes: &[u8]) -> Result<(), FaultError> {
        self.specimen.write(&self.context, VirtAddr::new(va), bytes)
    }

    /// The device adds to a word, atomically.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn add(&self, va: u64, n: u64) -> Result<(), FaultError> {
        self.specimen.add(&self.context, VirtAddr::new(va), n)
    }

    /// The device stores one number after another to a word, until `storing` is over.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn store_on(&self, va: u64, storing: &Arc<Storing>) -> Result<(), FaultError> {
        self.specimen.store_on(&self.context, VirtAddr::new(va), storing)
    }

    /// The device loads a word.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn load(&self, va: u64) -> Result<u64, FaultError> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// The device stores a word.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn store(&self, va: u64, value: u64) -> Result<(), FaultError> {
        self.write(va, &value.to_ne_bytes())
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit").field("context", &self.context).field("device", &self.device).finish_non_exhaustive()
    }
}

/// gmem with an address space and a device.
#[derive(Debug)]
pub struct World {
    /// The device, attached.
    pub unit: Unit,
    /// The address space.
    pub space: AddressSpace,
    /// gmem.
    pub gmem: Gmem,
    /// The page size of the regions that [`World::region`] makes.
    pub size: PageSize,
}

impl World {
    /// A region of so many pages, shared backing, service delivery.
    ///
    /// # Errors
    /// [`gmem::Error::Range`].
    pub fn region(&self, pages: u64) -> Result<Region, gmem::Error> {
        self.space.region().page_size(self.size).map(pages * self.size.bytes())
    }

    /// The bytes of a page.
    pub fn page(&self) -> u64 {
        self.size.bytes()
    }

    /// Where the pages of a region are.
    ///
    /// # Errors
    /// [`gmem::Error::Range`].
    pub fn residency(&self, region: &Region) -> Result<Vec<Residence>, gmem::Error> {
        self.space.residency(region.range())
    }

    /// Checks gmem's own invariants. They hold while nothing is under way, and the last fault's tail may still be.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the one that does not hold after two seconds.
    pub fn verify(&self) -> Result<(), Stop> {
        eventually(|| self.gmem.verify()).map_err(Stop::Failed)
    }
}

/// Tries until it succeeds, for two seconds, for what is true a moment after a call returns; then the last error.
///
/// # Errors
/// What `probe` says last.
pub fn eventually<E>(mut probe: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match probe() {
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
            Ok(()) => return Ok(()),
        }
    }
}

/// The address of byte `offset` of a region.
///
/// # Panics
/// If the region is not that long.
pub fn at(region: &Region, offset: u64) -> u64 {
    assert!(offset < region.range().len().get(), "byte {offset} of a region of {}", region.range().len());
    region.range().start().get() + offset
}

/// Part of a region.
///
/// # Panics
/// If it would be empty.
pub fn part(region: &Region, offset: u64, len: u64) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(region.range().start().get() + offset), ByteLen(len)).expect("a part of a region is not empty")
}

/// The CPU loads a word.
pub fn get(va: u64) -> u64 {
    // SAFETY: checks pass addresses of regions that live, or want to see what happens otherwise in a process made for it.
    unsafe { std::ptr::with_exposed_provenance::<u64>(va as usize).read_volatile() }
}

/// The CPU loads a word, for what that does to its page.
pub fn touch(va: u64) {
    std::hint::black_box(get(va));
}

/// The CPU stores a word.
pub fn set(va: u64, value: u64) {
    // SAFETY: as for `get`.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(va as usize).write_volatile(value) }
}

/// The CPU loads bytes.
pub fn get_bytes(va: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: as for `get`, for `len` bytes.
    unsafe { std::ptr::with_exposed_provenance::<u8>(va as usize).copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
    bytes
}

/// The CPU stores bytes.
pub fn set_bytes(va: u64, bytes: &[u8]) {
    // SAFETY: as for `get`, for as many bytes.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(va as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
}

/// Bytes of which every aligned word is different, and different for every seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| (seed << 40 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8) as u64).flat_map(|i| word(i).to_ne_bytes());
    words.take(len).collect()
}

/// Says where two byte strings begin to differ, rather than print them.
///
/// # Errors
/// [`Stop::Failed`] with the first difference.
pub fn same_bytes(what: &str, seen: &[u8], expected: &[u8]) -> Result<(), Stop> {
    if seen.len() != expected.len() {
        return Err(Stop::Failed(format!("{what}: seen {} bytes, expected {}", seen.len(), expected.len())));
    }
    let differs = |(i, (s, e)): (usize, (&u8, &u8))| (s != e).then_some((i, *s, *e));
    match seen.iter().zip(expected).enumerate().find_map(differs) {
        None => Ok(()),
        Some((i, s, e)) => Err(Stop::Failed(format!("{what}: byte {i:#x} of {:#x} is {s:#04x}, expected {e:#04x}", seen.len()))),
    }
}
