//! Runs checks in processes of their own, so that one that hangs or ends its process fails by name and the others go on.
//!
//! A check process is this very executable, started again with the same arguments and [`CHILD`] in its environment. It makes the same plan, reads numbers of jobs
//! from standard input, and answers on standard output with a line each; a driver may print what it likes between them.

pub(crate) mod child;
pub(crate) mod doomed;
mod lane;
pub(crate) mod who_waits;

use crate::check::Check;
use crate::job::{Job, plan};
use crate::options::Options;
use crate::report::{Report, Row, Verdict};
use crate::target::Target;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Marks a check process; its value is the process that started it.
pub(crate) const CHILD: &str = "GMEM_CONFORMANCE_CHILD";

/// The most check processes at a time: they wait more than they compute, but each has a device's memory.
const MOST_LANES: usize = 4;

/// After so many checks that were not done in time the others are not run, unless told otherwise: a driver that answers nothing would keep everybody waiting.
const MOST_LATE: usize = 6;

/// Runs what `options` wants of `checks` on `targets`, and calls `tell` with each check that ended and how many there are. In a check process this does not return.
pub fn run(targets: &[Target], checks: &[Check], options: &Options, tell: &(dyn Fn(&Row, usize) + Sync)) -> Report {
    let jobs = plan(targets, checks, options);
    let limit = Duration::from_secs(options.time_limit);
    child::serve_if_asked(&jobs, limit);
    let began = Instant::now();
    let lanes = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, MOST_LANES);
    let rows: Mutex<Vec<Option<Row>>> = Mutex::new(jobs.iter().map(unmeaning).collect());
    let (next, late) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let of = jobs.iter().filter(|job| job.reason_not_to.is_none()).count();
    std::thread::scope(|threads| {
        for _ in 0..lanes {
            threads.spawn(|| {
                let mut lane = lane::Lane::new(limit);
                while let Some((number, job)) = take(&jobs, &next) {
                    let began = Instant::now();
                    let verdict = match late.load(Ordering::Relaxed) {
                        MOST_LATE.. if !options.keep_going => Verdict::NotRun,
                        _ => lane.run(number),
                    };
                    // One that fails just under the limit keeps everybody waiting too.
                    let slow = lane.is_late() || began.elapsed() > limit / 2;
                    late.fetch_add(usize::from(slow && matches!(verdict, Verdict::Failed(_))), Ordering::Relaxed);
                    let row = job.row(verdict, began.elapsed().as_secs_f64());
                    tell(&row, of);
                    rows.lock().expect("no lane panics with the rows").as_mut_slice()[number] = Some(row);
                }
            });
        }
    });
    let rows = rows.into_inner().expect("no lane panics with the rows");
    Report::new(rows.into_iter().flatten().collect(), began.elapsed().as_secs_f64())
}

/// Whether this process was started to run checks for another one.
pub(crate) fn is_check_process() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The row of a job that need not run.
fn unmeaning(job: &Job<'_>) -> Option<Row> {
    job.reason_not_to.as_ref().map(|why| job.row(Verdict::NotApplicable(why.clone()), 0.0))
}

/// The next job that has to run.
fn take<'a, 'b>(jobs: &'b [Job<'a>], next: &AtomicUsize) -> Option<(usize, &'b Job<'a>)> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let job = jobs.get(number)?;
        if job.reason_not_to.is_none() {
            return Some((number, job));
        }
    }
}

/// Joins a thread that reads the pipe of a process which has ended, or leaves it behind: whatever that process started may have the pipe open for as long as it likes.
/// False if it was.
fn join_soon(reader: JoinHandle<()>) -> bool {
    let until = Instant::now() + Duration::from_secs(1);
    while !reader.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Readers do not panic.
    reader.is_finished() && reader.join().is_ok()
}
