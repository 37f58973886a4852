//! Launches under way, and the memory that those of devices without replay hold.

use crate::device::Device;
use crate::error::Error;
use crate::runtime::{LinuxCore, Runtime};
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{DeviceId, FaultError, LaunchError, SpaceId, Ticket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Launches take memory of a device one after the other, and hold it side by side. One that does not find enough waits for those that hold some to end. If several took
/// memory at the same time, each could find what the others have taken in part, let go of its own, and begin again with them, for ever.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Launches that came for memory, and those that have it or were refused: the turn is that of the one between.
    came: u64,
    served: u64,
    /// Launches that hold memory, and how many did and ended.
    held: usize,
    ended: u64,
}

/// The turn to take memory; the next one's on drop.
struct Turn<'a>(&'a Holding);

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
        let turn = holding.turn();
        loop {
            let (others, ended) = turn.others();
            match core.hold(space, Some(device), ranges) {
                Ok(()) => break,
                Err(RangeError::Fault(_, FaultError::NoDeviceMemory)) if others > 0 => turn.wait(ended),
                Err(refused) => return Err(refused.into()),
            }
        }
        turn.0.state().held += 1;
        drop(turn);
        Ok(Some(Self { core: core.clone(), space, device, ranges: ranges.to_vec(), holding }))
    }
}

impl Holding {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, state: MutexGuard<'_, State>, mut what: impl FnMut(&State) -> bool) {
        drop(self.changed.wait_while(state, |state| what(state)).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for those that came before.
    fn turn(&self) -> Turn<'_> {
        let mut state = self.state();
        let number = state.came;
        state.came += 1;
        self.wait_while(state, |state| state.served != number);
        Turn(self)
    }

    /// A launch that held memory has let it go.
    fn end(&self) {
        let mut state = self.state();
        state.held -= 1;
        state.ended += 1;
        self.changed.notify_all();
    }
}

impl Turn<'_> {
    /// How many launches hold memory, and how many have ended.
    fn others(&self) -> (usize, u64) {
        let state = self.0.state();
        (state.held, state.ended)
    }

    /// Waits until more have ended than so many.
    fn wait(&self, ended: u64) {
        self.0.wait_while(self.0.state(), |state| state.ended == ended);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().served += 1;
        self.0.changed.notify_all();
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
