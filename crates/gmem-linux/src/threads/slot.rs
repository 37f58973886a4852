//! A closure lent to another thread for the length of a call.
#![allow(unsafe_code)]

use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicBool, Ordering::*};
use crate::sync::thread::{self, Thread};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The closure before, and the result after. Lives on the stack of the caller, who does not leave before `done`.
pub(super) struct Slot<F, T> {
    work: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<std::thread::Result<T>>>,
    done: AtomicBool,
    caller: Thread,
}

/// A type-erased pointer to a slot, to be run once.
pub(super) struct Job {
    slot: *const (),
    run: unsafe fn(*const ()) -> Done,
}

/// The closure has run; dropping this tells the caller. What is to be true when the caller goes on, is made true before.
pub(super) struct Done {
    done: *const AtomicBool,
    caller: Thread,
}

impl Drop for Done {
    fn drop(&mut self) {
        // SAFETY: the caller of `Slot::job` keeps the slot alive until `done` is set, which happens here, once.
        unsafe { (*self.done).store(true, Release) };
        // The slot may be gone now; the thread handle is our own.
        self.caller.unpark();
    }
}

// SAFETY: a job is a pointer to a slot whose closure and result are Send (`Slot::job` asks for it), and only one thread runs it.
unsafe impl Send for Job {}

impl Job {
    /// Runs the closure. The caller waits on until the answer is dropped.
    pub(super) fn run(self) -> Done {
        // SAFETY: `slot` and `run` were made together by `Slot::job`, whose caller promised to keep the slot until it is done; `self` is
        // consumed, so this happens once.
        unsafe { (self.run)(self.slot) }
    }
}

impl<F: FnOnce() -> T + Send, T: Send> Slot<F, T> {
    pub(super) fn new(work: F) -> Self {
        Self { work: UnsafeCell::new(Some(work)), result: UnsafeCell::new(None), done: AtomicBool::default(), caller: thread::current() }
    }

    /// The job that runs the closure.
    ///
    /// # Safety
    /// To be called once. The caller must run the job or have it run, and must call [`Slot::wait`] before the slot moves or dies.
    pub(super) unsafe fn job(&self) -> Job {
        Job { slot: (&raw const *self).cast(), run: Self::run }
    }

    /// # Safety
    /// `slot` points to a live `Slot<F, T>`, and this is the only call for it.
    unsafe fn run(slot: *const ()) -> Done {
        // SAFETY: the caller of `job` keeps the slot alive and in place until `done`, which the answer stores.
        let slot = unsafe { &*slot.cast::<Self>() };
        // SAFETY: until `done` only this one call touches the cells: the owner of the slot reads them only after it.
        let work = slot.work.with_mut(|work| unsafe { (*work).take() }).expect("a job runs once");
        let result = catch_unwind(AssertUnwindSafe(work));
        // SAFETY: as above.
        slot.result.with_mut(|to| unsafe { *to = Some(result) });
        Done { done: &raw const slot.done, caller: slot.caller.clone() }
    }

    /// Waits for the job and gives its result; a panic in the closure goes on in the caller. By reference: a move would pull the slot from under the job.
    ///
    /// # Panics
    /// If called again.
    pub(super) fn wait(&self) -> T {
        while !self.done.load(Acquire) {
            thread::park();
        }
        // SAFETY: after `done` the job touches the slot no more, and a slot is not Sync: this thread alone has it.
        let result = self.result.with_mut(|result| unsafe { (*result).take() });
        match result.expect("the job stored a result before it said done") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use gmem_loom::model;

    #[test]
    fn loom_a_slot_outlives_its_job_and_its_result_is_whole() {
        model(|| {
            let slot = Slot::new(|| vec![7]);
            // SAFETY: called once; the thread below runs the job; `wait` follows at once.
            let job = unsafe { slot.job() };
            let worker = thread::spawn(move || drop(job.run()));
            assert_eq!(slot.wait(), [7]);
            drop(slot);
            worker.join().expect("no panic");
        });
    }

    /// An answer that says done before the result is there for all to see.
    #[test]
    #[should_panic = "Causality violation"]
    fn loom_canary_done_said_without_release() {
        model(|| {
            let slot = Slot::new(|| 7);
            // SAFETY: as above.
            let job = unsafe { slot.job() };
            let worker = thread::spawn(move || {
                let done = job.run();
                // SAFETY: the slot is alive until `done` is set.
                unsafe { (*done.done).store(true, Relaxed) };
                // An unpark would order the two by itself; a caller that had not parked yet gets none.
                std::mem::forget(done);
            });
            while !slot.done.load(Acquire) {
                thread::yield_now();
            }
            assert_eq!(slot.wait(), 7);
            worker.join().expect("no panic");
        });
    }
}
