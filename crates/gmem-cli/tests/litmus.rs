//! `gmem litmus` from outside: what it prints, and how it ends.

mod common;

use common::{gmem, json};

#[test]
fn a_run_is_one_object_with_every_outcome_counted() {
    let report = json(&["litmus", "--test", "mp", "--test", "sb", "--rounds", "2", "--devices", "1", "--seed", "3"]);
    assert_eq!(report["counts"]["forbidden"], 0);
    let tests = report["tests"].as_array().expect("a list of tests");
    assert_eq!(tests.iter().map(|test| test["name"].as_str().expect("a name")).collect::<Vec<_>>(), ["sb", "mp"]);
    for test in tests {
        let outcomes = test["outcomes"].as_array().expect("a list of outcomes");
        let count: u64 = outcomes.iter().map(|outcome| outcome["count"].as_u64().expect("a count")).sum();
        assert_eq!((test["rounds"].as_u64(), test["counts"]["iterations"].as_u64()), (Some(2), Some(count)));
        assert!(count > 0);
    }
}

#[test]
fn the_table_names_every_test_that_ran_and_what_it_saw() {
    let ended = gmem(&["litmus", "--test", "lock", "--rounds", "1"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    for words in ["participants", "lock: a lock by compare and exchange excludes", "counted", "meanwhile", " 0 forbidden"] {
        assert!(ended.stdout.contains(words), "`{words}` is not in: {}", ended.stdout);
    }
}

#[test]
fn a_broken_driver_is_found_and_the_command_says_where() {
    let broken = ["litmus", "--canary", "skips-copies", "--test", "corr", "--test", "coww", "--rounds", "8"];
    let ended = gmem(&broken);
    assert!(ended.status.success(), "{}", ended.stdout);
    assert!(ended.stdout.contains("forbidden: ") && ended.stderr.contains("(skips-copies) was found"), "{}", ended.stderr);
    let ended = gmem(&[&broken[..], &["--json"]].concat());
    assert_eq!((ended.status.code(), ended.stdout.lines().count()), (Some(0), 1), "one object on one line: {}", ended.stdout);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(report["counts"]["forbidden"].as_u64() > Some(0), "{report}");
    // One CPU and a device without evictions see nothing of it.
    let missed = gmem(&["litmus", "--canary", "copies-before-revoking", "--test", "sb", "--rounds", "1", "--devices", "1", "--seed", "1"]);
    let found = missed.stderr.contains("was found");
    assert_eq!((missed.status.code(), found), (Some(i32::from(!found)), found), "{}", missed.stderr);
}

#[test]
fn the_list_runs_nothing() {
    let ended = gmem(&["litmus", "--list"]);
    assert!(ended.status.success() && ended.stdout.lines().any(|line| line.starts_with("iriw ")), "{}", ended.stdout);
    assert!(!ended.stdout.contains("rounds"), "{}", ended.stdout);
    let list = json(&["litmus", "--list", "--test", "iriw"]);
    assert_eq!((list.as_array().map(Vec::len), list[0]["name"].as_str()), (Some(1), Some("iriw")));
}

/// What is lost would keep a lock waiting for ever.
#[test]
fn a_defect_that_hangs_a_test_ends_the_command_all_the_same() {
    let ended = gmem(&["litmus", "--canary", "skips-copies", "--test", "lock", "--rounds", "20"]);
    assert!(ended.status.success(), "{}", ended.stdout);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("was found, as it must be"), "{said}");
}

#[test]
fn what_cannot_be_run_is_wrong_usage() {
    for args in [["--test", "nothing"], ["--devices", "0"], ["--devices", "5"], ["--rounds", "0"], ["--canary", "x"]] {
        let ended = gmem(&[&["litmus"][..], &args[..]].concat());
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(2), ""), "{args:?}: {}", ended.stderr);
    }
}
