//! A worker's question to the host: what about this address?
//!
//! While it waits, the worker is one of those who serve the ring: the mapping that answers the fault is made by the very thread that needs it, which is awake.

use super::ring;
use crate::shm::{Shared, fault};
use crate::sync::atomic::Ordering;
use crate::wait::{Bell, Deadline, Patience, now_ns};
use std::time::Duration;

/// Asks the host to resolve the fault of worker `me` at `address`, and `drain`s the ring while it waits. `server` is the worker whose bell the host listens to.
/// Returns the answer's code. Async-signal-safe.
pub(crate) fn ask(
    shm: &Shared,
    (me, server): (usize, usize),
    (address, write): (u64, bool),
    patience: &mut Patience,
    drain: impl Fn(),
) -> u64 {
    let slot = shm.fault(me);
    slot.va.store(address, Ordering::Relaxed);
    slot.access.store(write.into(), Ordering::Relaxed);
    slot.state.store(fault::POSTED, Ordering::SeqCst);
    shm.drainers().fetch_add(1, Ordering::SeqCst);
    Bell(shm.fault(server).host_bell).ring();
    let answered = || slot.state.load(Ordering::Acquire) == fault::ANSWERED;
    loop {
        let done = look(shm, patience, answered, &drain);
        // From here on nobody may rely on us; whoever did before is served by the look after it.
        shm.drainers().fetch_sub(1, Ordering::SeqCst);
        drain();
        if done {
            break;
        }
        let (mut once, asleep_since) = (Patience::new(Duration::ZERO), now_ns());
        Bell(slot.device_bell).wait(&mut once, Deadline::Never, || answered() || ring::pending(shm));
        patience.woken_after(now_ns().saturating_sub(asleep_since));
        shm.drainers().fetch_add(1, Ordering::SeqCst);
    }
    let answer = slot.answer.load(Ordering::Relaxed);
    slot.state.store(fault::IDLE, Ordering::Relaxed);
    answer
}

/// Looks for the answer, serving the ring, until it is there or patience ends.
fn look(shm: &Shared, patience: &mut Patience, answered: impl Fn() -> bool, drain: impl Fn()) -> bool {
    patience.spin(&mut || {
        if ring::pending(shm) {
            drain();
        }
        answered()
    })
}
