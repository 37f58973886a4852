//! One check process after another, each fed with jobs until it fails one.

use super::child::MARK;
use super::{CHILD, who_waits};
use crate::report::Verdict;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

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
        match process.verdicts.recv_timeout(self.limit) {
            Ok(Verdict::Failed(what)) => Verdict::Failed(format!("{what}{}", process.end())),
            Ok(verdict) => {
                self.process = Some(process);
                verdict
            }
            Err(RecvTimeoutError::Timeout) => {
                self.late = true;
                let waiting = who_waits::of(process.child.id());
                let said = process.last_words();
                Verdict::Failed(format!("not done within {} s{said}\n{waiting}", self.limit.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = process.child.wait();
                let said = process.end();
                Verdict::Failed(format!("the check ended its process: {}{said}", status.map_or_else(|e| e.to_string(), describe)))
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
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    match line.strip_prefix(MARK).map(serde_json::from_str::<Verdict>) {
                        // Nobody listens any more once the process was given up.
                        Some(Ok(verdict)) => drop(tell.send(verdict)),
                        _ => keep(&said, line),
                    }
                }
            }));
        }
        if let Some(err) = child.stderr.take() {
            let said = said.clone();
            let lines = move || BufReader::new(err).lines().map_while(Result::ok).for_each(|line| keep(&said, line));
            readers.push(std::thread::spawn(lines));
        }
        Ok(Self { child, jobs, verdicts, said, readers })
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        // A push is done or not, whatever panics.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, if it has not, and says what it printed since its last job began: all of it was read then.
    fn end(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
        self.last_words()
    }

    /// What it printed since its last job began.
    fn last_words(&self) -> String {
        let said = self.said();
        if said.is_empty() { String::new() } else { format!("; it said:\n{}", said.join("\n")) }
    }

    fn join(&mut self) {
        // The readers end with the pipes; they do not panic.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

fn keep(said: &Mutex<Vec<String>>, line: String) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if !line.is_empty() {
        if said.len() == KEPT_LINES {
            // A panic begins with what went wrong, and chatter ends with it.
            said.remove(KEPT_LINES / 2);
        }
        said.push(line);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that hangs has to be killed, and its devices end when it does; an idle one has nothing to lose.
        self.end();
    }
}
