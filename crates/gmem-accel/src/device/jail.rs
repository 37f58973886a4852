//! What a device process may not do: become several.
//!
//! The host takes the end of the process for the end of every access to memory, and gives its frames to others. A child that a kernel forked would have the
//! memory mapped all the same, and what a kernel executes would have the descriptors.

use super::entry::ENV;
use rustix::io::{FdFlags, fcntl_setfd};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// Keeps a descriptor from what the process might execute.
pub(super) fn keep(fd: impl AsFd) -> bool {
    fcntl_setfd(fd, FdFlags::CLOEXEC).is_ok()
}

/// Refuses new processes (`EPERM`) and other programs from here on; threads are allowed. Says whether it does; where the kernel has no filters it cannot.
pub(super) fn forbid_processes() -> bool {
    // SAFETY: before `main`, in the only thread.
    unsafe { std::env::remove_var(OsStr::from_bytes(ENV.to_bytes())) };
    filters().is_ok_and(|filters| filters.iter().all(|filter| seccompiler::apply_filter(filter).is_ok()))
}

fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    let filter = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
    };
    let thread = libc::CLONE_THREAD as u64;
    let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
    let mut processes = BTreeMap::from([(libc::SYS_execve, vec![]), (libc::SYS_execveat, vec![])]);
    processes.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
    #[cfg(target_arch = "x86_64")]
    processes.extend([(libc::SYS_fork, vec![]), (libc::SYS_vfork, vec![])]);
    // Its flags are in memory, where a filter cannot look; who wants a thread tries `clone` then.
    let unknown = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    Ok([filter(processes, libc::EPERM)?, filter(unknown, libc::ENOSYS)?])
}
