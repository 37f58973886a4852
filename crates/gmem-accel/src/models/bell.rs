//! Bells and the lock.

use super::patience;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::futex::{self, Flags};
use crate::wait::{Bell, Deadline, Lock};
use gmem_loom::{model, together};
use std::sync::Arc;

#[derive(Default)]
struct Words {
    bell: AtomicU32,
    ready: AtomicU32,
    more: AtomicU32,
}

impl Words {
    fn wait(&self) {
        let ready = || self.ready.load(Ordering::Acquire) != 0;
        assert!(Bell(&self.bell).wait(&mut patience(), Deadline::Never, ready));
    }

    fn ring(&self) {
        self.ready.store(1, Ordering::Release);
        Bell(&self.bell).ring();
    }
}

#[test]
fn loom_a_ring_wakes_every_sleeper() {
    model(|| {
        let words = Arc::new(Words::default());
        together(&words, vec![Box::new(Words::wait), Box::new(Words::wait), Box::new(Words::ring)]);
    });
}

#[test]
fn loom_two_who_ring_at_once_lose_no_sleeper() {
    model(|| {
        let words = Arc::new(Words::default());
        together(
            &words,
            vec![
                Box::new(Words::ring),
                Box::new(|w| {
                    w.more.store(1, Ordering::Release);
                    Bell(&w.bell).ring();
                }),
                Box::new(|w| {
                    let both = || w.ready.load(Ordering::Acquire) + w.more.load(Ordering::Acquire) == 2;
                    assert!(Bell(&w.bell).wait(&mut patience(), Deadline::Never, both));
                }),
            ],
        );
    });
}

/// A process that is killed in the middle of a ring has cleared the word and woken nobody.
#[test]
fn loom_an_alarm_wakes_whom_a_killed_ring_left_asleep() {
    model(|| {
        let words = Arc::new(Words::default());
        together(
            &words,
            vec![
                Box::new(Words::wait),
                Box::new(|w| {
                    w.bell.fetch_add(w.bell.load(Ordering::SeqCst) & 1, Ordering::SeqCst);
                    w.ready.store(1, Ordering::Release);
                    Bell(&w.bell).alarm();
                }),
            ],
        );
    });
}

#[test]
fn loom_the_lock_excludes_and_orders() {
    model(|| {
        let shared = Arc::new((Lock::default(), AtomicU32::default()));
        let add = |(lock, count): &(Lock, AtomicU32)| {
            let _held = lock.lock();
            let seen = count.load(Ordering::Relaxed);
            count.store(seen + 1, Ordering::Relaxed);
        };
        together(&shared, vec![Box::new(add), Box::new(add), Box::new(add)]);
        assert_eq!(shared.1.load(Ordering::Relaxed), 3);
    });
}

/// A bell that only says whether somebody sleeps: one who is about to sleep takes another's mark, made after the ring, for its own.
#[test]
#[should_panic = "deadlock"]
fn loom_canary_a_bell_without_a_count() {
    let sleep = |w: &Words| {
        while w.ready.load(Ordering::Acquire) == 0 {
            w.bell.store(1, Ordering::SeqCst);
            if w.ready.load(Ordering::SeqCst) == 0 {
                let _ = futex::wait(&w.bell, Flags::empty(), 1, None);
            }
        }
    };
    model(move || {
        let words = Arc::new(Words::default());
        together(
            &words,
            vec![
                Box::new(sleep),
                Box::new(sleep),
                Box::new(|w| {
                    w.ready.store(1, Ordering::SeqCst);
                    if w.bell.swap(0, Ordering::SeqCst) == 1 {
                        let _ = futex::wake(&w.bell, Flags::empty(), i32::MAX as u32);
                    }
                }),
            ],
        );
    });
}

/// A sleeper that says so and does not look again.
#[test]
#[should_panic = "deadlock"]
fn loom_canary_asleep_without_a_second_look() {
    model(|| {
        let words = Arc::new(Words::default());
        together(
            &words,
            vec![
                Box::new(|w| {
                    while w.ready.load(Ordering::Acquire) == 0 {
                        let marked = w.bell.fetch_or(1, Ordering::SeqCst) | 1;
                        let _ = futex::wait(&w.bell, Flags::empty(), marked, None);
                    }
                }),
                Box::new(Words::ring),
            ],
        );
    });
}

/// A bell that is looked at before what it tells of is there for all to see.
#[test]
#[should_panic = "deadlock"]
fn loom_canary_a_ring_without_a_fence() {
    model(|| {
        let words = Arc::new(Words::default());
        together(
            &words,
            vec![
                Box::new(Words::wait),
                Box::new(|w| {
                    w.ready.store(1, Ordering::Release);
                    if w.bell.load(Ordering::Relaxed) & 1 != 0 {
                        w.bell.fetch_add(1, Ordering::SeqCst);
                        let _ = futex::wake(&w.bell, Flags::empty(), i32::MAX as u32);
                    }
                }),
            ],
        );
    });
}
