//! Launches of one context, as the host keeps them: which records of the shared memory are in use, and by which launch.

use crate::codec;
use crate::context::Context;
use crate::kernel::MAX_ARGS;
use crate::message;
use crate::shm::{LAUNCHES, launch};
use crate::sync::atomic::{AtomicU32, Ordering};
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
    /// Of each record, the number of the launch that was started in it and not yet waited for; 0 if it is free. Set under L.
    used: [AtomicU32; LAUNCHES],
}

impl Default for Launches {
    fn default() -> Self {
        Self { lock: Lock::default(), head: AtomicU32::default(), used: std::array::from_fn(|_| AtomicU32::default()) }
    }
}

impl Launches {
    /// Starts kernel number `kernel`. Returns the launch's number. Up to 256 launches can be started and not waited for; then
    /// the device has no room. One that is waited for late keeps nothing but its own record.
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
        let turn = self.head.load(Ordering::Relaxed);
        let free = |record: &u32| self.used[*record as usize].load(Ordering::Acquire) == 0;
        // The next in turn, which is the one that was used longest ago unless somebody is late.
        let mut records = (0..LAUNCHES as u32).map(|i| turn.wrapping_add(i) % LAUNCHES as u32);
        let record = records.find(free).ok_or(LaunchError::Device(DeviceError::NoMemory))?;
        let number = number(turn, record);
        self.used[record as usize].store(number, Ordering::Relaxed);
        let slot = context.shm.launch(record);
        slot.status.store(launch::RUNNING, Ordering::Relaxed);
        slot.over.store(0, Ordering::Relaxed);
        slot.kernel.store(kernel as u32, Ordering::Relaxed);
        slot.nargs.store(args.len() as u32, Ordering::Relaxed);
        slot.replay.store(replay.into(), Ordering::Relaxed);
        for (i, arg) in copy.into_iter().enumerate() {
            context.shm.launch_arg(record, i).store(arg, Ordering::Relaxed);
        }
        // What was there is of a launch that is over: were it not, every record would be in use.
        context.shm.launch_record(turn).store(record, Ordering::Relaxed);
        self.head.store(turn.wrapping_add(1), Ordering::Relaxed);
        context.shm.launch_head().store(turn.wrapping_add(1), Ordering::SeqCst);
        Bell(context.shm.launch_bell()).ring();
        Ok(number)
    }

    /// Waits for the launch of this number to end, and forgets it.
    pub(crate) fn wait(&self, context: &Context, number: u32) -> Result<(), LaunchError> {
        let record = number % LAUNCHES as u32;
        let used = &self.used[record as usize];
        let is_ours = || used.load(Ordering::Acquire) == number;
        if number == 0 || !is_ours() {
            return Err(LaunchError::BadRequest);
        }
        let slot = context.shm.launch(record);
        let ended = || slot.over.load(Ordering::SeqCst) != 0;
        Bell(slot.bell).wait(&mut Patience::new(PATIENCE), Deadline::Naps, || ended() || context.is_dead() || !is_ours());
        let result = if ended() { outcome(context, record) } else { Err(last_words(context, record)) };
        // If somebody else has waited for it meanwhile, the record may tell of another launch by now.
        let forgotten = used.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed);
        if forgotten.is_ok() { result } else { Err(LaunchError::BadRequest) }
    }
}

/// The number of the launch that runs at this turn and has this record: never 0, and not used again for eight million launches.
fn number(turn: u32, record: u32) -> u32 {
    // A divisor of the number of turns there are, so that nothing special happens when they wrap.
    const TURNS: u32 = 1 << 23;
    (turn % TURNS + 1) * LAUNCHES as u32 + record
}

/// What the device says of a launch that ended; copied, then checked.
fn outcome(context: &Context, record: u32) -> Result<(), LaunchError> {
    let slot = context.shm.launch(record);
    let status = slot.status.load(Ordering::Acquire);
    let (code, va) = (slot.code.load(Ordering::Relaxed), slot.va.load(Ordering::Relaxed));
    let nonsense = DeviceError::BadRequest;
    match status {
        launch::OK => Ok(()),
        launch::FAULT => {
            let error = codec::decode(code).unwrap_or(FaultError::Device(nonsense));
            Err(LaunchError::Fault { va: VirtAddr::new(va), error })
        }
        launch::PANICKED => Err(LaunchError::Panicked(message::read(&context.shm, record, code))),
        launch::CRASHED => Err(codec::decode_crash(code, va).map_or(LaunchError::Device(nonsense), LaunchError::Crashed)),
        _ => Err(LaunchError::Device(nonsense)),
    }
}

/// Why a launch did not end before its device did: a kernel that aborts has said so.
fn last_words(context: &Context, record: u32) -> LaunchError {
    match outcome(context, record) {
        Err(LaunchError::Crashed(Crash::Abort)) => LaunchError::Crashed(Crash::Abort),
        _ => LaunchError::Device(DeviceError::Dead),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_come_again_when_turns_wrap() {
        let lately: Vec<u32> = (0..600).map(|i| 0u32.wrapping_sub(300).wrapping_add(i)).collect();
        let mut numbers: Vec<u32> = lately.iter().map(|turn| number(*turn, turn % LAUNCHES as u32)).collect();
        assert!(!numbers.contains(&0));
        assert_eq!(number(u32::MAX, LAUNCHES as u32 - 1) % LAUNCHES as u32, LAUNCHES as u32 - 1);
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), lately.len());
    }
}
