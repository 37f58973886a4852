//! Bounds every wait: when a step takes too long, says who waits for what, ends the devices, and, if that frees nobody, the process.

use super::block::{Block, phase};
use crate::runner::who_waits;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long those who waited may take to notice that their devices are gone.
const GRACE: Duration = Duration::from_secs(20);

/// What the dog looks at.
#[derive(Default)]
struct Watched {
    /// What is under way, and until when it should be done.
    step: Option<(String, Instant)>,
    /// The processes of the devices.
    processes: Vec<u32>,
    /// What it said of a step that took too long.
    bark: Option<String>,
    over: bool,
}

/// The watchdog and its thread.
pub(crate) struct Watchdog {
    shared: Arc<(Mutex<Watched>, Condvar)>,
    limit: Duration,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A step that is watched until this is dropped.
pub(crate) struct Step<'a>(&'a Watchdog);

impl Watchdog {
    /// Watches steps of `limit` each, whose participants meet in `block`.
    pub(crate) fn new(block: Arc<Block>, limit: Duration) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(Watched::default()), Condvar::new()));
        let seen = shared.clone();
        let thread = std::thread::Builder::new().name("litmus-dog".into()).spawn(move || watch(&seen, &block))?;
        Ok(Self { shared, limit, thread: Some(thread) })
    }

    /// Begins a step.
    pub(crate) fn step(&self, what: String) -> Step<'_> {
        self.lock().step = Some((what, Instant::now() + self.limit));
        self.shared.1.notify_all();
        Step(self)
    }

    /// The devices' processes from now on.
    pub(crate) fn set_processes(&self, processes: Vec<u32>) {
        self.lock().processes = processes;
    }

    /// What was said of a step that took too long.
    pub(crate) fn bark(&self) -> Option<String> {
        self.lock().bark.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        lock(&self.shared.0)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.0.lock().step = None;
        self.0.shared.1.notify_all();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.lock().over = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was printed.
            let _ = thread.join();
        }
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    // Every field is replaced as a whole, so a panic leaves none half done.
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch((watched, changed): &(Mutex<Watched>, Condvar), block: &Block) {
    let mut now = lock(watched);
    while !now.over {
        let Some((what, until)) = now.step.clone() else {
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            now = changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let processes = now.processes.clone();
        drop(now);
        let said = format!("{what} takes too long\n{}", portrait(block, &processes));
        block.stop.store(1, Ordering::SeqCst);
        processes.into_iter().for_each(end);
        now = lock(watched);
        now.bark = Some(said.clone());
        let until = Instant::now() + GRACE;
        while now.step.as_ref().is_some_and(|(still, _)| *still == what) {
            if Instant::now() > until {
                eprintln!("{said}\nthe devices were ended, and still nobody goes on");
                std::process::exit(1);
            }
            now = changed.wait_timeout(now, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where each participant is, and what the threads of all processes wait in.
fn portrait(block: &Block, processes: &[u32]) -> String {
    let mut text = String::new();
    for (participant, line) in block.lines.iter().take(block.participants.load(Ordering::Relaxed) as usize).enumerate() {
        let i = line.iteration.load(Ordering::Relaxed) as usize;
        let words = block.addresses.get(i).into_iter().flatten().take(block.places());
        let words: Vec<_> = words.map(|at| format!("{:#x}", at.load(Ordering::Relaxed))).collect();
        let phase = phase::name(line.phase.load(Ordering::Relaxed));
        let _ = writeln!(text, "participant {participant} {phase} in iteration {i}, places at {}", words.join(", "));
    }
    for process in std::iter::once(std::process::id()).chain(processes.iter().copied()) {
        let _ = writeln!(text, "process {process}: {}", who_waits::of(process));
    }
    text
}

/// Ends a device process.
fn end(process: u32) {
    // SAFETY: the process is that of a device of this program, which reaps it only after its context is detached, and the step under way uses it.
    unsafe { libc::kill(process as i32, libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_step_in_time_is_left_alone() {
        let block = Arc::new(Block::new().unwrap());
        let dog = Watchdog::new(block.clone(), Duration::from_secs(60)).unwrap();
        drop(dog.step("a short step".into()));
        assert_eq!((dog.bark(), block.stopped()), (None, false));
    }

    #[test]
    fn a_step_that_is_late_is_told_to_stop_and_its_devices_are_ended() {
        let block = Arc::new(Block::new().unwrap());
        block.participants.store(1, Ordering::Relaxed);
        let dog = Watchdog::new(block.clone(), Duration::from_millis(20)).unwrap();
        let mut device = Command::new("sleep").arg("60").spawn().unwrap();
        dog.set_processes(vec![device.id()]);
        let step = dog.step("a long step".into());
        assert_eq!(device.wait().unwrap().signal(), Some(libc::SIGKILL), "the dog slept");
        assert!(block.stopped());
        drop(step);
        let until = Instant::now() + Duration::from_secs(10);
        while dog.bark().is_none() {
            assert!(Instant::now() < until, "the dog says nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = dog.bark().unwrap();
        for words in ["a long step takes too long", "participant 0 has not begun", &format!("process {}", device.id())] {
            assert!(said.contains(words), "`{words}` is not in: {said}");
        }
    }
}
