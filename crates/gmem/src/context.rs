//! A device attached to an address space, and launches on it.

use crate::args::Args;
use crate::device::Device;
use crate::error::Error;
use crate::launch::{Hold, Running, Watcher};
use crate::runtime::Runtime;
use crate::space::AddressSpace;
use gmem_accel::Kernel;
use gmem_core::ContextInfo;
use gmem_hal::{Capabilities, LaunchError, LaunchRequest, Mode, PmapId, Ticket};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

/// A device attached to an address space. Detached on drop; if that would lose data it stays attached until it can go without: see [`Context::detach`].
#[derive(Debug)]
pub struct Context {
    space: AddressSpace,
    device: Device,
    mode: Mode,
    detached: bool,
}

impl Context {
    pub(crate) fn new(space: AddressSpace, device: Device, mode: Mode) -> Self {
        Self { space, device, mode, detached: false }
    }

    /// The address space.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How the device takes part.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the context was stopped for good after a failure of its device. Its data is safe; detach it and attach again.
    pub fn is_fenced(&self) -> bool {
        self.info().is_none_or(|c| c.fenced)
    }

    /// The page table the context uses, as its driver knows it; `None` for the CPU's.
    pub fn pmap(&self) -> Option<PmapId> {
        self.info()?.pmap
    }

    fn info(&self) -> Option<ContextInfo> {
        self.runtime().call(|core| core.context(self.space.id(), self.device.id())).ok()?
    }

    /// Runs a kernel on every core of the device and waits for its end.
    ///
    /// On a device that cannot replay faults the memory named in `args` is brought in and held first; the launch can touch nothing else.
    /// What another launch or an I/O pin ([`Region::pin_for_io`](crate::Region::pin_for_io)) holds elsewhere is waited for, also a pin of the same thread: drop that first.
    ///
    /// # Safety
    /// `args` are what the kernel was written for: the same number and kinds, with slices as long as it goes through, and everything it writes named by
    /// [`Args::write`] or [`Args::writes`].
    ///
    /// # Errors
    /// [`Error::Launch`]: an address that could not be resolved, a crash of the kernel, or the death of the device; [`Error::Range`] if the memory named cannot be
    /// held, because it is more than the device may have ([`RangeError::DoesNotFit`](crate::RangeError::DoesNotFit)) or others have pinned theirs; [`Error::Fenced`] after an earlier failure.
    pub unsafe fn run(&self, kernel: &Kernel, args: Args<'_>) -> Result<(), Error> {
        self.scope(|scope| {
            // SAFETY: forwarded to the caller.
            let launch = unsafe { scope.launch(kernel, args) }?;
            launch.wait()
        })
    }

    /// Launches kernels that run at the same time as the closure. Every launch has ended when this returns, whatever the closure does with its
    /// handle, so arguments may borrow anything that outlives the call.
    pub fn scope<'env, T>(&'env self, work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
        let scope = Scope { context: self, running: Mutex::new(Vec::new()), scope: PhantomData, env: PhantomData };
        // Ends every launch, also if the closure panics.
        let guard = Ending(&scope.running, self);
        let result = work(&scope);
        drop(guard);
        result
    }

    /// Stops the context for good: for a kernel that never ends, which is no failure that anybody else would find. Its launches end with an error, as if the device
    /// had failed ([`Error::is_device_gone`]), and so do those that are started later. What they wrote stays written; detach and attach again to go on. Any thread may call
    /// it, and it waits for no launch.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot be stopped: a context in SHARE mode never can, and nothing changed then; if the driver does not confirm the end, the context is
    /// fenced, and its launches may go on.
    pub fn stop(&self) -> Result<(), Error> {
        Ok(self.runtime().call(|core| core.fence_context(self.space.id(), self.device.id()))??)
    }

    /// Detaches the device: its pages come home.
    ///
    /// # Errors
    /// [`Error::Detach`] if data would be lost, or if another context shares this one's page table. The context comes back with it: it can be used as before and be detached
    /// later. If it is dropped instead, its address space keeps it, and detaches it when the device is attached again, when the context that shared its table is
    /// detached, or in the end.
    pub fn detach(mut self) -> Result<(), DetachFailed> {
        let error = match self.runtime().call(|core| core.detach(self.space.id(), self.device.id())) {
            Ok(Ok(())) => {
                self.detached = true;
                self.space.inner.detach_sharers_of(self.device.id());
                return Ok(());
            }
            Ok(Err(refused)) => refused.into(),
            Err(forked) => forked,
        };
        Err(DetachFailed { context: self, error })
    }

    fn runtime(&self) -> &Runtime {
        &self.space.inner.runtime
    }

    fn start(&self, kernel: &Kernel, args: &Args<'_>) -> Result<Running, Error> {
        let replay = self.device.info().capabilities.contains(Capabilities::REPLAYABLE) || self.mode == Mode::Share;
        let (space, device) = (self.space.id(), self.device.id());
        self.runtime().call(|core| {
            let find = || core.context(space, device).filter(|c| !c.fenced).ok_or(Error::Fenced);
            find()?;
            let held = if replay { &[] } else { args.touched() };
            let hold = Hold::take(core, space, &self.device, held)?;
            // After the wait for memory, during which other contexts of the device may have become the current one, and this one may have been stopped.
            let context = find()?;
            core.switch(device, Some(space))?;
            let request = LaunchRequest { pmap: context.pmap, kernel: kernel.name, args: args.words(), replay };
            let watcher = Watcher::new(self.runtime(), &self.device, hold)?;
            let compute = self.device.inner.driver.compute().ok_or(Error::NoCompute);
            match compute.and_then(|compute| Ok(compute.start(&request)?)) {
                Ok(ticket) => Ok(watcher.watch(ticket)),
                Err(e) => {
                    watcher.cancel();
                    Err(e)
                }
            }
        })?
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        match self.runtime().call(|core| core.detach(self.space.id(), self.device.id())) {
            Ok(Ok(())) => self.space.inner.detach_sharers_of(self.device.id()),
            // What cannot come home stays reachable through the address space.
            Ok(Err(why)) => self.space.inner.keep_attached(&self.device, why),
            // In a forked child nothing is attached.
            Err(_) => {}
        }
    }
}

