//! Litmus tests in short: no forbidden outcome, weak ones where they must be, and every planted defect seen.

use gmem_conformance::litmus::{Campaign, Class, Defect, Report, TESTS, Test, Traffic, Trouble, run};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One campaign at a time: participants have to run at the same time.
static PROCESSORS: Mutex<()> = Mutex::new(());

fn tests(names: &[&str]) -> Vec<&'static Test> {
    TESTS.iter().filter(|test| names.is_empty() || names.contains(&test.name)).collect()
}

fn campaign(names: &[&str], rounds: u32, seed: u64) -> Campaign {
    Campaign { tests: tests(names), rounds, devices: None, seed, defect: None, limit: Duration::from_secs(60) }
}

#[track_caller]
fn report(campaign: &Campaign) -> Report {
    let _mine = PROCESSORS.lock().unwrap_or_else(PoisonError::into_inner);
    run(campaign, &|| ()).unwrap_or_else(|trouble| panic!("{trouble}"))
}

#[test]
fn every_test_is_without_forbidden_outcomes() {
    let report = report(&campaign(&[], 2, 1));
    assert_eq!(report.counts.forbidden, 0, "{}", report.text());
    assert_eq!(report.tests.len(), TESTS.len());
    assert!(report.meanwhile.evictions > 0 && report.meanwhile.device_faults > 0 && report.meanwhile.cpu_faults > 0, "{}", report.text());
}

/// A campaign in which participants take turns proves nothing.
#[test]
fn participants_run_at_the_same_time_however_the_words_travel() {
    let (mut seed, began) = (300, Instant::now());
    let mut overlapped = BTreeSet::new();
    while overlapped.len() < 3 {
        let report = report(&campaign(&["mp", "s", "corr2"], 4, seed));
        assert_eq!(report.counts.forbidden, 0, "{}", report.text());
        overlapped.extend(report.by_traffic.iter().filter(|(_, counts)| counts.overlap() > 0.0).map(|(traffic, _)| *traffic));
        assert!(began.elapsed() < Duration::from_secs(60), "only by {overlapped:?}: {}", report.text());
        seed += 1;
    }
}

/// The processor reorders a store and a later load, and where participants of different processes map one page, that is to be seen.
#[test]
fn store_buffering_is_seen_across_processes_that_map_one_page() {
    let (mut seed, began) = (100, Instant::now());
    loop {
        let report = report(&campaign(&["sb"], 12, seed));
        assert_eq!(report.counts.forbidden, 0, "{}", report.text());
        let weak = report.tests[0].by_traffic.get(&Traffic::OneHome).map_or(0, |counts| counts.weak);
        if weak > 0 {
            assert!(report.tests[0].outcomes.iter().any(|o| o.class == Class::Weak && o.outcome == "0:0 1:0" && o.count >= weak));
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "never seen: {}", report.text());
        seed += 1;
    }
}

/// Runs until a forbidden outcome is seen.
fn caught(defect: Defect, names: &[&str]) {
    let (mut seed, began) = (200, Instant::now());
    loop {
        let report = report(&Campaign { defect: Some(defect), devices: Some(2), ..campaign(names, 2, seed) });
        if report.counts.forbidden > 0 {
            assert!(report.tests.iter().any(|test| !test.examples.is_empty()) && report.text().contains("forbidden: "));
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{defect:?} is not noticed: {}", report.text());
        seed += 1;
    }
}

#[test]
fn a_driver_that_skips_copies_is_caught() {
    caught(Defect::SkipsCopies, &["mp", "corr", "coww"]);
}

#[test]
fn a_driver_that_copies_before_it_revokes_is_caught() {
    caught(Defect::CopiesBeforeRevoking, &["mp", "corr", "add"]);
}

#[test]
fn a_driver_that_does_not_invalidate_is_caught() {
    caught(Defect::DoesNotInvalidate, &["mp", "corr", "add"]);
}

#[test]
fn a_campaign_that_is_stuck_says_so_and_ends() {
    let _mine = PROCESSORS.lock().unwrap_or_else(PoisonError::into_inner);
    // No world is made within a microsecond.
    let result = run(&Campaign { limit: Duration::from_micros(1), ..campaign(&["lock"], 1, 1) }, &|| ());
    match result {
        Err(Trouble::Stuck(portrait)) => assert!(portrait.contains("takes too long") && portrait.contains("threads wait in"), "{portrait}"),
        other => panic!("{other:?}"),
    }
}
