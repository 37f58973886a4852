//! What is asked of the host's side of a context, and what must be true afterwards.

use super::bytes::Bytes;
use super::rig::{FOREIGN, HNODE, LIMIT, MEMORY, PAGE, WORKERS, config, rig, window};
use super::scene::{Playing, Scene};
use super::step::Step;
use crate::context::{Command, Context, Facts, Posted};
use crate::device::Board;
use crate::faults;
use crate::machine::Machine;
use crate::peer::Mirror;
use crate::shm::{Shared, command, fault, ready};
use gmem_hal::{
    Access, ByteLen, DeviceError, FaultError, HnodeId, HostWindow, Mapping, Mmu, Peer, PeerError, PeerMap, PhysAddr, PmapId, Prot,
    VirtAddr, VirtRange,
};
use rustix::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a request begins with.
pub(super) mod letter {
    pub(crate) const ENTER: u8 = 0;
    pub(crate) const RELEASE: u8 = 1;
    pub(crate) const PROTECT: u8 = 2;
    pub(crate) const FLUSH: u8 = 3;
    pub(crate) const CALL: u8 = 4;
    pub(crate) const START: u8 = 5;
    pub(crate) const WAIT: u8 = 6;
    pub(crate) const FAULTS: u8 = 7;
    pub(crate) const VA_ALLOC: u8 = 8;
    pub(crate) const VA_FREE: u8 = 9;
    pub(crate) const MAP: u8 = 10;
    pub(crate) const UNMAP: u8 = 11;
    pub(crate) const SETTLE: u8 = 12;
    pub(crate) const FLOOD: u8 = 13;
    pub(crate) const MAP_ALL: u8 = 14;
    pub(crate) const STOP: u8 = 15;
    pub(crate) const COUNT: u8 = 16;
}

/// The host's side of one run.
pub(super) struct Host {
    scene: Rc<Scene>,
    _playing: Playing,
    pmap: PmapId,
    peer: bool,
    /// The next word to write into a home.
    next_word: u64,
    launches: Vec<u32>,
    /// Commands whose answers nobody has read.
    unread: Vec<Posted>,
}

impl Host {
    /// A context with a device that is ready: exclusive, with the host's memory, or a PEER.
    pub(super) fn new(mode: u8) -> Self {
        let (host, peer) = (mode % 3 == 1, mode % 3 == 2);
        let (rig, fd) = (rig(), memory());
        let (ours, theirs) = (Shared::map(&fd).expect("it can be mapped"), Shared::map(&fd).expect("it can be mapped"));
        ours.set_config(&config(peer, host));
        let told = theirs.config().expect("the configuration is sane");
        let board = Board::new(theirs, told, rig.file(), host.then(|| rig.file())).expect("there is memory");
        let machine = rig.machine(peer);
        let pmap = machine.table.reserve().expect("the table is empty");
        let host = host.then(|| HostWindow { handle: fd.as_raw_fd(), offset: 0, base: rig.home(window().start().get()) });
        let facts = Facts { pmap, window: window(), host, workers: WORKERS, limit: LIMIT, pid: 0 };
        let mirror = peer.then(|| Mirror::new(MEMORY).expect("there is memory"));
        let context = Arc::new(Context::new(facts, ours, mirror));
        machine.table.insert(pmap, context.clone());
        let (scene, playing) = Scene::play(peer, context, board);
        let host = Self { scene, _playing: playing, pmap, peer, next_word: 1, launches: Vec::new(), unread: Vec::new() };
        if peer {
            let all = host.machine().va_alloc_fixed(pmap, window(), Prot::RW);
            assert_eq!(all, Ok(()), "the device is honest and its window empty");
        }
        host
    }

