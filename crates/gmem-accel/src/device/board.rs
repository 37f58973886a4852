//! A device without a process of its own: the decoder of commands and what it does to the window, here.

use super::{Device, crew, peer, ring, window, worker};
use crate::shm::{Config, Shared};
use rustix::fd::OwnedFd;
use std::sync::atomic::AtomicU32;

/// The device. It runs no kernel.
pub(crate) struct Board(Device);

impl Board {
    /// A device whose window this process has reserved; `None` if there is no memory.
    pub(crate) fn new(shm: Shared, config: Config, dram: OwnedFd, host: Option<OwnedFd>) -> Option<Self> {
        let peer = if config.peer { Some(peer::PeerOs::new(config.dram_len)?) } else { None };
        Some(Self(Device {
            shm,
            config,
            dram,
            host,
            hole: window::make_hole()?,
            maps: AtomicU32::new(0),
            draining: AtomicU32::new(0),
            crew: crew::Crew::new(config.workers as u32),
            workers: std::array::from_fn(|_| worker::Worker::default()),
            peer,
        }))
    }

    /// Reserves the window of `config` in this process, for ever. False if something else lies there.
    pub(crate) fn reserve(config: &Config) -> bool {
        window::make_hole().is_some_and(|hole| window::reserve(config, &hole).is_ok())
    }

    /// Carries out what the ring holds.
    pub(crate) fn drain(&self) {
        ring::drain(&self.0);
    }

    /// How many bytes of memory its pages have. Not for use while it drains.
    pub(crate) fn taken(&self) -> u64 {
        peer::taken(&self.0)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let Config { window_start, window_end, .. } = self.0.config;
        window::release(&self.0, window_start, window_end - window_start);
    }
}
