//! The cores of the device: threads that touch memory through the MMU, and report what it cannot translate.

use super::Reference;
use super::pmap::{Pmap, State};
use super::table::Entry;
use crate::{Defect, Storing};
use gmem::hal::{Access, DeviceError, FaultError, PmapId, VirtAddr};
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

/// How many cores the device has.
const CORES: usize = 2;

/// After how many faults at one address an access gives up. Others that want the page can take it away again many times.
const FAULTS: usize = 1_000_000;

/// Why an access of the device ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessFault {
    /// The address that could not be touched.
    pub va: VirtAddr,
    /// What the core answered.
    pub error: FaultError,
}

impl fmt::Display for AccessFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device cannot touch {}: {}", self.va, self.error)
    }
}

/// One instruction.
pub(super) enum Op {
    Read(Vec<u8>),
    Write(Vec<u8>),
    /// An atomic add, at an aligned address; leaves what was there before.
    Add(u64),
    /// A loop of stores to one aligned word.
    StoreOn(Arc<Storing>),
}

pub(super) struct Job {
    pmap: PmapId,
    va: VirtAddr,
    op: Op,
    done: SyncSender<Result<Op, AccessFault>>,
}

/// The queue of instructions, and the threads that carry them out.
#[derive(Default)]
pub(super) struct Cores {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Cores {
    /// Starts the threads. Called in one of gmem's own, whose blocked signals they inherit.
    pub(super) fn start(device: &Weak<Reference>) -> std::io::Result<Self> {
        let (queue, jobs) = std::sync::mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let spawn = |n| {
            let (device, jobs) = (device.clone(), jobs.clone());
            std::thread::Builder::new().name(format!("reference-{n}")).spawn(move || work(&device, &jobs))
        };
        Ok(Self { queue: Some(queue), threads: (0..CORES).map(spawn).collect::<Result<_, _>>()? })
    }

