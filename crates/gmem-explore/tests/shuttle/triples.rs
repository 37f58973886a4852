//! Triples: what moves pages, what changes the address space, and what is said about pages, three at a time.

use super::race::race;
use super::verb::Verb::*;

macro_rules! triples {
    ($($name:ident: $first:ident, $second:ident, $third:ident;)*) => {
        $(#[test]
        fn $name() {
            race(&[$first, $second, $third]);
        })*
    };
}

triples! {
    fault_evict_unmap: Fault, Evict, Unmap;
    fault_evict_detach: Fault, Evict, Detach;
    fault_evict_protect: Fault, Evict, Protect;
    fault_unmap_detach: Fault, Unmap, Detach;
    fault_unmap_protect: Fault, Unmap, Protect;
    fault_detach_protect: Fault, Detach, Protect;
    evict_unmap_detach: Evict, Unmap, Detach;
    evict_unmap_protect: Evict, Unmap, Protect;
    evict_detach_protect: Evict, Detach, Protect;
    unmap_detach_protect: Unmap, Detach, Protect;
    fault_evict_hold: Fault, Evict, Hold;
    fault_evict_pin: Fault, Evict, Pin;
    fault_unmap_pin: Fault, Unmap, Pin;
    fault_unmap_discard: Fault, Unmap, Discard;
    fault_detach_discard: Fault, Detach, Discard;
    fault_detach_prefetch: Fault, Detach, Prefetch;
    fault_protect_prefetch: Fault, Protect, Prefetch;
    fault_protect_hold: Fault, Protect, Hold;
    evict_unmap_hold: Evict, Unmap, Hold;
    evict_unmap_pin: Evict, Unmap, Pin;
    evict_detach_pin: Evict, Detach, Pin;
    evict_detach_discard: Evict, Detach, Discard;
    evict_protect_discard: Evict, Protect, Discard;
    evict_protect_prefetch: Evict, Protect, Prefetch;
    unmap_detach_prefetch: Unmap, Detach, Prefetch;
    unmap_detach_hold: Unmap, Detach, Hold;
    unmap_protect_hold: Unmap, Protect, Hold;
    unmap_protect_pin: Unmap, Protect, Pin;
    detach_protect_pin: Detach, Protect, Pin;
    detach_protect_discard: Detach, Protect, Discard;
    fault_evict_peer_evict: Fault, Evict, PeerEvict;
    fault_evict_attach: Fault, Evict, Attach;
    fault_evict_lose: Fault, Evict, Lose;
    fault_evict_destroy: Fault, Evict, Destroy;
    fault_detach_attach: Fault, Detach, Attach;
    fault_detach_lose: Fault, Detach, Lose;
    hold_unmap_lose: Hold, Unmap, Lose;
    fault_evict_memory: Fault, Evict, Memory;
    fault_detach_memory: Fault, Detach, Memory;
    attach_memory_unplug: Attach, Memory, Unplug;
    fault_hold_memory: Fault, Hold, Memory;
    fault_evict_unplug: Fault, Evict, Unplug;
    fault_unmap_unplug: Fault, Unmap, Unplug;
    evict_hold_unplug: Evict, Hold, Unplug;
    fault_prefetch_unplug: Fault, Prefetch, Unplug;
    evict_lose_unplug: Evict, Lose, Unplug;
    attach_detach_unplug: Attach, Detach, Unplug;
    fault_destroy_unplug: Fault, Destroy, Unplug;
    fault_unplug_unplug: Fault, Unplug, Unplug;
    fault_hold_hold: Fault, Hold, Hold;
    evict_protect_hold: Evict, Protect, Hold;
}
