//! Ways in which drivers are broken, each of which the kit must find.

/// A defect that the [`crate::Reference`] driver can be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Defect {
    /// An invalidation leaves the TLB as it is.
    StaleTlb,
    /// A request for many invalidations does the first.
    CoalescedFirstOnly,
    /// A copy is answered and not made.
    CopySkipped,
    /// Half of a page is copied.
    HalfCopied,
    /// The page table is changed only after the copy that follows.
    CopiedBeforeUnmapped,
    /// Some copies fail, and are answered as if they had not.
    ErrorSwallowed,
    /// A blank page holds what was there before.
    BlankNotZeroed,
    /// Another frame than the one asked for is entered.
    WrongFrame,
    /// The page beside is entered as well.
    NeighbourMapped,
    /// Every page is entered writable.
    ProtIgnored,
    /// A present page does not get the access it is given.
    UpgradeIgnored,
    /// Access is not lowered when it should be.
    ProtectIgnored,
    /// Of a range only the first page is released.
    ReleaseFirstPageOnly,
    /// Releasing what is absent is refused.
    AbsentIsAnError,
    /// Two page tables have one id.
    PmapIdReused,
    /// A destroyed page table can be used.
    DestroyKeepsTable,
    /// Every page counts as accessed, always.
    AccessedAlways,
    /// The driver's allocator takes a frame for free as soon as its page is released.
    FrameFreedEarly,
    /// The driver's allocator has a freed frame on its list twice.
    FrameFreedTwice,
    /// What the device writes to one page of sixteen is seen by nobody else.
    WritesHidden,
    /// An access that the core refuses goes on as if nothing were wrong.
    FaultSwallowed,
    /// In REPLICATE mode the device has the host's memory mapped as a copy of its own.
    WindowPrivate,
    /// An invalidation is answered, but much too late.
    AnswersLate,
    /// An invalidation is never answered.
    NeverAnswers,
    /// Entering a page, the driver reports a fault for it.
    FaultsItself,
    /// A peer's page is unmapped for the core, and still there for the device.
    PeerKeepsMapping,
    /// A peer gives a page's memory to another one although the core refused.
    PeerStealsFrame,
    /// A peer says that it has a page that it does not have.
    PeerClaimsPage,
}