    fn machine(&self) -> &'static Machine {
        self.scene.machine
    }

    /// Makes the next request.
    pub(super) fn request(&mut self, bytes: &mut Bytes<'_>) {
        let letter = bytes.byte() % letter::COUNT;
        let (page, n, one, two) = (bytes.page(), bytes.byte(), bytes.number(), bytes.number());
        let how = bytes.byte();
        let steps = (0..how % 16).map(|_| Step::read(bytes)).collect();
        self.scene.begin(steps, how & 0x80 != 0);
        let (context, (va, len)) = (self.scene.context.clone(), page);
        let range = VirtRange::from_len(VirtAddr::new(va), ByteLen(len)).expect("a page of the window");
        let prot = if n & 1 == 0 { Prot::RW } else { Prot::READ };
        match letter {
            letter::ENTER => {
                let _ = self.machine().pmap_enter(self.pmap, &Mapping { va: range.start(), frame: frame(n, one), len: range.len(), prot });
            }
            letter::RELEASE => {
                let _ = self.machine().pmap_release(self.pmap, range);
            }
            letter::PROTECT => {
                let _ = self.machine().pmap_protect(self.pmap, range, prot);
            }
            letter::FLUSH => {
                let _ = self.machine().tlb_invalidate(self.pmap, range);
                if n & 1 != 0 && !self.unread.is_empty() {
                    let posted = self.unread.remove(usize::from(n) % self.unread.len());
                    self.answer(posted);
                }
            }
            letter::CALL => {
                let len = if how & 0x40 == 0 { len } else { two };
                let posted = self.begin(&Command { op: u32::from(n), va: one, len, frame: two, prot: how.into() });
                match posted {
                    // It is read later, or never.
                    Ok(posted) if how & 0x20 != 0 => self.unread.push(posted),
                    Ok(posted) => self.answer(posted),
                    Err(_) => {}
                }
            }
            letter::START => {
                let args = [one, two].repeat(usize::from(n) % 10);
                // It waits while the device has all that it can be given.
                self.scene.waits_for_ever.set(true);
                let times = if how & 0x20 == 0 { 1 } else { 1 + u32::from(n) };
                let started = (0..times).map_while(|_| context.launches.start(&context, n.into(), &args, n & 1 == 0).ok());
                self.launches.extend(started);
            }
            letter::WAIT => {
                let known = self.launches.get(usize::from(n)).copied().or_else(|| self.launches.pop());
                self.scene.waits_for_ever.set(true);
                let _ = context.launches.wait(&context, known.unwrap_or(one as u32));
            }
            letter::FAULTS => self.faults(&context),
            letter::VA_ALLOC => {
                let _ = self.machine().va_alloc_fixed(self.pmap, range, prot);
            }
            letter::VA_FREE => {
                self.scene.honest.set(false); // the core would have unmapped its pages before
                let _ = self.machine().va_free(self.pmap, range);
            }
            letter::MAP => self.map(va, len, prot, n),
            letter::UNMAP => {
                let _ = self.scene.bring_home(va);
            }
            letter::SETTLE => self.settle(&context),
            letter::FLOOD => {
                let flood = (0..u32::from(n) * 4).map(|_| self.machine().pmap_protect(self.pmap, range, prot));
                flood.take_while(Result::is_ok).count();
            }
            letter::MAP_ALL => (0..32).for_each(|i| self.map(window().start().get() + i * PAGE, PAGE, prot, n)),
            _ => {
                let _ = self.machine().stop_context(self.pmap);
            }
        }
        self.check();
    }

    /// A command as it comes.
    fn begin(&self, c: &Command) -> Result<Posted, DeviceError> {
        self.scene.honest.set(false);
        let result = self.scene.context.begin(c);
        if let Ok(posted) = &result {
            assert!(self.unread.iter().all(|other| other.record != posted.record), "a record that is not read yet is used again");
        }
        result
    }

    /// Its answer. A command that was not answered will not be carried out any more, or its device is killed.
    fn answer(&self, posted: Posted) {
        let context = &self.scene.context;
        let result = context.answer(posted);
        let state = context.shm.command(posted.record).state.load(Ordering::SeqCst);
        if result == Err(DeviceError::NoAnswer) {
            let over = state != command::PENDING && state != command::TAKEN;
            assert!(
                over || context.kill.load(Ordering::SeqCst) || context.is_dead(),
                "a command that was given up can still be carried out"
            );
        }
    }

    /// One look of every thread that serves faults.
    fn faults(&self, context: &Arc<Context>) {
        let (machine, pmap) = (self.machine(), self.pmap);
        for first in 0..faults::threads(WORKERS) {
            faults::serve_posted(context, first, &move |context, va, access| resolve(machine, context, pmap, va, access));
        }
        if self.scene.honest.get() {
            let idle = (0..WORKERS).all(|worker| context.shm.fault(worker).state.load(Ordering::SeqCst) != fault::POSTED);
            assert!(idle, "a fault was not answered");
        }
    }

    fn map(&mut self, va: u64, len: u64, prot: Prot, n: u8) {
        let fresh = !self.scene.mapped.borrow().contains_key(&va);
        let copy = (n & 2 == 0).then(|| self.scene.rig.home(va));
        let word = if copy.is_some() { self.next_word } else { 0 };
        self.next_word += 1;
        if fresh {
            self.scene.rig.set_word(va, word);
        }
        let request = PeerMap { pmap: self.pmap, va: VirtAddr::new(va), len: ByteLen(len), prot, copy, hot: n & 4 != 0 };
        let result = if self.peer { self.machine().map(&request) } else { Err(PeerError::Device(DeviceError::Unsupported)) };
        if fresh && result == Ok(()) {
            self.scene.mapped.borrow_mut().insert(va, (len, word));
            self.scene.rig.set_word(va, u64::MAX);
        }
        if self.scene.honest.get() && self.peer {
            let right = matches!((fresh, result), (true, Ok(()) | Err(PeerError::NoMemory)) | (false, Err(PeerError::PageExists)));
            assert!(right, "an honest device answers {result:?} for a page that is new: {fresh}");
        }
    }

    fn settle(&self, context: &Arc<Context>) {
        let settled = self.machine().settle(context);
        let said = context.shm.ready().load(Ordering::SeqCst);
        assert!(settled.is_err() || said == ready::READY || !self.scene.honest.get(), "a device that says {said} is not ready");
    }

    /// What must be true after every request.
    fn check(&self) {
        let Some(mirror) = &self.scene.context.mirror else { return };
        let pool = &self.machine().on().expect("it was started").peer;
        if self.scene.honest.get() && !self.scene.context.is_dead() {
            let mapped: u64 = self.scene.mapped.borrow().values().map(|(len, _)| len).sum();
            assert_eq!(self.scene.taken(), mapped, "an honest device has other bytes of its memory in use than its pages are mapped in");
        }
        for (va, (len, _)) in self.scene.mapped.borrow().iter() {
            if let Some(frame) = mirror.with(|map| map.get(*va)) {
                assert!(
                    frame >= FOREIGN && pool.owns(self.pmap, frame, *len),
                    "page {va:#x} is in frame {frame:#x}, which is not this context's"
                );
            }
        }
    }

    /// The device dies; every page comes home.
    pub(super) fn finish(self) {
        self.scene.begin(Vec::new(), false);
        self.scene.context.set_dead(|| {});
        let pages: Vec<u64> = self.scene.mapped.borrow().keys().copied().collect();
        let honest = self.scene.honest.get();
        for va in pages {
            let home = self.scene.bring_home(va);
            assert!(home || !honest, "the death of an honest device lost the page at {va:#x}");
        }
        self.check_nothing_is_left(honest);
        assert!(self.scene.rig.is_untouched(self.peer), "another context's memory was changed");
        assert!(self.scene.rig.is_confined(), "the device changed what lies beside its window");
    }

    /// Takes the context out as its destruction does: its pages, its memory and its place in the table are free again.
    fn check_nothing_is_left(&self, honest: bool) {
        let machine = self.machine();
        let left = self.scene.context.mirror.as_ref().map_or(0, |mirror| mirror.with(|map| map.len()));
        assert!(left == 0 || !honest, "{left} pages of an honest device are in the mirror after all came home");
        machine.table.remove(self.pmap).expect("it is in the table");
        assert!(machine.table.is_free(self.pmap), "a place in the table of contexts was not given back");
        let pool = &machine.on().expect("it was started").peer;
        pool.take_back(self.pmap);
        assert!(!pool.has(self.pmap), "memory was not taken back from a context that is gone");
    }
}

