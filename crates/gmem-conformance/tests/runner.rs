//! The frame itself: a check that fails, panics, hangs or ends its process fails by name, and the others go on; nothing is left behind.

use gmem::hal::{ByteLen, Device, HnodeId, PhysAddr};
use gmem_conformance::world::{at, get};
use gmem_conformance::{Applies, Brink, Case, Check, Options, Outcome, Report, Row, Stop, Verdict, checks, run, shipped};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const fn check(name: &'static str, run: fn(&Case<'_>) -> Outcome) -> Check {
    Check { name, rule: "A rule.", place: "Here.", applies: Applies::EVERYWHERE.once(), run }
}

const PLANTED: [Check; 13] = [
    check("passes", passes),
    check("fails", |_| {
        eprintln!("what the driver traced");
        Err(Stop::Failed("seen 1, expected 2".to_owned()))
    }),
    check("asks what cannot be", |case| {
        let world = case.world(2)?;
        Ok(world.unit.observed.copy_engine().zero(PhysAddr { hnode: HnodeId(999), addr: 0 }, ByteLen(4096))?)
    }),
    check("panics", |_| panic!("a panic of the check")),
    check("aborts", |_| {
        (0..50).for_each(|n| eprintln!("chatter {n}"));
        eprintln!("its last words");
        std::process::abort()
    }),
    check("exits", |_| std::process::exit(0)),
    check("leaves a process", |_| {
        leave_a_process();
        std::process::abort()
    }),
    check("leaves one in its doom", |case| {
        let step = |brink: &Brink| {
            leave_a_process();
            brink.reached();
            gmem_conformance::world::touch(0);
        };
        case.doomed("the step", step)?.by_signal(libc::SIGSEGV)
    }),
    check("hangs", hangs),
    check("prints", prints),
    check("dies too early", |case| case.doomed("the step", |_| gmem_conformance::world::touch(0))?.by_signal(libc::SIGSEGV)),
    check("survives its doom", |case| case.doomed("the step", |brink| brink.reached())?.by_signal(libc::SIGSEGV)),
    Check { applies: Applies::never("it never does"), ..check("has no meaning", |_| Ok(())) },
];

fn passes(case: &Case<'_>) -> Outcome {
    let world = case.world(2)?;
    let region = world.region(1)?;
    world.unit.store(at(&region, 0), 7)?;
    gmem_conformance::ensure_eq!("the word", get(at(&region, 0)), 7);
    let step = |brink: &Brink| {
        brink.reached();
        gmem_conformance::world::touch(0);
    };
    case.doomed("a read of nothing", step)?.by_signal(libc::SIGSEGV)
}

/// For the time that this test may take, and with the pipes of this process.
fn leave_a_process() {
    let ours = std::env::current_exe().expect("the test binary");
    let sleeper = std::process::Command::new("sleep").arg("3600").env(LEFT, ours).spawn().expect("it can be started");
    std::mem::forget(sleeper);
}

/// Whose test left a process behind.
const LEFT: &str = "GMEM_RUNNER_TEST_LEFT";

/// Ends the processes that checks left. Returns how many there were.
fn end_the_left() -> usize {
    let mark = format!("{LEFT}={}", std::env::current_exe().expect("the test binary").display());
    let is_ours = |pid: i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let left: Vec<i32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_ours(*pid)).collect();
    for pid in &left {
        // SAFETY: sends a signal to a process that a check of this test started.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    left.len()
}

/// With a device of its own, which must not outlive it.
fn hangs(case: &Case<'_>) -> Outcome {
    let world = case.world(2)?;
    world.unit.store(at(&world.region(1)?, 0), 7)?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn prints(_: &Case<'_>) -> Outcome {
    print!("a driver prints what it likes\nwithout an end");
    Ok(())
}

/// Set in the process that tests how many checks may be late.
const LATE: &str = "GMEM_RUNNER_TEST_LATE";

/// Set in the process that tests the `main` of a driver's test.
const MAIN: &str = "GMEM_RUNNER_TEST_MAIN";

fn main() -> ExitCode {
    if std::env::var_os(MAIN).is_some() {
        return gmem_conformance::main_of(shipped("discrete"));
    }
    if std::env::var_os(LATE).is_some() {
        return late();
    }
    // In a check process this does not return.
    let report = run(&shipped("discrete"), &PLANTED, &Options { time_limit: 3, ..Options::default() }, &|_, _| ());
    let left = end_the_left();
    assert_eq!(left, 4, "two checks in two modes, and nobody waited for what they left");
    verdicts(&report);
    late_checks_end_the_run();
    nothing_checked_is_no_success_unless_a_name_was_given();
    nothing_is_left();
    the_checks_are_well_formed();
    the_page_on_writing_a_device_shows_what_is_tested();
    println!("the runner reports every end of a check");
    ExitCode::SUCCESS
}

fn rows<'a>(report: &'a Report, check: &str) -> Vec<&'a Row> {
    report.rows.iter().filter(|row| row.check == check).collect()
}

