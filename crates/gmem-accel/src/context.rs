//! A context as the host sees it: one device process, and the ring of commands to it.
//!
//! Everything here may run on any thread and in a signal handler: it uses no descriptor (those belong to the keeper and the watcher), allocates nothing, and
//! every wait for the device is bounded.

use crate::device::{op, reply};
use crate::evictor::Evictor;
use crate::faults;
use crate::launches::Launches;
use crate::peer::Mirror;
use crate::shm::{LAUNCHES, RING, Shared, command};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use crate::sync::pause;
use crate::wait::{Bell, Deadline, Lock, Patience, in_naps};
use gmem_hal::{DeviceError, HostWindow, PmapId, VirtRange};
use std::time::Duration;

/// How long the host looks for the device's acknowledgement before it sleeps.
const ACK_PATIENCE: Duration = Duration::from_micros(50);

/// What never changes about a context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) pmap: PmapId,
    pub(crate) window: VirtRange,
    /// Host memory it may map, in REPLICATE mode.
    pub(crate) host: Option<HostWindow>,
    pub(crate) workers: usize,
    pub(crate) limit: Duration,
    pub(crate) pid: i32,
}

/// One device process. Shared by the table of contexts and the threads that serve it.
pub(crate) struct Context {
    pub(crate) facts: Facts,
    pub(crate) shm: Shared,
    /// Held to post. (P)
    post: Lock,
    /// Commands posted; the truth of which `Shared::head` is the device's copy. Written under P.
    head: AtomicU32,
    /// Slots whose result nobody has read yet. Set under P, cleared by who waited.
    held: [AtomicBool; RING],
    /// 1 once the process is gone and reaped; rung at `death_bell`.
    dead: AtomicU32,
    /// 1 once the core knows that too; rung at `death_bell`.
    told: AtomicU32,
    death_bell: AtomicU32,
    /// It missed a deadline or broke the protocol: nothing more is asked of it.
    pub(crate) failed: AtomicBool,
    /// The keeper shall kill it.
    pub(crate) kill: AtomicBool,
    /// Its end is expected, so nobody needs to be told.
    pub(crate) expected: AtomicBool,
    pub(crate) launches: Launches,
    /// PEER devices: what is mapped where.
    pub(crate) mirror: Option<Mirror>,
    /// PEER devices: the way of evictions into the core.
    pub(crate) evictor: Evictor,
}

/// A command to the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) op: u32,
    pub(crate) va: u64,
    pub(crate) len: u64,
    pub(crate) frame: u64,
    pub(crate) prot: u32,
}

impl Context {
    pub(crate) fn new(facts: Facts, shm: Shared, mirror: Option<Mirror>) -> Self {
        Self {
            facts,
            shm,
            post: Lock::default(),
            head: AtomicU32::default(),
            held: std::array::from_fn(|_| AtomicBool::default()),
            dead: AtomicU32::default(),
            told: AtomicU32::default(),
            death_bell: AtomicU32::default(),
            failed: AtomicBool::default(),
            kill: AtomicBool::default(),
            expected: AtomicBool::default(),
            launches: Launches::default(),
            mirror,
            evictor: Evictor::default(),
        }
    }