/// What the core would do about a fault.
fn resolve(machine: &Machine, context: &Context, pmap: PmapId, va: VirtAddr, access: Access) -> Result<(), FaultError> {
    assert!(window().contains(va), "a fault at {va}, which is not in the window");
    let page = VirtRange::page(va, gmem_hal::PageSize::Size4K).ok_or(FaultError::NotMapped)?;
    let prot = if access == Access::Read { Prot::READ } else { Prot::RW };
    let offset = page.start().get() - window().start().get();
    if context.mirror.is_some() {
        return if offset < 32 * PAGE { Err(FaultError::Protection) } else { Err(FaultError::NotMapped) };
    }
    let frame = PhysAddr { hnode: HNODE, addr: FOREIGN + offset % (MEMORY - FOREIGN) };
    Ok(machine.pmap_enter(pmap, &Mapping { va: page.start(), frame, len: page.len(), prot })?)
}

/// A frame as the core could never name it, or as it could.
fn frame(n: u8, number: u64) -> PhysAddr {
    match n >> 6 {
        0 => PhysAddr { hnode: HnodeId::HOST, addr: rig().home(window().start().get()).addr.wrapping_add(number) },
        1 => PhysAddr { hnode: HnodeId(2), addr: number },
        _ => PhysAddr { hnode: HNODE, addr: number },
    }
}

/// Memory that host and device share.
fn memory() -> rustix::fd::OwnedFd {
    let fd = rustix::fs::memfd_create("fuzz-ring", rustix::fs::MemfdFlags::CLOEXEC).expect("a file can be made");
    rustix::fs::ftruncate(&fd, Shared::LEN as u64).expect("it can grow");
    fd
}
