//! The entry: one row of the logical page table, which says where a page's bytes are and who may touch them.
//!
//! An entry is 64 bits, so that a 4 KiB page costs 0.2 % of itself:
//!
//! ```text
//!  bit  0..2   state
//!       2      busy       an operation owns the entry: park, then look again
//!       3      evicting   that operation is an eviction
//!       4      willneed   somebody wants the page here: the eviction must not complete
//!       5      waiters    somebody parks until busy or holds end
//!       6      home       the home in host memory is populated
//!       8..18  hnode      the pool of the frame        (state Device or Duplicated)
//!      18..48  frame      the frame's id in that pool  (0: the peer manages it)
//!      48..56  pins       how often the program pinned the page
//!      56..64  holds      how many running launches hold the page
//! ```
//!
//! A physical page table is a cache of the entry: an absent physical mapping is never wrong, it costs a fault.

use crate::frame::FrameId;
use gmem_hal::HnodeId;

/// Where a page's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum State {
    /// Nowhere: the page reads as zero. Nobody can touch it without a fault.
    Unmapped = 0,
    /// In its home. The CPU can touch it, and so can every context in REPLICATE or SHARE mode.
    Host = 1,
    /// In a device's frame only; the home, if populated, is stale. That device can touch it.
    Device = 2,
    /// In a device's frame and, byte for byte the same, in its home (an unpopulated home stands for zeros). That device can read it; a write by
    /// anyone ends the state. It can be evicted without a copy.
    Duplicated = 3,
}

impl State {
    /// Every state.
    pub const ALL: [State; 4] = [State::Unmapped, State::Host, State::Device, State::Duplicated];

    /// Whether a device's frame holds the page's bytes.
    pub const fn on_device(self) -> bool {
        matches!(self, State::Device | State::Duplicated)
    }
}

/// What happens to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PageEvent {
    /// The CPU, or a context that uses host memory, touches it; or it is wanted home.
    HostTouch,
    /// A device with frames of its own reads it.
    DeviceRead,
    /// A device with frames of its own writes it.
    DeviceWrite,
    /// Its device's memory is short.
    Evict,
    /// It is evicted while its home was never populated and it holds only zeros.
    EvictZero,
    /// An eviction that already copied is cancelled by willneed.
    EvictCancel,
    /// Its contents are given up (unmap, discard).
    Discard,
}

impl PageEvent {
    /// Every event.
    pub const ALL: [PageEvent; 7] = [
        PageEvent::HostTouch,
        PageEvent::DeviceRead,
        PageEvent::DeviceWrite,
        PageEvent::Evict,
        PageEvent::EvictZero,
        PageEvent::EvictCancel,
        PageEvent::Discard,
    ];
}

/// The transition table: the only place where a page's next state is decided. What is not listed cannot happen.
pub const TRANSITIONS: &[(State, PageEvent, State)] = {
    use PageEvent::*;
    use State::*;
    &[
        (Unmapped, HostTouch, Host),
        (Unmapped, DeviceRead, Duplicated),
        (Unmapped, DeviceWrite, Device),
        (Unmapped, Discard, Unmapped),
        (Host, HostTouch, Host),
        (Host, DeviceRead, Duplicated),
        (Host, DeviceWrite, Device),
        (Host, Discard, Unmapped),
        (Device, HostTouch, Host),
        (Device, DeviceRead, Device),
        (Device, DeviceWrite, Device),
        (Device, Evict, Host),
        (Device, EvictCancel, Duplicated),
        (Device, Discard, Unmapped),
        (Duplicated, HostTouch, Host),
        (Duplicated, DeviceRead, Duplicated),
        (Duplicated, DeviceWrite, Device),
        (Duplicated, Evict, Host),
        (Duplicated, EvictZero, Unmapped),
        (Duplicated, EvictCancel, Duplicated),
        (Duplicated, Discard, Unmapped),
    ]
};

/// The state after `event`, or `None` if the table knows no such transition.
pub fn transition(state: State, event: PageEvent) -> Option<State> {
    TRANSITIONS.iter().find(|(s, e, _)| *s == state && *e == event).map(|(_, _, next)| *next)
}

/// An unpacked entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) state: State,
    pub(crate) busy: bool,
    pub(crate) evicting: bool,
    pub(crate) willneed: bool,
    pub(crate) waiters: bool,
    pub(crate) home: bool,
    pub(crate) hnode: HnodeId,
    pub(crate) frame: Option<FrameId>,
    pub(crate) pins: u8,
    pub(crate) holds: u8,
}

const HNODE_BITS: u32 = 10;
const FRAME_BITS: u32 = 30;

/// The most hnodes a core can have, by the width of the entry's field.
pub(crate) const MAX_HNODES: usize = 1 << HNODE_BITS;
/// The largest frame id, by the width of the entry's field.
pub(crate) const MAX_FRAMES: usize = (1 << FRAME_BITS) - 1;

