//! From the start of the executable to a working device.

use super::{DEVICE, Device, jail, peer, ring, signal, window, worker};
use crate::shm::{Shared, ready};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Patience};
use rustix::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The environment variable that makes an executable a device. Its value is the number of descriptors passed.
pub(crate) const ENV: &std::ffi::CStr = c"GMEM_ACCEL_DEVICE";

/// The first descriptor passed: the shared memory, the DRAM, the control socket and, in REPLICATE mode, the host's memory, in this order.
pub(crate) const FIRST_FD: RawFd = 3;

/// How long the command thread looks for another command before it sleeps: commands come in bursts.
const COMMAND_PATIENCE: Duration = Duration::from_micros(20);

/// Called by the C runtime before `main`, in every executable that links this crate.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTRY: extern "C" fn() = entry;

/// Named by the code that spawns device processes, so that this module is part of every program that could need it.
pub(crate) fn linked() -> bool {
    std::ptr::from_ref(&ENTRY).cast::<u8>().is_null()
}

extern "C" fn entry() {
    // SAFETY: no other thread exists yet, so nobody changes the environment; the result is only read before anything could.
    let fds = unsafe {
        let value = libc::getenv(ENV.as_ptr());
        if value.is_null() { None } else { Some(libc::atoi(value)) }
    };
    if let Some(fds) = fds {
        // A panic must not unwind into the C runtime, and there is nobody but the host to tell: it sees the process end.
        let code = std::panic::catch_unwind(|| serve(fds)).unwrap_or(70);
        exit(code);
    }
}

/// Ends the process without running anything of the program's.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` takes any code and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Takes the descriptor `fd` that the host passed.
fn take_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the descriptor is open.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, was passed for us to own, and each number is taken once.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn serve(fds: i32) -> i32 {
    // What we say on a terminal (`stty tostop`) must not stop us, who are in its background.
    // SAFETY: ignoring a signal calls nothing of ours.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    if !(3..=4).contains(&fds) {
        return 64;
    }
    // SAFETY: this process owns every descriptor; nothing has opened one that it still needs beyond those passed.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_FD + fds, u32::MAX, 0) };
    let (Some(shm), Some(dram), Some(socket)) = (take_fd(FIRST_FD), take_fd(FIRST_FD + 1), take_fd(FIRST_FD + 2)) else { return 64 };
    let host = if fds == 4 { take_fd(FIRST_FD + 3) } else { None };
    let Ok(shared) = Shared::map(&shm) else { return 65 };
    drop(shm);
    if !(jail::keep(&dram) && jail::keep(&socket) && host.iter().all(jail::keep)) {
        return 67;
    }
    if !jail::forbid_processes() {
        eprintln!(
            "gmem: this system has no filters for system calls: what a kernel forks outlives its context and may touch memory that is no longer its own"
        );
    }
    std::thread::spawn(move || watch(&socket));
    let Some(device) = set_up(shared, dram, host) else { return 66 };
    run(device)
}

/// Ends this process when the host hangs up: it exited, or was killed. (PR_SET_PDEATHSIG would fire when the *thread* that spawned us ends.)
fn watch(socket: &OwnedFd) -> ! {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(socket.as_fd(), &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => exit(0),
            Ok(_) => {}
        }
    }
}

/// Reserves the window and fills [`DEVICE`], or tells the host why not.
fn set_up(shm: Shared, dram: OwnedFd, host: Option<OwnedFd>) -> Option<&'static Device> {
    let config = shm.config()?;
    let limits = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    // A core dump would hold the whole DRAM. Failing to forbid it harms nobody.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, limits);
    let _ = rustix::thread::set_name(c"gmem-device");
    let answer = |value: u32| {
        shm.ready().store(value, Ordering::SeqCst);
        Bell(shm.ready_bell()).ring();
    };
    let Some(hole) = window::make_hole() else {
        answer(ready::FAILED);
        return None;
    };
    if let Err(taken) = window::reserve(&config, &hole) {
        answer(if taken { ready::RANGE_TAKEN } else { ready::FAILED });
        return None;
    }
    let peer = if config.peer {
        let Some(os) = peer::PeerOs::new(config.dram_len) else {
            answer(ready::FAILED);
            return None;
        };
        Some(os)
    } else {
        None
    };
    let device = Box::leak(Box::new(Device {
        shm,
        config,
        dram,
        host,
        hole,
        maps: AtomicU32::new(u32::MAX),
        draining: AtomicU32::new(0),
        crew: super::crew::Crew::new(config.workers as u32),
        workers: std::array::from_fn(|_| worker::Worker::default()),
        peer,
    }));
    DEVICE.store(device, Ordering::Release);
    Some(device)
}

/// The command thread: starts the workers, then carries out commands, and replaces workers that were ended, until told to exit.
fn run(device: &'static Device) -> i32 {
    if !signal::install() || (0..device.config.workers as usize).any(|w| !worker::start(device, w, 0)) {
        device.shm.ready().store(ready::FAILED, Ordering::SeqCst);
        Bell(device.shm.ready_bell()).ring();
        return 67;
    }
    device.shm.ready().store(ready::READY, Ordering::SeqCst);
    Bell(device.shm.ready_bell()).ring();
    let mut patience = Patience::new(COMMAND_PATIENCE);
    loop {
        ring::drain(device);
        worker::replace_ended(device);
        if device.shm.exit().load(Ordering::Acquire) != 0 {
            return 0;
        }
        Bell(device.shm.command_bell()).wait(&mut patience, Deadline::Never, || {
            ring::pending(&device.shm) || worker::any_ended(device) || device.shm.exit().load(Ordering::Acquire) != 0
        });
    }
}
