//! A fault of a kernel, from the worker to the host and back, with the command that maps the page on the way.

use super::{Both, about, patience};
use crate::device::ask;
use crate::shm::fault;
use crate::sync::atomic::Ordering;
use crate::wait::{Bell, Deadline};
use crate::{codec, faults};
use gmem_hal::FaultError;
use gmem_loom::{model_within, together};

const PAGE: u64 = 0x1000;

/// A worker whose access to a page faults. Returns when the host says that it is there.
fn access(both: &Both) {
    let answer = ask(&both.context.shm, (0, 0), (PAGE, true), &mut patience(), || both.drain());
    assert_eq!(answer, codec::encode(Ok(())));
    assert_eq!(both.performed(), PAGE as u32, "the worker goes on before its page is mapped");
}

/// The host's thread for that worker, for one fault.
fn serve(both: &Both) {
    let slot = both.context.shm.fault(0);
    let posted = || slot.state.load(Ordering::SeqCst) == fault::POSTED;
    Bell(slot.host_bell).wait(&mut patience(), Deadline::Never, posted);
    faults::answer(&both.context, 0, &|context, va, _| {
        let (result, _) = context.call(&about(va.get())).map_err(FaultError::Device)?;
        assert_eq!(result, 0);
        Ok(())
    });
}

/// The worker itself maps its page: no other thread of the device looks at the ring.
#[test]
fn loom_a_worker_maps_its_own_page() {
    model_within(2, || together(&Both::new(1), vec![Box::new(access), Box::new(serve)]));
}

#[test]
fn loom_the_command_thread_may_map_it_instead() {
    model_within(1, || {
        together(
            &Both::new(1),
            vec![
                Box::new(Both::command_thread),
                Box::new(|both| {
                    access(both);
                    both.context.ask_to_exit();
                }),
                Box::new(serve),
            ],
        )
    });
}

/// A command that has nothing to do with the fault comes while the worker waits, and may be left to it.
#[test]
fn loom_another_command_is_carried_out_too() {
    model_within(1, || {
        let both = Both::new(1);
        together(
            &both,
            vec![
                Box::new(Both::command_thread),
                Box::new(|both| {
                    let answer = ask(&both.context.shm, (0, 0), (PAGE, true), &mut patience(), || both.drain());
                    assert_eq!(answer, codec::encode(Ok(())));
                }),
                Box::new(|both| {
                    let slot = both.context.shm.fault(0);
                    Bell(slot.host_bell).wait(&mut patience(), Deadline::Never, || slot.state.load(Ordering::SeqCst) == fault::POSTED);
                    faults::answer(&both.context, 0, &|_, _, _| Ok(()));
                    // By now the worker may look, sleep or be gone.
                    assert_eq!(both.context.call(&about(7)), Ok((0, 8)));
                    both.context.ask_to_exit();
                }),
            ],
        );
    });
}
