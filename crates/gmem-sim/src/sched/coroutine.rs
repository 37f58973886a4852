//! Threads of control on stacks of their own.

use super::{Blocked, CURRENT, Reason, held_by};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::Cell;
use std::ptr;

/// Why a thread of control gave control up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Suspend {
    /// It could go on.
    Ready(Reason),
    /// It has to wait.
    Blocked(Blocked),
}

type Channel = Yielder<(), Suspend>;

thread_local! {
    /// How the running thread of control suspends itself; null outside of one.
    static CHANNEL: Cell<*const Channel> = const { Cell::new(ptr::null()) };
}

/// One thread of control.
pub(super) struct Control {
    id: u32,
    coroutine: Coroutine<(), Suspend, ()>,
    /// Its channel while it does not run.
    channel: *const Channel,
}

impl Control {
    /// A thread of control that will run `body`.
    pub(super) fn new(id: u32, body: impl FnOnce() + 'static) -> Self {
        let coroutine = Coroutine::new(move |channel: &Channel, ()| {
            CHANNEL.set(channel);
            body();
        });
        Self { id, coroutine, channel: ptr::null() }
    }

    /// Runs it until it suspends itself or ends (`None`). A panic in it comes out here.
    pub(super) fn resume(&mut self) -> Option<Suspend> {
        let outer = (CURRENT.replace(self.id), CHANNEL.replace(self.channel));
        let _restore = Restore(outer);
        let result = self.coroutine.resume(());
        self.channel = CHANNEL.get();
        match result {
            CoroutineResult::Yield(suspend) => Some(suspend),
            CoroutineResult::Return(()) => {
                assert_eq!(held_by(self.id), 0, "control {} ended with a lock of the core held", self.id);
                None
            }
        }
    }
}

/// Puts the thread-local state of the scheduler's own control back, also when a panic passes.
struct Restore((u32, *const Channel));

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.0);
        CHANNEL.set(self.0.1);
    }
}

/// Gives control back to the scheduler.
#[allow(unsafe_code)]
pub(super) fn suspend(why: Suspend) {
    let channel = CHANNEL.get();
    assert!(!channel.is_null(), "suspended outside of a scheduler");
    // SAFETY: `CHANNEL` is not null only while `Control::resume` runs on this thread, and then it is the reference that the coroutine running now was
    // given at its start: `Control::new` stores it, `resume` puts it back at every switch and takes it away afterwards. That reference lives
    // on the coroutine's own stack for as long as its body runs, and this call is made from inside that body.
    unsafe { &*channel }.suspend(why);
}
