//! What the kernel's own tests of memory on devices (HMM) look at, and which check does here.
//!
//! Linux has 38 tests of heterogeneous memory management. They are the definition of coherent device memory, so each is listed by what it means, with the checks
//! that hold gmem and a driver to the same, and with the reason why none does where that is so, in whole or in part.

/// One of the kernel's tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hmm {
    /// Its number, from 1.
    pub number: u8,
    /// What it means.
    pub meaning: &'static str,
    /// The checks about it.
    pub checks: &'static [&'static str],
    /// What of it has no meaning here, and why.
    pub reason: Option<&'static str>,
}

const fn seen(number: u8, meaning: &'static str, checks: &'static [&'static str]) -> Hmm {
    Hmm { number, meaning, checks, reason: None }
}

const fn but(number: u8, meaning: &'static str, checks: &'static [&'static str], reason: &'static str) -> Hmm {
    Hmm { number, meaning, checks, reason: Some(reason) }
}

/// A child of a fork has none of its parent's unified memory.
const NO_HEIRS: &str =
    "a child inherits no unified memory, so there is nothing that both could copy or share: what is checked is that its access ends it";

/// Every test, by number.
pub const ALL: &[Hmm] = &[
    seen(1, "a device can be opened and closed", &["device-comes-and-goes"]),
    but(
        2,
        "a device reads private memory, zeros where nobody wrote, at the cost of one fault for the whole range",
        &["untouched-memory-reads-zero-for-a-fault-a-page", "untouched-pages-go-as-zeros"],
        "a fault is for one page; one request for a whole range is a prefetch, after which a device has no fault there",
    ),
    seen(3, "a device may not read what nobody may, and the bytes are there when it may again", &["forbidden-read-is-refused"]),
    seen(4, "the CPU sees what a device wrote", &["cpu-reads-what-the-device-wrote"]),
    seen(5, "a device may not write read-only memory, and may when it is writable", &["forbidden-write-is-refused"]),
    but(
        6,
        "what a device writes for the child of a fork the parent does not see",
        &["forked-child-that-writes-dies", "forked-child-that-reads-dies"],
        NO_HEIRS,
    ),
    but(7, "what a device writes to shared memory for the child of a fork the parent sees", &["forked-child-that-writes-dies"], NO_HEIRS),
    seen(8, "a device writes a huge page", &["cpu-reads-what-the-device-wrote", "write-stays-inside-its-bytes"]),
    but(
        9,
        "a device writes a page of hugetlbfs",
        &["hugetlb-pages"],
        "memory of hugetlbfs belongs to the kernel, which migrates none of it for a manager in user space; large pages of gmem are its own",
    ),
    seen(10, "a device reads a file that is mapped shared", &["device-reads-a-file"]),
    seen(11, "what a device writes to a file that is mapped shared is read there, and by pread", &["device-writes-a-file"]),
    seen(12, "memory that went to a device is freed there", &["memory-freed-on-the-device-is-free"]),
    seen(13, "a file that is mapped privately goes to a device", &["private-file-is-never-written"]),
    seen(14, "a range goes to a device, half of it comes back, and the mix goes again", &["prefetch-moves-what-is-missing"]),
    seen(
        15,
        "a device gives up all its memory, and the CPU reads the right bytes",
        &["detach-brings-everything-home", "device-lost-while-it-holds-pages"],
    ),
    but(
        16,
        "shared anonymous memory is refused cleanly",
        &["either-backing-goes-or-is-refused", "replicate-refuses-private-backing"],
        "shared memory is what goes best here; it is private memory that a replica is refused",
    ),
    seen(
        17,
        "what nobody may touch and holes are refused, the others go together, and what is on one device another sees",
        &["prefetch-of-mixed-pages", "page-moves-from-device-to-device"],
    ),
    seen(18, "ten times there and back", &["ten-times-there-and-back"]),
    seen(19, "memory is allocated, read and freed ten times at one address", &["an-address-used-again-is-new-memory"]),
    seen(
        20,
        "half of a range is unmapped while a device reads it",
        &["unmap-while-the-device-reads", "munmap-while-the-device-reads-shows-nothing-wrong"],
    ),
    but(
        21,
        "a snapshot shows pages that a driver mapped itself",
        &["pages-a-driver-mapped-itself"],
        "only a driver in the kernel can map device memory for the CPU; here the core asks for every mapping",
    ),
    seen(22, "a snapshot shows each of seven states of pages, and brings none in", &["residency-says-where-each-page-is"]),
    seen(23, "a snapshot of a huge page", &["residency-of-a-byte-is-its-page"]),
    seen(24, "two devices read the same, also when the pages go to one of them", &["two-devices-read-the-same"]),
    seen(
        25,
        "atomic updates by a device are exclusive until the CPU touches the page, and none is lost",
        &["atomics-of-both-sides-add-up", "writers-are-cut-off-before-the-copy"],
    ),
    seen(
        26,
        "a device that updated a page may not when it is read-only",
        &["lowered-protection-takes-the-mapping-back", "lowered-access-is-enforced"],
    ),
    but(
        27,
        "pages that a device updates are copied on write after a fork",
        &["atomics-go-on-over-a-fork", "forked-child-that-writes-dies"],
        NO_HEIRS,
    ),
    seen(28, "pages that are pinned for I/O come home as they were", &["pages-pinned-for-io-stay-home"]),
    seen(29, "the program forks with pages on the device, and the parent writes them", &["pages-on-the-device-survive-a-fork"]),
    seen(30, "a huge range that nobody touched goes to a device as zeros", &["untouched-pages-go-as-zeros"]),
    seen(31, "a huge page of zeros that was read goes to a device", &["a-page-read-as-zero-is-a-page-of-its-own"]),
    seen(
        32,
        "the program says MADV_FREE of pages on a device",
        &["memory-the-program-advises-away-is-old-or-zero", "discard-on-the-device-reads-zero"],
    ),
    but(
        33,
        "a huge page on a device shows in pagemap, and comes back by a fault",
        &["cpu-touch-anywhere-brings-the-page", "pagemap-of-pages-on-the-device"],
        "the kernel does not know of gmem's devices: where a page is, the residency of its range says",
    ),
    seen(
        34,
        "a part at the beginning, at a quarter and at half is unmapped on a device, and the rest is right",
        &["unmap-a-part-on-the-device", "munmap-of-a-part-leaves-the-rest"],
    ),
    but(
        35,
        "memory is moved by mremap before and after it went to a device, with MREMAP_DONTUNMAP and without, and the bytes follow the address",
        &["memory-moved-by-mremap-is-never-zero-or-stale"],
        "the bytes stay gmem's and do not follow: at the new place they are as they were or cannot be touched, and they are never zero",
    ),
    but(
        36,
        "a huge page that cannot be had on either side goes in small pages",
        &["full-device-refuses-and-loses-nothing", "failed-copy-home-loses-nothing"],
        "a region keeps the page size that it was made with: what cannot be had whole is refused, and every byte is where it was",
    ),
    but(
        37,
        "the same for a huge page of zeros",
        &["full-device-refuses-an-untouched-page", "failed-blank-page-leaks-nothing"],
        "as for pages with bytes in them: refused, and zero still",
    ),
    but(
        38,
        "how fast pages go, huge and small",
        &["each-byte-is-copied-once"],
        "a speed is measured and not promised: what is checked, for each page size, is that no byte is copied twice or in vain",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_the_kernel_is_listed_with_checks_that_exist() {
        let checks = crate::checks::all();
        assert!(ALL.iter().map(|row| row.number).eq(1..=38), "a number is missing, twice, or out of order");
        for Hmm { number, checks: names, reason, .. } in ALL {
            let found: Vec<_> = names.iter().map(|name| (name, checks.iter().find(|check| check.name == *name))).collect();
            for (name, check) in &found {
                assert!(check.is_some(), "{number}: there is no check {name}");
            }
            // A check that runs nowhere checks nothing, and then it must be said why.
            let runs = found.iter().any(|(_, check)| check.is_some_and(|check| !check.applies.is_nowhere()));
            assert!(runs || reason.is_some(), "{number}: nothing is checked, and no reason is given");
            let partly = found.iter().any(|(_, check)| check.is_some_and(|check| check.applies.is_nowhere()));
            assert!(!partly || reason.is_some(), "{number}: a part of it runs nowhere, and no reason is given");
        }
    }
}
