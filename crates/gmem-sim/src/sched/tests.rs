//! The scheduler, the lock and the event together.

use super::{Reason, Scheduler, yield_point};
use crate::{SimEvent, SimLock};
use gmem_hal::lock_api::Mutex;
use gmem_hal::{Event, VirtAddr, Wait, WaitKind};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const WAIT: Wait = Wait { kind: WaitKind::BusyPage, space: None, at: VirtAddr::new(0x1000), owner: "test" };

#[test]
fn a_seed_gives_one_interleaving_and_seeds_differ() {
    let run = |seed| {
        let log = Rc::new(RefCell::new(Vec::new()));
        let mut scheduler = Scheduler::new(seed).stay_per_mille(0);
        for name in 0..3 {
            let log = log.clone();
            scheduler.spawn(format!("{name}"), move || {
                for _ in 0..8 {
                    log.borrow_mut().push(name);
                    yield_point(Reason::Step);
                }
            });
        }
        scheduler.run();
        log.take()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_lock_excludes_and_a_signal_is_not_lost() {
    for seed in 0..200 {
        let state = Arc::new((Mutex::<SimLock, u32>::new(0), SimEvent::default()));
        let mut scheduler = Scheduler::new(seed);
        for _ in 0..3 {
            let state = state.clone();
            scheduler.spawn("adds", move || {
                let mut value = state.0.lock();
                let seen = *value;
                yield_point(Reason::Step);
                *value = seen + 1;
                drop(value);
                state.1.signal();
            });
        }
        let waiting = state.clone();
        scheduler.spawn("waits", move || {
            loop {
                let epoch = waiting.1.epoch();
                if *waiting.0.lock() == 3 {
                    break;
                }
                waiting.1.wait(epoch, &WAIT);
            }
        });
        scheduler.run();
        assert_eq!(*state.0.lock(), 3);
    }
}

#[test]
#[should_panic(expected = "BusyPage at 0x1000, owned by \"test\"")]
fn a_deadlock_is_found_and_says_who_waits_for_what() {
    let mut scheduler = Scheduler::new(0);
    scheduler.spawn("waits for ever", || {
        let event = SimEvent::default();
        loop {
            event.wait(event.epoch(), &WAIT);
        }
    });
    scheduler.run();
}

#[test]
fn two_locks_in_two_orders_deadlock_for_some_seed() {
    let deadlocks = |seed| {
        let locks = Arc::new((Mutex::<SimLock, ()>::new(()), Mutex::<SimLock, ()>::new(())));
        let mut scheduler = Scheduler::new(seed);
        let other = locks.clone();
        scheduler.spawn("first then second", move || {
            let _first = locks.0.lock();
            let _second = locks.1.lock();
        });
        scheduler.spawn("second then first", move || {
            let _second = other.1.lock();
            let _first = other.0.lock();
        });
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scheduler.run())).is_err()
    };
    let found = (0..50).filter(|seed| deadlocks(*seed)).count();
    assert!((1..50).contains(&found), "{found} of 50 seeds deadlock");
}

#[test]
#[should_panic(expected = "no end after 100 resumes")]
fn a_livelock_is_found() {
    let mut scheduler = Scheduler::new(0).limit(100);
    scheduler.spawn("spins", || {
        loop {
            yield_point(Reason::Step);
        }
    });
    scheduler.run();
}

#[test]
#[should_panic(expected = "would wait for ever: BusyPage at 0x1000")]
fn waiting_alone_is_a_defect() {
    let event = SimEvent::default();
    event.wait(event.epoch(), &WAIT);
}

#[test]
#[should_panic(expected = "it would wait for itself")]
fn taking_a_lock_twice_is_a_defect() {
    let lock = Mutex::<SimLock, ()>::new(());
    let _first = lock.lock();
    let _second = lock.lock();
}

#[test]
#[should_panic(expected = "with 1 locks of the core held")]
fn a_callback_under_a_lock_is_a_defect() {
    let lock = Mutex::<SimLock, ()>::new(());
    let _held = lock.lock();
    let sim = crate::Sim::new(0);
    let _ = gmem_hal::Host::space_create(
        &crate::SimHost::new(&sim),
        gmem_hal::VirtRange::new(VirtAddr::new(0), VirtAddr::new(4096)).unwrap(),
        true,
    );
}

#[test]
#[should_panic(expected = "the panic of a control")]
fn a_panic_of_one_control_comes_out() {
    let mut scheduler = Scheduler::new(0);
    scheduler.spawn("panics", || panic!("the panic of a control"));
    scheduler.spawn("lives", || (0..10).for_each(|_| yield_point(Reason::Step)));
    scheduler.run();
}
