//! Ways in which drivers are broken, each of which the kit must find.

use crate::reference::{Reference, ReferenceSubject};
use crate::target::Target;
use std::sync::Arc;

/// The form of the reference driver in which a defect shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Frames managed by the core.
    Plain,
    /// An MMU with accessed bits.
    Bits,
    /// A frame allocator of its own.
    Frames,
    /// A system of its own.
    Peer,
}

macro_rules! defects {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $form:ident, $check:literal;)*) => {
        /// A defect that the [`Reference`] driver can be given.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Defect {
            $($(#[$doc])* $variant,)*
        }

        impl Defect {
            /// Every defect.
            pub const ALL: &[Defect] = &[$(Defect::$variant),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Defect::$variant => $name),* }
            }

            /// The check that must fail because of it, whose rule is the one that it breaks.
            pub const fn caught_by(self) -> &'static str {
                match self { $(Defect::$variant => $check),* }
            }

            const fn form(self) -> Form {
                match self { $(Defect::$variant => Form::$form),* }
            }
        }
    };
}

defects! {
    /// An invalidation leaves the TLB as it is.
    StaleTlb = "stale-tlb", Plain, "invalidated-translation-is-not-used";
    /// A request for many invalidations does the first.
    CoalescedFirstOnly = "coalesced-first-only", Plain, "coalesced-invalidation-covers-every-range";
    /// A copy is answered and not made.
    CopySkipped = "copy-skipped", Plain, "copies-are-whole";
    /// Half of a page is copied.
    HalfCopied = "half-copied", Plain, "copies-are-whole";
    /// Half of a page is copied from another device.
    DirectHalfCopied = "direct-half-copied", Plain, "direct-copies-are-whole";
    /// Another page is copied from another device than the one asked for.
    DirectWrongFrame = "direct-wrong-frame", Plain, "direct-copies-are-whole";
    /// The page table is changed only after the copy that follows.
    CopiedBeforeUnmapped = "copied-before-unmapped", Plain, "writers-are-cut-off-before-the-copy";
    /// Some copies fail, and are answered as if they had not.
    ErrorSwallowed = "error-swallowed", Plain, "every-copy-is-made-or-refused";
    /// A blank page holds what was there before.
    BlankNotZeroed = "blank-not-zeroed", Plain, "blank-pages-are-zeroed";
    /// Another frame than the one asked for is entered.
    WrongFrame = "wrong-frame", Plain, "entered-page-is-its-frame";
    /// The page beside is entered as well.
    NeighbourMapped = "neighbour-mapped", Plain, "nothing-beside-is-entered";
    /// Every page is entered writable.
    ProtIgnored = "prot-ignored", Plain, "read-only-page-refuses-stores";
    /// A present page does not get the access it is given.
    UpgradeIgnored = "upgrade-ignored", Plain, "upgrade-takes-effect";
    /// Access is not lowered when it should be.
    ProtectIgnored = "protect-ignored", Plain, "lowered-access-is-enforced";
    /// Of a range only the first page is released.
    ReleaseFirstPageOnly = "release-first-page-only", Plain, "release-takes-every-page-of-the-range";
    /// Of a large page only the first 4 KiB are released.
    ReleaseBasePageOnly = "release-base-page-only", Plain, "release-takes-every-page-of-the-range";
    /// Of a large page only the first 4 KiB are invalidated.
    InvalidateBasePageOnly = "invalidate-base-page-only", Plain, "invalidated-translation-is-not-used";
    /// Of a large page only the first 4 KiB lose access.
    ProtectBasePageOnly = "protect-base-page-only", Plain, "lowered-access-is-enforced";
    /// A page is answered as entered, and is not.
    EnterForgotten = "enter-forgotten", Plain, "resolved-fault-has-resolved";
    /// Of a large page only the first 4 KiB are entered.
    EnterBasePageOnly = "enter-base-page-only", Plain, "copies-are-whole";
    /// Half of a blank page is zeroed.
    HalfZeroed = "half-zeroed", Plain, "blank-pages-are-zeroed";
    /// Protecting what is absent is refused.
    ProtectingAbsentIsAnError = "protecting-absent-is-an-error", Plain, "absent-pages-are-no-error";
    /// Releasing what is absent is refused.
    AbsentIsAnError = "absent-is-an-error", Plain, "absent-pages-are-no-error";
    /// What the core refuses is tried again, for ever.
    ErrorTriedAgain = "error-tried-again", Plain, "access-into-a-hole-ends-with-its-fault";
    /// A callback panics.
    Panics = "panics", Plain, "entered-page-is-its-frame";
    /// The core is called from a thread of the program's.
    ForeignThread = "foreign-thread", Plain, "device-reads-what-the-cpu-wrote";
    /// Memory that the device has not is registered all the same.
    TakesAnyMemory = "takes-any-memory", Plain, "memory-the-device-has-not-is-refused";
    /// A second core may start the driver too.
    StartsTwice = "starts-twice", Plain, "driver-is-started-once";
    /// Two page tables have one id.
    PmapIdReused = "pmap-id-reused", Plain, "page-tables-have-ids-of-their-own";
    /// A destroyed page table can be used.
    DestroyKeepsTable = "destroy-keeps-table", Plain, "destroyed-table-is-not-used";
    /// Every page counts as accessed, always.
    AccessedAlways = "accessed-always", Bits, "accessed-marks-are-read-and-cleared";
    /// The driver's allocator takes a frame for free as soon as its page is released.
    FrameFreedEarly = "frame-freed-early", Frames, "allocator-hands-out-free-frames";
    /// The driver's allocator has a freed frame on its list twice.
    FrameFreedTwice = "frame-freed-twice", Frames, "allocator-hands-out-free-frames";
    /// What the device writes to one page of sixteen is seen by nobody else.
    WritesHidden = "writes-hidden", Plain, "stores-reach-every-page";
    /// An access that the core refuses goes on as if nothing were wrong.
    FaultSwallowed = "fault-swallowed", Plain, "access-into-a-hole-ends-with-its-fault";
    /// In REPLICATE mode the device has the host's memory mapped as a copy of its own.
    WindowPrivate = "window-private", Plain, "replica-is-the-hosts-memory";
    /// A fence is confirmed and stops nothing.
    FenceIgnored = "fence-ignored", Plain, "fenced-context-touches-nothing";
    /// A fence is confirmed and lets nothing new begin, and what is under way goes on.
    FenceLeavesKernels = "fence-leaves-kernels", Plain, "fenced-context-touches-nothing";
    /// The memory of a context is wiped when it is stopped, before the core has what is in it.
    WipedWhenStopped = "wiped-when-stopped", Plain, "device-lost-while-it-holds-pages";
    /// What a device is storing when its context is stopped gets to memory torn.
    TornWhenStopped = "torn-when-stopped", Plain, "fenced-context-touches-nothing";
    /// An invalidation is answered, but much too late.
    AnswersLate = "answers-late", Plain, "callbacks-answer-in-time";
    /// An invalidation is never answered.
    NeverAnswers = "never-answers", Plain, "callbacks-answer-in-time";
    /// Entering a page, the driver reports a fault for it.
    FaultsItself = "faults-itself", Plain, "callbacks-wait-for-nothing-of-their-own";
    /// A peer's page is unmapped for the core, and still there for the device.
    PeerKeepsMapping = "peer-keeps-mapping", Peer, "peer-unmap-ends-access";
    /// A peer gives a page's memory to another one although the core refused.
    PeerStealsFrame = "peer-steals-frame", Peer, "peer-keeps-what-the-core-refuses";
    /// A peer says that it has a page that it does not have.
    PeerClaimsPage = "peer-claims-page", Peer, "peer-has-what-it-says";
}

impl Defect {
    /// The page size with which it shows: those about parts of a page need one that has parts.
    pub const fn page_size(self) -> &'static str {
        match self {
            Self::ReleaseBasePageOnly | Self::InvalidateBasePageOnly | Self::ProtectBasePageOnly | Self::EnterBasePageOnly => "64k",
            Self::HalfCopied | Self::HalfZeroed | Self::NeighbourMapped => "2m",
            _ => "4k",
        }
    }

    /// The reference driver with this defect, in a form where it shows.
    pub fn target(self) -> Option<Target> {
        let builder = Reference::builder().defect(self);
        let builder = match self.form() {
            Form::Plain | Form::Peer => builder,
            Form::Bits => builder.accessed_bits(),
            Form::Frames => builder.own_frames(),
        };
        Target::new(self.name(), Arc::new(ReferenceSubject(builder)), true, self.form() == Form::Peer).ok()
    }
}
