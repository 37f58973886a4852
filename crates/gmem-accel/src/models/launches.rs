//! Launches: records in any order, a ring that says which, and the workers that begin and end each together.

use super::{Both, patience};
use crate::device::{Crew, record};
use crate::shm::launch;
use crate::sync::atomic::Ordering;
use crate::{codec, message};
use gmem_hal::{Crash, DeviceError, FaultError, LaunchError, VirtAddr};
use gmem_loom::{model_within, together};
use std::sync::Arc;

/// A worker's part of so many launches: it adds the first argument. With a fault at an address, the launch fails there.
fn work((both, crew): &(Arc<Both>, Crew), launches: u32, fault: Option<u64>) {
    let shm = &both.context.shm;
    for next in 0..launches {
        crew.wait_for(shm, next, &mut patience());
        both.performed.fetch_add(shm.launch_arg(record(shm, next), 0).load(Ordering::Relaxed) as u32, Ordering::Relaxed);
        if let Some(va) = fault {
            crew.fail(shm, next, launch::FAULT, || (codec::encode(Err(FaultError::NotMapped)), va));
        }
        crew.arrive(shm, next);
    }
}

fn start(both: &Both, arg: u64) -> Result<u32, LaunchError> {
    both.context.launches.start(&both.context, 0, &[arg], true)
}

fn wait(both: &Both, launch: u32) -> Result<(), LaunchError> {
    both.context.launches.wait(&both.context, launch)
}

/// A context with a launch in each of its records, and their numbers.
fn full() -> (Arc<(Arc<Both>, Crew)>, [u32; 2]) {
    let shared = Arc::new((Both::new(1), Crew::new(1)));
    let launches = [1, 2].map(|arg| start(&shared.0, arg).expect("there is room"));
    (shared, launches)
}

#[test]
fn loom_a_launch_ends_after_every_worker() {
    model_within(2, || {
        let shared = Arc::new((Both::new(2), Crew::new(2)));
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 1, None)),
                Box::new(|s| work(s, 1, None)),
                Box::new(|(both, _)| {
                    let launch = start(both, 5).expect("there is room");
                    assert_eq!(wait(both, launch), Ok(()));
                    assert_eq!(both.performed(), 10, "a worker's part is not seen");
                }),
            ],
        );
    });
}

/// A worker that is done early waits for the other before it begins the next launch.
#[test]
fn loom_the_next_launch_waits_for_every_worker() {
    model_within(1, || {
        let shared = Arc::new((Both::new(2), Crew::new(2)));
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 2, None)),
                Box::new(|s| work(s, 2, None)),
                Box::new(|(both, _)| {
                    let launches = [1, 2].map(|arg| start(both, arg).expect("there is room"));
                    launches.iter().for_each(|launch| assert_eq!(wait(both, *launch), Ok(())));
                    assert_eq!(both.performed(), 6);
                }),
            ],
        );
    });
}

#[test]
fn loom_a_record_is_used_again_when_its_launch_is_over() {
    model_within(2, || {
        let shared = Arc::new((Both::new(1), Crew::new(1)));
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 3, None)),
                Box::new(|(both, _)| {
                    let launches = [start(both, 1), start(both, 2)].map(|l| l.expect("there is room"));
                    // It takes the record of one that is over, and how that ended is kept.
                    let third = start(both, 4).expect("there is room when one has ended");
                    assert_eq!(both.performed() & 1, 1);
                    launches.iter().for_each(|launch| assert_eq!(wait(both, *launch), Ok(())));
                    assert_eq!(wait(both, launches[0]), Err(LaunchError::BadRequest));
                    assert_eq!(wait(both, third), Ok(()));
                    assert_eq!(both.performed(), 7);
                }),
            ],
        );
    });
}

#[test]
fn loom_one_failure_is_told_whole() {
    model_within(2, || {
        let shared = Arc::new((Both::new(2), Crew::new(2)));
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 1, Some(0x1100))),
                Box::new(|s| work(s, 1, Some(0x1200))),
                Box::new(|(both, _)| {
                    let launch = start(both, 5).expect("there is room");
                    let Err(LaunchError::Fault { va, error }) = wait(both, launch) else { panic!("a failure was lost") };
                    assert!([0x1100, 0x1200].map(VirtAddr::new).contains(&va), "the address was not there yet: {va}");
                    assert_eq!(error, FaultError::NotMapped);
                }),
            ],
        );
    });
}

