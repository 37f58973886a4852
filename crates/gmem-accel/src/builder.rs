//! How a discrete accelerator is described before it exists.

use crate::capacity::machine_memory;
use crate::discrete::Discrete;
use crate::shm::MAX_CORES;
use gmem_hal::{ByteLen, Modes, PageSizes, VirtRange};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A device cannot be as described.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BuildError {
    /// The memory is not a positive multiple of 4 KiB.
    Memory,
    /// More memory than this machine has, or its control group allows ([`machine_memory`]): the device would end in the system's out-of-memory killer.
    MoreThanMachine {
        /// What was asked for.
        asked: ByteLen,
        /// What there is.
        has: ByteLen,
    },
    /// Not between 1 and 64 cores.
    Cores,
    /// No page size that gmem has.
    PageSizes,
    /// No mode, or [`Modes::SHARE`], which a device with a table of its own does not have.
    Modes,
    /// The time limit is zero.
    TimeLimit,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("the device's memory must be a positive multiple of 4 KiB"),
            Self::MoreThanMachine { asked, has } => {
                write!(f, "a device with {asked} of memory cannot be: this machine has {has} in all, or its control group allows no more")
            }
            Self::Cores => f.write_str("a device has between 1 and 64 cores"),
            Self::PageSizes => f.write_str("a device needs at least one page size that gmem has"),
            Self::Modes => f.write_str("a device with a page table of its own is EXCLUSIVE or REPLICATE, not SHARE"),
            Self::TimeLimit => f.write_str("the time limit must not be zero"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Describes a [`Discrete`] accelerator. Made by [`Discrete::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) name: String,
    pub(crate) memory: u64,
    pub(crate) cores: usize,
    pub(crate) replay: bool,
    pub(crate) peer: bool,
    pub(crate) page_sizes: PageSizes,
    pub(crate) modes: Modes,
    pub(crate) limit: Duration,
    pub(crate) patience: Duration,
    pub(crate) occupied: Vec<VirtRange>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            name: "discrete accelerator".into(),
            memory: 64 << 20,
            cores: std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_CORES)),
            replay: true,
            peer: false,
            page_sizes: PageSizes::ALL,
            modes: Modes::COHERENT_EXCLUSIVE | Modes::REPLICATE,
            limit: Duration::from_secs(5),
            patience: Duration::from_micros(250),
            occupied: Vec::new(),
        }
    }

    /// The name in messages and reports.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Bytes of device memory: a multiple of 4 KiB, 64 MiB by default, and not more than [`machine_memory`]. All of it is taken when the device starts.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// How many cores run each kernel: by default as many as this machine has.
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores;
        self
    }

    /// Whether an access that faulted can be replayed (it can, by default).
    pub fn replay(mut self, replay: bool) -> Self {
        self.replay = replay;
        self
    }

    /// Whether the device runs an operating system of its own that manages its addresses and its memory (it does not, by default).
    pub fn peer(mut self, peer: bool) -> Self {
        self.peer = peer;
        self
    }

    /// The page sizes of the MMU: all, by default.
    pub fn page_sizes(mut self, sizes: PageSizes) -> Self {
        self.page_sizes = sizes;
        self
    }

    /// The modes that contexts can have: EXCLUSIVE and REPLICATE, by default. A peer only has EXCLUSIVE.
    pub fn modes(mut self, modes: Modes) -> Self {
        self.modes = modes;
        self
    }

    /// How long the driver waits for an answer of the device (not for a kernel) before it says
    /// [`NoAnswer`](gmem_hal::DeviceError::NoAnswer): 5 s by default. Time in which the whole machine stands still is not counted.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// How long a core looks for the answer to its fault before it sleeps, at most: 250 µs by default, which covers the copy
    /// of 2 MiB. It learns: if looking does not help it sleeps sooner.
    pub fn patience(mut self, longest: Duration) -> Self {
        self.patience = longest;
        self
    }

    /// PEER devices: `range` is in use by the peer's own operating system, so no region can lie there.
    pub fn occupied(mut self, range: VirtRange) -> Self {
        self.occupied.push(range);
        self
    }

    /// Makes the device. It takes its memory when the core starts it. Reads `/proc` and `/sys`.
    ///
    /// # Errors
    /// What cannot be, or not on this machine.
    pub fn build(self) -> Result<Arc<Discrete>, BuildError> {
        if self.memory == 0 || !self.memory.is_multiple_of(4096) {
            return Err(BuildError::Memory);
        }
        let (asked, has) = (ByteLen(self.memory), machine_memory());
        if asked > has {
            return Err(BuildError::MoreThanMachine { asked, has });
        }
        if !(1..=MAX_CORES).contains(&self.cores) {
            return Err(BuildError::Cores);
        }
        if self.page_sizes.smallest().is_none() {
            return Err(BuildError::PageSizes);
        }
        // A peer keeps its pages in its own memory: it has no table that could name host frames.
        let modes = if self.peer { self.modes & Modes::COHERENT_EXCLUSIVE } else { self.modes };
        if modes.is_empty() || self.modes.contains(Modes::SHARE) {
            return Err(BuildError::Modes);
        }
        if self.limit.is_zero() {
            return Err(BuildError::TimeLimit);
        }
        Ok(Arc::new(Discrete::new(Self { modes, ..self })))
    }
}