/// A context that could not be detached, and why. [`Error`] can be made of it, which drops the context.
#[derive(Debug)]
pub struct DetachFailed {
    /// The context, which is attached still.
    pub context: Context,
    /// Why.
    pub error: Error,
}

impl fmt::Display for DetachFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for DetachFailed {}

impl From<DetachFailed> for Error {
    fn from(failed: DetachFailed) -> Self {
        failed.error
    }
}

/// Launches that may run at the same time. Made by [`Context::scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    context: &'env Context,
    running: Mutex<Vec<Running>>,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// A launch under way in a [`Scope`].
#[derive(Debug)]
pub struct Launch<'scope> {
    context: &'scope Context,
    running: &'scope Mutex<Vec<Running>>,
    ticket: Ticket,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Starts a kernel on every core of the device. Launches of one context run in the order they were started, and any number can be started. Does not wait for the kernel; if
    /// the device can be given no more launches for now (a software accelerator: 256 of a context; of one page without replay, 255), waits for one of those before to end. On a device that
    /// cannot replay faults one that finds too little memory waits for launches that have some to end; of those that fit, also of other address spaces, some may go before it.
    ///
    /// # Safety
    /// As for [`Context::run`]; and no other launch that runs at the same time writes the same memory, except by atomics.
    ///
    /// # Errors
    /// As for [`Context::run`], as far as they show before the kernel runs.
    pub unsafe fn launch(&'scope self, kernel: &Kernel, args: Args<'env>) -> Result<Launch<'scope>, Error> {
        let running = self.context.start(kernel, &args)?;
        let ticket = running.ticket;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(running);
        Ok(Launch { context: self.context, running: &self.running, ticket })
    }
}

impl Launch<'_> {
    /// Waits for the launch to end.
    ///
    /// # Errors
    /// [`Error::Launch`].
    pub fn wait(self) -> Result<(), Error> {
        self.context.runtime().check_process()?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let at = running.iter().position(|r| r.ticket == self.ticket);
        let Some(at) = at else { return Err(Error::Launch(LaunchError::BadRequest)) };
        let one = running.remove(at);
        drop(running);
        // If waiting panics the scope must not end before the kernel; nothing in it does.
        one.wait(self.context.runtime(), &self.context.device)
    }
}

/// Ends what a scope started.
struct Ending<'a>(&'a Mutex<Vec<Running>>, &'a Context);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.1.runtime().is_forked() {
            // The launches are the parent's, and what waits for them would wait for threads that are not here.
            if let Ok(mut running) = self.0.try_lock() {
                running.drain(..).for_each(std::mem::forget);
            }
            return;
        }
        loop {
            let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(running) = next else { return };
            // Nobody asked how it ended.
            let _ = running.wait(self.1.runtime(), &self.1.device);
        }
    }
}
