//! The command line from outside: help, every refusal with its exit status and its words, and how output ends.

mod common;

use common::{Ended, command, gmem, watch, watch_into};
use std::fs::File;

/// The command line is refused with `status`, nothing on standard output, and a message that holds all of `words`.
#[track_caller]
fn refused(args: &[&str], status: i32, words: &[&str]) {
    let output = gmem(args);
    let message = output.stderr;
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert_eq!(output.stdout, "", "{args:?}");
    for word in words {
        assert!(message.contains(word), "{args:?}: `{word}` is not in: {message}");
    }
}

#[test]
fn help_has_examples_for_every_command() {
    let commands: [&[&str]; 10] = [
        &[],
        &["run"],
        &["run", "vector-add"],
        &["run", "crc"],
        &["run", "backprop"],
        &["probe"],
        &["bench"],
        &["conformance"],
        &["litmus"],
        &["sim"],
    ];
    for command in commands {
        let output = gmem(&[command, &["--help"]].concat());
        let help = output.stdout;
        assert!(output.status.success(), "{command:?}");
        let example = format!("  gmem {}", command.join(" "));
        assert!(help.contains("Examples:") && help.contains(example.trim_end()), "{command:?}: {help}");
        assert!(!help.contains("bench-other-process"), "the hidden command shows in: {help}");
    }
    assert!(gmem(&["--version"]).stdout.starts_with("gmem "));
}

#[test]
fn unknown_words_are_wrong_usage() {
    refused(&[], 2, &["Usage"]);
    refused(&["frobnicate"], 2, &["frobnicate"]);
    refused(&["run"], 2, &["vector-add", "crc", "backprop"]);
    refused(&["run", "matmul"], 2, &["`matmul`", "vector-add, crc, backprop"]);
    refused(&["run", "vector-add", "--device", "gpu"], 2, &["gpu", "discrete, integrated, peer"]);
    refused(&["run", "vector-add", "--mode", "shared"], 2, &["shared", "exclusive, share, replicate"]);
    refused(&["run", "vector-add", "--backing", "x"], 2, &["shared, private"]);
    refused(&["run", "vector-add", "--delivery", "x"], 2, &["service, inthread"]);
    refused(&["run", "vector-add", "--no-such-flag"], 2, &["--no-such-flag"]);
    refused(&["bench", "--only", "nothing"], 2, &["nothing", "cpu_fault_2mib"]);
    refused(&["run", "crc"], 2, &["<FILE>"]);
    refused(&["conformance", "--device", "gpu"], 2, &["gpu", "discrete, discrete-no-replay, peer, integrated, all"]);
    refused(&["conformance", "--filter", "no-such-check"], 2, &["no-such-check", "--list"]);
    refused(&["conformance", "--device", "integrated", "--mode", "exclusive"], 2, &["integrated", "none of the modes"]);
}

