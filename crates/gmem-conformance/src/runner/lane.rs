//! One check process after another, each fed with jobs until it fails one.

use super::child::MARK;
use super::{CHILD, join_soon, who_waits};
use crate::report::{BROKE, ENDED, NOT_DONE, Verdict};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether a process ended whose pipes somebody else has open.
const LOOK: Duration = Duration::from_millis(100);

/// How many lines that a check printed are kept for a report of its failure: of many the first and the last.
const KEPT_LINES: usize = 20;

/// Runs jobs one after another.
pub(crate) struct Lane {
    limit: Duration,
    process: Option<Process>,
    late: bool,
}

struct Process {
    child: Child,
    jobs: ChildStdin,
    verdicts: Receiver<Verdict>,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Lane {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, process: None, late: false }
    }

    /// Whether the last job was not done in time.
    pub(crate) fn is_late(&self) -> bool {
        self.late
    }

    /// Runs job `number` in a check process. One that fails a job is not used again: what the check left behind would meet the next.
    pub(crate) fn run(&mut self, number: usize) -> Verdict {
        self.late = false;
        let mut process = match self.process.take().map_or_else(Process::start, Ok) {
            Ok(process) => process,
            Err(e) => return Verdict::Failed(format!("no process for the check: {e}")),
        };
        process.said().clear();
        // If it does not read, it has ended, which the wait for its verdict notices.
        let _ = writeln!(process.jobs, "{number}");
        match process.verdict(self.limit) {
            Ok(Verdict::Failed(what)) => {
                let said = process.end(&what);
                Verdict::Failed(what + &said)
            }
            Ok(verdict) => {
                self.process = Some(process);
                verdict
            }
            Err(RecvTimeoutError::Timeout) => {
                self.late = true;
                let waiting = who_waits::of(process.child.id());
                let said = process.last_words("");
                Verdict::Failed(format!("{NOT_DONE}{} s (--time-limit){said}\n{waiting}", self.limit.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = process.child.wait();
                let said = process.end("");
                Verdict::Failed(format!("{ENDED}{}{said}", status.map_or_else(|e| e.to_string(), describe)))
            }
        }
    }
}

/// A status in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("status {}", code.unwrap_or(-1)),
    }
}

impl Process {
    fn start() -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(CHILD, std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let (tell, verdicts) = channel();
        let jobs = child.stdin.take().ok_or_else(|| std::io::Error::other("no pipe to the process"))?;
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            let said = said.clone();
            readers.push(std::thread::spawn(move || {
                each_line(out, |line| match line.strip_prefix(MARK).map(serde_json::from_str::<Verdict>) {
                    // Nobody listens any more once the process was given up.
                    Some(Ok(verdict)) => drop(tell.send(verdict)),
                    _ => keep(&said, line),
                });
            }));
        }
        if let Some(err) = child.stderr.take() {
            let said = said.clone();
            readers.push(std::thread::spawn(move || each_line(err, |line| keep(&said, line))));
        }
        Ok(Self { child, jobs, verdicts, said, readers })
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        // A push is done or not, whatever panics.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it answers within `limit`; `Disconnected` once it has ended without an answer, whoever else has its pipes.
    fn verdict(&mut self, limit: Duration) -> Result<Verdict, RecvTimeoutError> {
        let until = Instant::now() + limit;
        loop {
            let wait = LOOK.min(until.saturating_duration_since(Instant::now()));
            match self.verdicts.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) if self.child.try_wait().is_ok_and(|status| status.is_some()) => {
                    // What it answered before it ended is in the pipe, if it was not read.
                    self.join();
                    return self.verdicts.try_recv().map_err(|_| RecvTimeoutError::Disconnected);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                answer => return answer,
            }
        }
    }

    /// Ends it, if it has not, and says what it printed since its last job began: all of it was read then, unless it left a process behind that has its pipes and goes on.
    fn end(&mut self, told: &str) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
        self.last_words(told)
    }

    fn join(&mut self) {
        // A line of its own, which nobody else prints.
        let left = self.readers.drain(..).filter_map(|reader| (!join_soon(reader)).then_some(())).count();
        if left > 0 {
            self.said().push("a process that it started has its output still: it is not waited for".into());
        }
    }

    /// What it printed since its last job began and is not in `told`.
    fn last_words(&self, told: &str) -> String {
        let said = self.said();
        let new: Vec<&str> = said.iter().map(String::as_str).filter(|line| told.lines().all(|other| other != *line)).collect();
        if new.is_empty() { String::new() } else { format!("\nit said:\n{}", new.join("\n")) }
    }
}

/// Calls `each` for every line until the pipe ends. A driver may print what is no text.
fn each_line(pipe: impl Read, mut each: impl FnMut(String)) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        each(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned());
        line.clear();
    }
}

fn keep(said: &Mutex<Vec<String>>, line: String) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if !line.is_empty() {
        if said.len() == KEPT_LINES {
            // A panic begins with what went wrong, and chatter ends with it. What the observer saw is never chatter, and is little.
            let chatter = (KEPT_LINES / 2..said.len()).find(|line| !said[*line].starts_with(BROKE));
            said.remove(chatter.unwrap_or(KEPT_LINES / 2));
        }
        said.push(line);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that hangs has to be killed, and its devices end when it does; an idle one has nothing to lose.
        self.end("");
    }
}
