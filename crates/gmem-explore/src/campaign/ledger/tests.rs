//! The ledger's own rules, without a world.

use super::Ledger;
use gmem_hal::{Backing, Prot};
use gmem_sim::random::{PageRun, Shape, Spot};

const RUN: PageRun = PageRun { space: 0, first: 0, count: 4 };
const SPOT: Spot = Spot { space: 0, page: 0, offset: 0, len: 1 };

/// Of a world in which four pages are mapped.
fn mapped() -> Ledger {
    let mut ledger = Ledger::new(&Shape::standard());
    ledger.begin_change(&RUN, false);
    ledger.end_map(&RUN, Prot::RW, Backing::Shared);
    ledger
}

fn store(ledger: &mut Ledger, fill: u8) {
    ledger.now += 1;
    ledger.store(&SPOT, fill);
    ledger.now += 1;
}

#[test]
fn a_discard_makes_a_page_zero_once() {
    let mut ledger = mapped();
    store(&mut ledger, 1);
    let since = ledger.begin_discard(&RUN);
    assert!(ledger.became_zero(0, 0), "that is what a discard does");
    store(&mut ledger, 2);
    assert!(!ledger.became_zero(0, 0), "a store after that is lost");
    let second = ledger.begin_discard(&RUN);
    assert!(ledger.became_zero(0, 0), "by the second one");
    assert_eq!(ledger.end_discard(&RUN, since, true), Ok(()));
    store(&mut ledger, 3);
    assert!(!ledger.became_zero(0, 0), "both have been there");
    assert_eq!(ledger.end_discard(&RUN, second, true), Ok(()));
}

#[test]
fn a_discard_brings_a_lost_page_back_or_makes_one_zero() {
    let mut ledger = mapped();
    store(&mut ledger, 1);
    let since = ledger.begin_discard(&RUN);
    ledger.lose(0, 0);
    assert!(ledger.came_back(0, 0));
    store(&mut ledger, 2);
    assert!(!ledger.became_zero(0, 0), "it was there");
    ledger.lose(0, 0);
    assert!(!ledger.came_back(0, 0), "it was there");
    assert_eq!(ledger.end_discard(&RUN, since, false), Ok(()));
}

#[test]
fn a_discard_under_way_comes_to_what_is_mapped_meanwhile() {
    let mut ledger = mapped();
    store(&mut ledger, 1);
    let since = ledger.begin_discard(&RUN);
    ledger.begin_change(&RUN, true);
    assert!(ledger.became_zero(0, 0), "it is being unmapped");
    ledger.end_unmap(&RUN);
    ledger.begin_change(&RUN, false);
    ledger.end_map(&RUN, Prot::RW, Backing::Shared);
    store(&mut ledger, 2);
    assert!(ledger.became_zero(0, 0), "the discard is there now");
    store(&mut ledger, 3);
    assert!(!ledger.became_zero(0, 0), "and was");
    assert_eq!(ledger.end_discard(&RUN, since, true), Ok(()));
}

#[test]
fn a_change_that_was_refused_is_looked_after() {
    let mut ledger = mapped();
    ledger.touched.clear();
    ledger.begin_change(&RUN, true);
    ledger.end_unchanged(&RUN);
    assert_eq!(ledger.touched, [(0, 0), (0, 1), (0, 2), (0, 3)]);
}

#[test]
fn a_page_to_which_zeros_were_stored_need_not_become_zero() {
    let mut ledger = mapped();
    let spot = Spot { offset: 0x263, ..SPOT };
    assert_eq!(spot.bytes(0x61), [0]);
    ledger.now += 1;
    ledger.store(&spot, 0x61);
    ledger.now += 1;
    let since = ledger.begin_discard(&RUN);
    assert_eq!(ledger.end_discard(&RUN, since, true), Ok(()));
    store(&mut ledger, 1);
    let since = ledger.begin_discard(&RUN);
    assert!(ledger.end_discard(&RUN, since, true).is_err_and(|why| why.starts_with("page 0 of space 0 was discarded")));
}