    /// Ends the threads when they have done what is queued.
    pub(super) fn stop(self) {
        drop(self.queue);
        for thread in self.threads {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

fn work(device: &Weak<Reference>, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let (Ok(mut job), Some(device)) = (next, device.upgrade()) else { return };
        let result = device.carry_out(job.pmap, job.va, &mut job.op);
        // Whoever asked may have gone.
        let _ = job.done.send(result.map(|()| job.op));
    }
}

impl Reference {
    /// Has the device read `len` bytes at `va`. Blocks while pages come.
    ///
    /// # Errors
    /// The address that could not be read, and why.
    pub fn read(&self, pmap: PmapId, va: VirtAddr, len: usize) -> Result<Vec<u8>, AccessFault> {
        match self.run(pmap, va, Op::Read(vec![0; len]))? {
            Op::Read(bytes) | Op::Write(bytes) => Ok(bytes),
            Op::Add(_) | Op::StoreOn(_) => Err(AccessFault { va, error: FaultError::NotAttached }),
        }
    }

    /// Has the device write `bytes` at `va`. Blocks while pages come.
    ///
    /// # Errors
    /// The address that could not be written, and why; what lies before it was.
    pub fn write(&self, pmap: PmapId, va: VirtAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        self.run(pmap, va, Op::Write(bytes.to_vec())).map(drop)
    }

    /// Has the device add `n` to the 64-bit word at `va`, an aligned address, in one atomic step. Answers what was there before.
    ///
    /// # Errors
    /// As for [`Reference::write`].
    pub fn fetch_add(&self, pmap: PmapId, va: VirtAddr, n: u64) -> Result<u64, AccessFault> {
        match self.run(pmap, va, Op::Add(n))? {
            Op::Add(before) => Ok(before),
            Op::Read(_) | Op::Write(_) | Op::StoreOn(_) => Err(AccessFault { va, error: FaultError::NotAttached }),
        }
    }

    /// Has a core of the device store 1, 2, 3 and so on to the aligned word at `va` until `storing` is over.
    ///
    /// # Errors
    /// As for [`Reference::write`].
    pub fn store_on(&self, pmap: PmapId, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), AccessFault> {
        self.run(pmap, va, Op::StoreOn(storing.clone())).map(drop)
    }

    fn run(&self, pmap: PmapId, va: VirtAddr, mut op: Op) -> Result<Op, AccessFault> {
        if self.has(Defect::ForeignThread) {
            return self.carry_out(pmap, va, &mut op).map(|()| op);
        }
        let (done, answer) = sync_channel(1);
        let not_running = AccessFault { va, error: FaultError::NotAttached };
        let queue = self.cores().queue.clone().ok_or(not_running)?;
        queue.send(Job { pmap, va, op, done }).map_err(|_| not_running)?;
        answer.recv().map_err(|_| not_running)?
    }

    /// Carries one instruction out, a page at a time, as hardware would.
    fn carry_out(&self, pmap: PmapId, va: VirtAddr, op: &mut Op) -> Result<(), AccessFault> {
        let (len, access) = match op {
            Op::StoreOn(storing) => return self.loop_of_stores(pmap, va, storing),
            Op::Read(bytes) => (bytes.len(), Access::Read),
            Op::Write(bytes) => (bytes.len(), Access::Write),
            Op::Add(_) => (8, Access::Write),
        };
        let (mut done, mut faults) = (0, 0);
        while done < len {
            let at = va.get() + done as u64;
            match self.step(pmap, at, access, op, done) {
                Some(bytes) => (done, faults) = (done + bytes, 0),
                None => {
                    let at = VirtAddr::new(at);
                    match self.fault(pmap, at, access, &mut faults) {
                        Ok(()) => {}
                        Err(_) if self.has(Defect::FaultSwallowed) => return Ok(()),
                        Err(_) if self.has(Defect::ErrorTriedAgain) => {}
                        Err(error) => return Err(AccessFault { va: at, error }),
                    }
                }
            }
        }
        Ok(())
    }

    fn loop_of_stores(&self, pmap: PmapId, va: VirtAddr, storing: &Storing) -> Result<(), AccessFault> {
        let (mut number, mut faults, mut last) = (1, 0, None);
        storing.tell_ahead(0);
        while !storing.is_over() {
            if self.store_one(pmap, va, number, &mut last) {
                storing.tell(number);
                (number, faults) = (number + 1, 0);
            } else {
                self.fault(pmap, va, Access::Write, &mut faults).map_err(|error| AccessFault { va, error })?;
            }
        }
        Ok(())
    }

    /// Stores to the aligned word at `va` if the MMU can translate that. A device whose kernels no fence stops goes on where it stored `last`.
    fn store_one(&self, pmap: PmapId, va: VirtAddr, number: u64, last: &mut Option<(Arc<Pmap>, *mut u8)>) -> bool {
        let found = self.pmaps().iter().find(|p| p.id == pmap).cloned();
        let gone_on = last.clone().filter(|_| self.has(Defect::FenceLeavesKernels));
        let Some(pmap) = found.or(gone_on.as_ref().map(|(pmap, _)| pmap.clone())) else { return false };
        // Held for the length of the access, so that an invalidation waits for it.
        let mut state = pmap.lock();
        let word = match state.translate(va.get(), Access::Write) {
            Some(entry) => {
                let base = pmap.pointer(self, entry.frame, entry.page.len().get());
                base.map(|base| base.wrapping_add((va.get() - entry.page.start().get()) as usize))
            }
            None => gone_on.filter(|_| state.dead).map(|(_, word)| word),
        };
        let Some(word) = word.filter(|word| word.cast::<u64>().is_aligned()) else { return false };
        // SAFETY: the table maps the page, so its frame is this context's while the MMU is held; `pointer` saw that all of it is inside the memory, in which an
        // aligned word does not leave its page. Where a broken device goes on is memory of the device, or of the window that `last` keeps.
        unsafe { AtomicU64::from_ptr(word.cast()) }.store(number, Ordering::Release);
        drop(state);
        *last = Some((pmap, word));
        true
    }

    /// As much of the instruction as lies in the page of `at`, if the MMU can translate that. Returns how many bytes.
    fn step(&self, pmap: PmapId, at: u64, access: Access, op: &mut Op, done: usize) -> Option<usize> {
        let pmap = self.pmaps().iter().find(|p| p.id == pmap).cloned()?;
        // Held for the length of the access, so that an invalidation waits for it.
        let mut state = pmap.lock();
        let entry = state.translate(at, access)?;
        let offset = at - entry.page.start().get();
        let there = (entry.page.len().get() - offset) as usize;
        let base = pmap.pointer(self, entry.frame, entry.page.len().get())?;
        let cell = |n: usize| {
            // SAFETY: the table maps the page, so its frame is this context's while the MMU is held; `pointer` saw that all of it is inside the memory, and
            // `offset + n` is inside the page. Whoever else touches the bytes does so by atomics or as raw memory.
            unsafe { AtomicU8::from_ptr(base.add(offset as usize + n)) }
        };
        match op {
            Op::Read(bytes) => {
                let part = &mut bytes[done..];
                let count = part.len().min(there);
                part[..count].iter_mut().enumerate().for_each(|(n, byte)| *byte = cell(n).load(Ordering::Acquire));
                self.overlay(&state, at, &mut part[..count]);
                Some(count)
            }
            Op::Write(bytes) => {
                let part = &bytes[done..];
                let count = part.len().min(there);
                if self.hides(&mut state, &entry, at, &part[..count]) {
                    return Some(count);
                }
                part[..count].iter().enumerate().for_each(|(n, byte)| cell(n).store(*byte, Ordering::Release));
                Some(count)
            }
            Op::Add(n) => {
                if !at.is_multiple_of(8) {
                    return None;
                }
                // SAFETY: as above, and an aligned word lies in one page.
                let word = unsafe { AtomicU64::from_ptr(base.add(offset as usize).cast()) };
                *n = word.fetch_add(*n, Ordering::AcqRel);
                Some(8)
            }
            // Carried out by `loop_of_stores`.
            Op::StoreOn(_) => None,
        }
    }

    /// Reports that `at` could not be translated.
    fn fault(&self, pmap: PmapId, at: VirtAddr, access: Access, faults: &mut usize) -> Result<(), FaultError> {
        *faults += 1;
        if *faults > FAULTS {
            return Err(FaultError::Device(DeviceError::NoAnswer));
        }
        let (id, core) = self.core().ok_or(FaultError::NotAttached)?;
        core.device_fault(id, pmap, at, access, None)
    }

    /// A broken device keeps what it writes to one page of sixteen where only it looks.
    fn hides(&self, state: &mut State, entry: &Entry, at: u64, bytes: &[u8]) -> bool {
        let number = entry.page.start().get() / entry.page.len().get();
        if !self.has(Defect::WritesHidden) || number % 16 != 7 {
            return false;
        }
        state.hidden.extend(bytes.iter().enumerate().map(|(n, byte)| (at + n as u64, *byte)));
        true
    }

    fn overlay(&self, state: &State, at: u64, bytes: &mut [u8]) {
        for (va, byte) in state.hidden.range(at..at + bytes.len() as u64) {
            bytes[(va - at) as usize] = *byte;
        }
    }
}
