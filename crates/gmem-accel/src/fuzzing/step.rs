//! What a device can do besides what it is asked for: write into the shared memory.

use super::bytes::Bytes;
use crate::context::Context;
use crate::shm::{MESSAGE, command};
use std::sync::atomic::Ordering::SeqCst;

/// One thing that the device does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// What it was asked for.
    Obey,
    /// Nothing.
    Wait,
    /// It says of its oldest command that this came of it.
    Answer { result: u32, value: u64 },
    /// It says that so many commands more, or fewer, are done.
    Tail(u32),
    /// It changes a command that was posted, counted back from the last.
    Command { back: u8, field: u8, value: u64 },
    /// It faults, or says so.
    Fault { worker: u8, state: u32, access: u32, va: u64 },
    /// It changes what the host answered.
    FaultAnswer { worker: u8, answer: u64 },
    /// It says something of a launch, counted back from the last.
    Launch { back: u8, status: u32, va: u64, code: u64 },
    /// It says that a launch, counted back from the last, is over, or that it is not after all.
    LaunchOver(u32),
    /// It writes one of its other words.
    Word { which: u8, value: u32 },
    /// It writes a bell.
    Bell { which: u8, value: u32 },
    /// It dies.
    Die,
}

impl Step {
    /// The next one.
    pub(super) fn read(bytes: &mut Bytes<'_>) -> Self {
        match bytes.byte() % 16 {
            0 | 12 => Self::Obey,
            1 => Self::Wait,
            2 | 13 => Self::Answer { result: u32::from(bytes.byte() % 9), value: bytes.number() },
            3 => Self::Tail(i32::from(bytes.byte() as i8) as u32),
            4 => Self::Tail(bytes.number() as u32),
            5 | 14 => Self::Command { back: bytes.byte(), field: bytes.byte(), value: bytes.number() },
            6 => Self::Fault { worker: bytes.byte(), state: 1, access: u32::from(bytes.byte()), va: bytes.number() },
            7 => Self::Fault { worker: bytes.byte(), state: bytes.number() as u32, access: bytes.number() as u32, va: bytes.number() },
            8 => Self::FaultAnswer { worker: bytes.byte(), answer: bytes.number() },
            9 => Self::Launch { back: bytes.byte(), status: u32::from(bytes.byte()), va: bytes.number(), code: bytes.number() },
            10 => Self::LaunchOver(bytes.number() as u32),
            11 => Self::Word { which: bytes.byte(), value: bytes.number() as u32 },
            _ => match bytes.byte() {
                255 => Self::Die,
                which => Self::Bell { which, value: bytes.number() as u32 },
            },
        }
    }

    /// The device does it; `obey` is what an honest one does.
    pub(super) fn take(self, context: &Context, obey: impl Fn()) {
        let shm = &context.shm;
        match self {
            Self::Obey => obey(),
            Self::Wait => {}
            Self::Answer { result, value } => {
                let tail = shm.tail().load(SeqCst);
                let slot = shm.command(shm.command_record(tail).load(SeqCst));
                slot.result.store(result, SeqCst);
                slot.value.store(value, SeqCst);
                slot.state.store(command::DONE, SeqCst);
                shm.tail().store(tail.wrapping_add(1), SeqCst);
            }
            Self::Tail(by) => {
                shm.tail().fetch_add(by, SeqCst);
            }
            Self::Command { back, field, value } => {
                let slot = shm.command(shm.command_record(shm.head().load(SeqCst).wrapping_sub(1 + u32::from(back))).load(SeqCst));
                match field % 8 {
                    0 => slot.state.store(value as u32, SeqCst),
                    1 => slot.op.store(value as u32, SeqCst),
                    2 => slot.prot.store(value as u32, SeqCst),
                    3 => slot.result.store(value as u32, SeqCst),
                    4 => slot.va.store(value, SeqCst),
                    5 => slot.len.store(value, SeqCst),
                    6 => slot.frame.store(value, SeqCst),
                    _ => slot.value.store(value, SeqCst),
                }
            }
            Self::Fault { worker, state, access, va } => {
                let slot = shm.fault(worker.into());
                slot.va.store(va, SeqCst);
                slot.access.store(access, SeqCst);
                slot.state.store(state, SeqCst);
            }
            Self::FaultAnswer { worker, answer } => shm.fault(worker.into()).answer.store(answer, SeqCst),
            Self::Launch { back, status, va, code } => {
                let record = shm.launch_record(shm.launch_head().load(SeqCst).wrapping_sub(1 + u32::from(back))).load(SeqCst);
                let slot = shm.launch(record);
                // And what a kernel that panicked said, somewhere in it.
                shm.launch_message(record, usize::from(back) % (MESSAGE / 8)).store(va, SeqCst);
                slot.va.store(va, SeqCst);
                slot.code.store(code, SeqCst);
                slot.status.store(status, SeqCst);
            }
            Self::LaunchOver(back) => {
                let record = shm.launch_record(shm.launch_head().load(SeqCst).wrapping_sub(1).wrapping_sub(back)).load(SeqCst);
                shm.launch(record).over.fetch_xor(1, SeqCst);
            }
            Self::Word { which, value } => {
                let word = match which % 6 {
                    0 => shm.ready(),
                    1 => shm.revoke_failed(),
                    2 => shm.drainers(),
                    3 => shm.exit(),
                    4 => shm.launch_head(),
                    _ => shm.tail(),
                };
                word.store(value, SeqCst);
            }
            Self::Bell { which, value } => bell(context, which).store(value, SeqCst),
            Self::Die => context.set_dead(|| {}),
        }
    }
}

fn bell(context: &Context, which: u8) -> &std::sync::atomic::AtomicU32 {
    let shm = &context.shm;
    let worker = usize::from(which) / 8;
    match which % 8 {
        0 => shm.ready_bell(),
        1 => shm.command(8 * worker as u32).bell,
        2 => shm.command_bell(),
        3 => shm.launch_bell(),
        4 => shm.launch(worker as u32).bell,
        5 => shm.fault(worker).host_bell,
        _ => shm.fault(worker).device_bell,
    }
}
