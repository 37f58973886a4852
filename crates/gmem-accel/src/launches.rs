//! Launches of one context, as the host keeps them: which records of the shared memory are in use, and by which launch.

use crate::codec;
use crate::context::Context;
use crate::kernel::MAX_ARGS;
use crate::message;
use crate::shm::{LAUNCHES, launch};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Lock, Patience};
use gmem_hal::{Crash, DeviceError, FaultError, LaunchError, VirtAddr};
use std::time::Duration;

/// How long a thread looks for the end of a launch before it sleeps.
const PATIENCE: Duration = Duration::from_micros(20);

/// The host's own account of launches.
pub(crate) struct Launches {
    /// Held to start. (L)
    lock: Lock,
    /// Launches started, wrapping. Written under L.
    head: AtomicU32,
    /// Records whose launch was started and not yet waited for. Set under L.
    used: [AtomicBool; LAUNCHES],
}

impl Default for Launches {
    fn default() -> Self {
        Self { lock: Lock::default(), head: AtomicU32::default(), used: std::array::from_fn(|_| AtomicBool::default()) }
    }
}

impl Launches {
    /// Starts kernel number `kernel`. Returns the launch's number. Up to 256 launches can be started and not waited for; then
    /// the device has no room.
    pub(crate) fn start(&self, context: &Context, kernel: usize, args: &[u64], replay: bool) -> Result<u32, LaunchError> {
        if args.len() > MAX_ARGS {
            return Err(LaunchError::TooManyArgs { given: args.len(), most: MAX_ARGS });
        }
        // The slice may lie in unified memory: it is read before the lock is taken.
        let mut copy = [0; MAX_ARGS];
        copy[..args.len()].copy_from_slice(args);
        let _held = self.lock.lock();
        if context.is_dead() {
            return Err(LaunchError::Device(DeviceError::Dead));
        }
        if context.failed.load(Ordering::SeqCst) {
            return Err(LaunchError::Device(DeviceError::NoAnswer));
        }
        let index = self.head.load(Ordering::Relaxed);
        if self.used[index as usize % LAUNCHES].swap(true, Ordering::AcqRel) {
            return Err(LaunchError::Device(DeviceError::NoMemory));
        }
        let slot = context.shm.launch(index);
        slot.status.store(launch::RUNNING, Ordering::Relaxed);
        slot.kernel.store(kernel as u32, Ordering::Relaxed);
        slot.nargs.store(args.len() as u32, Ordering::Relaxed);
        slot.replay.store(replay.into(), Ordering::Relaxed);
        for (i, arg) in copy.into_iter().enumerate() {
            context.shm.launch_arg(index, i).store(arg, Ordering::Relaxed);
        }
        self.head.store(index.wrapping_add(1), Ordering::SeqCst);
        context.shm.launch_head().store(index.wrapping_add(1), Ordering::SeqCst);
        Bell(context.shm.launch_bell()).ring();
        Ok(index)
    }

    /// Waits for launch `index` to end, and forgets it.
    pub(crate) fn wait(&self, context: &Context, index: u32) -> Result<(), LaunchError> {
        let started = self.head.load(Ordering::SeqCst).wrapping_sub(index);
        let used = &self.used[index as usize % LAUNCHES];
        if started == 0 || started > LAUNCHES as u32 || !used.load(Ordering::Acquire) {
            return Err(LaunchError::BadRequest);
        }
        let ended = || context.shm.launch_done().load(Ordering::SeqCst).wrapping_sub(index) as i32 > 0;
        Bell(context.shm.done_bell()).wait(&mut Patience::new(PATIENCE), Deadline::Naps, || ended() || context.is_dead());
        let result = if ended() { outcome(context, index) } else { Err(last_words(context, index)) };
        used.store(false, Ordering::Release);
        result
    }
}

/// What the device says of a launch that ended; copied, then checked.
fn outcome(context: &Context, index: u32) -> Result<(), LaunchError> {
    let slot = context.shm.launch(index);
    let status = slot.status.load(Ordering::Acquire);
    let (code, va) = (slot.code.load(Ordering::Relaxed), slot.va.load(Ordering::Relaxed));
    let nonsense = DeviceError::BadRequest;
    match status {
        launch::OK => Ok(()),
        launch::FAULT => {
            let error = codec::decode(code).unwrap_or(FaultError::Device(nonsense));
            Err(LaunchError::Fault { va: VirtAddr::new(va), error })
        }
        launch::PANICKED => Err(LaunchError::Panicked(message::read(&context.shm, index, code))),
        launch::CRASHED => Err(codec::decode_crash(code, va).map_or(LaunchError::Device(nonsense), LaunchError::Crashed)),
        _ => Err(LaunchError::Device(nonsense)),
    }
}

/// Why a launch did not end before its device did: a kernel that aborts has said so.
fn last_words(context: &Context, index: u32) -> LaunchError {
    match outcome(context, index) {
        Err(LaunchError::Crashed(Crash::Abort)) => LaunchError::Crashed(Crash::Abort),
        _ => LaunchError::Device(DeviceError::Dead),
    }
}