#[test]
fn conformance_lists_its_rules_and_runs_them() {
    let listed = gmem(&["conformance", "--list", "--filter", "forbidden-write"]);
    assert!(listed.status.success() && listed.stdout.contains("read-only") && listed.stdout.contains("gmem-hal `Mapping::prot`"));
    let args = ["conformance", "--filter", "forbidden-write", "--filter", "hugetlb", "--device", "all", "--page-size", "4KiB"];
    let table = gmem(&args);
    assert!(table.status.success(), "{}", table.stderr);
    assert!(table.stdout.contains("6 passed, 0 failed, 6 not applicable"), "{}", table.stdout);
    let json = gmem(&[&args[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&json.stdout).expect("one JSON object");
    assert_eq!((&report["passed"], &report["failed"], &report["not_applicable"]), (&6.into(), &0.into(), &6.into()));
    let rows = report["rows"].as_array().expect("the rows");
    assert_eq!(rows.len(), 12);
    for row in rows {
        let text = |key: &str| row[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("check") && text("rule") && text("where") && text("device") && text("mode") && text("verdict"), "{row}");
        assert_eq!(row["verdict"] == "not_applicable", text("detail"), "{row}");
    }
}

#[test]
fn impossible_numbers_are_wrong_usage() {
    refused(&["run", "vector-add", "--elements", "0"], 2, &["--elements"]);
    refused(&["run", "vector-add", "--elements", "-1"], 2, &["'-1' for '--elements", "a count is a number"]);
    refused(&["run", "vector-add", "--elements", "99999999999999999999"], 2, &["--elements"]);
    refused(&["run", "vector-add", "--elements", "18446744073709551615"], 2, &["use less data"]);
    refused(&["run", "vector-add", "--elements", "1000000000000000"], 2, &["this machine has", "use less data"]);
    refused(&["run", "vector-add", "--cores", "0"], 2, &["--cores"]);
    refused(&["run", "vector-add", "--cores", "-1"], 2, &["'-1' for '--cores", "a whole number from 1 to 64"]);
    refused(&["run", "vector-add", "--page-size", "NaN"], 2, &["'NaN' for '--page-size", "a number and a unit"]);
    refused(&["run", "vector-add", "--device-memory", "-5MiB"], 2, &["'-5MiB' for '--device-memory", "a number and a unit"]);
    refused(&["run", "vector-add", "--cores", "1", "--cores", "2"], 2, &["--cores", "multiple times"]);
    refused(&["run", "backprop", "--seed", "-1"], 2, &["'-1' for '--seed"]);
    refused(&["run", "vector-add", "--cores", "1000"], 2, &["--cores"]);
    refused(&["run", "backprop", "--epochs", "0"], 2, &["--epochs"]);
    refused(&["sim", "--seed", "18446744073709551615"], 2, &["a whole number below 2^64 - 1"]);
    refused(&["sim", "--seed", "-1"], 2, &["'-1' for '--seed"]);
    refused(&["sim", "--steps", "x"], 2, &["a whole number from 1 to"]);
}

#[test]
fn impossible_simulations_are_wrong_usage() {
    refused(&["sim", "--seeds", "5..5"], 2, &["no seed in this range"]);
    refused(&["sim", "--seeds", "all"], 2, &["such as 0..100"]);
    refused(&["sim", "--seed", "1", "--seeds", "0..2"], 2, &["--seeds"]);
    refused(&["sim", "--steps", "0"], 2, &["--steps"]);
    refused(&["sim", "--jobs", "0"], 2, &["--jobs", "1 to 1024"]);
    refused(&["sim", "--faults", "most"], 2, &["most", "none, some, all"]);
}

#[test]
fn impossible_device_memory_says_what_would_work() {
    let with = |size: &'static str| ["run", "vector-add", "--device-memory", size];
    refused(&with("0"), 2, &["needs memory", "2 MiB"]);
    refused(&with("4k"), 2, &["smaller than one page", "2 MiB", "--page-size"]);
    refused(&with("3MiB"), 2, &["not a multiple", "2 MiB would be"]);
    refused(&with("16384TiB"), 2, &["this machine has", "use at most"]);
    refused(&with("99999999999T"), 2, &["more than 2^64"]);
    refused(&with("lots"), 2, &["a number and a unit"]);
    refused(&with("4parsecs"), 2, &["`parsecs` is no unit"]);
    refused(&["run", "backprop", "--device-memory", "6000"], 2, &["not a multiple", "4 KiB would be"]);
    refused(&["run", "vector-add", "--page-size", "3KiB"], 2, &["3 KiB", "4 KiB, 64 KiB, 2 MiB"]);
    refused(&["run", "vector-add", "--page-size", "8k"], 2, &["4 KiB, 64 KiB, 2 MiB"]);
}

#[test]
fn modes_a_device_cannot_do_name_those_it_can() {
    let with = |device: &'static str, mode: &'static str| ["run", "vector-add", "--device", device, "--mode", mode];
    refused(&with("discrete", "share"), 2, &["cannot do --mode share", "exclusive, replicate"]);
    refused(&with("integrated", "exclusive"), 2, &["cannot do --mode exclusive", "it can do: share"]);
    refused(&with("integrated", "replicate"), 2, &["cannot do --mode replicate", "it can do: share"]);
    refused(&with("peer", "share"), 2, &["cannot do --mode share", "it can do: exclusive"]);
    refused(&with("peer", "replicate"), 2, &["cannot do --mode replicate", "it can do: exclusive"]);
    refused(&["run", "vector-add", "--mode", "replicate", "--backing", "private"], 2, &["--backing shared"]);
    refused(&["run", "vector-add", "--backing", "private", "--delivery", "inthread"], 2, &["--backing shared --delivery inthread"]);
    refused(&["run", "vector-add", "--device", "integrated", "--no-replay"], 2, &["--no-replay", "always replayed"]);
}

#[test]
fn launches_that_cannot_hold_what_they_name_say_what_would_do() {
    let tiny = ["--no-replay", "--page-size", "4k", "--device-memory", "8k"];
    refused(&[&["run", "vector-add"], &tiny[..]].concat(), 2, &["at least 3 pages"]);
    refused(&[&["run", "backprop"], &tiny[..]].concat(), 2, &["8 KiB must be at least"]);
    refused(&[&["run", "crc", env!("CARGO_MANIFEST_DIR")], &tiny[..]].concat(), 2, &["4 pages are enough"]);
}

#[test]
fn switched_off_is_a_failure_that_says_how_to_switch_it_on() {
    let mut off = command(&["run", "vector-add", "--elements", "1000"]);
    off.env("GMEM", "off");
    let ended = watch(off);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("unset the variable"), "{}", ended.stderr);
}

#[test]
fn a_limit_on_addresses_is_named() {
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -v 300000; exec \"$0\" run vector-add --elements 1000 --json"]).arg(command(&[]).get_program());
    let ended = watch(limited);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("of addresses (ulimit -v)") && ended.stdout.contains("exit_status\":1"), "{}", ended.stderr);
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("empty"), "").unwrap();
    std::fs::create_dir(at("hollow")).unwrap();
    refused(&["run", "crc", &at("missing")], 1, &[&at("missing"), "No such file"]);
    refused(&["run", "crc", &at("empty")], 1, &[&at("empty"), "the file is empty"]);
    refused(&["run", "crc", &at("hollow")], 1, &[&at("hollow"), "no file to read in this directory"]);
    refused(&["run", "crc", "/dev/null"], 1, &["/dev/null", "neither a file nor a directory"]);
    refused(&["run", "crc", &at("missing"), &at("empty")], 1, &[&at("missing"), &at("empty")]);
}

