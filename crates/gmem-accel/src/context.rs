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
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
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
    /// Of each command not yet done, which record it has: a copy of what the device is told. Written under P.
    order: [AtomicU32; RING],
    /// What each record is in use for: [`FREE`], [`HELD`], or [`QUEUED`] and the number that `done` has to pass. Taken under P, freed by who read the result.
    records: [AtomicU64; RING],
    /// How many are held. Raised under P.
    held: AtomicU32,
    /// Rings when a record is free again.
    read_bell: AtomicU32,
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

/// A record nobody uses.
const FREE: u64 = 0;
/// One whose result somebody will read.
const HELD: u64 = 1 << 32;
/// One whose result nobody will: free when the device is done with it.
const QUEUED: u64 = 1 << 33;
/// The most that are held at a time. The rest is for what is queued, so that no revoke waits for a thread of the program to read an answer.
const MOST_HELD: u32 = (RING - RING / 8) as u32;

/// A command that was posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posted {
    /// What `done` has to pass.
    number: u32,
    pub(crate) record: u32,
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
            order: std::array::from_fn(|_| AtomicU32::default()),
            records: std::array::from_fn(|_| AtomicU64::default()),
            held: AtomicU32::default(),
            read_bell: AtomicU32::default(),
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
        Bell(&self.read_bell).alarm();
        // All of them: who sleeps there need not be who has the record.
        (0..RING as u32).for_each(|record| Bell(self.shm.command(record).bell).alarm());
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

    /// Posts a command without telling the device. If it is `held`, its record is kept until the result was read.
    fn post(&self, c: &Command, held: bool) -> Result<Posted, DeviceError> {
        self.alive()?;
        let _held = self.post.lock();
        self.alive()?;
        let record = self.free_record(held)?;
        if held {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        let head = self.head.load(Ordering::Relaxed);
        let next = head.wrapping_add(1);
        let slot = self.shm.command(record);
        slot.op.store(c.op, Ordering::Relaxed);
        slot.prot.store(c.prot, Ordering::Relaxed);
        slot.va.store(c.va, Ordering::Relaxed);
        slot.len.store(c.len, Ordering::Relaxed);
        slot.frame.store(c.frame, Ordering::Relaxed);
        slot.state.store(command::PENDING, Ordering::Relaxed);
        self.records[record as usize].store(if held { HELD } else { QUEUED | u64::from(next) }, Ordering::Relaxed);
        // What was there has been carried out: had it not, every record would be in use.
        self.shm.command_record(head).store(record, Ordering::Relaxed);
        self.order[head as usize % RING].store(record, Ordering::Relaxed);
        // The device's word first: who finds ours may wait for the device to get there.
        self.shm.head().store(next, Ordering::SeqCst);
        self.head.store(next, Ordering::SeqCst);
        Ok(Posted { number: next, record })
    }

    /// A record whose command is done and read, for one that is `held` or queued. Under the lock of `post`.
    fn free_record(&self, held: bool) -> Result<u32, DeviceError> {
        let head = self.head.load(Ordering::Relaxed);
        let is_free = |record: &u32| match self.records[*record as usize].load(Ordering::Acquire) {
            FREE => true,
            HELD => false,
            queued => self.done(queued as u32),
        };
        // The next in turn, unless somebody is slow to read what was answered there.
        let look = || {
            let may = !held || self.held.load(Ordering::Acquire) < MOST_HELD;
            may.then(|| (0..RING as u32).map(|i| head.wrapping_add(i) % RING as u32).find(is_free)).flatten()
        };
        if let Some(record) = look() {
            return Ok(record);
        }
        self.dispatch();
        let (mut patience, mut found) = (Patience::new(Duration::ZERO), None);
        in_naps(self.facts.limit, |nap| {
            loop {
                // A reader rings when it has read; of what nobody reads, the end is seen after a short sleep.
                let ready = || {
                    found = look();
                    found.is_some() || self.is_dead() || self.failed.load(Ordering::SeqCst)
                };
                if Bell(&self.read_bell).wait(&mut patience, Deadline::after(Duration::from_millis(1)), ready) {
                    return true;
                }
                if nap.passed() {
                    return false;
                }
            }
        });
        self.alive()?;
        // Or hundreds of threads did not get to read their answers all that time. Callers must be able to take a command that was not posted for the end of the context.
        found.ok_or_else(|| self.no_answer())
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

    /// Waits until this command and those before it are done. False if the device missed its time limit or died.
    fn wait_done(&self, posted: Posted) -> bool {
        let done = || self.done(posted.number) || self.is_dead();
        let mut patience = Patience::new(ACK_PATIENCE);
        if !patience.spin(&mut { done }) {
            // Whoever we relied on may have been stopped by the scheduler; the command thread has nothing else to do.
            Bell(self.shm.command_bell()).ring();
            let bell = Bell(self.shm.command(posted.record).bell);
            in_naps(self.facts.limit, |nap| bell.wait(&mut Patience::new(Duration::ZERO), nap, done));
        }
        self.done(posted.number)
    }

    /// Queues a revoke. It takes effect with the next `flush`.
    pub(crate) fn queue(&self, c: &Command) -> Result<(), DeviceError> {
        self.post(c, false).map(|_| ())
    }

    /// Has everything queued so far carried out, and waits for it.
    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        self.alive()?;
        let number = self.head.load(Ordering::SeqCst);
        if !self.done(number) {
            self.dispatch();
            // While it is not done, its place in the order is nobody else's.
            let record = self.order[number.wrapping_sub(1) as usize % RING].load(Ordering::Relaxed);
            if !self.wait_done(Posted { number, record }) {
                return Err(self.no_answer());
            }
        }
        // The device could not take access away (it ran out of mappings): only its end can.
        if self.shm.revoke_failed().load(Ordering::SeqCst) != 0 { Err(DeviceError::NoMemory) } else { Ok(()) }
    }

    /// Posts a command and waits for its result: a [`reply`] and a number that goes with it. On `Err(NoAnswer)` the
    /// command will not be carried out any more, or the process is being killed.
    pub(crate) fn call(&self, c: &Command) -> Result<(u32, u64), DeviceError> {
        self.answer(self.begin(c)?)
    }

    /// The first half of a [`Context::call`].
    pub(crate) fn begin(&self, c: &Command) -> Result<Posted, DeviceError> {
        let posted = self.post(c, true)?;
        self.dispatch();
        Ok(posted)
    }

    /// The second half, once for each first.
    pub(crate) fn answer(&self, posted: Posted) -> Result<(u32, u64), DeviceError> {
        let slot = self.shm.command(posted.record);
        let answered = self.wait_done(posted);
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
        self.records[posted.record as usize].store(FREE, Ordering::Release);
        self.held.fetch_sub(1, Ordering::Release);
        Bell(&self.read_bell).ring();
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::drain_by;
    use gmem_hal::{ByteLen, VirtAddr};

    /// A context whose device is this thread.
    struct Both {
        context: Context,
        draining: AtomicU32,
    }

    impl Both {
        fn new(limit: Duration) -> Self {
            let fd = rustix::fs::memfd_create("gmem-test", rustix::fs::MemfdFlags::CLOEXEC).expect("there is memory");
            rustix::fs::ftruncate(&fd, Shared::LEN as u64).expect("there is memory");
            let shm = Shared::map(&fd).expect("it can be mapped");
            let window = VirtRange::from_len(VirtAddr::new(1 << 40), ByteLen(1 << 30)).expect("a range");
            let facts = Facts { pmap: PmapId(1), window, host: None, workers: 1, limit, pid: 0 };
            Self { context: Context::new(facts, shm, None), draining: AtomicU32::new(0) }
        }

        /// The device carries out all there is, and answers each with its address.
        fn drain(&self) {
            drain_by(&self.context.shm, &self.draining, |c| (reply::OK, c.va));
        }
    }

    fn about(va: u64) -> Command {
        Command { op: op::RELEASE, va, len: 4096, frame: 0, prot: 0 }
    }

    /// Some answers are never read: commands go round the ring without them, and do not wait.
    #[test]
    fn answers_that_are_not_read_are_in_nobodys_way() {
        let both = Both::new(Duration::from_secs(10));
        let unread: Vec<_> = (0..3).map(|va| both.context.begin(&about(va)).expect("there is room")).collect();
        both.drain();
        for round in 0..5000 {
            let posted = both.context.begin(&about(1000 + round)).expect("there is room");
            both.context.queue(&about(0)).expect("there is room");
            both.drain();
            assert_eq!(both.context.answer(posted), Ok((reply::OK, 1000 + round)));
        }
        for (va, posted) in (0..).zip(unread) {
            assert_eq!(both.context.answer(posted), Ok((reply::OK, va)), "it was written over");
        }
    }

    /// As many as there can be: revokes go on all the same, and one answer that is read is room for one command.
    #[test]
    fn no_revoke_waits_for_an_answer_to_be_read() {
        let both = Both::new(Duration::from_millis(800));
        let mut unread: Vec<_> = (0..u64::from(MOST_HELD)).map(|va| both.context.begin(&about(va)).expect("there is room")).collect();
        both.drain();
        for _ in 0..5000 {
            both.context.queue(&about(0)).expect("there is room");
            both.drain();
            both.context.flush().expect("it was done");
        }
        assert_eq!(both.context.answer(unread.remove(77)), Ok((reply::OK, 77)));
        unread.push(both.context.begin(&about(7)).expect("there is room for one"));
        both.drain();
        assert_eq!(both.context.answer(unread.remove(0)), Ok((reply::OK, 0)));
        assert_eq!(both.context.answer(unread.pop().expect("it was begun")), Ok((reply::OK, 7)));
    }

    /// Nobody reads them: after the time limit that ends the context.
    #[test]
    fn answers_that_nobody_reads_end_the_context() {
        let both = Both::new(Duration::from_millis(80));
        let unread: Vec<_> = (0..MOST_HELD).map(|va| both.context.begin(&about(va.into())).expect("there is room")).collect();
        both.drain();
        assert_eq!(both.context.begin(&about(0)).err(), Some(DeviceError::NoAnswer));
        assert!(both.context.failed.load(Ordering::SeqCst));
        assert_eq!(unread.len(), MOST_HELD as usize);
    }

    /// What a device does not do in time is its failure.
    #[test]
    fn a_ring_that_the_device_does_not_empty_is_its_failure() {
        let both = Both::new(Duration::from_millis(80));
        (0..RING as u64).for_each(|va| both.context.queue(&about(va)).expect("there is room"));
        assert_eq!(both.context.queue(&about(0)), Err(DeviceError::NoAnswer));
        assert!(both.context.failed.load(Ordering::SeqCst));
    }
}
