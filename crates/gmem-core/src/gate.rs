//! A gate: one at a time, asleep otherwise. It may be held over callbacks, which no lock may.

use gmem_hal::lock_api::Mutex;
use gmem_hal::{Event, Platform, SpaceId, VirtAddr, Wait, WaitKind};

pub(crate) struct Gate<P: Platform> {
    inside: Mutex<P::RawLock, Option<&'static str>>,
    opened: P::Event,
}

/// The right to be inside; given back on drop.
pub(crate) struct Inside<'a, P: Platform>(&'a Gate<P>);

impl<P: Platform> Gate<P> {
    pub(crate) fn new() -> Self {
        Self { inside: Mutex::new(None), opened: P::Event::default() }
    }

    /// Waits until nobody is inside. `owner`, `space` and `at` name the wait of whoever comes next.
    pub(crate) fn enter(&self, owner: &'static str, space: Option<SpaceId>, at: VirtAddr) -> Inside<'_, P> {
        loop {
            let mut inside = self.inside.lock();
            let Some(current) = *inside else {
                *inside = Some(owner);
                return Inside(self);
            };
            let epoch = self.opened.epoch();
            drop(inside);
            self.opened.wait(epoch, &Wait { kind: WaitKind::Topology, space, at, owner: current });
        }
    }
}

impl<P: Platform> Drop for Inside<'_, P> {
    fn drop(&mut self) {
        *self.0.inside.lock() = None;
        self.0.opened.signal();
    }
}
