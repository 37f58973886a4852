//! Faults of kernels, as the processor reports them.

use super::{Device, ask, device, ring, worker};
use crate::shm::launch;
use crate::{codec, faults};
use gmem_hal::{Crash, FaultError, VirtAddr};
use libc::{c_int, c_void, siginfo_t};

/// Installs the handler for what a kernel can do wrong, and unblocks those signals. They run on the workers' alternate stacks.
pub(super) fn install() -> bool {
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT].into_iter().all(|signal| {
        // SAFETY: the structure is plain data, zero is a valid value of every field, and the handler has the signature SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigfillset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let (Some(device), Some(me)) = (device(), worker::current()) else { return give_up(signal) };
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    if code <= 0 {
        // Sent by somebody, not caused by an access. An abort is the kernel's own doing, but may come from inside the allocator, whose lock would stay
        // taken: only the end of the process is safe.
        if signal == libc::SIGABRT {
            worker::last_words(device, me, Crash::Abort);
        }
        return give_up(signal);
    }
    let inside = (device.config.window_start..device.config.window_end).contains(&address);
    // SEGV_MAPERR or SEGV_ACCERR; BUS_ADRERR is an absent page (see `window`). Others are memory errors and addresses that are none.
    let absent = (signal == libc::SIGSEGV && (code == 1 || code == 2)) || (signal == libc::SIGBUS && code == libc::BUS_ADRERR);
    if !(inside && absent) {
        let overflow = signal == libc::SIGSEGV && worker::is_below_stack(device, me, address);
        worker::crash(device, me, if overflow { Crash::StackOverflow } else { crash(signal, code, absent, address) });
    }
    if !worker::may_replay(device, me) {
        // With the host's memory it sees everything that is mapped, named or not.
        let error = if device.host.is_some() { FaultError::NotMapped } else { FaultError::NotNamed };
        worker::end(device, me, launch::FAULT, address, codec::encode(Err(error)));
    }
    // SAFETY: the kernel passes a valid ucontext to a handler installed with SA_SIGINFO.
    let write = unsafe { wrote(context) };
    let answer = ask_host(device, me, address, write);
    if answer != 0 {
        worker::end(device, me, launch::FAULT, address, answer);
    }
}

/// Asks the host to resolve the fault of worker `me`. Returns the answer's code, zero for "try again".
fn ask_host(device: &Device, me: usize, address: u64, write: bool) -> u64 {
    let server = faults::bell_of(me, device.config.workers as usize);
    let mut patience = worker::patience(device, me);
    let answer = ask::ask(&device.shm, (me, server), (address, write), &mut patience, || ring::drain(device));
    worker::set_patience(device, me, &patience);
    answer
}

/// What kind of crash a signal is that stands for no fault of a page. The address of a bad instruction is the instruction's own, so it is left out.
fn crash(signal: c_int, code: c_int, absent: bool, address: u64) -> Crash {
    /// The kernel's own: it does not know an address.
    const SI_KERNEL: c_int = 0x80;
    match signal {
        libc::SIGILL => Crash::Instruction,
        libc::SIGFPE => Crash::Arithmetic,
        _ if code == SI_KERNEL => Crash::NoAddress,
        libc::SIGBUS if !absent => Crash::Memory,
        _ => Crash::Access(VirtAddr::new(address)),
    }
}

/// Lets the default action end the process: the fault is a defect of the device itself, or the kernel aborts.
fn give_up(signal: c_int) {
    // SAFETY: restoring a default action is always valid, and so is raising a signal. It is blocked until the handler returns, and ends the process then: one that
    // somebody sent would not come again by itself, as one that an access caused does.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Whether the access that faulted was a store.
///
/// # Safety
/// `context` is what the kernel passed to a signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn wrote(context: *mut c_void) -> bool {
    // SAFETY: by contract of this function it points to a ucontext.
    let error = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    error & 2 != 0
}

/// Whether the access that faulted was a store: bit 6 (WnR) of the syndrome, which the kernel stores as a record of its own.
///
/// # Safety
/// `context` is what the kernel passed to a signal handler.
#[cfg(target_arch = "aarch64")]
unsafe fn wrote(context: *mut c_void) -> bool {
    const ESR_MAGIC: u32 = 0x4553_5201;
    const RECORDS: usize = 4096;
    // The reserved area follows the registers (31 general ones, sp, pc, pstate, the fault address) and is aligned to 16 bytes.
    const START: usize = (8 + 31 * 8 + 3 * 8usize).next_multiple_of(16);
    // SAFETY: by contract of this function it points to a ucontext.
    let base = unsafe { (&raw const (*context.cast::<libc::ucontext_t>()).uc_mcontext).cast::<u8>() };
    let mut at = 0;
    while at + 16 <= RECORDS {
        // SAFETY: the reserved area is RECORDS bytes long and `at + 16` stays in it.
        let (magic, size, esr) = unsafe {
            let record = base.add(START + at);
            (
                record.cast::<u32>().read_unaligned(),
                record.add(4).cast::<u32>().read_unaligned(),
                record.add(8).cast::<u64>().read_unaligned(),
            )
        };
        match magic {
            ESR_MAGIC => return esr & (1 << 6) != 0,
            0 => break,
            _ if size < 8 => break,
            _ => at += size as usize,
        }
    }
    true
}

/// Without knowledge of the processor every fault counts as a store, which asks for more than need be but never for too little.
///
/// # Safety
/// None needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn wrote(_context: *mut c_void) -> bool {
    true
}
