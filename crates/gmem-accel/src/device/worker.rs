//! Workers: the cores of the device. Each runs its part of every launch, in order.
//!
//! **A worker whose access cannot be resolved is ended, not rescued.** Unwinding or jumping out of a signal handler would skip destructors of the kernel's frames
//! that the optimizer relies on; so the thread exits right there, inside the handler, the command thread frees its stack and
//! starts another worker in its place, and the launch ends with the error. The context stays usable.

use super::Device;
use super::crew::record;
use crate::kernel::{Grid, KERNELS, MAX_ARGS};
use crate::shm::{MAX_CORES, launch};
use crate::wait::{Bell, Patience};
use crate::{codec, message};
use gmem_hal::Crash;
use libc::c_void;
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Stack of a worker, in bytes; only what is touched exists.
const STACK: usize = 8 << 20;
/// Alternate stack of a worker, for the handler, in bytes.
const ALT_STACK: usize = 64 << 10;
/// How long a worker looks for the next launch, or for its siblings to finish this one.
const LAUNCH_PATIENCE: Duration = Duration::from_micros(20);

/// One worker's own record.
#[derive(Default)]
pub(super) struct Worker {
    /// The thread, for joining it.
    thread: AtomicU64,
    alt_stack: AtomicUsize,
    /// The lowest byte of its stack, and of how many bytes its guard is.
    stack: AtomicUsize,
    guard: AtomicUsize,
    /// The launch it runs.
    launch: AtomicU32,
    /// 1 once the thread has decided to exit.
    ended: AtomicU32,
    /// What it learned about waiting for faults; zero at first.
    learned: AtomicU64,
}

thread_local! {
    /// The number of this worker plus one. Plain data in the executable's own thread-local storage, so a signal handler may read it.
    static ME: Cell<usize> = const { Cell::new(0) };
}

/// The worker that runs in this thread.
pub(super) fn current() -> Option<usize> {
    ME.get().checked_sub(1)
}

/// How long worker `me` looks for the answer to a fault.
pub(super) fn patience(device: &Device, me: usize) -> Patience {
    let longest = Duration::from_nanos(device.config.patience_ns);
    Patience::new(longest).having(device.workers[me].learned.load(Ordering::Relaxed))
}

/// Keeps what worker `me` learned about that.
pub(super) fn set_patience(device: &Device, me: usize, patience: &Patience) {
    device.workers[me].learned.store(patience.learned(), Ordering::Relaxed);
}

/// Whether faults of the launch that `me` runs go to the host.
pub(super) fn may_replay(device: &Device, me: usize) -> bool {
    let record = record(&device.shm, device.workers[me].launch.load(Ordering::Relaxed));
    device.shm.launch(record).replay.load(Ordering::Relaxed) != 0
}

/// Whether `address` lies in the guard below the stack of worker `me`: code touches its stack page by page, so it gets no further.
pub(super) fn is_below_stack(device: &Device, me: usize, address: u64) -> bool {
    let (stack, guard) = (device.workers[me].stack.load(Ordering::Relaxed), device.workers[me].guard.load(Ordering::Relaxed));
    // Before glibc 2.27 the guard was part of what is called the stack.
    (stack - guard..stack + guard).contains(&(address as usize))
}

/// Keeps where the stack of worker `me`, which is this thread, ends. Where that cannot be told, an overflow is an access like any other.
fn note_stack(worker: &Worker) {
    // SAFETY: the attributes are initialized by the first call, read by the others and destroyed by the last.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) != 0 {
            return;
        }
        let (mut stack, mut len, mut guard) = (std::ptr::null_mut(), 0, 0);
        if libc::pthread_attr_getstack(&attributes, &mut stack, &mut len) == 0
            && libc::pthread_attr_getguardsize(&attributes, &mut guard) == 0
            && guard <= stack as usize / 2
        {
            worker.stack.store(stack as usize, Ordering::Relaxed);
            worker.guard.store(guard, Ordering::Relaxed);
        }
        libc::pthread_attr_destroy(&mut attributes);
    }
}

