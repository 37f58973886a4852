//! `gmem sim`: what it prints, that a seed decides it, and how it ends.

mod common;

use common::{gmem, json};

fn simulate(args: &[&str]) -> serde_json::Value {
    json(&[&["sim", "--steps", "4000"], args].concat())
}

#[test]
fn a_seed_decides_everything_and_jobs_nothing() {
    let one = simulate(&["--seed", "3"]);
    assert_eq!(one["trace_hash"], simulate(&["--seeds", "3..4", "--jobs", "2"])["trace_hash"]);
    assert_ne!(one["trace_hash"], simulate(&["--seed", "4"])["trace_hash"]);
    assert_ne!(one["trace_hash"], simulate(&["--seed", "3", "--faults", "none"])["trace_hash"]);
    let several = |jobs| simulate(&["--seeds", "0..6", "--jobs", jobs]);
    let (a, b) = (several("1"), several("3"));
    for field in ["trace_hash", "steps", "acts", "transitions", "callbacks_failed", "pairs"] {
        assert_eq!(a[field], b[field], "{field}");
    }
    assert_eq!(a["seeds"], 6);
    assert!(a["steps"].as_u64().is_some_and(|steps| steps >= 6 * 4000));
}

#[test]
fn a_run_prints_its_hash_and_what_it_covered() {
    let ended = gmem(&["sim", "--steps", "4000", "--seed", "3"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    let hash = simulate(&["--seed", "3"])["trace_hash"].as_str().map(str::to_owned).expect("a hash");
    assert!(ended.stdout.lines().any(|line| line == format!("trace hash: {hash}")), "{}", ended.stdout);
    for rows in ["transitions taken", "of 21", "callbacks failed, by error", "pairs overlapped", "of 153", "8 threads of control"] {
        assert!(ended.stdout.contains(rows), "`{rows}` is not in: {}", ended.stdout);
    }
}

#[test]
fn every_canary_is_found_or_the_command_fails() {
    let found = json(&["sim", "--canary", "--faults", "none", "--jobs", "2"]);
    assert_eq!(found["found"], found["of"]);
    assert!(found["canaries"].as_array().is_some_and(|all| all.len() == 16 && all.iter().all(|c| c["steps"].as_u64() > Some(0))));
    let missed = gmem(&["sim", "--canary", "--steps", "1"]);
    assert_eq!(missed.status.code(), Some(1));
    assert!(missed.stderr.contains("not found") && missed.stderr.contains("--steps"), "{}", missed.stderr);
}
