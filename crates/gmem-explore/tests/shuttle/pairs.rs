//! Every pair of verbs: a cell of the matrix in ARCHITECTURE.md, and a test of its name.

use super::race::race;
use super::verb::Verb::{self, *};

macro_rules! pairs {
    ($($name:ident: $row:ident, $column:ident;)*) => {
        /// The name of each test, and which cell it is.
        pub(crate) const CELLS: &[(&str, Verb, Verb)] = &[$((stringify!($name), $row, $column)),*];

        $(#[test]
        fn $name() {
            race(&[$row, $column]);
        })*
    };
}

pairs! {
    fault_fault: Fault, Fault;
    fault_evict: Fault, Evict;
    fault_peer_evict: Fault, PeerEvict;
    fault_unmap: Fault, Unmap;
    fault_protect: Fault, Protect;
    fault_attach: Fault, Attach;
    fault_detach: Fault, Detach;
    fault_hold: Fault, Hold;
    fault_pin: Fault, Pin;
    fault_discard: Fault, Discard;
    fault_prefetch: Fault, Prefetch;
    fault_lose: Fault, Lose;
    fault_destroy: Fault, Destroy;
    fault_memory: Fault, Memory;
    fault_unplug: Fault, Unplug;
    evict_evict: Evict, Evict;
    evict_peer_evict: Evict, PeerEvict;
    evict_unmap: Evict, Unmap;
    evict_protect: Evict, Protect;
    evict_attach: Evict, Attach;
    evict_detach: Evict, Detach;
    evict_hold: Evict, Hold;
    evict_pin: Evict, Pin;
    evict_discard: Evict, Discard;
    evict_prefetch: Evict, Prefetch;
    evict_lose: Evict, Lose;
    evict_destroy: Evict, Destroy;
    evict_memory: Evict, Memory;
    evict_unplug: Evict, Unplug;
    peer_evict_peer_evict: PeerEvict, PeerEvict;
    peer_evict_unmap: PeerEvict, Unmap;
    peer_evict_protect: PeerEvict, Protect;
    peer_evict_attach: PeerEvict, Attach;
    peer_evict_detach: PeerEvict, Detach;
    peer_evict_hold: PeerEvict, Hold;
    peer_evict_pin: PeerEvict, Pin;
    peer_evict_discard: PeerEvict, Discard;
    peer_evict_prefetch: PeerEvict, Prefetch;
    peer_evict_lose: PeerEvict, Lose;
    peer_evict_destroy: PeerEvict, Destroy;
    peer_evict_memory: PeerEvict, Memory;
    peer_evict_unplug: PeerEvict, Unplug;
    unmap_unmap: Unmap, Unmap;
    unmap_protect: Unmap, Protect;
    unmap_attach: Unmap, Attach;
    unmap_detach: Unmap, Detach;
    unmap_hold: Unmap, Hold;
    unmap_pin: Unmap, Pin;
    unmap_discard: Unmap, Discard;
    unmap_prefetch: Unmap, Prefetch;
    unmap_lose: Unmap, Lose;
    unmap_destroy: Unmap, Destroy;
    unmap_memory: Unmap, Memory;
    unmap_unplug: Unmap, Unplug;
    protect_protect: Protect, Protect;
    protect_attach: Protect, Attach;
    protect_detach: Protect, Detach;
    protect_hold: Protect, Hold;
    protect_pin: Protect, Pin;
    protect_discard: Protect, Discard;
    protect_prefetch: Protect, Prefetch;
    protect_lose: Protect, Lose;
    protect_destroy: Protect, Destroy;
    protect_memory: Protect, Memory;
    protect_unplug: Protect, Unplug;
    attach_attach: Attach, Attach;
    attach_detach: Attach, Detach;
    attach_hold: Attach, Hold;
    attach_pin: Attach, Pin;
    attach_discard: Attach, Discard;
    attach_prefetch: Attach, Prefetch;
    attach_lose: Attach, Lose;
    attach_destroy: Attach, Destroy;
    attach_memory: Attach, Memory;
    attach_unplug: Attach, Unplug;
    detach_detach: Detach, Detach;
    detach_hold: Detach, Hold;
    detach_pin: Detach, Pin;
    detach_discard: Detach, Discard;
    detach_prefetch: Detach, Prefetch;
    detach_lose: Detach, Lose;
    detach_destroy: Detach, Destroy;
    detach_memory: Detach, Memory;
    detach_unplug: Detach, Unplug;
    hold_hold: Hold, Hold;
    hold_pin: Hold, Pin;
    hold_discard: Hold, Discard;
    hold_prefetch: Hold, Prefetch;
    hold_lose: Hold, Lose;
    hold_destroy: Hold, Destroy;
    hold_memory: Hold, Memory;
    hold_unplug: Hold, Unplug;
    pin_pin: Pin, Pin;
    pin_discard: Pin, Discard;
    pin_prefetch: Pin, Prefetch;
    pin_lose: Pin, Lose;
    pin_destroy: Pin, Destroy;
    pin_memory: Pin, Memory;
    pin_unplug: Pin, Unplug;
    discard_discard: Discard, Discard;
    discard_prefetch: Discard, Prefetch;
    discard_lose: Discard, Lose;
    discard_destroy: Discard, Destroy;
    discard_memory: Discard, Memory;
    discard_unplug: Discard, Unplug;
    prefetch_prefetch: Prefetch, Prefetch;
    prefetch_lose: Prefetch, Lose;
    prefetch_destroy: Prefetch, Destroy;
    prefetch_memory: Prefetch, Memory;
    prefetch_unplug: Prefetch, Unplug;
    lose_lose: Lose, Lose;
    lose_destroy: Lose, Destroy;
    lose_memory: Lose, Memory;
    lose_unplug: Lose, Unplug;
    destroy_destroy: Destroy, Destroy;
    destroy_memory: Destroy, Memory;
    destroy_unplug: Destroy, Unplug;
    memory_memory: Memory, Memory;
    memory_unplug: Memory, Unplug;
    unplug_unplug: Unplug, Unplug;
}
