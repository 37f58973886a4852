//! The device process: what runs on the accelerator's side.
//!
//! The host starts this very executable again with [`ENV`] set. Before its `main` begins, [`entry`] finds the variable, serves as a device
//! until told to exit or orphaned, and never returns. Nothing of the program's own runs.
//!
//! The threads of a device process: the *command* thread (it was the main thread), one *worker* per core, and the *watch*, which ends the process when the host
//! is gone. Commands are carried out by whichever thread is awake: a worker that waits for the answer to its fault, or else the command thread.

mod ask;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
mod board;
mod crew;
mod entry;
mod frames;
mod jail;
mod peer;
mod ring;
mod signal;
mod window;
mod worker;

#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub(crate) use board::Board;
pub(crate) use entry::{ENV, FIRST_FD, linked};
pub(crate) use peer::MARK;
#[cfg(test)]
pub(crate) use ring::drain_by;
pub(crate) use ring::{op, reply};
#[cfg(all(test, loom))]
pub(crate) use {
    ask::ask,
    crew::{Crew, record},
    ring::pending,
};

use crate::shm::{Config, MAX_CORES, Shared};
use crate::sync::atomic::AtomicU32;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Everything the device process knows. One per process, never freed.
struct Device {
    shm: Shared,
    config: Config,
    dram: OwnedFd,
    /// The host's memory, in REPLICATE mode.
    host: Option<OwnedFd>,
    /// An empty file: see [`window`].
    hole: OwnedFd,
    /// An upper bound of the number of kernel mappings.
    maps: AtomicU32,
    /// Held (1) by the thread that carries out commands.
    draining: AtomicU32,
    crew: crew::Crew,
    workers: [worker::Worker; MAX_CORES],
    /// The peer operating system, if this is a PEER device. Only touched by who holds `draining`.
    peer: Option<peer::PeerOs>,
}

static DEVICE: AtomicPtr<Device> = AtomicPtr::new(std::ptr::null_mut());

/// The device, once it is set up.
fn device() -> Option<&'static Device> {
    // SAFETY: the pointer is null or came from a leaked box, which lives for ever and is only shared.
    unsafe { DEVICE.load(Ordering::Acquire).as_ref() }
}
