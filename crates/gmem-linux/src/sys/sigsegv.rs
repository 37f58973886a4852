//! The process-wide SIGSEGV handler of in-thread delivery.
//!
//! * All signals are masked while it runs, SIGSEGV included: a second fault inside it makes the kernel kill the process, which is right, because
//!   nothing on this path touches managed memory.
//! * It runs on the alternate signal stack if the thread has one, or else stack overflows could not be passed on to the handler that was there
//!   before (the one of Rust's standard library, for instance). Alternate stacks are small, often 8 KiB, so resolving a fault of ours goes on below
//!   the stack of the interrupted code, where there is room; or on a spare one, if the interrupted code is a handler on the alternate stack itself.
//! * It allocates nothing and preserves `errno`.

use super::process::errno;
use super::stack::{self, Spares};
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use gmem_hal::{Access, VirtAddr};
use rustix::io::Errno;
use std::sync::OnceLock;

/// Who resolves the faults. Both functions must be async-signal-safe.
#[derive(Clone, Copy)]
pub(crate) struct Resolver {
    /// Whether an address is gmem's. Called for every SIGSEGV of the process, with little stack, perhaps because there is no more.
    pub(crate) owns: fn(VirtAddr) -> bool,
    /// Resolves a fault at such an address: true if the access can be tried again.
    pub(crate) resolve: fn(VirtAddr, Access) -> bool,
}

/// What the handler needs, set before it is installed and never changed.
struct Installed {
    resolver: Resolver,
    previous: libc::sigaction,
    spares: Spares,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Installs the handler, once per process; later calls do nothing.
pub(crate) fn install(resolver: Resolver) -> Result<(), Errno> {
    let mut result = Ok(());
    let spares = Spares::new()?;
    INSTALLED.get_or_init(|| {
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks for the current action only; the kernel fills the structure, and all zeros is a valid one if it did not.
        let previous = unsafe {
            libc::sigaction(libc::SIGSEGV, core::ptr::null(), previous.as_mut_ptr());
            previous.assume_init()
        };
        Installed { resolver, previous, spares }
    });
    static ONCE: OnceLock<i32> = OnceLock::new();
    let err = *ONCE.get_or_init(|| {
        // SAFETY: all zeros is a valid sigaction.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = (handler as unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is valid; the handler is async-signal-safe (module documentation) and finds INSTALLED set.
        let err = unsafe {
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGSEGV, &raw const action, null_mut())
        };
        if err == 0 { 0 } else { errno().raw_os_error() }
    });
    if err != 0 {
        result = Err(Errno::from_raw_os_error(err));
    }
    result
}

/// A fault on its way to the other stack and back.
struct Question {
    va: VirtAddr,
    access: Access,
    resolver: Resolver,
    resolved: bool,
}

unsafe extern "C" fn ask(question: *mut c_void) {
    // SAFETY: `resolved` passes a pointer to a live Question that nobody else uses meanwhile.
    let question = unsafe { &mut *question.cast::<Question>() };
    question.resolved = (question.resolver.resolve)(question.va, question.access);
}

/// # Safety
/// Only for the kernel to call, as a SA_SIGINFO handler.
unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the location is this thread's own.
    let saved = unsafe { *libc::__errno_location() };
    if let Some(installed) = INSTALLED.get() {
        // SAFETY: the kernel passes a valid siginfo and ucontext to SA_SIGINFO handlers.
        let done = unsafe { resolved(installed, &*info, context.cast()) };
        if !done {
            // SAFETY: the arguments are those of this very delivery.
            unsafe { pass_on(&installed.previous, signal, info, context) };
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved };
}

/// # Safety
/// `context` is the ucontext of the delivery that `info` describes.
unsafe fn resolved(installed: &Installed, info: &libc::siginfo_t, context: *const libc::ucontext_t) -> bool {
    /// The mapping is there and forbids the access: all that `PROT_NONE` can give.
    const SEGV_ACCERR: c_int = 2;
    if info.si_code != SEGV_ACCERR {
        return false;
    }
    // SAFETY: a SIGSEGV made by the kernel carries an address.
    let va = VirtAddr::new(unsafe { info.si_addr() } as usize as u64);
    let resolver = installed.resolver;
    // Before anything is put on the interrupted stack: it may be what overflowed.
    if !(resolver.owns)(va) {
        return false;
    }
    // SAFETY: the caller's promise.
    let context = unsafe { &*context };
    let mut question = Question { va, access: access(context), resolver, resolved: false };
    let arg = (&raw mut question).cast::<c_void>();
    match room(context, arg as usize) {
        // SAFETY: the interrupted code of this thread is suspended until the handler returns, and `sp` is its stack pointer.
        Room::Below(sp) => unsafe { stack::call_below(sp, ask, arg) },
        // SAFETY: `arg` points to the question.
        Room::Spare => unsafe { installed.spares.call(ask, arg) },
        // SAFETY: as above.
        Room::Here => unsafe { ask(arg) },
    }
    question.resolved
}

