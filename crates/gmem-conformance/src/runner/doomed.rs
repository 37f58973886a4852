//! Steps that are to end their process, each in a process of its own.

use super::lane::describe;
use super::{CHILD, join_soon};
use crate::check::Stop;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names the job and the step, as `job:step`.
const DOOM: &str = "GMEM_CONFORMANCE_DOOM";

/// The status of a process that never came to its step.
pub(crate) const NOT_REACHED: i32 = 99;

/// What a doomed process says last, as a line of its own.
const BRINK: &str = "\u{1}gmem-conformance: what follows ends this process";

/// Where a doomed process stands before what is to end it.
#[derive(Debug)]
pub struct Brink(());

impl Brink {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// Says that the preparations are done: what follows is to end the process.
    pub fn reached(&self) {
        eprintln!("{BRINK}");
    }
}

/// How a doomed process ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    status: Option<ExitStatus>,
    /// Whether it came to what was to end it.
    reached: bool,
    said: String,
}

impl Ending {
    pub(crate) fn passed_over() -> Self {
        Self { status: None, reached: true, said: String::new() }
    }

    /// Refuses any other end than by this signal.
    ///
    /// # Errors
    /// [`Stop::Failed`] with how it ended.
    pub fn by_signal(&self, signal: i32) -> Result<(), Stop> {
        self.check(|status| status.signal() == Some(signal), || format!("by signal {signal}"))
    }

    /// Refuses an end by any other signal than these, or with an error: the step may also be survived.
    ///
    /// # Errors
    /// [`Stop::Failed`] with how it ended.
    pub fn alive_or_by(&self, signals: &[i32]) -> Result<(), Stop> {
        let clean = |status: ExitStatus| status.success() || status.signal().is_some_and(|signal| signals.contains(&signal));
        self.check(clean, || format!("by one of the signals {signals:?} if at all"))
    }

    fn check(&self, fine: impl FnOnce(ExitStatus) -> bool, expected: impl FnOnce() -> String) -> Result<(), Stop> {
        let said = &self.said;
        match self.status {
            Some(status) if status.code() == Some(NOT_REACHED) => Err(Stop::Failed(format!("the step was not reached: {said}"))),
            Some(status) if !self.reached => {
                Err(Stop::Failed(format!("its preparations ended with {}; it said: {said}", describe(status))))
            }
            Some(status) if !fine(status) => {
                Err(Stop::Failed(format!("it ended with {}, not {}; it said: {said}", describe(status), expected())))
            }
            _ => Ok(()),
        }
    }
}

/// The job and step that this process is for.
pub(crate) fn asked() -> Option<(usize, String)> {
    let asked = std::env::var(DOOM).ok()?;
    let (job, step) = asked.split_once(':')?;
    Some((job.parse().ok()?, step.to_owned()))
}

/// Begins job `job`, which may take `limit`, anew in a process that ends with `step`.
pub(crate) fn run(job: usize, step: &str, limit: Duration) -> Result<Ending, Stop> {
    // Shorter than what the check may take, so that the check itself can say what hangs.
    let limit = limit.mul_f64(0.8);
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(CHILD, std::process::id().to_string())
        .env(DOOM, format!("{job}:{step}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = Arc::new(Mutex::new(Vec::new()));
    let reader = child.stderr.take().map(|err| {
        let said = said.clone();
        std::thread::spawn(move || {
            let lines = BufReader::new(err).lines().map_while(Result::ok);
            lines.for_each(|line| said.lock().unwrap_or_else(PoisonError::into_inner).push(line));
        })
    });
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            let waiting = super::who_waits::of(child.id());
            child.kill()?;
            child.wait()?;
            return Err(Stop::Failed(format!("a process that was to end did not within {} s\n{waiting}", limit.as_secs_f64())));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if let Some(reader) = reader {
        join_soon(reader);
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
    let reached = said.contains(BRINK);
    Ok(Ending { status: Some(status), reached, said: said.replace(BRINK, "").trim().to_owned() })
}
