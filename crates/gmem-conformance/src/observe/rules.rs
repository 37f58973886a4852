//! The promises that the observer checks, by the side that makes them.

use std::fmt;

/// Who makes a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// gmem's core, to the driver.
    Core,
    /// The driver, to the core.
    Driver,
}

/// A promise of the contracts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Who makes it.
    pub side: Side,
    /// What it says.
    pub text: &'static str,
    /// Where it is written.
    pub place: &'static str,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// The promise.
    pub rule: Rule,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.rule.side {
            Side::Core => "the core",
            Side::Driver => "the driver",
        };
        write!(f, "{who} broke \"{}\" ({}): {}", self.rule.text, self.rule.place, self.seen)
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: $side:ident, $place:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Rule = Rule { side: Side::$side, text: $text, place: $place };)*

        /// Every promise that the observer checks, by name.
        pub const ALL: &[(&str, Rule)] = &[$((stringify!($name), $name)),*];
    };
}

rules! {
    /// The device is started once, before anything else.
    START_FIRST: Core, "gmem-hal `Device::start`", "start is called once, before any other callback";
    /// Nothing follows `stop`.
    STOP_LAST: Core, "gmem-hal `Device::stop`", "no callback follows stop";
    /// What goes wrong in a callback is its answer.
    NO_PANIC: Driver, "gmem-hal `Device`", "no callback panics";
    /// Only tables that live are named.
    KNOWN_PMAP: Core, "gmem-hal `Mmu`", "a callback names a page table that was created and not destroyed";
    /// The window is for REPLICATE only.
    WINDOW: Core, "gmem-hal `PmapRequest::host`", "a page table is given host memory in REPLICATE mode, and in no other";
    /// Ranges are whole pages of the address space.
    ALIGNED: Core, "gmem-hal `Mmu`", "ranges are page aligned and inside the range that the page table was made for";
    /// A page is named whole.
    WHOLE: Core, "gmem-hal `Mmu`", "a range holds a page that was entered whole or not at all";
    /// One call for a page at a time.
    NO_OVERLAP: Core, "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"", "no two callbacks run for the same page of one page table at the same time, but for revokes of whole ranges";
    /// A mapping is one page of one of the sizes.
    MAPPING: Core, "gmem-hal `Mapping`", "address and frame of a mapping are aligned to its length, which is one of the page sizes, and its access is never empty";
    /// Frames lie in registered memory.
    FRAME_INSIDE: Core, "gmem-hal `Mapping::frame`", "a frame lies in registered memory of the device or, in REPLICATE mode, is the page's home";
    /// A page gets another frame only after a shootdown.
    ENTER_SAME: Core, "gmem-hal `Mmu::pmap_enter`", "the page is absent, or present with the same frame and less or equal access";
    /// A frame is in one place.
    ONE_OWNER: Core, "ARCHITECTURE.md \"What always holds\" 1", "each frame has one owner";
    /// Nobody writes what is copied.
    CUT_BEFORE_COPY: Core, "ARCHITECTURE.md \"What always holds\" 3", "whoever could write is cut off, and the cut is waited for, before a copy begins";
    /// A frame is used again only after its shootdown.
    SHOOTDOWN: Core, "gmem-hal `Mmu`", "a frame is free only after the release of its mappings was invalidated and the invalidation answered";
    /// Copies are of whole, aligned pages.
    COPY_SHAPE: Core, "gmem-hal `CopyEngine`", "every length is a page size, the addresses are aligned to it, one side at least is the device's own memory, and the other is its own, the host's or one that it reaches";
    /// A range is named once in a batch.
    DISJOINT: Core, "gmem-hal `Mmu::tlb_invalidate_coalesced`", "the ranges of one request are disjoint";
    /// Tables are empty when they go.
    DESTROY_EMPTY: Core, "gmem-hal `Mmu::pmap_destroy`", "everything was released and invalidated before, or the context is fenced";
    /// No table is left behind.
    DESTROY_EACH: Core, "gmem-hal `Device::stop`", "every page table was destroyed before the device is stopped";
    /// A context is fenced once.
    FENCE_ONCE: Core, "gmem-hal `Device::fence`", "a context is fenced at most once";
    /// Frames go back once, unmapped.
    FREE_ONCE: Core, "gmem-hal `Frames::free_frame`", "a frame is given back once, as it was taken, after the shootdown of every mapping of it";
    /// A resolved fault can be replayed.
    RESOLVED: Core, "gmem-hal `Upcalls::device_fault`", "after a fault was answered with Ok the page is entered with the access that was asked for, unless it was taken away meanwhile";
    /// A peer's pages lie in what it reserved.
    RESERVED: Core, "gmem-hal `Peer`", "pages are mapped and unmapped inside ranges that the peer reserved, and a range is given back when nothing in it is mapped";
    /// The facts do not change.
    FACTS: Driver, "gmem-hal `DeviceInfo`", "the facts of a device never change";
    /// Tables have names of their own.
    UNIQUE_PMAP: Driver, "gmem-hal `Mmu::pmap_create`", "the id of a page table is unique on its device";
    /// An allocator hands out what is free.
    FREE_FRAME: Driver, "gmem-hal `Frames::alloc_frame`", "a frame that is handed out is free, of the size asked for, aligned to it, and inside the hnode";
    /// Callbacks end.
    ANSWERS: Driver, "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"", "a callback may block for a bounded time: six seconds in this kit";
    /// A callback does not wait for itself.
    SELF_WAIT: Driver, "crates/gmem-hal/src/lib.rs \"Rules that hold for every callback\"", "a callback must not call back into the core for a page it was called for";
    /// A page that was entered can be touched.
    ENTERED_IS_USED: Driver, "gmem-hal `Upcalls::device_fault`", "an access whose fault was answered with Ok goes on while the page is there, and does not fault for ever";
    /// An error is the end of the access.
    ERROR_ENDS: Driver, "gmem-hal `Upcalls::device_fault`", "an access whose fault was answered with an error ends with it, and is not tried again";
    /// The core is called from threads that no signal interrupts.
    OWN_THREADS: Driver, "gmem-hal `Upcalls`", "the core is called from threads of the driver's own, where all signals are blocked";
    /// Revokes do not fail for what is absent.
    ABSENT: Driver, "gmem-hal `Mmu::pmap_release`", "absent pages are no error";
}