/// Where there is room to resolve a fault.
enum Room {
    /// On the handler's own stack, which is no alternate one.
    Here,
    /// Below the stack pointer of the interrupted code.
    Below(usize),
    /// On neither: both use the alternate stack.
    Spare,
}

/// Where to resolve the fault of the interrupted code. `here` is an address on the handler's stack.
fn room(context: &libc::ucontext_t, here: usize) -> Room {
    let (low, size) = (context.uc_stack.ss_sp as usize, context.uc_stack.ss_size);
    let alternate = low..low.saturating_add(size);
    match stack_pointer(context) {
        _ if !alternate.contains(&here) => Room::Here,
        Some(sp) if !alternate.contains(&sp) => Room::Below(sp),
        _ => Room::Spare,
    }
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: &libc::ucontext_t) -> Option<usize> {
    Some(context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize)
}

#[cfg(target_arch = "aarch64")]
fn stack_pointer(context: &libc::ucontext_t) -> Option<usize> {
    Some(context.uc_mcontext.sp as usize)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn stack_pointer(_context: &libc::ucontext_t) -> Option<usize> {
    None
}

/// Whether the access was a load or a store. Bit 1 of the page fault error code says so.
#[cfg(target_arch = "x86_64")]
fn access(context: &libc::ucontext_t) -> Access {
    if context.uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0 { Access::Write } else { Access::Read }
}

/// Whether the access was a load or a store: bit 6 (WnR) of the exception syndrome, which the kernel puts into a record after the registers. A store if
/// there is no such record.
#[cfg(target_arch = "aarch64")]
fn access(context: &libc::ucontext_t) -> Access {
    const ESR_MAGIC: u32 = 0x4553_5201;
    /// The records begin after the floating point state's alignment, at the end of the known registers.
    const RECORDS: usize = 4096;
    let base = (&raw const context.uc_mcontext).cast::<u8>();
    let mut at = size_of_val(&context.uc_mcontext) - RECORDS;
    let end = size_of_val(&context.uc_mcontext);
    while at + 16 <= end {
        // SAFETY: `at` stays inside the machine context, which is plain bytes here; records are 16-byte aligned.
        let (magic, size) = unsafe { (base.add(at).cast::<u32>().read(), base.add(at + 4).cast::<u32>().read()) };
        if magic == ESR_MAGIC {
            // SAFETY: the record is its header of 8 bytes and the syndrome.
            let syndrome = unsafe { base.add(at + 8).cast::<u64>().read() };
            return if syndrome & (1 << 6) != 0 { Access::Write } else { Access::Read };
        }
        if magic == 0 || size < 8 {
            break;
        }
        at += size as usize;
    }
    Access::Write
}

/// Without a way to tell, a store: it asks for more, so nothing is lost.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn access(_context: &libc::ucontext_t) -> Access {
    Access::Write
}

/// Does what would have been done without gmem.
///
/// # Safety
/// The arguments are those the kernel passed to the handler.
unsafe fn pass_on(previous: &libc::sigaction, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if previous.sa_sigaction == libc::SIG_DFL || previous.sa_sigaction == libc::SIG_IGN {
        // A fault cannot be ignored. With the default action back, the access is repeated on return and ends the process the way it should, core dump and
        // all; a signal that someone sent does not repeat itself and is sent again.
        // SAFETY: all zeros with SIG_DFL is a valid action; `raise` is async-signal-safe, and pends until the handler returns.
        unsafe {
            let mut default: libc::sigaction = core::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const default, null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
        type Full = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: the program installed this address as a three-argument handler, and the arguments are this delivery's.
        unsafe { core::mem::transmute::<usize, Full>(previous.sa_sigaction)(signal, info, context) }
    } else {
        // SAFETY: the program installed this address as a one-argument handler.
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(previous.sa_sigaction)(signal) }
    }
}
