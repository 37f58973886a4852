//! Launches of one context, as the host keeps them: which records of the shared memory are in use, and by which launch.

use crate::codec;
use crate::context::Context;
use crate::kernel::MAX_ARGS;
use crate::message;
use crate::shm::{LAUNCHES, launch};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::wait::{Bell, Deadline, Patience};
use gmem_hal::{Crash, DeviceError, FaultError, LaunchError, VirtAddr};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

/// How long a thread looks for the end of a launch before it sleeps.
const PATIENCE: Duration = Duration::from_micros(20);

/// The launches of one context.
pub(crate) struct Launches {
    /// Held to start, and while that waits for a record: who starts next needs the next one. Outermost.
    starting: Mutex<Starting>,
    /// Of each record, the number of the launch that was started in it; 0 if it is free. Set by who starts, freed under `ended`.
    used: [AtomicU32; LAUNCHES],
    /// How launches ended whose records others needed before anybody waited for them, by number. Held to free a record, so that how its launch ended is told once.
    ended: Mutex<BTreeMap<u32, Result<(), LaunchError>>>,
}

/// What was started. The host's own copy: what the device is told of it, the device can change.
struct Starting {
    /// Launches started, wrapping.
    head: u32,
    /// Numbers given out, wrapping.
    made: u32,
    /// The records of the last ones, by their place in the order.
    order: [u32; LAUNCHES],
}

impl Default for Launches {
    fn default() -> Self {
        let starting = Mutex::new(Starting { head: 0, made: 0, order: [0; LAUNCHES] });
        Self { starting, used: std::array::from_fn(|_| AtomicU32::default()), ended: Mutex::new(BTreeMap::new()) }
    }
}

impl Launches {
    /// Starts kernel number `kernel`. Returns the launch's number. As long as 256 launches have not ended, waits for the oldest of them to end; how many have ended and were
    /// not waited for does not matter.
    pub(crate) fn start(&self, context: &Context, kernel: usize, args: &[u64], replay: bool) -> Result<u32, LaunchError> {
        if args.len() > MAX_ARGS {
            return Err(LaunchError::TooManyArgs { given: args.len(), most: MAX_ARGS });
        }
        // The slice may lie in unified memory: it is read before the lock is taken.
        let mut copy = [0; MAX_ARGS];
        copy[..args.len()].copy_from_slice(args);
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.free_record(context, &starting)?;
        let number = self.fresh_number(&mut starting.made, record);
        self.used[record as usize].store(number, Ordering::Relaxed);
        let slot = context.shm.launch(record);
        slot.status.store(launch::RUNNING, Ordering::Relaxed);
        // Who still waits for the launch before, and sees that this one is not over, sees too that the record is not its own.
        slot.over.store(0, Ordering::Release);
        slot.kernel.store(kernel as u32, Ordering::Relaxed);
        slot.nargs.store(args.len() as u32, Ordering::Relaxed);
        slot.replay.store(replay.into(), Ordering::Relaxed);
        for (i, arg) in copy.into_iter().enumerate() {
            context.shm.launch_arg(record, i).store(arg, Ordering::Relaxed);
        }
        // What was there is of a launch that is over: were it not, every record would be in use by one that is not.
        let turn = starting.head;
        context.shm.launch_record(turn).store(record, Ordering::Relaxed);
        starting.order[turn as usize % LAUNCHES] = record;
        starting.head = turn.wrapping_add(1);
        context.shm.launch_head().store(starting.head, Ordering::SeqCst);
        Bell(context.shm.launch_bell()).ring();
        Ok(number)
    }

    /// A record for another launch. Waits while the device has all there are.
    fn free_record(&self, context: &Context, starting: &Starting) -> Result<u32, LaunchError> {
        let is_over = |record: u32| context.shm.launch(record).over.load(Ordering::SeqCst) != 0;
        let is_free = |record: u32| self.used[record as usize].load(Ordering::Acquire) == 0;
        // The next in turn, which is the one that was used longest ago unless somebody is late.
        let next = || (0..LAUNCHES as u32).map(|i| starting.head.wrapping_add(i) % LAUNCHES as u32);
        loop {
            if context.is_dead() {
                return Err(LaunchError::Device(DeviceError::Dead));
            }
            if context.failed.load(Ordering::SeqCst) {
                return Err(LaunchError::Device(DeviceError::NoAnswer));
            }
            if let Some(record) = next().find(|record| is_free(*record)) {
                return Ok(record);
            }
            let put_by = next().filter(|record| is_over(*record) && self.put_by(context, *record)).count();
            if put_by > 0 {
                continue;
            }
            // They end in order, so the oldest does next: the one that had the place in the order which is next in turn. Nobody else starts meanwhile.
            let oldest = starting.order[starting.head as usize % LAUNCHES];
            let gone = || context.is_dead() || context.failed.load(Ordering::SeqCst);
            let ready = || gone() || next().any(|record| is_free(record) || is_over(record));
            Bell(context.shm.launch(oldest).bell).wait(&mut Patience::new(PATIENCE), Deadline::Naps, ready);
        }
    }

    /// Keeps how the launch of this record, which is over, ended, and frees the record. False if somebody just did.
    fn put_by(&self, context: &Context, record: u32) -> bool {
        let mut ended = self.ended();
        let number = self.used[record as usize].load(Ordering::Relaxed);
        if number != 0 {
            ended.insert(number, outcome(context, record));
            self.used[record as usize].store(0, Ordering::Release);
        }
        number != 0
    }

    fn ended(&self) -> MutexGuard<'_, BTreeMap<u32, Result<(), LaunchError>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no launch has.
    fn fresh_number(&self, made: &mut u32, record: u32) -> u32 {
        loop {
            *made = made.wrapping_add(1);
            let number = number(*made, record);
            if !self.ended().contains_key(&number) {
                return number;
            }
        }
    }

    /// Waits for the launch of this number to end, and forgets it.
    pub(crate) fn wait(&self, context: &Context, number: u32) -> Result<(), LaunchError> {
        let record = number % LAUNCHES as u32;
        let (slot, used) = (context.shm.launch(record), &self.used[record as usize]);
        let is_ours = || number != 0 && used.load(Ordering::Acquire) == number;
        let is_over = || slot.over.load(Ordering::SeqCst) != 0;
        Bell(slot.bell).wait(&mut Patience::new(PATIENCE), Deadline::Naps, || is_over() || !is_ours() || context.is_dead());
        let mut ended = self.ended();
        // Under the lock: what is ours stays ours, and the record tells of no other launch.
        if !is_ours() {
            return ended.remove(&number).unwrap_or(Err(LaunchError::BadRequest));
        }
        let result = if is_over() { outcome(context, record) } else { Err(last_words(context, record)) };
        used.store(0, Ordering::Release);
        result
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
