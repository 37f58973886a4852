//! Launches under way, and the memory that those of devices without replay hold.

use crate::device::Device;
use crate::error::Error;
use crate::runtime::{LinuxCore, Runtime};
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{DeviceId, FaultError, LaunchError, SpaceId, Ticket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The launches of a device that hold memory, so that one that finds none left can wait for another to end.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// How many there are, and how many have ended.
    state: Mutex<(usize, u64)>,
    ended: Condvar,
}

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
        loop {
            let (others, ended) = *holding.state.lock().unwrap_or_else(PoisonError::into_inner);
            match core.hold(space, Some(device.id()), ranges) {
                Ok(()) => break,
                Err(RangeError::Fault(_, FaultError::NoDeviceMemory)) if others > 0 => {
                    let state = holding.state.lock().unwrap_or_else(PoisonError::into_inner);
                    let _again = holding.ended.wait_while(state, |state| state.1 == ended).unwrap_or_else(PoisonError::into_inner);
                }
                Err(e) => return Err(e.into()),
            }
        }
        holding.state.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        Ok(Some(Self { core: core.clone(), space, device: device.id(), ranges: ranges.to_vec(), holding }))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The address space lives: the launch belongs to a context of it.
        let _ = self.core.unhold(self.space, Some(self.device), &self.ranges);
        let mut state = self.holding.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 - 1, state.1 + 1);
        self.holding.ended.notify_all();
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
        let result = match self.end {
            Some(end) => end.recv().unwrap_or(Err(LaunchError::BadRequest)),
            None => {
                runtime.call(|_| device.inner.driver.compute().map_or(Err(LaunchError::BadRequest), |compute| compute.wait(self.ticket)))
            }
        };
        Ok(result?)
    }
}
