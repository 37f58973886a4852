//! Every defect of the reference driver is found, by the check whose rule it breaks.
//!
//! The kit is run as a driver author runs it, in a process of its own for each defect: this executable, started again with the defect's name in its
//! environment.

use gmem_conformance::Defect;
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
    let missed = missed.into_inner();
    println!("{} of {} defects caught", Defect::ALL.len() - missed, Defect::ALL.len());
    ExitCode::from(u8::from(missed > 0))
}

/// Whether the run ends with status 1, and the report says that this check failed and which rule was broken.
fn caught(defect: Defect) -> Result<(), String> {
    let said = run(defect).map_err(|e| e.to_string())?;
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

fn run(defect: Defect) -> std::io::Result<Output> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--filter", defect.caught_by(), "--page-size", defect.page_size()])
        .env(DEFECT, defect.name())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let until = Instant::now() + LIMIT;
    // What it says fits a pipe.
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            return Err(std::io::Error::other(format!("not done within {} s", LIMIT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output()
}
