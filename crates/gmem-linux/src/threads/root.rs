//! The root thread: leaves the program's descriptor table, blocks signals, makes threads.

use super::{OWNER, Request, Shared, StartError, worker};
use crate::report;
use crate::sys;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};

/// The life of the root thread. Says on `ready` whether it got what it needs.
pub(super) fn main(shared: &Arc<Shared>, inbox: &Receiver<Request>, ready: &Sender<Result<(), StartError>>) {
    OWNER.set(shared.id);
    shared.root_thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    let first = prepare().and_then(|()| {
        let shared = shared.clone();
        spawn(shared.id, "gmem-worker".into(), move || worker(&shared)).map_err(|e| StartError::Spawn(e.raw_os_error().unwrap_or(0)))
    });
    let mut workers = match first {
        Ok(worker) => vec![worker],
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    while let Ok(request) = inbox.recv() {
        match request {
            Request::Worker => {
                workers.retain(|w| !w.is_finished());
                let shared = shared.clone();
                match spawn(shared.id, "gmem-worker".into(), move || worker(&shared)) {
                    Ok(worker) => workers.push(worker),
                    // The call stays queued and runs when a worker is free.
                    Err(e) => report::line(format_args!("gmem: no further worker thread (errno {})", e.raw_os_error().unwrap_or(0))),
                }
            }
            Request::Named { name, work, reply } => {
                let _ = reply.send(spawn(shared.id, name, work));
            }
            Request::Stop => break,
        }
    }
    for worker in workers {
        // A job's panic is caught in its slot, so a worker does not panic.
        let _ = worker.join();
    }
}

fn prepare() -> Result<(), StartError> {
    sys::process::block_all_signals().map_err(|e| StartError::Signals(e.raw_os_error()))?;
    sys::process::leave_descriptor_table().map_err(|e| StartError::Descriptors(e.raw_os_error()))
}

fn spawn(id: usize, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(move || {
        OWNER.set(id);
        work();
    })
}
