//! Steps that are to end their process, each in a process of its own.

use super::CHILD;
use super::lane::describe;
use crate::check::Stop;
use rustix::fs::OFlags;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
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
    let mut err = child.stderr.take().ok_or_else(|| std::io::Error::other("no pipe to the process"))?;
    // What was written is read, and nobody who has the pipe too is waited for.
    rustix::fs::fcntl_setfl(&err, OFlags::NONBLOCK)?;
    let mut said = Vec::new();
    let until = Instant::now() + limit;
    let status = loop {
        let ended = child.try_wait()?;
        // An error is that nothing more is there for now; what came before it was read.
        let _ = err.read_to_end(&mut said);
        if let Some(status) = ended {
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
    let said = String::from_utf8_lossy(&said);
    let reached = said.contains(BRINK);
    Ok(Ending { status: Some(status), reached, said: said.replace(BRINK, "").trim().to_owned() })
}
