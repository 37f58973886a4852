//! A check process: takes numbers of jobs, gives verdicts, and does not outlive who started it.

use super::{CHILD, doomed};
use crate::job::Job;
use std::io::{BufRead, Write};
use std::time::Duration;

/// Begins every line that is an answer: no driver prints it by chance.
pub(crate) const MARK: &str = "\u{1}gmem-conformance ";

/// If this is a check process, does its work, for which each check has `limit`, and ends it.
pub(crate) fn serve_if_asked(jobs: &[Job<'_>], limit: Duration) {
    let Some(parent) = std::env::var(CHILD).ok().and_then(|v| v.parse::<u32>().ok()) else { return };
    if !die_with(parent) {
        std::process::exit(0);
    }
    if let Some((number, step)) = doomed::asked() {
        let verdict = jobs[number].run(number, Some(step), limit);
        // The step was not reached: the check ended before it.
        eprintln!("the check ended before its last step: {verdict:?}");
        std::process::exit(doomed::NOT_REACHED);
    }
    for line in std::io::stdin().lock().lines() {
        let Some(number) = line.ok().and_then(|line| line.trim().parse::<usize>().ok()) else { break };
        let verdict = jobs[number].run(number, None, limit);
        let verdict = serde_json::to_string(&verdict).expect("a verdict is a string");
        // A driver may have left a line unfinished.
        let mut out = std::io::stdout().lock();
        if write!(out, "\n{MARK}{verdict}\n").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

/// Has this process killed when the thread that started it ends. Says whether its process still lives.
fn die_with(parent: u32) -> bool {
    // SAFETY: sets a property of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    std::os::unix::process::parent_id() == parent
}
