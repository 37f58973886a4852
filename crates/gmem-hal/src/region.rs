//! What a region of an address space is made of.

use crate::PageSize;
use bitflags::bitflags;

/// What a memory access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// Load.
    Read,
    /// Store, or an atomic read-modify-write.
    Write,
}

bitflags! {
    /// What accesses a mapping allows.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Prot: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Loads and stores.
        const RW = 3;
    }
}

impl Prot {
    /// Whether `access` is allowed. A store needs [`Prot::WRITE`]; no MMU here can allow stores without loads.
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.contains(Prot::READ),
            Access::Write => self.contains(Prot::RW),
        }
    }
}

/// Where the host keeps a region's bytes. What the program itself gives back to the kernel (`madvise`) reads as before or, if the kernel took it, as zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Backing {
    /// One shared memory object per address space with fixed homes. The fastest, and the only one that device processes can map
    /// ([`crate::Mode::Replicate`]). The program must not give it to the kernel for asynchronous I/O without saying so.
    #[default]
    Shared,
    /// Anonymous memory. Safe for anything the program may give to the kernel: a page the kernel holds pinned stays home.
    Private,
}

/// Who resolves a CPU fault in the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Delivery {
    /// A thread of gmem. System calls on absent pages work, any thread and any stack may fault.
    #[default]
    Service,
    /// The faulting thread itself, in a signal handler. Starts several times faster; system calls on absent pages fail with `EFAULT`, and no thread
    /// may have its stack in the region.
    InThread,
}

/// The attributes of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct RegionAttrs {
    /// What CPU and devices may do.
    pub prot: Prot,
    /// The unit of residency and transfer.
    pub page_size: PageSize,
    /// Where the host keeps the bytes.
    pub backing: Backing,
    /// Who resolves CPU faults.
    pub delivery: Delivery,
}

impl Default for RegionAttrs {
    /// Readable and writable, 2 MiB pages, shared backing, service thread.
    fn default() -> Self {
        Self { prot: Prot::RW, page_size: PageSize::Size2M, backing: Backing::Shared, delivery: Delivery::Service }
    }
}