/// Starts worker `me`, whose first launch is number `next`. Only the command thread starts workers.
pub(super) fn start(device: &'static Device, me: usize, next: u32) -> bool {
    let worker = &device.workers[me];
    worker.launch.store(next, Ordering::Relaxed);
    worker.ended.store(0, Ordering::SeqCst);
    // SAFETY: anonymous memory at an address of the kernel's choice.
    let stack = unsafe {
        libc::mmap(std::ptr::null_mut(), ALT_STACK, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if stack == libc::MAP_FAILED {
        return false;
    }
    worker.alt_stack.store(stack as usize, Ordering::Relaxed);
    let mut thread: libc::pthread_t = 0;
    // SAFETY: the attributes are initialized before use and destroyed after; the thread gets a plain number and reaches the device by the static.
    let created = unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        libc::pthread_attr_init(&mut attributes) == 0
            && libc::pthread_attr_setstacksize(&mut attributes, STACK) == 0
            && libc::pthread_create(&mut thread, &attributes, main, me as *mut c_void) == 0
            && libc::pthread_attr_destroy(&mut attributes) == 0
    };
    worker.thread.store(thread as u64, Ordering::Relaxed);
    created
}

/// Whether a worker waits to be replaced.
pub(super) fn any_ended(device: &Device) -> bool {
    device.workers[..device.config.workers as usize].iter().any(|w| w.ended.load(Ordering::SeqCst) != 0)
}

/// Frees what ended workers leave and starts others in their place.
pub(super) fn replace_ended(device: &'static Device) {
    for me in 0..device.config.workers as usize {
        let worker = &device.workers[me];
        if worker.ended.load(Ordering::SeqCst) == 0 {
            continue;
        }
        // SAFETY: the thread was created joinable, is joined once, and has decided to exit, so the join returns; the alternate stack
        // is its own, and after the join nothing runs on it.
        unsafe {
            libc::pthread_join(worker.thread.load(Ordering::Relaxed) as libc::pthread_t, std::ptr::null_mut());
            libc::munmap(worker.alt_stack.load(Ordering::Relaxed) as *mut c_void, ALT_STACK);
        }
        if !start(device, me, worker.launch.load(Ordering::Relaxed).wrapping_add(1)) {
            super::entry::exit(71); // a device without its cores is no device; the host sees it die
        }
    }
}

extern "C" fn main(me: *mut c_void) -> *mut c_void {
    let me = me as usize;
    let Some(device) = super::device() else { return std::ptr::null_mut() };
    ME.set(me + 1);
    let alt = libc::stack_t { ss_sp: device.workers[me].alt_stack.load(Ordering::Relaxed) as *mut c_void, ss_flags: 0, ss_size: ALT_STACK };
    // SAFETY: the memory is this worker's own and lives until it was joined.
    unsafe { libc::sigaltstack(&alt, std::ptr::null_mut()) };
    note_stack(&device.workers[me]);
    let mut next = device.workers[me].launch.load(Ordering::Relaxed);
    let mut patience = Patience::new(LAUNCH_PATIENCE);
    loop {
        device.crew.wait_for(&device.shm, next, &mut patience);
        device.workers[me].launch.store(next, Ordering::Relaxed);
        if let Err(panic) = run_part(device, me, next) {
            let said = message::of(panic);
            device.crew.fail(&device.shm, next, launch::PANICKED, || (message::write(&device.shm, record(&device.shm, next), &said), 0));
        }
        device.crew.arrive(&device.shm, next);
        next = next.wrapping_add(1);
    }
}

/// Runs the kernel of the launch at this turn as worker `me`. What it panicked with is the error.
fn run_part(device: &Device, me: usize, turn: u32) -> std::thread::Result<()> {
    let record = record(&device.shm, turn);
    let slot = device.shm.launch(record);
    let nargs = (slot.nargs.load(Ordering::Relaxed) as usize).min(MAX_ARGS);
    let args: [u64; MAX_ARGS] = std::array::from_fn(|i| device.shm.launch_arg(record, i).load(Ordering::Relaxed));
    let Some(kernel) = KERNELS.get(slot.kernel.load(Ordering::Relaxed) as usize) else { return Err(Box::new("no such kernel")) };
    let grid = Grid { worker: me, workers: device.config.workers as usize };
    // SAFETY: whoever launched the kernel passed the arguments it was written for; that is the contract of `Kernel::run`.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { (kernel.run)(grid, &args[..nargs]) }))
}

/// Worker `me` is about to end the whole process, by its kernel's wish: leaves word of it. Async-signal-safe.
pub(super) fn last_words(device: &Device, me: usize, crash: Crash) {
    let turn = device.workers[me].launch.load(Ordering::Relaxed);
    device.crew.fail(&device.shm, turn, launch::CRASHED, || codec::encode_crash(crash));
}

/// Ends worker `me` inside its signal handler: its kernel crashed. Async-signal-safe.
pub(super) fn crash(device: &Device, me: usize, crash: Crash) -> ! {
    let (code, va) = codec::encode_crash(crash);
    end(device, me, launch::CRASHED, va, code)
}

/// Ends worker `me` inside its signal handler: its launch failed. Async-signal-safe.
pub(super) fn end(device: &Device, me: usize, status: u32, va: u64, code: u64) -> ! {
    let worker = &device.workers[me];
    let turn = worker.launch.load(Ordering::Relaxed);
    device.crew.fail(&device.shm, turn, status, || (code, va));
    // First the replacement, then the end of the launch: whoever waits for the launch may look for the new worker at once.
    worker.ended.store(1, Ordering::SeqCst);
    Bell(device.shm.command_bell()).ring();
    device.crew.arrive(&device.shm, turn);
    loop {
        // SAFETY: `exit` ends this thread only. Its stack is freed by the command thread after a join, which waits for the kernel to clear
        // the thread's id at the very end; nothing borrows from that stack, by the contract of `Kernel::run`.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

const _: () = assert!(MAX_CORES >= 1);