    /// Whether the process is gone, confirmed.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst) != 0
    }

    /// The process is gone and reaped: releases everyone who waits for it, and tells the core by `tell`.
    pub(crate) fn set_dead(&self, tell: impl FnOnce()) {
        self.dead.store(1, Ordering::SeqCst);
        Bell(&self.death_bell).ring();
        self.evictor.end();
        Bell(self.shm.ready_bell()).alarm();
        (0..RING as u32).for_each(|slot| Bell(self.shm.command(slot).bell).alarm());
        (0..LAUNCHES as u32).for_each(|record| Bell(self.shm.launch(record).bell).alarm());
        for worker in 0..self.facts.workers {
            Bell(self.shm.fault(worker).host_bell).alarm();
        }
        tell();
        self.told.store(1, Ordering::SeqCst);
        Bell(&self.death_bell).ring();
    }

    /// Of a process that is gone: waits until the core was told. Not for callbacks, of which one may have what the core waits for.
    pub(crate) fn wait_told(&self) {
        Bell(&self.death_bell).wait(&mut Patience::new(ACK_PATIENCE), Deadline::Never, || self.told.load(Ordering::SeqCst) != 0);
    }

    /// Waits until the process is gone. False if `limit` passed before.
    pub(crate) fn wait_dead(&self, limit: Duration) -> bool {
        let mut patience = Patience::new(ACK_PATIENCE);
        in_naps(limit, |nap| Bell(&self.death_bell).wait(&mut patience, nap, || self.is_dead()))
    }

    /// `Ok` while the device can be asked.
    fn alive(&self) -> Result<(), DeviceError> {
        if self.is_dead() {
            Err(DeviceError::Dead)
        } else if self.failed.load(Ordering::SeqCst) {
            Err(DeviceError::NoAnswer)
        } else {
            Ok(())
        }
    }

    /// The device missed its time limit, or died while we waited.
    fn no_answer(&self) -> DeviceError {
        if self.is_dead() {
            return DeviceError::Dead;
        }
        self.failed.store(true, Ordering::SeqCst);
        DeviceError::NoAnswer
    }

    /// Commands up to and without `seq` are done.
    fn done(&self, seq: u32) -> bool {
        self.shm.tail().load(Ordering::SeqCst).wrapping_sub(seq) as i32 >= 0
    }

    /// Posts a command without telling the device. Returns the number that `done` has to pass.
    fn post(&self, c: &Command, hold: bool) -> Result<u32, DeviceError> {
        self.alive()?;
        let _held = self.post.lock();
        self.alive()?;
        let head = self.free_slot()?;
        let slot = self.shm.command(head);
        slot.op.store(c.op, Ordering::Relaxed);
        slot.prot.store(c.prot, Ordering::Relaxed);
        slot.va.store(c.va, Ordering::Relaxed);
        slot.len.store(c.len, Ordering::Relaxed);
        slot.frame.store(c.frame, Ordering::Relaxed);
        slot.state.store(command::PENDING, Ordering::Relaxed);
        self.held[head as usize % RING].store(hold, Ordering::Relaxed);
        Ok(self.pass(head))
    }

    /// The device may go on to the command after `head`. Returns the number that `done` has to pass.
    fn pass(&self, head: u32) -> u32 {
        let next = head.wrapping_add(1);
        // The device's word first: who finds ours may wait for the device to get there.
        self.shm.head().store(next, Ordering::SeqCst);
        self.head.store(next, Ordering::SeqCst);
        next
    }

    /// The number of the next command, whose slot is free. Under the lock of `post`.
    fn free_slot(&self) -> Result<u32, DeviceError> {
        let mut head = self.head.load(Ordering::Relaxed);
        let has_room = |head: u32| head.wrapping_sub(self.shm.tail().load(Ordering::SeqCst)) < RING as u32;
        let is_held = |head: u32| self.held[head as usize % RING].load(Ordering::Acquire);
        if has_room(head) && !is_held(head) {
            return Ok(head);
        }
        let mut patience = Patience::new(ACK_PATIENCE);
        let mut skipped = 0;
        let free = in_naps(self.facts.limit, |nap| {
            loop {
                if !has_room(head) {
                    self.dispatch();
                    // There is room once the device has passed what is in the way now.
                    let bell = Bell(self.shm.command(head).bell);
                    if !bell.wait(&mut patience, nap, || has_room(head) || self.is_dead()) {
                        return false;
                    }
                }
                if self.is_dead() || !is_held(head) {
                    return true;
                }
                // Somebody has not read what was answered there, and may be long in coming. The slot stays as it is, and the device passes it like one
                // that was cancelled.
                head = self.pass(head);
                skipped += 1;
                if skipped % RING == 0 {
                    // All are held.
                    pause(Duration::from_millis(1));
                    if nap.passed() {
                        return false;
                    }
                }
            }
        });
        if !free {
            return Err(self.no_answer());
        }
        self.alive()?;
        Ok(head)
    }

    /// Makes sure that some thread of the device looks at the ring: one that is awake does so anyway; else the worker whose fault this thread
    /// resolves, because it has to be woken soon in any case; else the command thread.
    fn dispatch(&self) {
        fence(Ordering::SeqCst);
        if self.shm.drainers().load(Ordering::SeqCst) != 0 {
            return;
        }
        match faults::serving(self) {
            Some(worker) => Bell(self.shm.fault(worker).device_bell).ring(),
            None => Bell(self.shm.command_bell()).ring(),
        }
    }

    /// Waits until the commands before `seq` are done. False if the device missed its time limit or died.
    fn wait_done(&self, seq: u32) -> bool {
        let done = || self.done(seq) || self.is_dead();
        let mut patience = Patience::new(ACK_PATIENCE);
        if !patience.spin(&mut { done }) {
            // Whoever we relied on may have been stopped by the scheduler; the command thread has nothing else to do.
            Bell(self.shm.command_bell()).ring();
            let bell = Bell(self.shm.command(seq.wrapping_sub(1)).bell);
            in_naps(self.facts.limit, |nap| bell.wait(&mut Patience::new(Duration::ZERO), nap, done));
        }
        self.done(seq)
    }

    /// Queues a revoke. It takes effect with the next `flush`.
    pub(crate) fn queue(&self, c: &Command) -> Result<(), DeviceError> {
        self.post(c, false).map(|_| ())
    }

    /// Has everything queued so far carried out, and waits for it.
    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        self.alive()?;
        let seq = self.head.load(Ordering::SeqCst);
        if !self.done(seq) {
            self.dispatch();
            if !self.wait_done(seq) {
                return Err(self.no_answer());
            }
        }
        // The device could not take access away (it ran out of mappings): only its end can.
        if self.shm.revoke_failed().load(Ordering::SeqCst) != 0 { Err(DeviceError::NoMemory) } else { Ok(()) }
    }

    /// Posts a command and waits for its result: a [`reply`] and a number that goes with it. On `Err(NoAnswer)` the
    /// command will not be carried out any more, or the process is being killed.
    pub(crate) fn call(&self, c: &Command) -> Result<(u32, u64), DeviceError> {
        let seq = self.post(c, true)?;
        let index = seq.wrapping_sub(1);
        let slot = self.shm.command(index);
        self.dispatch();
        let answered = self.wait_done(seq);
        if !answered && !self.is_dead() {
            let cancelled = slot.state.compare_exchange(command::PENDING, command::CANCELLED, Ordering::AcqRel, Ordering::Acquire);
            if cancelled != Err(command::DONE) {
                if cancelled.is_err() {
                    // It began and never ended, so it could still take effect: nothing but the end of the process is sure.
                    self.kill.store(true, Ordering::SeqCst);
                }
                return Err(self.no_answer());
            }
        }
        if self.is_dead() {
            return Err(DeviceError::Dead);
        }
        let result = (slot.result.load(Ordering::Relaxed), slot.value.load(Ordering::Relaxed));
        let honest = slot.state.load(Ordering::Acquire) == command::DONE;
        self.held[index as usize % RING].store(false, Ordering::Release);
        if !honest {
            // It says that the command is done, and has not done it: it could still begin, so nothing but the end of the process is sure.
            self.kill.store(true, Ordering::SeqCst);
            return Err(self.no_answer());
        }
        Ok(result)
    }

    /// A [`Context::call`] whose only results are success and the errors of a mapping.
    pub(crate) fn enter(&self, c: &Command) -> Result<(), DeviceError> {
        match self.call(c)?.0 {
            reply::OK => Ok(()),
            reply::NO_MEMORY => Err(DeviceError::NoMemory),
            reply::TOO_MANY => Err(DeviceError::TooManyMappings),
            _ => Err(DeviceError::BadRequest),
        }
    }

    /// Asks the process to exit when it can.
    pub(crate) fn ask_to_exit(&self) {
        self.expected.store(true, Ordering::SeqCst);
        self.shm.exit().store(1, Ordering::SeqCst);
        Bell(self.shm.command_bell()).ring();
    }
}

impl Command {
    /// A command about `range`.
    pub(crate) fn on(op: u32, range: VirtRange) -> Self {
        Self { op, va: range.start().get(), len: range.len().get(), frame: 0, prot: 0 }
    }

    /// Taking `range` away.
    pub(crate) fn release(range: VirtRange) -> Self {
        Self::on(op::RELEASE, range)
    }
}
