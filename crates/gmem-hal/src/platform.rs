//! How the core locks, waits, and is accounted for.

use crate::{HnodeId, Host, OutOfMemory, SpaceId, VirtAddr};
use lock_api::RawMutex;

/// What a wait is for, so that a long one can be reported by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitKind {
    /// For a page that another operation holds busy.
    BusyPage,
    /// For a running launch that holds the page on its device.
    HeldPage,
    /// For the address space: another map, unmap, attach, detach or destroy is under way.
    Topology,
    /// For a frame of an hnode.
    Frame,
}

/// A wait, as reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// What for.
    pub kind: WaitKind,
    /// In which address space, if in one.
    pub space: Option<SpaceId>,
    /// At which address or, for a frame, in which hnode's number.
    pub at: VirtAddr,
    /// What the one waited for is doing, a static name such as `"evict"`.
    pub owner: &'static str,
}

/// An event count: the core's only way to sleep.
///
/// The waiter reads [`Event::epoch`] under the lock that protects its condition, drops the lock, and calls [`Event::wait`]; the signaller changes the
/// condition under the lock and calls [`Event::signal`] afterwards. A signal between the two is not lost.
pub trait Event: Default + Send + Sync + 'static {
    /// The number of signals so far, wrapping.
    fn epoch(&self) -> u32;

    /// Returns when a signal came after `epoch` was read; may return early. An implementation reports a wait of more than a second and goes on
    /// waiting: the owner of what is waited for always ends. Async-signal-safe.
    fn wait(&self, epoch: u32, what: &Wait);

    /// Wakes every waiter. Async-signal-safe.
    fn signal(&self);
}

/// What the core stands on.
pub trait Platform: Send + Sync + 'static {
    /// The lock. Never held over a callback, a copy or a wait. In a real process it must be async-signal-safe.
    type RawLock: RawMutex + Send + Sync + 'static;
    /// The event count.
    type Event: Event;
    /// The host.
    type Host: Host;

    /// The host.
    fn host(&self) -> &Self::Host;

    /// Free frames of `hnode` fell under the low watermark: have someone call the core's background eviction soon. Must not block, nor call the core.
    fn pressure(&self, hnode: HnodeId);

    /// Counts the operations on pages that the calling thread has under way, by `change` more or fewer, and answers how many it has now. Async-signal-safe. It may count those
    /// of several cores as one.
    fn under_way(&self, change: i32) -> u32;

    /// The core is about to allocate `bytes` of metadata. A refusal makes the operation fail cleanly.
    fn charge(&self, bytes: usize) -> Result<(), OutOfMemory>;

    /// `bytes` of metadata were freed.
    fn uncharge(&self, bytes: usize);
}
