//! What cannot be here, each with its reason.

use crate::Case;
use crate::check::{Applies, Check, Outcome};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "hugetlb-pages",
        rule: "A write by the device to memory of hugetlbfs is seen by the CPU.",
        place: "gmem-hal `PageSize`",
        applies: Applies::never(
            "gmem's large pages are its own; memory of hugetlbfs belongs to the kernel, which migrates none of it for a user-space manager",
        ),
        run: nothing,
    },
    Check {
        name: "pages-a-driver-mapped-itself",
        rule: "Pages that a driver mapped for the CPU by itself show as such in a snapshot.",
        place: "gmem-hal `Mapping`",
        applies: Applies::never(
            "only a kernel driver can map device memory for the CPU; here the core asks for every mapping, so there are no others",
        ),
        run: nothing,
    },
    Check {
        name: "pagemap-of-pages-on-the-device",
        rule: "/proc/self/pagemap shows which pages are on a device.",
        place: "gmem `AddressSpace::residency`",
        applies: Applies::never("the kernel does not know of gmem's devices: where a page is, the residency of its range says"),
        run: nothing,
    },
];

/// Never called: nothing of this applies anywhere.
fn nothing(_: &Case<'_>) -> Outcome {
    Ok(())
}
