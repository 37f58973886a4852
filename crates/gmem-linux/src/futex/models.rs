//! The lock and the event in every order of their threads.

use super::*;
use gmem_hal::lock_api::RawMutex;
use gmem_hal::{VirtAddr, WaitKind};
use gmem_loom::cell::UnsafeCell;
use gmem_loom::{model, together};
use std::sync::Arc;

/// A value that loom watches: two accesses at once, or one that does not come after the other for all to see, fail the model.
#[derive(Default)]
struct Watched(UnsafeCell<u32>);

// SAFETY: loom refuses to run on when two threads access it at once, which is what the models are there to find out.
unsafe impl Sync for Watched {}

impl Watched {
    fn add(&self, n: u32) -> u32 {
        // SAFETY: loom has checked that nobody else accesses it now.
        self.0.with_mut(|value| unsafe {
            *value += n;
            *value
        })
    }
}

fn what() -> Wait {
    Wait { kind: WaitKind::BusyPage, space: None, at: VirtAddr::new(0x1000), owner: "model" }
}

/// A lock whose word exists before any thread does.
fn lock() -> FutexLock {
    let lock = FutexLock::INIT;
    assert!(!lock.is_locked());
    lock
}

/// Takes the lock, changes the value, gives the lock back with `unlock`.
fn change((lock, value): &(FutexLock, Watched), unlock: fn(&FutexLock)) {
    lock.lock();
    value.add(1);
    unlock(lock);
}

fn unlock(lock: &FutexLock) {
    // SAFETY: only `change` calls this, which holds the lock.
    unsafe { lock.unlock() };
}

#[test]
fn loom_the_lock_excludes_and_wakes_every_sleeper() {
    model(|| {
        let shared = Arc::new((lock(), Watched::default()));
        together(&shared, (0..3).map(|_| Box::new(|s: &_| change(s, unlock)) as Box<dyn FnOnce(&_) + Send>).collect());
        assert_eq!(shared.1.add(0), 3);
    });
}

#[test]
fn loom_a_try_excludes_too() {
    model(|| {
        let shared = Arc::new((lock(), Watched::default()));
        together(
            &shared,
            vec![
                Box::new(|s| change(s, unlock)),
                Box::new(|s| {
                    if s.0.try_lock() {
                        s.1.add(1);
                        unlock(&s.0);
                    }
                }),
            ],
        );
        assert!((1..=2).contains(&shared.1.add(0)));
    });
}

/// What a lock protects must be seen by the next holder: given back without Release it is not.
#[test]
#[should_panic = "Causality violation"]
fn loom_canary_a_lock_given_back_without_release() {
    model(|| {
        let shared = Arc::new((lock(), Watched::default()));
        let unlock = |lock: &FutexLock| {
            if lock.0.swap(FREE, Relaxed) == CONTENDED {
                let _ = futex::wake(&lock.0, Flags::PRIVATE, 1);
            }
        };
        together(&shared, vec![Box::new(move |s| change(s, unlock)), Box::new(move |s| change(s, unlock))]);
    });
}

/// A condition under a lock, and who waits for it as the core does.
#[derive(Default)]
struct Gate {
    inside: AtomicU32,
    opened: FutexEvent,
}

impl Gate {
    fn wait(&self) {
        loop {
            let epoch = self.opened.epoch();
            if self.inside.load(Acquire) == 0 {
                return;
            }
            self.opened.wait(epoch, &what());
        }
    }
}

#[test]
fn loom_no_signal_is_lost_between_the_look_and_the_sleep() {
    model(|| {
        let gate = Arc::new(Gate::default());
        gate.inside.store(1, Relaxed);
        together(
            &gate,
            vec![
                Box::new(Gate::wait),
                Box::new(Gate::wait),
                Box::new(|gate| {
                    gate.inside.store(0, Release);
                    gate.opened.signal();
                }),
            ],
        );
    });
}

#[test]
fn loom_a_wait_may_be_followed_by_another() {
    model(|| {
        let event = Arc::new(FutexEvent::default());
        let first = event.epoch();
        together(
            &event,
            vec![
                Box::new(|event| event.signal()),
                Box::new(|event| event.signal()),
                Box::new(move |event| {
                    event.wait(first, &what());
                    event.wait(first.wrapping_add(1), &what());
                }),
            ],
        );
        assert_eq!(event.epoch(), first.wrapping_add(2));
        assert_eq!(event.waiters.load(SeqCst), 0);
    });
}

/// The epoch read after the look: a signal between the two wakes nobody.
#[test]
#[should_panic = "deadlock"]
fn loom_canary_an_epoch_read_too_late() {
    model(|| {
        let gate = Arc::new(Gate::default());
        gate.inside.store(1, Relaxed);
        together(
            &gate,
            vec![
                Box::new(|gate| {
                    gate.inside.store(0, Release);
                    gate.opened.signal();
                }),
                Box::new(|gate| {
                    if gate.inside.load(Acquire) != 0 {
                        gate.opened.wait(gate.opened.epoch(), &what());
                    }
                }),
            ],
        );
    });
}

/// A signaller that looks for waiters by an order that lets it overlook one.
#[test]
#[should_panic = "deadlock"]
fn loom_canary_a_signal_that_does_not_look_in_order() {
    model(|| {
        let event = Arc::new(FutexEvent::default());
        let first = event.epoch();
        together(
            &event,
            vec![
                Box::new(move |event| event.wait(first, &what())),
                Box::new(|event| {
                    event.epoch.fetch_add(1, Release);
                    if event.waiters.load(Acquire) != 0 {
                        let _ = futex::wake(&event.epoch, Flags::PRIVATE, i32::MAX as u32);
                    }
                }),
            ],
        );
    });
}
