//! The thread that carries a peer's wish to evict into the core.
//!
//! A wish arises inside `map`, which the core itself called, perhaps in a signal handler on a small stack. The eviction calls back into the core
//! and from there into the driver; it gets a thread of its own, so that it starts from a clean stack and holds nothing.

use crate::context::Context;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::wait::{Bell, Deadline, Patience};
use gmem_hal::{ByteLen, EvictOutcome, PmapId, VirtAddr, VirtRange};
use std::time::Duration;

/// Wishes that can wait at once; more are refused, which makes the peer try again.
const WISHES: usize = if cfg!(loom) { 2 } else { 16 };

const FREE: u32 = 0;
const FILLING: u32 = 1;
const POSTED: u32 = 2;
/// And from here on the outcome: evicted, refused, not there.
const OUTCOME: u32 = 3;

#[derive(Default)]
struct Wish {
    state: AtomicU32,
    bell: AtomicU32,
    va: AtomicU64,
    len: AtomicU64,
}

impl Wish {
    fn is_posted(&self) -> bool {
        self.state.load(Ordering::SeqCst) == POSTED
    }
}

/// Who evicts: the glue's way to the core.
pub(crate) type Evict = dyn Fn(PmapId, VirtRange) -> EvictOutcome + Send + Sync;

/// The wishes of one context.
#[derive(Default)]
pub(crate) struct Evictor {
    wishes: [Wish; WISHES],
    bell: AtomicU32,
}

impl Evictor {
    /// Has `range` evicted, and waits for the outcome. Async-signal-safe; ends when the context's process does.
    pub(crate) fn ask(&self, context: &Context, range: VirtRange) -> EvictOutcome {
        let free = |w: &&Wish| w.state.compare_exchange(FREE, FILLING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let Some(wish) = self.wishes.iter().find(free) else { return EvictOutcome::Refused };
        wish.va.store(range.start().get(), Ordering::Relaxed);
        wish.len.store(range.len().get(), Ordering::Relaxed);
        wish.state.store(POSTED, Ordering::SeqCst);
        Bell(&self.bell).ring();
        let over = || wish.state.load(Ordering::SeqCst) >= OUTCOME || context.is_dead();
        let mut patience = Patience::new(Duration::from_micros(20));
        // The end of a process rings only bells it knows; hence a look now and then.
        while !Bell(&wish.bell).wait(&mut patience, Deadline::after(Duration::from_millis(20)), over) {}
        let outcome = match wish.state.load(Ordering::SeqCst) {
            state if state < OUTCOME => return EvictOutcome::Refused, // dead; the wish may be in work, so it stays taken
            OUTCOME => EvictOutcome::Evicted,
            state if state == OUTCOME + 2 => EvictOutcome::NotThere,
            _ => EvictOutcome::Refused,
        };
        wish.state.store(FREE, Ordering::Release);
        outcome
    }

    /// The thread's life: until the process is gone.
    pub(crate) fn serve(&self, context: &Context, evict: &Evict) {
        let mut patience = Patience::new(Duration::from_micros(20));
        loop {
            Bell(&self.bell).wait(&mut patience, Deadline::Never, || context.is_dead() || self.wishes.iter().any(Wish::is_posted));
            if context.is_dead() {
                return;
            }
            self.serve_posted(context, evict);
        }
    }

    /// Fulfils the wishes there are.
    pub(crate) fn serve_posted(&self, context: &Context, evict: &Evict) {
        for wish in self.wishes.iter().filter(|wish| wish.is_posted()) {
            let (va, len) = (wish.va.load(Ordering::Relaxed), wish.len.load(Ordering::Relaxed));
            let outcome = match VirtRange::from_len(VirtAddr::new(va), ByteLen(len)).map(|range| evict(context.facts.pmap, range)) {
                Some(EvictOutcome::Evicted) => OUTCOME,
                Some(EvictOutcome::Refused) | None => OUTCOME + 1,
                Some(EvictOutcome::NotThere) => OUTCOME + 2,
            };
            wish.state.store(outcome, Ordering::SeqCst);
            Bell(&wish.bell).ring();
        }
    }

    /// The process is gone: lets the thread end.
    pub(crate) fn end(&self) {
        Bell(&self.bell).ring();
    }
}
