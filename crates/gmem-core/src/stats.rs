//! Counters. Causes are kept apart from the start, because "it is slow" is answered by them.

use crate::entry::{PageEvent, State, TRANSITIONS};
use crate::hnode::HnodeStats;
use ::core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use alloc::vec::Vec;
use gmem_hal::ByteLen;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The running counters.
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            /// How often each row of [`TRANSITIONS`] was taken.
            transitions: [Counter; TRANSITIONS.len()],
        }

        /// The figures of a core since it was made.
        #[derive(Clone, Default, PartialEq, Eq, Debug)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes of metadata: entries, and as far as they were ever touched frame descriptors and free bitmaps.
            pub metadata: ByteLen,
            /// Each hnode.
            pub hnodes: Vec<HnodeStats>,
        }

        impl Counters {
            pub(crate) fn snapshot(&self, metadata: ByteLen, hnodes: Vec<HnodeStats>) -> Stats {
                Stats { $($name: self.$name.get(),)* metadata, hnodes }
            }
        }
    };
}

counters! {
    /// CPU accesses that found no mapping.
    cpu_faults,
    /// Device accesses that found no mapping.
    device_faults,
    /// Those of both that found the page where it was wanted: a mapping revoked to sample its use, an upgrade to write, a race.
    soft_faults,
    /// Faults answered with an error.
    failed_faults,
    /// Bytes copied from host to device because a device touched them.
    h2d_fault_bytes,
    /// Bytes copied from host to device by a prefetch or for a launch: each byte once, and none that is there or need not move.
    h2d_prefetch_bytes,
    /// Bytes copied from device to host because the CPU touched them.
    d2h_fault_bytes,
    /// Bytes copied from device to host to make room.
    d2h_evict_bytes,
    /// Bytes copied from device to host by a prefetch, a detach, or on the way to another device.
    d2h_other_bytes,
    /// Bytes copied from one device to another.
    d2d_bytes,
    /// Bytes of device memory filled with zeros.
    zeroed_bytes,
    /// Pages that changed side, copied or not.
    migrations,
    /// Pages evicted.
    evictions,
    /// Of those, pages that were dropped without a copy because the home was current.
    clean_evictions,
    /// Evictions called off because the page was wanted.
    evictions_cancelled,
    /// Allocations of a frame that had to evict first.
    direct_reclaims,
    /// Rounds of background eviction.
    background_reclaims,
    /// Mappings revoked to learn whether they are used.
    samples,
    /// Invalidations of one range.
    invalidations,
    /// Invalidations of several ranges at once.
    coalesced_invalidations,
    /// Mappings entered into the tables of contexts in REPLICATE mode.
    replica_enters,
    /// Contexts fenced because a revoke failed or a device died.
    fences,
}

impl Counters {
    /// Counts that `event` happens to a page in `state`, and answers its next state.
    ///
    /// # Panics
    /// If the table knows no such transition.
    pub(crate) fn take_transition(&self, state: State, event: PageEvent) -> State {
        let row = TRANSITIONS.iter().position(|(s, e, _)| *s == state && *e == event);
        let row = row.unwrap_or_else(|| panic!("a page in state {state:?} cannot meet {event:?}"));
        self.transitions[row].add(1);
        TRANSITIONS[row].2
    }

    pub(crate) fn transitions(&self) -> [u64; TRANSITIONS.len()] {
        ::core::array::from_fn(|row| self.transitions[row].get())
    }
}

/// One counter.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
