//! The ring of commands.

use super::{Both, about};
use gmem_hal::DeviceError;
use gmem_loom::{model_within, together};

#[test]
fn loom_a_call_gets_its_own_answer() {
    model_within(2, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(Both::command_thread),
                Box::new(|both| {
                    assert_eq!(both.context.call(&about(7)), Ok((0, 8)));
                    assert_eq!(both.performed(), 7, "the answer came before what it tells of");
                    both.context.ask_to_exit();
                }),
            ],
        );
    });
}

/// The third takes the record of the first, of which the result was read.
#[test]
fn loom_records_of_commands_are_used_again() {
    model_within(1, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(Both::command_thread),
                Box::new(|both| {
                    [1, 2, 4].iter().for_each(|va| assert_eq!(both.context.call(&about(*va)), Ok((0, va + 1))));
                    both.context.ask_to_exit();
                }),
            ],
        );
        assert_eq!(both.performed(), 7);
    });
}

/// Two callers, each with calls of its own one after another.
fn each_caller_gets_its_answers(calls: [&'static [u64]; 2]) {
    model_within(1, move || {
        let both = Both::new(1);
        let call = move |both: &Both, va: u64| {
            assert_eq!(both.context.call(&about(va)), Ok((0, va + 1)));
            let performed = u64::from(both.performed());
            assert_eq!(performed & va, va, "the answer came before what it tells of");
            if performed == calls.concat().iter().sum() {
                both.context.ask_to_exit();
            }
        };
        let [one, two] = calls.map(|vas| move |both: &Both| vas.iter().for_each(|va| call(both, *va)));
        together(&both, vec![Box::new(Both::command_thread), Box::new(one), Box::new(two)]);
    });
}

#[test]
fn loom_two_callers_get_their_own_answers() {
    each_caller_gets_its_answers([&[1], &[2]]);
}

/// Two commands fill the ring, so one caller may find the record of the other with an answer that is not read yet.
#[test]
fn loom_an_answer_that_is_not_read_keeps_its_record() {
    each_caller_gets_its_answers([&[1], &[2, 4]]);
}

/// More commands than the ring has room for, of which nobody reads the results.
#[test]
fn loom_a_flush_ends_after_all_that_was_queued() {
    model_within(1, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(Both::command_thread),
                Box::new(|both| {
                    [1, 2, 4].iter().for_each(|va| both.context.queue(&about(*va)).expect("the device answers"));
                    both.context.flush().expect("the device answers");
                    assert_eq!(both.performed(), 7, "a revoke was not carried out");
                    both.context.ask_to_exit();
                }),
            ],
        );
    });
}

/// A thread of the device that finds the ring in the hands of another leaves it to that one, which looks again when it is done.
#[test]
fn loom_no_command_is_left_to_nobody() {
    model_within(2, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(Both::drain),
                Box::new(|both| {
                    for va in [1, 2] {
                        both.context.queue(&about(va)).expect("there is room");
                        both.drain();
                    }
                }),
            ],
        );
        assert_eq!(both.performed(), 3);
    });
}

#[test]
fn loom_the_end_of_the_process_ends_a_call() {
    model_within(2, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(|both| both.drain()),
                Box::new(|both| both.context.set_dead(|| {})),
                Box::new(|both| {
                    let answer = both.context.call(&about(7));
                    assert!(matches!(answer, Ok((0, 8)) | Err(DeviceError::Dead)), "{answer:?}");
                }),
            ],
        );
    });
}
