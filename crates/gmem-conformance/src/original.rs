//! What the original got wrong, and which check sees to it that gmem does not.
//!
//! The kernel patches that gmem takes its interface from, and the system that was built on them, have defects that their readers found. Each is listed here with the
//! checks that fail where it is, or with the reason why there is nothing to check.

/// A defect of the original.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Original {
    /// What was wrong.
    pub defect: &'static str,
    /// The checks about it.
    pub checks: &'static [&'static str],
    /// Why there are none.
    pub reason: Option<&'static str>,
}

const fn seen(defect: &'static str, checks: &'static [&'static str]) -> Original {
    Original { defect, checks, reason: None }
}

const fn not_here(defect: &'static str, reason: &'static str) -> Original {
    Original { defect, checks: &[], reason: Some(reason) }
}

/// The defects of the patch that defines the interface of drivers and address spaces.
pub const INTERFACE: &[Original] = &[
    seen("the second context of a device breaks the list of them", &["contexts-come-and-go-in-any-order"]),
    seen("a CPU fault keeps the low bits of its address instead of the page", &["cpu-touch-anywhere-brings-the-page"]),
    seen("device faults in one page get entries of their own", &["device-touch-anywhere-brings-the-page"]),
    seen("an address before the region, and an access against its protection, are served", &["device-faults-are-checked"]),
    seen("an entry that cannot be allocated is used", &["no-metadata-no-mapping"]),
    seen("the absence of a hint cannot be said", &["hint-reaches-the-peer-and-none-does-not", "fault-on-a-present-page-moves-nothing"]),
    seen("a second device gets a blank page for one that the first has", &["page-moves-from-device-to-device"]),
    not_here(
        "a mapping for DMA that failed is used",
        "user space maps nothing for DMA: the copy engine is given an address, and its failure is checked",
    ),
    seen("a page is lost when the peer cannot map it after the CPU lost it", &["failed-grant-loses-nothing"]),
    seen("a page that a peer is evicting leaks its memory", &["page-that-a-peer-cannot-have-is-not-taken-for-mapped"]),
    seen("a fault is reported as resolved although nothing was mapped", &["resolved-fault-has-resolved"]),
    seen(
        "a CPU fault does not look at the state, and moves 2 MiB whatever the size",
        &["cpu-touch-anywhere-brings-the-page", "host-faults-are-checked"],
    ),
    seen("the end of an address space leaves contexts, page tables and memory", &["end-of-an-address-space-returns-everything"]),
    seen("the end of a device leaves everything, and does not mind its users", &["device-lives-as-long-as-its-contexts"]),
    seen(
        "there is no detach, the mode is ignored, a device is attached twice, and attach races with map",
        &["device-is-attached-once", "detach-that-would-lose-data-is-refused", "attach-and-map-at-once"],
    ),
    seen(
        "a device can be found before it is complete, and its facts are not checked",
        &["device-that-does-not-start-is-gone", "contradicting-facts-are-refused"],
    ),
    seen("the ends of a memory range are not checked, and ranges may overlap", &["memory-ranges-are-checked"]),
    seen("memory is taken back whether or not it is there and in use", &["memory-goes-back-when-nothing-is-in-it"]),
    seen(
        "two kinds of error numbers are mixed, and empty ranges and the switch are ignored",
        &["address-spaces-of-the-cpu-are-disjoint", "off-refuses-what-is-new"],
    ),
    seen("when there are no more names of pools, one past the last is used", &["memory-pools-run-out-and-come-back"]),
    seen("only the thread that attached may have pages on the device", &["any-thread-uses-what-one-attached"]),
    seen("what is switched off pretends to succeed", &["off-refuses-what-is-new"]),
];

/// The defects of the other patches, and of what was built on them.
pub const SYSTEM: &[Original] = &[
    seen("unmapping on peers never ends, and gives no addresses back", &["peer-addresses-go-back", "unmap-takes-whole-pages-and-no-more"]),
    seen("an evicted page is filled anew, and loses its data", &["copies-are-whole", "every-copy-is-made-or-refused"]),
    seen("a peer is called under a lock that may not sleep", &["callbacks-may-call-the-core"]),
    seen("freeing a range goes one page too far", &["unmap-takes-whole-pages-and-no-more"]),
    seen("a range that was refused stays in the tree, and peers that reserved it keep it", &["refusing-peer-rolls-the-others-back"]),
    seen("a mapping with a fixed place moves silently", &["map-takes-the-place-asked-for-or-none", "peer-conflict-tries-another-place"]),
    seen("a fork copies the address space", &["forked-child-that-reads-dies", "forked-child-that-writes-dies"]),
    seen("a prefetch takes any address and length", &["range-past-the-end-is-refused", "prefetch-rounds-outward"]),
    not_here(
        "a prefetch waits for the work of every process",
        "a prefetch is carried out by the program that asks, and waits for nothing else",
    ),
    seen(
        "giving up the last address panics; giving up two bytes gives up a page, or is ignored",
        &["range-past-the-end-is-refused", "discard-rounds-inward"],
    ),
    seen("small prefetches hang", &["small-prefetches-of-many-threads-end"]),
    seen("a prefetch and an eviction of one page meet", &["evict-and-prefetch-at-once"]),
    seen("an eviction looks its page up without a lock", &["evict-and-unmap-at-once"]),
    seen("the thread that evicts in the background never does", &["background-eviction-works"]),
    seen("a failed copy leaks its page, and is never undone", &["failed-copy-home-loses-nothing", "failed-blank-page-leaks-nothing"]),
    seen(
        "a second attach frees the first context: there is one device",
        &["page-moves-from-device-to-device", "page-tables-have-ids-of-their-own"],
    ),
    seen("a driver is asked for memory under a lock", &["callbacks-may-call-the-core"]),
    seen("a loop over a range with an end inside a page never ends", &["discard-rounds-inward", "prefetch-rounds-outward"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_has_checks_that_exist_or_a_reason_for_none() {
        let names: Vec<_> = crate::checks::all().iter().map(|check| check.name).collect();
        for original in INTERFACE.iter().chain(SYSTEM) {
            assert_ne!(original.checks.is_empty(), original.reason.is_none(), "{}", original.defect);
            for check in original.checks {
                assert!(names.contains(check), "{}: there is no check {check}", original.defect);
            }
        }
    }

    /// The source of a crate of this repository, as one text.
    fn source(crate_name: &str) -> String {
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("src")];
        let mut text = String::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => text += &std::fs::read_to_string(&path).unwrap(),
                }
            }
        }
        text
    }

    /// What is missing of a place, as in `gmem-hal \`Mmu::pmap_enter\`` or `ARCHITECTURE.md "Locks"`.
    fn missing(place: &str) -> Option<String> {
        let (file, rest) = place.split_once(' ')?;
        let text = match file.ends_with(".md") || file.ends_with(".rs") {
            true => std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)).unwrap(),
            false => source(file),
        };
        let quoted = |mark: char| rest.split(mark).skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let headings = quoted('"').into_iter().filter(|heading| !text.contains(&format!("# {heading}\n")));
        let items = quoted('`').into_iter().flat_map(|item| item.split("::").map(str::to_owned).collect::<Vec<_>>());
        let named = quoted('"').len() + quoted('`').len();
        let absent = headings.chain(items.filter(|item| !text.contains(item.as_str()))).next();
        absent.or_else(|| (named == 0).then(|| "anything".to_owned()))
    }

    #[test]
    fn each_promise_that_is_observed_is_written_in_this_repository() {
        for place in crate::observe::rules::ALL.iter().map(|(_, rule)| rule.place) {
            assert_eq!(missing(place), None, "{place}");
        }
        for place in crate::unchecked::ALL.iter().map(|part| part.place) {
            assert_eq!(missing(place), None, "{place}");
        }
        assert_eq!(missing("gmem-hal `Mmu::no_such_call`").as_deref(), Some("no_such_call"));
        assert_eq!(missing("ARCHITECTURE.md \"Nowhere\"").as_deref(), Some("Nowhere"));
    }
}
