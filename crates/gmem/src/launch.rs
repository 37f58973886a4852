//! Launches under way, and the memory that those of devices without replay hold.

use crate::device::Device;
use crate::error::Error;
use crate::runtime::{LinuxCore, Runtime};
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{DeviceId, FaultError, LaunchError, SpaceId, Ticket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The launches of a device that hold memory, so that one that finds none left can wait for another to end.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// How many there are or are being made, and how often one ended or could not be made.
    state: Mutex<(usize, u64)>,
    ended: Condvar,
}

/// How often a launch that met others is tried. Each try ends with one of them, so this is reached only by a program that starts launches faster than they end.
const MOST_TRIES: usize = 10_000;

/// Memory held for a launch; let go on drop.
pub(crate) struct Hold {
    core: Arc<LinuxCore>,
    space: SpaceId,
    device: DeviceId,
    ranges: Vec<HoldRange>,
    holding: Arc<Holding>,
}

impl Hold {
    /// Holds `ranges` on the device. If they do not fit beside what other launches hold, waits for those to end.
    pub(crate) fn take(core: &Arc<LinuxCore>, space: SpaceId, device: &Device, ranges: &[HoldRange]) -> Result<Option<Self>, Error> {
        if ranges.is_empty() {
            return Ok(None);
        }
        let holding = device.inner.holding.clone();
        let device = device.id();
        let mut tries = 0;
        loop {
            // Counted before it is tried: two that get half of the memory each must know of each other.
            let (before, then) = holding.begin();
            let refused = match core.hold(space, Some(device), ranges) {
                Ok(()) => return Ok(Some(Self { core: core.clone(), space, device, ranges: ranges.to_vec(), holding })),
                Err(refused) => refused,
            };
            let (others, now) = holding.end();
            let alone = before == 0 && others == 0 && now == then;
            match refused {
                RangeError::Fault(_, FaultError::NoDeviceMemory) if !alone && tries < MOST_TRIES => {
                    tries += 1;
                    holding.wait(others, now);
                }
                refused => return Err(refused.into()),
            }
        }
    }
}

impl Holding {
    fn state(&self) -> MutexGuard<'_, (usize, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, which may not come to be. Answers how many others there are, and how many have ended.
    fn begin(&self) -> (usize, u64) {
        let mut state = self.state();
        let before = *state;
        state.0 += 1;
        before
    }

    /// One less. Answers how many others there are, and how many had ended before.
    fn end(&self) -> (usize, u64) {
        let mut state = self.state();
        let ended = state.1;
        *state = (state.0 - 1, ended + 1);
        self.ended.notify_all();
        (state.0, ended)
    }

    /// Waits for one of `others` to end, if there are any; `ended` is what [`Holding::end`] said to the caller.
    fn wait(&self, others: usize, ended: u64) {
        if others > 0 {
            drop(self.ended.wait_while(self.state(), |state| state.1 == ended + 1).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The address space lives: the launch belongs to a context of it.
        let _ = self.core.unhold(self.space, Some(self.device), &self.ranges);
        self.holding.end();
    }
}

/// A launch that was started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) ticket: Ticket,
    /// How it ended, from the thread that lets its memory go; launches that hold nothing are waited for directly.
    end: Option<Receiver<Result<(), LaunchError>>>,
}

/// Sees to it that what a launch holds is let go as soon as its kernel has ended, whether or not anybody waits for it: a thread that touches a page of it may be the
/// very one that would have waited.
///
/// Made before the kernel starts, because a kernel that runs cannot be taken back.
pub(crate) struct Watcher(Option<(Sender<Ticket>, Receiver<Result<(), LaunchError>>)>);

impl Watcher {
    /// A watcher for the launch that `hold` is for. Without a hold there is nothing to watch.
    pub(crate) fn new(runtime: &Runtime, device: &Device, hold: Option<Hold>) -> Result<Self, Error> {
        let Some(hold) = hold else { return Ok(Self(None)) };
        let driver = device.inner.driver.clone();
        let (start, started) = channel();
        let (tell, end) = channel();
        let watch = move || {
            // No ticket comes if the kernel could not be started.
            let result =
                started.recv().ok().map(|ticket| driver.compute().map_or(Err(LaunchError::BadRequest), |compute| compute.wait(ticket)));
            drop((hold, driver));
            if let Some(result) = result {
                // Whoever asks is told; nobody may.
                let _ = tell.send(result);
            }
        };
        runtime.spawn("gmem-launch", watch)?;
        Ok(Self(Some((start, end))))
    }

    /// The kernel was started.
    pub(crate) fn watch(self, ticket: Ticket) -> Running {
        let end = self.0.map(|(start, end)| {
            // The thread waits for this.
            let _ = start.send(ticket);
            end
        });
        Running { ticket, end }
    }

    /// The kernel could not be started. Waits until the memory is let go: a call that fails leaves nothing behind.
    pub(crate) fn cancel(self) {
        if let Some((start, end)) = self.0 {
            drop(start);
            // Nothing is told; the other side goes when the memory is free.
            let _ = end.recv();
        }
    }
}

impl Running {
    /// Waits for the launch to end.
    pub(crate) fn wait(self, runtime: &Runtime, device: &Device) -> Result<(), Error> {
        runtime.check_process()?;
        let result = match self.end {
            Some(end) => end.recv().unwrap_or(Err(LaunchError::BadRequest)),
            None => {
                runtime.call(|_| device.inner.driver.compute().map_or(Err(LaunchError::BadRequest), |compute| compute.wait(self.ticket)))?
            }
        };
        Ok(result?)
    }
}