fn verdicts(report: &Report) {
    // Two modes each.
    assert_eq!((report.passed, report.failed, report.not_applicable, report.rows.len()), (6, 18, 2, 26), "{}", report.text());
    let failed = [
        ("fails", "seen 1, expected 2\nit said:\nwhat the driver traced"),
        ("asks what cannot be", "malformed request\nmeanwhile the driver answered BadRequest to zero"),
        ("panics", "a panic: a panic of the check"),
        ("aborts", "signal 6\nit said:\nchatter 0\n"),
        ("aborts", "chatter 49\nits last words"),
        ("exits", "status 0"),
        ("leaves a process", "signal 6\nit said:\na process that it started has its output still"),
        ("hangs", "not done within 3 s (--time-limit)\nits threads wait in:\n"),
        ("dies too early", "its preparations ended with signal 11"),
        ("survives its doom", "it ended with status 0, not by signal 11"),
    ];
    for (name, words) in failed {
        for row in rows(report, name) {
            assert!(matches!(&row.verdict, Verdict::Failed(what) if what.contains(words)), "{name}: {:?}", row.verdict);
        }
    }
    for name in ["passes", "prints", "leaves one in its doom"] {
        assert!(rows(report, name).iter().all(|row| row.verdict == Verdict::Passed), "{name}: {:?}", rows(report, name));
    }
    let failure = rows(report, "hangs")[0].failure().unwrap_or_default();
    assert!(failure.starts_with("FAILED hangs (discrete, exclusive)\n  rule:  A rule.\n  where: Here.\n  seen:  not done"), "{failure}");
    let text = report.text();
    assert!(text.contains("\nfailed, as told above:\n  fails (discrete, exclusive)\n"), "{text}");
    assert!(text.contains("  has no meaning: it never does (discrete, exclusive; discrete, replicate)\n"), "{text}");
}

/// A driver that answers nothing does not keep its author waiting for every check. Run by a process of its own, whose check processes make the same plan.
fn late_checks_end_the_run() {
    let status = std::process::Command::new(std::env::current_exe().expect("the test binary")).env(LATE, "1").status();
    assert!(status.expect("it can be started").success());
}

fn late() -> ExitCode {
    let checks = ["one", "two", "three", "four", "five"].map(|name| check(name, hangs));
    let report = run(&shipped("discrete"), &checks, &Options { time_limit: 1, ..Options::default() }, &|_, _| ());
    assert!(report.failed >= 6 && report.not_run > 0 && report.failed + report.not_run == 10, "{}", report.text());
    assert!(report.text().contains("--keep-going runs them all the same"), "{}", report.text());
    ExitCode::SUCCESS
}

fn nothing_checked_is_no_success_unless_a_name_was_given() {
    let status = |arguments: &[&str]| {
        let run = std::process::Command::new(std::env::current_exe().expect("the test binary")).args(arguments).env(MAIN, "1").output();
        run.expect("it can be started").status.code()
    };
    assert_eq!(status(&["the-name-of-some-other-test"]), Some(0));
    assert_eq!(status(&["--mode", "share"]), Some(2), "it has no such mode");
    assert_eq!(status(&["--filter", "peer-has-what-it-says"]), Some(2), "it is no peer");
    assert_eq!(status(&["--filter", "no-check-is-called-this"]), Some(2));
}

/// No process of a check and no device of one outlives the run.
fn nothing_is_left() {
    let ours = std::env::current_exe().expect("the test binary");
    let others = || {
        let processes = std::fs::read_dir("/proc").expect("proc").flatten();
        let is_ours = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == ours);
        let number = |entry: &std::fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        processes.filter(is_ours).filter(|entry| number(entry).is_some_and(|pid| pid != std::process::id())).count()
    };
    let until = Instant::now() + Duration::from_secs(10);
    while others() > 0 {
        assert!(Instant::now() < until, "{} processes are left", others());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Names and rules are unique, and each rule is written where it says.
fn the_checks_are_well_formed() {
    let checks = checks::all();
    for (n, check) in checks.iter().enumerate() {
        assert!(check.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{}", check.name);
        assert!(check.rule.ends_with('.') && check.rule.len() > 20, "{}: {}", check.name, check.rule);
        for other in &checks[..n] {
            assert!(check.name != other.name && check.rule != other.rule, "{} and {} are one", check.name, other.name);
        }
        assert!(is_written(check.place), "{}: nothing is written at {}", check.name, check.place);
    }
}

/// Whether a place is there: `document "heading"` with perhaps a number or word of a list, or ``crate `Item::part` ``.
fn is_written(place: &str) -> bool {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if let Some((document, rest)) = place.split_once(" \"") {
        // The front page of a crate is a document too.
        let text = std::fs::read_to_string(root.join(document)).unwrap_or_default().replace("\n//! # ", "\n## ");
        let (heading, item) = rest.split_once('"').expect("a heading ends");
        let section = text.split("\n## ").find(|section| section.starts_with(&format!("{heading}\n")));
        let item = item.trim().to_lowercase();
        return section.is_some_and(|section| {
            let numbered = item.parse::<u32>().is_ok_and(|n| section.contains(&format!("\n{n}. ")));
            item.is_empty() || numbered || section.to_lowercase().contains(&format!("**{item}"))
        });
    }
    let Some((name, item)) = place.split_once(" `") else { return false };
    let mut words = item.trim_end_matches('`').split("::");
    let sources = || files(&root.join("crates").join(name).join("src"));
    // Each part is declared somewhere in the crate; the last may be a function, a field, a variant or a counter of a macro.
    words.all(|word| {
        let declared = [format!("fn {word}"), format!("struct {word}"), format!("enum {word}"), format!("trait {word}")];
        let member = |line: &str| {
            let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("const ");
            line.strip_prefix(word).is_some_and(|rest| rest.starts_with([':', ',', '(', ' ', '{']))
        };
        sources().iter().any(|text| declared.iter().any(|d| text.contains(d.as_str())) || text.lines().any(member))
    })
}

fn files(folder: &std::path::Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            texts.extend(files(&entry.path()));
        } else {
            texts.push(std::fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    texts
}

fn the_page_on_writing_a_device_shows_what_is_tested() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("../../docs/writing-a-device.md")).expect("the page");
    for part in ["driver.rs", "proof.rs"] {
        let text = std::fs::read_to_string(here.join("tests/toy").join(part)).expect("the test");
        assert!(page.contains(&text), "docs/writing-a-device.md does not show tests/toy/{part} as it is");
    }
}
