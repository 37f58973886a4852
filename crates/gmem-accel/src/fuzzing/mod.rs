//! The host against a device that writes what it likes: what the fuzz target `ring` does.
//!
//! Bytes say what is asked of the host's side of a context, and what the device writes into the shared memory while the host waits for it; a device that is
//! left alone carries its commands out, by the decoder of the real one. Both sides run in one thread, so that bytes always mean the same: the host looks at the
//! clock whenever it waits, and every look lets the device take a step. The clock moves only by that, and the device is dead after it was looked at
//! too often, as if the keeper had killed it.
//!
//! ```text
//! mode | requests: a letter, its operands, how many steps (and whether the device falls silent then), the steps: a letter and its operands, each
//! ```
//!
//! What must hold: no panic and no hang, no call into the core about anything outside the window, no frame that is not the context's, no byte of another
//! context's memory in a home and none changed there, and as long as the device is honest every byte where it belongs.

mod bytes;
mod host;
mod rig;
mod scene;
mod seeds;
mod step;

#[cfg(test)]
mod corpus;

pub use seeds::seeds;

use bytes::Bytes;
use host::Host;
use std::sync::{Mutex, PoisonError};

/// The most requests of a run.
const MOST: usize = 200;

/// The clock of the scene that this thread plays, if it plays one: nanoseconds. Lets the device take a step.
pub(crate) fn now_ns() -> Option<u64> {
    scene::look()
}

/// Does what the bytes say. Answers how many requests were made.
///
/// # Panics
/// If the host's side does what it must not.
pub fn run(data: &[u8]) -> usize {
    /// There is one window in a process.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = Bytes::new(data);
    let mut host = Host::new(bytes.byte());
    let mut requests = 0;
    while !bytes.is_empty() && requests < MOST {
        host.request(&mut bytes);
        requests += 1;
    }
    host.finish();
    requests
}