/// What one worker says is neither cut short nor mixed with what the other's fault leaves in the same record.
#[test]
fn loom_a_panic_is_told_whole() {
    model_within(2, || {
        let shared = Arc::new((Both::new(2), Crew::new(2)));
        together(
            &shared,
            vec![
                Box::new(|(both, crew)| {
                    let shm = &both.context.shm;
                    crew.wait_for(shm, 0, &mut patience());
                    crew.fail(shm, 0, launch::PANICKED, || (message::write(shm, record(shm, 0), "out of order"), 0));
                    crew.arrive(shm, 0);
                }),
                Box::new(|s| work(s, 1, Some(0x1200))),
                Box::new(|(both, _)| {
                    let launch = start(both, 5).expect("there is room");
                    match wait(both, launch) {
                        Err(LaunchError::Panicked(said)) => assert_eq!(said, "out of order"),
                        Err(LaunchError::Fault { va, error }) => assert_eq!((va.get(), error), (0x1200, FaultError::NotMapped)),
                        other => panic!("a failure was lost: {other:?}"),
                    }
                }),
            ],
        );
    });
}

/// A kernel that aborts leaves word before its device ends, and nobody else's launch is taken for it.
#[test]
fn loom_the_last_words_of_a_device_reach_their_launch() {
    model_within(2, || {
        let shared = Arc::new((Both::new(1), Crew::new(1)));
        together(
            &shared,
            vec![
                Box::new(|(both, crew)| {
                    let shm = &both.context.shm;
                    crew.wait_for(shm, 0, &mut patience());
                    crew.fail(shm, 0, launch::CRASHED, || codec::encode_crash(Crash::Abort));
                    // The keeper sees the process end, which is after all that its threads did.
                    both.context.set_dead(|| {});
                }),
                Box::new(|(both, _)| {
                    let first = start(both, 1).expect("there is room");
                    let second = start(both, 2);
                    assert_eq!(wait(both, first), Err(LaunchError::Crashed(Crash::Abort)));
                    if let Ok(second) = second {
                        assert_eq!(wait(both, second), Err(LaunchError::Device(DeviceError::Dead)));
                    }
                }),
            ],
        );
    });
}

/// Two that find all records in use each get one of those that are over, whatever becomes of the others.
#[test]
fn loom_two_starters_both_get_a_record() {
    model_within(2, || {
        let (shared, _) = full();
        together(
            &shared,
            vec![
                // No more end than are needed for two records.
                Box::new(|s| work(s, 2, None)),
                Box::new(|(both, _)| drop(start(both, 4).expect("there is room when one has ended"))),
                Box::new(|(both, _)| drop(start(both, 8).expect("there is room when both have ended"))),
            ],
        );
    });
}

/// A thread that waits for a launch whose record another one takes meanwhile is told how it ended, and nobody waits for ever.
#[test]
fn loom_a_launch_that_is_waited_for_as_its_record_is_taken() {
    model_within(2, || {
        let (shared, launches) = full();
        together(
            &shared,
            vec![
                Box::new(|s| {
                    work(s, 1, Some(0x1100));
                    let (both, crew) = s;
                    for next in 1..3 {
                        crew.wait_for(&both.context.shm, next, &mut patience());
                        crew.arrive(&both.context.shm, next);
                    }
                }),
                Box::new(move |(both, _)| assert!(matches!(wait(both, launches[0]), Err(LaunchError::Fault { .. })))),
                Box::new(move |(both, _)| {
                    let third = start(both, 4).expect("there is room when one has ended");
                    assert_eq!(wait(both, launches[1]), Ok(()));
                    assert_eq!(wait(both, third), Ok(()));
                }),
            ],
        );
    });
}

#[test]
fn loom_a_ticket_is_good_once() {
    model_within(1, || {
        let (shared, launches) = full();
        let told = |both: &Both, launch| both.performed.fetch_add(100 * u32::from(wait(both, launch).is_ok()), Ordering::Relaxed);
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 2, None)),
                Box::new(move |(both, _)| drop(told(both, launches[0]))),
                Box::new(move |(both, _)| drop(told(both, launches[0]))),
                Box::new(|(both, _)| drop(start(both, 4).expect("there is room when one has ended"))),
            ],
        );
        assert_eq!(shared.0.performed() / 100, 1);
    });
}

/// Its record may be that of another launch at once, which has not ended and perhaps never does.
#[test]
fn loom_a_launch_that_ended_is_not_waited_for_by_way_of_another() {
    model_within(2, || {
        let (shared, launches) = full();
        together(
            &shared,
            vec![
                Box::new(|s| work(s, 2, None)),
                Box::new(move |(both, _)| assert_eq!(wait(both, launches[0]), Ok(()))),
                Box::new(|(both, _)| drop(start(both, 4).expect("there is room when one has ended"))),
            ],
        );
    });
}
