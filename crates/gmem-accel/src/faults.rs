//! Faults of kernels, as the host serves them: a few threads per context, each for some of the workers, so that the copies for several
//! workers' faults overlap.

use crate::codec;
use crate::context::Context;
use crate::shm::fault;
use crate::sync;
use crate::wait::{Bell, Deadline, Patience};
use gmem_hal::{Access, FaultError, VirtAddr};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The most threads that serve the faults of one context.
const MOST_THREADS: usize = 8;

/// How long a thread looks for the next fault before it sleeps: kernels that stream through memory fault again soon.
const PATIENCE: Duration = Duration::from_micros(50);

sync::thread_local! {
    /// The context (by address) and the worker whose fault this thread resolves. Plain data: safe to read in a signal handler.
    static SERVING: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The worker of `context` whose fault this thread resolves right now: it waits and will look at the ring when woken.
pub(crate) fn serving(context: &Context) -> Option<usize> {
    let (address, worker) = SERVING.with(Cell::get);
    (address == std::ptr::from_ref(context).addr()).then_some(worker)
}

/// How many threads serve a context with `workers` workers.
pub(crate) fn threads(workers: usize) -> usize {
    workers.min(MOST_THREADS)
}

/// Who resolves faults: the glue's way to the core.
pub(crate) type Resolve = dyn Fn(&Context, VirtAddr, Access) -> Result<(), FaultError> + Send + Sync;

/// Serves the faults of workers `first`, `first + step`, ... until the process is gone.
///
/// The bell of worker `first` is this thread's: [`bell_of`] tells the device which one to ring.
pub(crate) fn serve(context: &Arc<Context>, first: usize, resolve: &Resolve) {
    let mut patience = Patience::for_bursts(PATIENCE);
    loop {
        let bell = Bell(context.shm.fault(first).host_bell);
        bell.wait(&mut patience, Deadline::Naps, || context.is_dead() || posted(context, first).next().is_some());
        if context.is_dead() {
            return;
        }
        serve_posted(context, first, resolve);
    }
}

/// Serves the faults that these workers have posted.
pub(crate) fn serve_posted(context: &Arc<Context>, first: usize, resolve: &Resolve) {
    posted(context, first).for_each(|worker| answer(context, worker, resolve));
}

/// Those of the workers `first`, `first + step`, ... that have posted a fault.
fn posted(context: &Context, first: usize) -> impl Iterator<Item = usize> {
    let workers = (first..context.facts.workers).step_by(threads(context.facts.workers));
    workers.filter(|worker| context.shm.fault(*worker).state.load(Ordering::SeqCst) == fault::POSTED)
}

/// The worker whose `host_bell` is rung for a fault of `worker`.
pub(crate) fn bell_of(worker: usize, workers: usize) -> usize {
    worker % threads(workers)
}

/// Resolves the fault of one worker, and wakes it.
pub(crate) fn answer(context: &Arc<Context>, worker: usize, resolve: &Resolve) {
    let slot = context.shm.fault(worker);
    // Copied once, then checked: the device may change it at any time.
    let (va, access) = (VirtAddr::new(slot.va.load(Ordering::Relaxed)), slot.access.load(Ordering::Relaxed));
    let access = if access == 0 { Access::Read } else { Access::Write };
    let result = if context.facts.window.contains(va) {
        SERVING.with(|serving| serving.set((Arc::as_ptr(context).addr(), worker)));
        let result = resolve(context, va, access);
        SERVING.with(|serving| serving.set((0, 0)));
        result
    } else {
        Err(FaultError::NotMapped)
    };
    slot.answer.store(codec::encode(result), Ordering::Relaxed);
    slot.state.store(fault::ANSWERED, Ordering::SeqCst);
    Bell(slot.device_bell).ring();
}
