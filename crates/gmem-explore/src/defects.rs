//! Defects that are planted on purpose: a campaign that does not find one of them proves nothing.

use gmem_sim::{Canary, HostCanary};

/// One defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// Of every device.
    Device(Canary),
    /// Of the host.
    Host(HostCanary),
    /// One wake-up in ten is lost.
    LosesWakes,
}

impl Defect {
    /// Every defect: its name, what it is, and the invariant that it breaks, by the numbers of ARCHITECTURE.md.
    pub const ALL: &[(&'static str, Defect, u32)] = &[
        ("hands a frame out twice", Defect::Device(Canary::HandsOutTwice), 1),
        ("keeps CPU mappings", Defect::Host(HostCanary::KeepsCpuMappings), 2),
        ("ignores protection", Defect::Device(Canary::IgnoresProtection), 2),
        ("tears copies", Defect::Device(Canary::TearsCopies), 3),
        ("a peer forgets homes", Defect::Device(Canary::ForgetsHomes), 3),
        ("forgets pins of the kernel", Defect::Host(HostCanary::ForgetsPins), 3),
        ("keeps translations", Defect::Device(Canary::KeepsTranslations), 4),
        ("invalidates late", Defect::Device(Canary::InvalidatesLate), 4),
        ("keeps table entries", Defect::Device(Canary::KeepsEntries), 4),
        ("enters what it refuses", Defect::Device(Canary::EntersWhatItRefuses), 5),
        ("forgets mappings", Defect::Device(Canary::ForgetsMappings), 6),
        ("loses wake-ups", Defect::LosesWakes, 6),
        ("does not zero frames", Defect::Device(Canary::LeavesGarbage), 7),
        ("does not zero homes", Defect::Host(HostCanary::PopulatesGarbage), 7),
        ("keeps what was discarded", Defect::Host(HostCanary::KeepsDiscarded), 7),
        ("stores astray", Defect::Device(Canary::StoresAstray), 8),
    ];

    /// The defect of every device, if it is one.
    pub(crate) fn of_devices(self) -> Option<Canary> {
        match self {
            Self::Device(canary) => Some(canary),
            _ => None,
        }
    }

    pub(crate) fn of_host(self) -> Option<HostCanary> {
        match self {
            Self::Host(canary) => Some(canary),
            _ => None,
        }
    }

    pub(crate) fn lost_wakes_per_mille(self) -> u16 {
        if self == Self::LosesWakes { 100 } else { 0 }
    }
}
