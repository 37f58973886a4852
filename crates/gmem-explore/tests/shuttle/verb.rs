//! What can be done to an address space at the same time as something else.

/// A column of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    /// The CPU, a device or a peer touches a page.
    Fault,
    /// Pages are evicted from a device, because a thread is short of memory or in the background.
    Evict,
    /// A peer gives pages up.
    PeerEvict,
    Unmap,
    Protect,
    Attach,
    Detach,
    /// A launch that says what it touches.
    Hold,
    Pin,
    Discard,
    Prefetch,
    /// A device dies, or stops answering.
    Lose,
    /// The address space is destroyed.
    Destroy,
    /// A pool of a device's memory is taken back, or comes again.
    Memory,
    /// A device is destroyed, and another of its kind created.
    Unplug,
}

/// Every verb, in the order of the matrix.
pub(crate) const ALL: [Verb; 15] = [
    Verb::Fault,
    Verb::Evict,
    Verb::PeerEvict,
    Verb::Unmap,
    Verb::Protect,
    Verb::Attach,
    Verb::Detach,
    Verb::Hold,
    Verb::Pin,
    Verb::Discard,
    Verb::Prefetch,
    Verb::Lose,
    Verb::Destroy,
    Verb::Memory,
    Verb::Unplug,
];

impl Verb {
    /// Its name in the matrix.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Evict => "evict",
            Self::PeerEvict => "peer evict",
            Self::Unmap => "unmap",
            Self::Protect => "protect",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Hold => "hold",
            Self::Pin => "pin",
            Self::Discard => "discard",
            Self::Prefetch => "prefetch",
            Self::Lose => "lose",
            Self::Destroy => "destroy",
            Self::Memory => "memory",
            Self::Unplug => "unplug",
        }
    }
}
