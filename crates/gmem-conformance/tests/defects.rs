//! Every defect of the reference driver is found, by the check whose rule it breaks.
//!
//! The kit is run as a driver author runs it, in a process of its own for each defect: this executable, started again with the defect's name in its
//! environment.

use gmem_conformance::Defect;
use gmem_conformance::observe::{Rule, rules};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

const DEFECT: &str = "GMEM_CONFORMANCE_DEFECT";

/// The slowest takes as long as one check may, and then some.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(DEFECT) {
        let found = Defect::ALL.iter().find(|defect| defect.name() == name);
        return gmem_conformance::main_of(found.and_then(|defect| defect.target()).into_iter().collect());
    }
    let (next, missed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Two at a time: one that hangs waits for its limit and computes nothing.
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while let Some(defect) = Defect::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match caught(*defect) {
                        Ok(()) => println!("{}: caught by {}", defect.name(), defect.caught_by()),
                        Err(why) => {
                            missed.fetch_add(1, Ordering::Relaxed);
                            println!("{}: MISSED: {why}", defect.name());
                        }
                    }
                }
            });
        }
    });
    let basics = BASIC.iter().map(|defect| (*defect, named_first(*defect)));
    for (defect, named) in basics.chain(CAUSES.iter().map(|(defect, rule)| (*defect, named_as_cause(*defect, *rule)))) {
        if let Err(why) = named {
            missed.fetch_add(1, Ordering::Relaxed);
            println!("{}: not what a run of every check names first: {why}", defect.name());
        }
    }
    let missed = missed.into_inner();
    println!("{} of {} defects caught", Defect::ALL.len() - missed, Defect::ALL.len());
    ExitCode::from(u8::from(missed > 0))
}

/// Whether the run ends with status 1, and the report says that this check failed and which rule was broken.
fn caught(defect: Defect) -> Result<(), String> {
    let said = run(defect, &["--filter", defect.caught_by(), "--page-size", defect.page_size()]).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&said.stdout);
    let check = gmem_conformance::checks::all().into_iter().find(|check| check.name == defect.caught_by());
    let check = check.ok_or_else(|| format!("there is no check {}", defect.caught_by()))?;
    let expected = [format!("FAILED {}", check.name), check.rule.to_owned(), check.place.to_owned()];
    let missing = expected.iter().find(|part| !text.contains(part.as_str()));
    match (said.status.code(), missing) {
        (Some(1), None) => Ok(()),
        (code, missing) => {
            Err(format!("status {code:?}, the report lacks {missing:?}:\n{text}\n{}", String::from_utf8_lossy(&said.stderr)))
        }
    }
}

/// Defects by which dozens of checks fail.
const BASIC: [Defect; 7] = [
    Defect::WrongFrame,
    Defect::HalfCopied,
    Defect::BlankNotZeroed,
    Defect::FaultSwallowed,
    Defect::StaleTlb,
    Defect::ProtectIgnored,
    Defect::ProtIgnored,
];

/// Defects that only the driver's own code has, and the promise that each breaks, whatever checks it makes fail.
const CAUSES: [(Defect, Rule); 3] =
    [(Defect::Panics, rules::NO_PANIC), (Defect::ForeignThread, rules::OWN_THREADS), (Defect::ErrorTriedAgain, rules::ERROR_ENDS)];

/// Whether a run of all checks, of which many fail, says to begin with the one that catches it.
fn named_first(defect: Defect) -> Result<(), String> {
    let named = first_named(defect)?;
    if named.starts_with(&format!("{}: ", defect.caught_by())) { Ok(()) } else { Err(named) }
}

/// Whether it says to begin with this promise of the driver's.
fn named_as_cause(defect: Defect, rule: Rule) -> Result<(), String> {
    let named = first_named(defect)?;
    if named.starts_with("the driver broke ") && named.contains(rule.text) { Ok(()) } else { Err(named) }
}

/// What a run of all checks says to begin with.
fn first_named(defect: Defect) -> Result<String, String> {
    let said = run(defect, &["--page-size", "4k", "--mode", "exclusive"]).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&said.stdout);
    let named = text.lines().skip_while(|line| !line.starts_with("begin with this one")).nth(1).unwrap_or("nothing").trim();
    Ok(named.to_owned())
}

fn run(defect: Defect, arguments: &[&str]) -> std::io::Result<Output> {
    let child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env(DEFECT, defect.name())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let (pid, (tell, ended)) = (child.id() as i32, channel());
    // Whoever asked may have given up.
    std::thread::spawn(move || drop(tell.send(child.wait_with_output())));
    ended.recv_timeout(LIMIT).unwrap_or_else(|_| {
        // SAFETY: sends a signal to a child, which is waited for only by the thread that has not answered.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        Err(std::io::Error::other(format!("not done within {} s", LIMIT.as_secs())))
    })
}