#[test]
fn with_json_a_failure_is_an_object_too() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing").display().to_string();
    let failures: [(&[&str], i32, &str); 8] = [
        (&["run", "crc", &missing, "--json"], 1, "No such file"),
        (&["run", "vector-add", "--json", "--device-memory", "3MiB"], 2, "2 MiB would be"),
        (&["run", "--json", "matmul"], 2, "there is no workload `matmul`"),
        (&["run", "vector-add", "--json", "--no-such-flag"], 2, "--no-such-flag"),
        (&["run", "vector-add", "--elements", "-1", "--json"], 2, "-1"),
        (&["--json"], 2, "--json"),
        (&["probe", "--json", "x"], 2, "'x'"),
        (&["bench", "--json", "--only", "nothing"], 2, "cpu_fault_2mib"),
    ];
    for (args, status, word) in failures {
        let ended = gmem(args);
        assert_eq!(ended.status.code(), Some(status), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout.lines().count(), 1, "{args:?}: {}", ended.stdout);
        let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(object["exit_status"], status, "{args:?}: {object}");
        assert!(object["error"].as_str().is_some_and(|said| said.contains(word) && !said.starts_with("error")), "{args:?}: {object}");
    }
    // A file of that name, and a command that never saw the word.
    refused(&["run", "crc", "--", "--json"], 1, &["--json: No such file"]);
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let small = ["run", "vector-add", "--elements", "64k", "--device-memory", "64KiB", "--page-size", "4k", "--cores", "1"];
    for args in [&["--help"][..], &["--version"], &["run", "crc", "--help"], &["probe"], &["probe", "--json"], &small] {
        let check = |what: &str, ended: Ended, said: &str| {
            let message = ended.stderr;
            assert_eq!(ended.status.code(), Some(1), "{args:?} with an output that is {what}: {message}");
            assert!(message.contains(said) && message.lines().count() <= 1, "{args:?} with an output that is {what}: {message}");
        };
        let mut closed = std::process::Command::new("sh");
        closed.args(["-c", "exec \"$0\" \"$@\" >&-"]).arg(command(&[]).get_program()).args(args).env_remove("GMEM");
        check("closed", watch(closed), "no standard output");
        check("for reading only", watch_into(command(args), File::open("/dev/null").unwrap().into()), "no standard output");
        check("full", watch_into(command(args), File::options().write(true).open("/dev/full").unwrap().into()), "No space left");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        check("left by its reader", watch_into(command(args), writer.into()), "");
    }
}
