//! Launches under way, and the memory that those of devices without replay hold.

use crate::device::Device;
use crate::error::Error;
use crate::runtime::{LinuxCore, Runtime};
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{DeviceId, FaultError, LaunchError, SpaceId, Ticket};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The memory of a device that launches hold. A launch is admitted if what it names, in whole pages, fits beside what those admitted before name; those take their memory side by
/// side. One that does not fit queues, also if it has memory in common with others, since nobody knows beforehand what it takes: the first in the queue tries each time that
/// another launch ended. If several tried, each would find what the others have taken in part, let go of its own, and begin again with them, for ever.
///
/// No launch has memory while it waits for something else, such as a page that is held elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that wait, by number, oldest first. Whatever may let one of them go on wakes it.
    queue: VecDeque<(u64, Thread)>,
    /// Numbers given out.
    numbers: u64,
    /// How many launches went before the first in the queue since it is that.
    overtaken: u32,
    /// How many are admitted, and how many bytes they name, in whole pages.
    admitted: usize,
    reserved: u64,
    /// How many were admitted ever, and how often one of them gave its place back.
    admissions: u64,
    ended: u64,
    /// How many of those that are admitted are taking their memory.
    taking: usize,
    /// Whether the first in the queue tries, and how often it did: others may find too little meanwhile.
    trying: bool,
    tries: u64,
}

/// As many launches that fit may go before one that does not, so that it comes to its turn.
const MOST_OVERTAKEN: u32 = 64;

/// How often a launch that fits tries again because the first in the queue tried at the same time; then it queues.
const MOST_REFUSED: u32 = 20;

/// How often the first in the queue tries although no launch ended: memory can also become free because it is unpinned, or a limit is raised. And how often it is looked
/// whether a context was stopped.
const NAP: Duration = Duration::from_millis(100);

/// How soon a launch first looks again whether a page is held elsewhere still; later it takes its time.
const FIRST_NAP: Duration = Duration::from_micros(200);

/// The place of a launch among those of its device: admitted, or in the queue. Given up on drop.
struct Place {
    holding: Arc<Holding>,
    /// How many bytes it names, in whole pages, and how many all can have.
    asked: u64,
    room: u64,
    /// Whether it counts among those that are admitted: not where pages stay at home.
    counted: bool,
    /// How often it was admitted, and there was not enough all the same: what is pinned, or lies scattered, is not counted.
    refused: u32,
    /// How often a page was held elsewhere.
    looks: u32,
    /// It takes memory, or tries to.
    taking: bool,
    /// After how long it tries again although nothing seems to have changed, and since when that is so.
    nap: Duration,
    since: Option<Instant>,
    /// Its number in the queue, and `ended` at its last try there.
    queued: Option<(u64, Option<u64>)>,
}

/// Memory held for a launch; let go on drop.
pub(crate) struct Hold {
    core: Arc<LinuxCore>,
    space: SpaceId,
    device: DeviceId,
    ranges: Vec<HoldRange>,
    /// Given up when the memory is free.
    _place: Place,
}

impl Hold {
    /// Holds `ranges` on the device. If they do not fit beside what other launches hold, or a page is held elsewhere, waits for those to end, as long as the context is not stopped.
    pub(crate) fn take(core: &Arc<LinuxCore>, space: SpaceId, device: &Device, ranges: &[HoldRange]) -> Result<Option<Self>, Error> {
        if ranges.is_empty() {
            return Ok(None);
        }
        let holding = device.inner.holding.clone();
        let device = device.id();
        let lives = || core.context(space, device).is_some_and(|context| !context.fenced);
        let (asked, room) = core.hold_size(space, device, ranges)?;
        let mut place = Place::among(holding, asked.get(), room.get());
        loop {
            let seen = place.wait(lives)?;
            let began = Instant::now();
            match core.try_hold(space, Some(device), ranges) {
                Ok(()) => break place.has_it(),
                Err(RangeError::Held(_) | RangeError::Fault(_, FaultError::TooManyHolds)) => place.waits_for_a_page(seen),
                // A try that takes long, as of a peer that looks for room itself, is not made all the time.
                Err(RangeError::Fault(_, FaultError::NoDeviceMemory)) if !place.was_alone(seen) => place.refused(seen, 4 * began.elapsed()),
                Err(refused) => return Err(refused.into()),
            }
            place.room = core.hold_size(space, device, ranges)?.1.get();
        }
        Ok(Some(Self { core: core.clone(), space, device, ranges: ranges.to_vec(), _place: place }))
    }
}

/// What there was when a launch began to try.
#[derive(Clone, Copy)]
struct Seen {
    others: usize,
    admissions: u64,
    ended: u64,
    /// Tries of the first in the queue that were over.
    tries: u64,
}

impl Holding {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admit(&mut self, asked: u64) {
        self.admitted += 1;
        self.admissions += 1;
        self.reserved += asked;
    }

    fn give_back(&mut self, asked: u64) {
        self.admitted -= 1;
        self.reserved -= asked;
        self.ended += 1;
        self.wake_all();
    }

    /// Any of them may fit now.
    fn wake_all(&self) {
        self.queue.iter().for_each(|(_, thread)| thread.unpark());
    }

    /// Whether a launch that is not the first in the queue, if there is one, may be admitted before it: not while that one tries.
    fn may_overtake(&self) -> bool {
        self.queue.is_empty() || !self.trying && self.overtaken < MOST_OVERTAKEN
    }

    fn enqueue(&mut self) -> u64 {
        self.numbers += 1;
        self.queue.push_back((self.numbers, std::thread::current()));
        self.numbers
    }

