//! The contexts of one device, by pmap id: a table that a signal handler can look things up in.

use crate::context::Context;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::pause;
use gmem_hal::{DeviceError, PmapId};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::time::Duration;

/// The most contexts a device can have at once. A model tries every order, and there two show what more would.
pub(crate) const CONTEXTS: usize = if cfg!(loom) { 2 } else { 64 };

/// Nothing is there: what a slot starts with.
const FREE: u64 = 0;
/// Something comes or goes; no id is that small.
const CHANGING: u64 = 1;

struct Slot {
    /// The id of the pmap, [`FREE`] or [`CHANGING`].
    id: AtomicU64,
    /// Calls that use `context` right now.
    users: AtomicU32,
    /// From `Arc::into_raw`; valid while `id` is an id, and after that until `users` was seen zero.
    context: AtomicPtr<Context>,
}

/// The table.
pub(crate) struct Table {
    slots: [Slot; CONTEXTS],
    /// Ids are never used twice: the upper part counts.
    made: AtomicU32,
}

/// Counts a user of a slot for as long as it lives.
struct Using<'a>(&'a Slot);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        let slot = || Slot { id: AtomicU64::default(), users: AtomicU32::default(), context: AtomicPtr::default() };
        Self { slots: std::array::from_fn(|_| slot()), made: AtomicU32::default() }
    }

    /// Takes a free place and the id that goes with it. `NoMemory` if there is none.
    pub(crate) fn reserve(&self) -> Result<PmapId, DeviceError> {
        let free = |s: &Slot| s.id.compare_exchange(FREE, CHANGING, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        let index = self.slots.iter().position(free).ok_or(DeviceError::NoMemory)?;
        // 24 bits of count and 8 of place, so that a ticket can hold the id in half of its bits.
        let count = u64::from(self.made.fetch_add(1, Ordering::Relaxed) % 0xff_ffff) + 1;
        Ok(PmapId(count << 8 | index as u64))
    }

    fn slot(&self, pmap: PmapId) -> Option<&Slot> {
        self.slots.get((pmap.0 & 0xff) as usize)
    }

    /// Gives a reserved place back.
    pub(crate) fn cancel(&self, pmap: PmapId) {
        if let Some(slot) = self.slot(pmap) {
            slot.id.store(FREE, Ordering::SeqCst);
        }
    }

    /// Fills a reserved place.
    pub(crate) fn insert(&self, pmap: PmapId, context: Arc<Context>) {
        if let Some(slot) = self.slot(pmap) {
            slot.context.store(Arc::into_raw(context).cast_mut(), Ordering::SeqCst);
            slot.id.store(pmap.0, Ordering::SeqCst);
        }
    }

    /// Calls `f` with the context. `None` if there is none of this id.
    pub(crate) fn with<T>(&self, pmap: PmapId, f: impl FnOnce(&Context) -> T) -> Option<T> {
        let slot = self.slot(pmap)?;
        slot.users.fetch_add(1, Ordering::SeqCst);
        let _using = Using(slot);
        if slot.id.load(Ordering::SeqCst) != pmap.0 {
            return None;
        }
        // SAFETY: the id was seen after we were counted as a user, so `remove`, which clears the id first and waits for the users then,
        // has not dropped the context yet and will not while `_using` lives.
        Some(f(unsafe { &*slot.context.load(Ordering::SeqCst) }))
    }

    /// Takes a context out. Every call that uses it must be about to end: its process is dead. Waits for them.
    pub(crate) fn remove(&self, pmap: PmapId) -> Option<Arc<Context>> {
        let slot = self.slot(pmap)?;
        slot.id.compare_exchange(pmap.0, CHANGING, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        while slot.users.load(Ordering::SeqCst) != 0 {
            pause(Duration::from_micros(50));
        }
        let context = slot.context.swap(std::ptr::null_mut(), Ordering::SeqCst);
        slot.id.store(FREE, Ordering::SeqCst);
        // SAFETY: the pointer came from `Arc::into_raw` in `insert`; whoever changed the id is the only one to take it back.
        Some(unsafe { Arc::from_raw(context) })
    }

    /// Whether the place of a context that is gone is free for another.
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    pub(crate) fn is_free(&self, pmap: PmapId) -> bool {
        self.slot(pmap).is_some_and(|s| s.id.load(Ordering::SeqCst) == FREE)
    }

    /// The ids in use.
    pub(crate) fn ids(&self) -> Vec<PmapId> {
        self.slots.iter().map(|s| s.id.load(Ordering::SeqCst)).filter(|id| *id > CHANGING).map(PmapId).collect()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.ids().into_iter().for_each(|pmap| drop(self.remove(pmap)));
    }
}
