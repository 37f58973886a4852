//! What the contracts say and no check tries, each with the reason.

/// A part of a contract that no check tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unchecked {
    /// Where it is written, as in ``gmem-hal `Compute::start` ``.
    pub place: &'static str,
    /// What it says.
    pub says: &'static str,
    /// Why no check tries it.
    pub reason: &'static str,
}

/// Every part that is known to be unchecked.
pub const ALL: &[Unchecked] = &[
    Unchecked {
        place: "gmem-hal `Compute::start`",
        says: "launches of one context run in the order they were started",
        reason: "a subject reads, writes and adds, and only it knows its kernels; the tests of the software accelerator start several",
    },
    Unchecked {
        place: "gmem-hal `LaunchError::Panicked`",
        says: "a kernel that panicked or crashed is told from one that faulted",
        reason: "no subject has a kernel that does so, and few devices can tell; the tests of the software accelerator do",
    },
    Unchecked {
        place: "gmem-hal `CopyEngine::copy`",
        says: "source and destination never overlap",
        reason: "frames have one owner each, which is checked, and the home of a page is no device's",
    },
    Unchecked {
        place: "gmem-hal `Device::info`",
        says: "called under locks of the core: nothing but a reference",
        reason: "what a driver does inside is not seen from outside; one that calls the core there hangs in every check",
    },
    Unchecked {
        place: "gmem-hal `Delivery::InThread`",
        says: "callbacks on the fault path are async-signal-safe",
        reason: "that no lock is taken that an interrupted thread may hold shows only if one is; the check of such regions has nobody to interrupt",
    },
    Unchecked {
        place: "gmem-hal `HostWindow`",
        says: "memory of another process or machine could be imported",
        reason: "there is no such call: a device reaches its own memory, the window it is given, and what its copy engine says",
    },
];
