//! The host and the device of one run, and the clock that lets them take turns.

use super::rig::{self, Rig};
use super::step::Step;
use crate::context::Context;
use crate::device::Board;
use crate::machine::Machine;
use crate::shm::launch;
use gmem_hal::{ByteLen, EvictOutcome, Peer, PeerUnmap, PmapId, VirtAddr, VirtRange};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a look at the clock costs, in nanoseconds: a tenth of the time limit.
const LOOK: u64 = 10_000;
/// Looks in one request after which the device is killed.
const MOST_LOOKS: u32 = 300;
/// The same where nothing but the end of the device ends a wait. The host looks more often before it sleeps.
const MOST_LOOKS_FOR_EVER: u32 = 3;

thread_local! {
    static SCENE: RefCell<Option<Rc<Scene>>> = const { RefCell::new(None) };
}

/// One context, from both sides.
pub(super) struct Scene {
    pub(super) rig: &'static Rig,
    pub(super) machine: &'static Machine,
    pub(super) context: Arc<Context>,
    board: Board,
    now: Cell<u64>,
    looks: Cell<u32>,
    /// The request waits for what may never come.
    pub(super) waits_for_ever: Cell<bool>,
    steps: RefCell<VecDeque<Step>>,
    /// Launches that the device has ended, wrapping.
    launches: Cell<u32>,
    /// The device does nothing by itself.
    silent: Cell<bool>,
    /// It did nothing yet but what it was asked for.
    pub(super) honest: Cell<bool>,
    /// A wish of the evictor is in work.
    evicting: Cell<bool>,
    /// What the core would know: the length of each page that is mapped, and the word that its bytes begin with.
    pub(super) mapped: RefCell<BTreeMap<u64, (u64, u64)>>,
}

/// Plays a scene in this thread, until dropped.
pub(super) struct Playing;

impl Drop for Playing {
    fn drop(&mut self) {
        SCENE.take();
    }
}

/// A look at the clock.
pub(super) fn look() -> Option<u64> {
    let scene = SCENE.with_borrow(Option::clone)?;
    Some(scene.look())
}

impl Scene {
    pub(super) fn play(peer: bool, context: Arc<Context>, board: Board) -> (Rc<Self>, Playing) {
        let rig = rig::rig();
        let scene = Rc::new(Self {
            rig,
            machine: rig.machine(peer),
            context,
            board,
            now: Cell::new(1),
            looks: Cell::new(0),
            waits_for_ever: Cell::new(false),
            steps: RefCell::default(),
            launches: Cell::default(),
            silent: Cell::new(false),
            honest: Cell::new(true),
            evicting: Cell::new(false),
            mapped: RefCell::default(),
        });
        SCENE.set(Some(scene.clone()));
        (scene, Playing)
    }

    /// The next request begins; meanwhile the device takes these steps.
    pub(super) fn begin(&self, steps: Vec<Step>, silent: bool) {
        self.looks.set(0);
        self.waits_for_ever.set(false);
        self.silent.set(silent);
        self.honest.set(self.honest.get() && steps.is_empty() && !silent);
        self.steps.replace(steps.into());
    }

    /// How many bytes of its memory the device says are taken by pages.
    pub(super) fn taken(&self) -> u64 {
        self.board.taken()
    }

    fn look(&self) -> u64 {
        self.now.set(self.now.get() + LOOK);
        self.looks.set(self.looks.get() + 1);
        let most = if self.waits_for_ever.get() { MOST_LOOKS_FOR_EVER } else { MOST_LOOKS };
        let context = &self.context;
        if !context.is_dead() && (context.kill.load(Ordering::SeqCst) || self.looks.get() >= most) {
            self.honest.set(false);
            context.set_dead(|| {});
        }
        if !context.is_dead() {
            self.turn();
        }
        self.now.get()
    }

    /// The device's turn, and the evictor's.
    fn turn(&self) {
        let count = if self.waits_for_ever.get() { self.steps.borrow().len() } else { 1 };
        let steps: Vec<Step> = {
            let mut steps = self.steps.borrow_mut();
            let count = count.min(steps.len());
            steps.drain(..count).collect()
        };
        if steps.is_empty() && !self.silent.get() {
            self.obey();
        }
        steps.into_iter().for_each(|step| step.take(&self.context, || self.obey()));
        if !self.evicting.replace(true) {
            let machine = self.machine;
            self.context.evictor.serve_posted(&self.context, &|pmap, range| evict(machine, pmap, range));
        }
        self.evicting.set(false);
    }

    /// The device carries out what it was asked for.
    fn obey(&self) {
        let shm = &self.context.shm;
        let used = shm.head().load(Ordering::SeqCst).wrapping_sub(shm.tail().load(Ordering::SeqCst));
        // One that lost count does not find its commands any more.
        if used as usize <= crate::shm::RING {
            self.board.drain();
        }
        let (head, mut done) = (shm.launch_head().load(Ordering::SeqCst), self.launches.get());
        while done != head && head.wrapping_sub(done) as usize <= crate::shm::LAUNCHES {
            let slot = shm.launch(shm.launch_record(done).load(Ordering::SeqCst));
            slot.status.store(launch::OK, Ordering::SeqCst);
            slot.over.store(1, Ordering::SeqCst);
            done = done.wrapping_add(1);
        }
        self.launches.set(done);
    }

    /// Unmaps a page that is mapped, as the core does: its bytes go home.
    pub(super) fn bring_home(&self, va: u64) -> bool {
        let Some((len, word)) = self.mapped.borrow_mut().remove(&va) else { return false };
        let home = self.rig.home(va);
        let request = PeerUnmap { pmap: self.context.facts.pmap, va: VirtAddr::new(va), len: ByteLen(len), copy: Some(home) };
        let result = self.machine.unmap(&request);
        assert!(!self.rig.knows_a_secret(va, len), "the home of {va:#x} holds bytes of another context");
        if self.honest.get() {
            assert_eq!((result, self.rig.word(va)), (Ok(()), word), "the page at {va:#x} did not come home from an honest device");
        }
        if result.is_err() {
            self.mapped.borrow_mut().insert(va, (len, word));
        }
        result.is_ok()
    }
}

/// What the core would do about a peer's wish to evict.
fn evict(machine: &Machine, pmap: PmapId, range: VirtRange) -> EvictOutcome {
    let Some(scene) = SCENE.with_borrow(Option::clone) else { return EvictOutcome::Refused };
    assert!(std::ptr::eq(machine, scene.machine) && pmap == scene.context.facts.pmap, "an eviction from another context");
    assert!(rig::window().contains_range(range), "{range} is not in the window");
    assert!(range.is_aligned(gmem_hal::PageSize::Size4K), "{range} is not made of pages");
    let pages: Vec<u64> = scene.mapped.borrow().range(range.start().get()..range.end().get()).map(|(va, _)| *va).collect();
    if pages.is_empty() {
        return EvictOutcome::NotThere;
    }
    let all = pages.into_iter().all(|va| scene.bring_home(va));
    if all { EvictOutcome::Evicted } else { EvictOutcome::Refused }
}
