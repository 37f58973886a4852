//! Launches of one context, as the host keeps them: which records of the shared memory are in use, and by which launch.

use crate::codec;
use crate::context::Context;
use crate::kernel::MAX_ARGS;
use crate::message;
use crate::shm::{LAUNCHES, launch};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Held, Lock, Patience};
use gmem_hal::{Crash, DeviceError, FaultError, LaunchError, VirtAddr};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a thread looks for the end of a launch before it sleeps.
const PATIENCE: Duration = Duration::from_micros(20);

/// The host's own account of launches.
pub(crate) struct Launches {
    /// Held to start. (L)
    lock: Lock,
    /// Launches started, wrapping. Written under L.
    head: AtomicU32,
    /// Numbers given out, wrapping. Written under L.
    made: AtomicU32,
    /// Of each record, the number of the launch that was started in it; 0 if it is free. Set under L, freed by who waited, or under L once the launch is over.
    used: [AtomicU32; LAUNCHES],
    /// How launches ended whose records others needed before anybody waited for them, by number. Innermost, and held over no other wait.
    ended: Mutex<BTreeMap<u32, Result<(), LaunchError>>>,
}

impl Default for Launches {
    fn default() -> Self {
        let used = std::array::from_fn(|_| AtomicU32::default());
        Self { lock: Lock::default(), head: AtomicU32::default(), made: AtomicU32::default(), used, ended: Mutex::default() }
    }
}

impl Launches {
    /// Starts kernel number `kernel`. Returns the launch's number. As long as 256 launches have not ended, waits for one of them to end; how many have ended and were not
    /// waited for does not matter.
    pub(crate) fn start(&self, context: &Context, kernel: usize, args: &[u64], replay: bool) -> Result<u32, LaunchError> {
        if args.len() > MAX_ARGS {
            return Err(LaunchError::TooManyArgs { given: args.len(), most: MAX_ARGS });
        }
        // The slice may lie in unified memory: it is read before the lock is taken.
        let mut copy = [0; MAX_ARGS];
        copy[..args.len()].copy_from_slice(args);
        let (_held, record) = self.free_record(context)?;
        let turn = self.head.load(Ordering::Relaxed);
        let number = self.fresh_number(record);
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
        // What was there is of a launch that is over: were it not, every record would be in use by one that is not.
        context.shm.launch_record(turn).store(record, Ordering::Relaxed);
        self.head.store(turn.wrapping_add(1), Ordering::Relaxed);
        context.shm.launch_head().store(turn.wrapping_add(1), Ordering::SeqCst);
        Bell(context.shm.launch_bell()).ring();
        Ok(number)
    }

    /// A record for another launch, under L, which is returned with it. Waits while the device has all there are.
    fn free_record<'a>(&'a self, context: &Context) -> Result<(Held<'a>, u32), LaunchError> {
        let is_over = |record: u32| context.shm.launch(record).over.load(Ordering::SeqCst) != 0;
        let is_free = |record: u32| self.used[record as usize].load(Ordering::Acquire) == 0;
        loop {
            let held = self.lock.lock();
            if context.is_dead() {
                return Err(LaunchError::Device(DeviceError::Dead));
            }
            if context.failed.load(Ordering::SeqCst) {
                return Err(LaunchError::Device(DeviceError::NoAnswer));
            }
            let turn = self.head.load(Ordering::Relaxed);
            // The next in turn, which is the one that was used longest ago unless somebody is late.
            let look = || (0..LAUNCHES as u32).map(|i| turn.wrapping_add(i) % LAUNCHES as u32).find(|record| is_free(*record));
            if let Some(record) = look().or_else(|| {
                (0..LAUNCHES as u32).filter(|record| is_over(*record)).for_each(|record| self.put_by(context, record));
                look()
            }) {
                return Ok((held, record));
            }
            drop(held);
            // They end in order, so the oldest does next: the one that had the place in the order which is next in turn.
            let oldest = context.shm.launch_record(turn).load(Ordering::Relaxed);
            let ready = || {
                let gone = context.is_dead() || context.failed.load(Ordering::SeqCst);
                gone || (0..LAUNCHES as u32).any(|record| is_free(record) || is_over(record))
            };
            Bell(context.shm.launch(oldest).bell).wait(&mut Patience::new(PATIENCE), Deadline::Naps, ready);
        }
    }

    /// Keeps how the launch of this record ended, and frees the record, unless somebody just did.
    fn put_by(&self, context: &Context, record: u32) {
        let used = &self.used[record as usize];
        let number = used.load(Ordering::Acquire);
        if number == 0 {
            return;
        }
        let result = outcome(context, record);
        // First kept, then free: who finds the record free looks here next.
        self.ended().insert(number, result);
        if used.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            self.ended().remove(&number);
        }
    }

    fn ended(&self) -> MutexGuard<'_, BTreeMap<u32, Result<(), LaunchError>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no launch has, under L.
    fn fresh_number(&self, record: u32) -> u32 {
        loop {
            let made = self.made.load(Ordering::Relaxed).wrapping_add(1);
            self.made.store(made, Ordering::Relaxed);
            let number = number(made, record);
            if !self.ended().contains_key(&number) {
                return number;
            }
        }
    }

    /// What was kept of the launch of this number, which is forgotten.
    fn kept(&self, number: u32) -> Result<(), LaunchError> {
        self.ended().remove(&number).unwrap_or(Err(LaunchError::BadRequest))
    }

    /// Waits for the launch of this number to end, and forgets it.
    pub(crate) fn wait(&self, context: &Context, number: u32) -> Result<(), LaunchError> {
        let record = number % LAUNCHES as u32;
        let used = &self.used[record as usize];
        let is_ours = || used.load(Ordering::Acquire) == number;
        if number == 0 || !is_ours() {
            return self.kept(number);
        }
        let slot = context.shm.launch(record);
        let ended = || slot.over.load(Ordering::SeqCst) != 0;
        Bell(slot.bell).wait(&mut Patience::new(PATIENCE), Deadline::Naps, || ended() || context.is_dead() || !is_ours());
        let result = if ended() { outcome(context, record) } else { Err(last_words(context, record)) };
        // If it is not ours any more it may tell of another launch by now.
        let forgotten = used.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed);
        if forgotten.is_ok() { result } else { self.kept(number) }
    }
}

/// The number of the launch that is this in order and has this record: never 0, and not used again for eight million launches.
fn number(made: u32, record: u32) -> u32 {
    // A power of two, so that nothing special happens when the count wraps.
    const TURNS: u32 = 1 << 23;
    (made % TURNS + 1) * LAUNCHES as u32 + record
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
    fn numbers_do_not_come_again_when_the_count_wraps() {
        let lately: Vec<u32> = (0..600).map(|i| 0u32.wrapping_sub(300).wrapping_add(i)).collect();
        let mut numbers: Vec<u32> = lately.iter().map(|turn| number(*turn, turn % LAUNCHES as u32)).collect();
        assert!(!numbers.contains(&0));
        assert_eq!(number(u32::MAX, LAUNCHES as u32 - 1) % LAUNCHES as u32, LAUNCHES as u32 - 1);
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), lately.len());
    }
}
