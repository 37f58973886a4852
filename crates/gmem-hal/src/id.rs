//! Ids. Every kind of thing has its own type; ids of destroyed things are not reused while anyone could hold them.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id! {
    /// One pool of frames: the host's memory is [`HnodeId::HOST`], each registered range of device memory gets its own (the
    /// heterogeneous NUMA node of the original design).
    HnodeId(u16), "hnode"
}
id! {
    /// A device, unique for the life of the core.
    DeviceId(u32), "device"
}
id! {
    /// An address space, unique for the life of the core.
    SpaceId(u32), "space"
}
id! {
    /// A page table of one MMU. Chosen by the driver in [`crate::Mmu::pmap_create`]; opaque to the core.
    PmapId(u64), "pmap"
}

impl HnodeId {
    /// Host memory.
    pub const HOST: HnodeId = HnodeId(0);
}
