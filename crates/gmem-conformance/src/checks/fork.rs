//! Fork. A child does not inherit unified memory: that is the limit, and what is checked is that it is a clean one.

use super::steps::{Forked, both_read, fork, settle, written_by_device};
use crate::check::{Applies, Check, Outcome};
use crate::world::{at, get, pattern, set, set_bytes, touch};
use crate::{Case, ensure_eq};
use gmem::State;
use std::sync::atomic::{AtomicU64, Ordering};

const PLACE: &str = "README.md \"Limits a user can meet\" fork";

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "forked-child-that-reads-dies",
        rule: "A forked child that reads unified memory ends by SIGSEGV, never with zeros or stale bytes, wherever the page is; what the device writes afterwards is the parent's.",
        place: PLACE,
        applies: Applies::EVERYWHERE,
        run: forked_child_that_reads_dies,
    },
    Check {
        name: "forked-child-that-writes-dies",
        rule: "A forked child that writes unified memory ends by SIGSEGV and changes nothing; the parent sees what the device writes while the child lives.",
        place: PLACE,
        applies: Applies::EVERYWHERE,
        run: forked_child_that_writes_dies,
    },
    Check {
        name: "atomics-go-on-over-a-fork",
        rule: "Additions by the device and by the parent are not lost when the parent forks between them.",
        place: PLACE,
        applies: Applies::EVERYWHERE,
        run: atomics_go_on_over_a_fork,
    },
    Check {
        name: "pages-on-the-device-survive-a-fork",
        rule: "Pages that are on the device when the program forks are as they were, and the parent can write them while the child lives.",
        place: PLACE,
        applies: Applies::EVERYWHERE,
        run: pages_on_the_device_survive_a_fork,
    },
];

fn forked_child_that_reads_dies(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    // One page on the CPU, one on the device, one nowhere.
    set(at(&region, 0), 1);
    world.unit.store(at(&region, world.page()), 2)?;
    for page in 0..3 {
        let word = at(&region, page * world.page());
        let signal = fork(|| touch(word))?;
        ensure_eq!(format!("the signal that ended a child that read page {page}"), signal, Some(libc::SIGSEGV));
    }
    settle("where the pages are", &world, &region, &[State::Host, written_by_device(case), State::Unmapped])?;
    world.unit.add(at(&region, 0), 10)?;
    let words = [0, 1, 2].map(|page| get(at(&region, page * world.page())));
    ensure_eq!("the parent's words", words, [11, 2, 0]);
    world.verify()
}

fn forked_child_that_writes_dies(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(2)?;
    set(at(&region, 0), 1);
    world.unit.store(at(&region, world.page()), 2)?;
    for page in 0..2 {
        let word = at(&region, page * world.page());
        let child = Forked::new(|| set(word, 99))?;
        world.unit.add(word, 10)?;
        ensure_eq!("what the parent sees while the child lives", get(word), 11 + page);
        world.unit.add(word, 10)?;
        ensure_eq!("the signal that ended the child", child.wait()?, Some(libc::SIGSEGV));
        ensure_eq!("the word after the child is gone", get(word), 21 + page);
    }
    world.verify()
}

fn atomics_go_on_over_a_fork(case: &Case<'_>) -> Outcome {
    let world = case.world(2)?;
    let region = world.region(1)?;
    let word = at(&region, 64);
    let mut children = Vec::new();
    for round in 0..3 {
        world.unit.add(word, 1)?;
        children.push(Forked::new(|| set(word, 99))?);
        world.unit.add(word, 1)?;
        // SAFETY: an aligned word of a region that lives, touched only by atomics meanwhile.
        let before = unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(word as usize)) }.fetch_add(1, Ordering::SeqCst);
        ensure_eq!("the sum so far", before, 3 * round + 2);
    }
    for child in children {
        ensure_eq!("the signal that ended a child", child.wait()?, Some(libc::SIGSEGV));
    }
    world.unit.add(word, 1)?;
    ensure_eq!("the sum", get(word), 10);
    world.verify()
}

fn pages_on_the_device_survive_a_fork(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let region = world.region(3)?;
    let mut expected = pattern(1, region.range().len().get() as usize);
    world.unit.write(at(&region, 0), &expected)?;
    let word = at(&region, 0);
    let child = Forked::new(|| touch(word))?;
    settle("where the pages are", &world, &region, &[written_by_device(case); 3])?;
    let middle = pattern(2, world.page() as usize);
    set_bytes(at(&region, world.page()), &middle);
    expected[world.page() as usize..][..middle.len()].copy_from_slice(&middle);
    both_read(&world, &region, 0, &expected)?;
    ensure_eq!("the signal that ended the child", child.wait()?, Some(libc::SIGSEGV));
    both_read(&world, &region, 0, &expected)?;
    world.verify()
}