impl Entry {
    /// The entry of a page nobody has touched; packed it is zero, so a zeroed table is a table of these.
    #[cfg(test)]
    pub(crate) const NEW: Entry = Entry {
        state: State::Unmapped,
        busy: false,
        evicting: false,
        willneed: false,
        waiters: false,
        home: false,
        hnode: HnodeId::HOST,
        frame: None,
        pins: 0,
        holds: 0,
    };

    pub(crate) fn unpack(word: u64) -> Self {
        let frame = (word >> 18) as u32 & MAX_FRAMES as u32;
        Entry {
            state: State::ALL[(word & 3) as usize],
            busy: word & 1 << 2 != 0,
            evicting: word & 1 << 3 != 0,
            willneed: word & 1 << 4 != 0,
            waiters: word & 1 << 5 != 0,
            home: word & 1 << 6 != 0,
            hnode: HnodeId((word >> 8) as u16 & (MAX_HNODES - 1) as u16),
            frame: FrameId::from_raw(frame),
            pins: (word >> 48) as u8,
            holds: (word >> 56) as u8,
        }
    }

    pub(crate) fn pack(self) -> u64 {
        self.state as u64
            | (self.busy as u64) << 2
            | (self.evicting as u64) << 3
            | (self.willneed as u64) << 4
            | (self.waiters as u64) << 5
            | (self.home as u64) << 6
            | u64::from(self.hnode.0) << 8
            | u64::from(FrameId::to_raw(self.frame)) << 18
            | u64::from(self.pins) << 48
            | u64::from(self.holds) << 56
    }

    /// Whether nobody has touched the page since it was mapped or discarded, and nobody does now.
    pub(crate) fn is_untouched(word: u64) -> bool {
        word == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_word_is_a_new_entry() {
        assert_eq!(Entry::unpack(0), Entry::NEW);
        assert_eq!(Entry::NEW.pack(), 0);
    }

    #[test]
    fn packing_loses_nothing() {
        for state in State::ALL {
            for bits in 0..32u8 {
                for (hnode, frame) in [(0, 0), (1, 1), (1023, (1 << 30) - 1)] {
                    let entry = Entry {
                        state,
                        busy: bits & 1 != 0,
                        evicting: bits & 2 != 0,
                        willneed: bits & 4 != 0,
                        waiters: bits & 8 != 0,
                        home: bits & 16 != 0,
                        hnode: HnodeId(hnode),
                        frame: FrameId::from_raw(frame),
                        pins: 255 - bits,
                        holds: bits * 7,
                    };
                    assert_eq!(Entry::unpack(entry.pack()), entry);
                }
            }
        }
    }

    #[test]
    fn the_table_is_a_function_and_keeps_its_promises() {
        for (i, (state, event, _)) in TRANSITIONS.iter().enumerate() {
            assert!(!TRANSITIONS[i + 1..].iter().any(|(s, e, _)| s == state && e == event), "{state:?} × {event:?} is listed twice");
        }
        for state in State::ALL {
            assert_eq!(transition(state, PageEvent::HostTouch), Some(State::Host), "the CPU can always bring a page home");
            assert_eq!(transition(state, PageEvent::DeviceWrite), Some(State::Device), "a written page is nowhere else");
            assert_eq!(transition(state, PageEvent::Discard), Some(State::Unmapped));
            for event in [PageEvent::Evict, PageEvent::EvictZero, PageEvent::EvictCancel] {
                assert!(transition(state, event).is_none() || state.on_device(), "only a page on a device is evicted");
            }
        }
        assert_eq!(transition(State::Device, PageEvent::EvictZero), None, "a written page is not known to be zero");
    }

    #[test]
    fn the_documented_table_is_this_table() {
        const PAGE: &str = include_str!("../../../docs/page-entry.md");
        let section =
            PAGE.split("## Transitions").nth(1).expect("the page has a section on transitions").split("\n## ").next().unwrap_or("");
        let name = |cell: &str| cell.trim().trim_matches('`').parse_state();
        let mut rows = 0;
        for line in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: std::vec::Vec<&str> = line.trim_matches('|').split('|').collect();
            let from = name(cells[0]).expect("a row begins with a state");
            for (event, cell) in PageEvent::ALL.into_iter().zip(&cells[1..]) {
                assert_eq!(transition(from, event), name(cell), "{from:?} × {event:?}: the code and docs/page-entry.md differ");
            }
            rows += 1;
        }
        assert_eq!(rows, State::ALL.len());
    }

    trait ParseState {
        fn parse_state(&self) -> Option<State>;
    }

    impl ParseState for str {
        fn parse_state(&self) -> Option<State> {
            State::ALL.into_iter().find(|s| std::format!("{s:?}") == self)
        }
    }
}