    fn leave_queue(&mut self, number: u64) {
        if self.is_first(number) {
            self.overtaken = 0;
        }
        self.queue.retain(|(other, _)| *other != number);
        self.wake_first();
    }

    fn is_first(&self, number: u64) -> bool {
        self.queue.front().is_some_and(|(first, _)| *first == number)
    }

    fn wake_first(&self) {
        if let Some((_, thread)) = self.queue.front() {
            thread.unpark();
        }
    }
}

impl Place {
    fn among(holding: Arc<Holding>, asked: u64, room: u64) -> Self {
        let counted = room != u64::MAX;
        let mut place = Self { holding, asked, room, counted, refused: 0, looks: 0, taking: false, nap: NAP, since: None, queued: None };
        if counted {
            let holding = place.holding.clone();
            let mut state = holding.state();
            if state.reserved + asked <= room && state.may_overtake() {
                state.overtaken += u32::from(!state.queue.is_empty());
                state.admit(asked);
            } else {
                place.queued = Some((state.enqueue(), None));
            }
        }
        place
    }

    /// Waits until it may try. [`Error::Fenced`] if the context does not live any more.
    fn wait(&mut self, lives: impl Fn() -> bool) -> Result<Seen, Error> {
        let holding = self.holding.clone();
        loop {
            if !lives() {
                return Err(Error::Fenced);
            }
            let mut state = holding.state();
            // It counts itself.
            let others = state.admitted - usize::from(self.counted && self.queued.is_none());
            let (admissions, ended) = (state.admissions, state.ended);
            let seen = Seen { others, admissions, ended, tries: state.tries - u64::from(state.trying) };
            let fits = self.refused < MOST_REFUSED && state.reserved + self.asked <= self.room;
            match self.queued {
                None if self.since.is_none_or(|since| since.elapsed() >= self.nap) => {
                    if self.counted {
                        self.taking = true;
                        state.taking += 1;
                    }
                    return Ok(seen);
                }
                Some((number, _)) if fits && (state.is_first(number) || state.may_overtake()) => {
                    state.overtaken += u32::from(!state.is_first(number));
                    state.admit(self.asked);
                    state.leave_queue(number);
                    self.queued = None;
                    (self.taking, self.since) = (true, None);
                    state.taking += 1;
                    return Ok(seen);
                }
                // Beside one that takes its memory each would find what the other has taken in part.
                Some((number, tried)) if state.is_first(number) => {
                    let waited = self.since.get_or_insert_with(Instant::now).elapsed();
                    if state.taking == 0 && tried != Some(ended) || waited >= self.nap {
                        (self.taking, state.trying) = (true, true);
                        state.tries += 1;
                        return Ok(seen);
                    }
                }
                None | Some(_) => {}
            }
            drop(state);
            std::thread::park_timeout(self.nap.min(NAP));
        }
    }

    /// Whether it is the first in the queue, and no other launch of the device had memory since: one that is admitted queues before it gives up.
    fn was_alone(&self, seen: Seen) -> bool {
        self.queued.is_some() && seen.others == 0 && seen.admissions == self.holding.state().admissions
    }

    /// It has its memory.
    fn has_it(&mut self) {
        let holding = self.holding.clone();
        let mut state = holding.state();
        if let Some((number, _)) = self.queued {
            // At once: from now on others find so much less.
            state.admit(self.asked);
            state.leave_queue(number);
        }
        self.tried(&mut state);
        self.queued = None;
    }

    /// Somebody holds a page that it names elsewhere, or as many hold one as can be counted.
    fn waits_for_a_page(&mut self, seen: Seen) {
        let holding = self.holding.clone();
        let mut state = holding.state();
        self.tried(&mut state);
        self.nap = NAP.min(FIRST_NAP * (1 << self.looks.min(10)));
        self.looks += 1;
        self.since = Some(Instant::now());
        if let Some((number, _)) = self.queued {
            // Others need not wait for that.
            state.overtaken = 0;
            self.queued = Some((number, Some(seen.ended)));
        }
    }

    /// There was not enough: waits in the queue for others to end, or for so long.
    fn refused(&mut self, seen: Seen, nap: Duration) {
        let holding = self.holding.clone();
        let mut state = holding.state();
        self.tried(&mut state);
        self.nap = NAP.max(nap);
        match self.queued {
            Some((number, _)) => {
                self.since = Some(Instant::now());
                self.queued = Some((number, Some(seen.ended)));
            }
            None if self.refused < MOST_REFUSED && (state.trying || state.tries != seen.tries) => {
                // The first in the queue had what was missing, and lets it go.
                self.refused += 1;
                self.nap = Duration::from_millis(1);
                self.since = Some(Instant::now());
            }
            None => {
                if self.counted {
                    state.give_back(self.asked);
                }
                self.counted = true;
                self.refused = MOST_REFUSED;
                self.since = None;
                self.queued = Some((state.enqueue(), None));
            }
        }
    }

    /// It has taken its memory, or tried to.
    fn tried(&mut self, state: &mut State) {
        if std::mem::take(&mut self.taking) {
            if self.queued.is_some() {
                state.trying = false;
                state.wake_all();
            } else {
                state.taking -= 1;
                state.wake_first();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let holding = self.holding.clone();
        let mut state = holding.state();
        // In a panic.
        self.tried(&mut state);
        match self.queued {
            Some((number, _)) => state.leave_queue(number),
            None if self.counted => state.give_back(self.asked),
            None => {}
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The address space lives: the launch belongs to a context of it.
        let _ = self.core.unhold(self.space, Some(self.device), &self.ranges);
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
