//! Progress, on a terminal only and for work of more than two seconds.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// One phase of the work. Dropping it clears the line.
pub(crate) struct Phase {
    done: Arc<AtomicU64>,
    // Dropping the sender is what ends the drawing thread at once, in the middle of its pause.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Starts a phase of `total` steps named `what`; with a `total` of zero the number of steps is unknown.
pub(crate) fn phase(what: &'static str, total: u64) -> Phase {
    let done = Arc::new(AtomicU64::new(0));
    if !std::io::stderr().is_terminal() {
        return Phase { done, stop: None, thread: None };
    }
    let (stop, stopped) = mpsc::channel();
    let counter = Arc::clone(&done);
    let started = Instant::now();
    // A thread of its own, because the phases worth watching spend their time inside one launch. It sleeps between two drawings.
    let thread = thread::spawn(move || {
        if stopped.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            draw(what, total, &counter, started, &stopped);
        }
    });
    Phase { done, stop: Some(stop), thread: Some(thread) }
}

fn draw(what: &'static str, total: u64, done: &AtomicU64, started: Instant, stopped: &mpsc::Receiver<()>) {
    let (bar, template) = match total {
        0 => (ProgressBar::no_length(), "{spinner} {msg} {elapsed}"),
        _ => (ProgressBar::new(total), "{msg} {wide_bar} {percent:>3} % {eta:>4}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    let bar = bar.with_elapsed(started.elapsed());
    loop {
        bar.set_position(done.load(Ordering::Relaxed));
        bar.tick();
        if stopped.recv_timeout(Duration::from_millis(150)) != Err(mpsc::RecvTimeoutError::Timeout) {
            bar.finish_and_clear();
            return;
        }
    }
}

impl Phase {
    /// `steps` more are done.
    pub(crate) fn advance(&self, steps: u64) {
        self.done.fetch_add(steps, Ordering::Relaxed);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread only draws; if it panicked, the work is not the worse for it.
            let _ = thread.join();
        }
    }
}
