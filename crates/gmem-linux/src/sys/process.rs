//! What a thread does to itself.

use core::mem::MaybeUninit;
use rustix::io::Errno;
use std::os::fd::AsRawFd;

/// The errno of the last libc call.
pub(crate) fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Blocks every signal that can be blocked in the calling thread and in the threads it makes.
pub(crate) fn block_all_signals() -> Result<(), Errno> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the whole set; pthread_sigmask reads it and is told not to return the old one.
    let err = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), core::ptr::null_mut())
    };
    if err == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(err)) }
}

/// Whether the calling thread has the descriptor table of another of this process. `None` if the kernel does not say.
pub(crate) fn shares_descriptors_with(thread: i32) -> Option<bool> {
    const KCMP_FILES: libc::c_int = 2;
    let me = rustix::thread::gettid().as_raw_nonzero().get();
    // SAFETY: compares two threads by their numbers and touches no memory.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, me, thread, KCMP_FILES, 0usize, 0usize) };
    if order < 0 { None } else { Some(order == 0) }
}

/// Gives the calling thread a descriptor table of its own that holds standard error, and `/dev/null` for standard input and output. The program's
/// other descriptors are not copied: a copy would keep its pipes, sockets and files open after it closed them.
pub(crate) fn leave_descriptor_table() -> Result<(), Errno> {
    // SAFETY: with CLOSE_RANGE_UNSHARE the thread first gets its own table, so the descriptors closed are copies that nothing in this thread owns:
    // it is a fresh thread of gmem that has opened none.
    let err = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if err != 0 {
        return Err(errno());
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for standard in 0..2 {
        // SAFETY: replaces this table's copies of standard input and output, which stay open, as the standard library expects.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(errno());
        }
    }
    Ok(())
}
