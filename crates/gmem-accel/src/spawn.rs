//! Starting a device process: this very executable again, with a handful of descriptors.
//!
//! `posix_spawn` and not `fork`: the child never owns a copy of this process, so nothing is copied, no userfaultfd has to be told, and no
//! lock of the program can be inherited held.
//!
//! The process is a child of the program, which a program that waits for *any* child will notice: it may get our child's status, and a SIGCHLD. If it
//! reaps the child before we do, nothing is lost: the end is learnt from the pidfd.

use crate::device;
use crate::shm::{Config, Shared};
use gmem_hal::DeviceError;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStringExt;

/// A device process that was started, with what it shares with us.
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Our end of the control socket: closing it ends the process.
    pub(crate) socket: OwnedFd,
    pub(crate) shm: Shared,
}

/// Numbers from here up are free of what the child's table must hold.
const HIGH: i32 = 64;

/// Starts a device process. It reports through the shared memory when it is ready.
pub(crate) fn spawn(config: &Config, dram: BorrowedFd<'_>, host: Option<BorrowedFd<'_>>) -> Result<Spawned, Errno> {
    let ring = rustix::fs::memfd_create("gmem-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&ring, Shared::LEN as u64)?;
    rustix::fs::fcntl_add_seals(&ring, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let shm = Shared::map(&ring)?;
    shm.set_config(config);
    let (socket, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut passed = Vec::new();
    for fd in [ring.as_fd(), dram, theirs.as_fd()].into_iter().chain(host) {
        // Out of the way of the numbers they will get, which may be in use here.
        passed.push(rustix::io::fcntl_dupfd_cloexec(fd, HIGH).map_err(|e| match e {
            // The limit on descriptors is below the number to begin at.
            Errno::INVAL => Errno::MFILE,
            other => other,
        })?);
    }
    let pid = start(&passed)?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Spawned { pid, pidfd, socket, shm }),
        Err(e) => {
            // Hanging up ends the child; it cannot be left as a zombie.
            drop((socket, theirs, passed));
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(e)
        }
    }
}

/// Why the system does not give a device what it is made of: memory, descriptors, a process.
pub(crate) fn refusal(e: Errno) -> DeviceError {
    match e {
        Errno::MFILE | Errno::NFILE => DeviceError::TooManyFiles,
        Errno::NOSYS | Errno::PERM | Errno::NOEXEC | Errno::NOENT | Errno::ACCESS => DeviceError::Unsupported,
        _ => DeviceError::NoMemory,
    }
}

/// The program's environment and the variable that makes a device of it.
fn environment(fds: usize) -> Vec<CString> {
    let pair = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut bytes = key.into_vec();
        bytes.push(b'=');
        bytes.extend(value.into_vec());
        CString::new(bytes).ok()
    };
    let name = device::ENV.to_string_lossy();
    let ours = CString::new(format!("{name}={fds}")).ok();
    std::env::vars_os().filter(|(key, _)| *key != *name).filter_map(pair).chain(ours).collect()
}

/// Spawns the executable with `passed` as its descriptors from [`device::FIRST_FD`] up.
fn start(passed: &[OwnedFd]) -> Result<Pid, Errno> {
    if device::linked() {
        return Err(Errno::NOEXEC); // the entry point of the device is not in this program
    }
    let environment = environment(passed.len());
    let mut envp: Vec<*mut c_char> = environment.iter().map(|v| v.as_ptr().cast_mut()).collect();
    envp.push(std::ptr::null_mut());
    let argv = [c"gmem-device".as_ptr().cast_mut(), std::ptr::null_mut()];
    let mut pid: libc::pid_t = 0;
    // SAFETY: the two structures are initialized before and destroyed after use; every pointer passed lives until the end of this block;
    // `posix_spawn` copies what it is given before it returns.
    let error = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        let (mut none, mut all) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut none);
        libc::sigfillset(&mut all);
        libc::posix_spawn_file_actions_init(&mut actions);
        libc::posix_spawnattr_init(&mut attributes);
        let null = c"/dev/null".as_ptr();
        libc::posix_spawn_file_actions_addopen(&mut actions, 0, null, libc::O_RDONLY, 0);
        libc::posix_spawn_file_actions_addopen(&mut actions, 1, null, libc::O_WRONLY, 0);
        for (i, fd) in passed.iter().enumerate() {
            libc::posix_spawn_file_actions_adddup2(&mut actions, fd.as_raw_fd(), device::FIRST_FD + i as i32);
        }
        // A process group of its own: what the terminal sends to the program's group is the program's to handle. Not a session of its own: the scheduler shares
        // processors among sessions first, and has kept the only runnable thread of a session waiting for seconds while others computed.
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
        libc::posix_spawnattr_setflags(&mut attributes, flags as libc::c_short);
        libc::posix_spawnattr_setsigmask(&mut attributes, &none);
        libc::posix_spawnattr_setsigdefault(&mut attributes, &all);
        let executable = c"/proc/self/exe".as_ptr();
        let error = libc::posix_spawn(&mut pid, executable, &actions, &attributes, argv.as_ptr(), envp.as_ptr());
        libc::posix_spawn_file_actions_destroy(&mut actions);
        libc::posix_spawnattr_destroy(&mut attributes);
        error
    };
    if error != 0 {
        return Err(Errno::from_raw_os_error(error));
    }
    Pid::from_raw(pid).ok_or(Errno::SRCH)
}
