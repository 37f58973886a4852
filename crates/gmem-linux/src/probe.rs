//! What this machine permits, and what follows from it.

use crate::sys::area::{Advice, Area};
use crate::sys::uffd;
use arrayvec::ArrayVec;
use gmem_hal::{PageSize, Prot, VirtRange};
use linux_raw_sys::general as raw;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs;

/// At least as many descriptors as a host opens when it starts, those included that are open only for a moment.
const OPENED: usize = 8;

/// How a userfaultfd can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UffdAccess {
    /// By the system call, for all faults.
    Full,
    /// From `/dev/userfaultfd`, for all faults.
    Device,
    /// By the system call, for faults of user code only: system calls on absent pages fail with `EFAULT`.
    UserModeOnly,
    /// Not at all.
    Refused,
}

/// The machine, as far as gmem cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// How a userfaultfd can be had.
    pub uffd: UffdAccess,
    /// The userfaultfd features of the kernel, a mask of `UFFD_FEATURE_`.
    pub uffd_features: u64,
    /// Faults on absent pages of memfds are reported, the missing and the unmapped: shared backing with service delivery works.
    pub uffd_shmem: bool,
    /// `UFFDIO_MOVE` works: private backing is possible.
    pub uffd_move: bool,
    /// `UFFDIO_POISON` works: an access that cannot be served dies with SIGBUS.
    pub uffd_poison: bool,
    /// A userfaultfd can raise SIGBUS instead of an event.
    pub uffd_sigbus: bool,
    /// Writes can be tracked without stopping the writer.
    pub uffd_wp_async: bool,
    /// A memfd can be made.
    pub memfd: bool,
    /// `MADV_COLLAPSE` made a huge page in a memfd, just now.
    pub collapse: bool,
    /// The setting of transparent huge pages: `always`, `madvise` or `never`; empty if unknown.
    pub thp: String,
    /// `vm.max_map_count`, 0 if unknown.
    pub max_map_count: u64,
    /// `vm.overcommit_memory`: 0 heuristic, 1 always, 2 never.
    pub overcommit: u64,
    /// Total memory in bytes.
    pub memory_total: u64,
    /// Memory available without swapping, in bytes.
    pub memory_available: u64,
    /// Processors this process may use.
    pub cores: usize,
}

/// Looks at the machine. Uses throw-away descriptors and 2 MiB of memory for a moment; takes a few milliseconds.
pub fn probe() -> Probe {
    let uffd = best_access();
    let uffd_features = uffd_features(uffd).unwrap_or(0);
    let has = |feature: u32| uffd_features & u64::from(feature) != 0;
    let collapse = try_collapse();
    Probe {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        uffd,
        uffd_features,
        uffd_shmem: has(raw::UFFD_FEATURE_MISSING_SHMEM) && has(raw::UFFD_FEATURE_MINOR_SHMEM),
        uffd_move: has(raw::UFFD_FEATURE_MOVE),
        uffd_poison: has(raw::UFFD_FEATURE_POISON),
        uffd_sigbus: has(raw::UFFD_FEATURE_SIGBUS),
        uffd_wp_async: has(raw::UFFD_FEATURE_WP_ASYNC),
        memfd: collapse.is_some(),
        collapse: collapse == Some(true),
        thp: selected("/sys/kernel/mm/transparent_hugepage/enabled"),
        max_map_count: number("/proc/sys/vm/max_map_count"),
        overcommit: number("/proc/sys/vm/overcommit_memory"),
        memory_total: meminfo("MemTotal:"),
        memory_available: meminfo("MemAvailable:"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

impl Probe {
    /// What is missing, a sentence each: what follows, and what would allow it. Empty if nothing is.
    pub fn consequences(&self) -> Vec<String> {
        let mut said = Vec::new();
        self.say_uffd(&mut said);
        self.say_memory(&mut said);
        said
    }

    fn say_uffd(&self, said: &mut Vec<String>) {
        const ALLOW: &str = "to allow it: `sysctl vm.unprivileged_userfaultfd=1`, or access to /dev/userfaultfd, or CAP_SYS_PTRACE";
        match self.uffd {
            UffdAccess::Full | UffdAccess::Device => {}
            UffdAccess::UserModeOnly => said.push(format!(
                "userfaultfd serves user code only: system calls such as read(2) on absent pages fail with EFAULT; {ALLOW}."
            )),
            UffdAccess::Refused => {
                said.push(format!("userfaultfd is refused: only in-thread fault delivery on shared backing works; {ALLOW}."));
            }
        }
        if self.uffd == UffdAccess::Refused {
            return;
        }
        if !self.uffd_shmem {
            said.push("userfaultfd does not serve memfds: service delivery does not work; it needs Linux 5.14.".into());
        }
        if !self.uffd_move {
            said.push("UFFDIO_MOVE is missing: private backing does not work; it needs Linux 6.8.".into());
        }
        if !self.uffd_poison {
            said.push(
                "UFFDIO_POISON is missing: an access that cannot be served dies with SIGSEGV instead of SIGBUS; it needs Linux 6.6.".into(),
            );
        }
    }

    fn say_memory(&self, said: &mut Vec<String>) {
        if !self.memfd {
            said.push("memfd_create is refused: no address space can be made.".into());
        } else if !self.collapse {
            said.push(
                "MADV_COLLAPSE does not make huge pages in a memfd: 2 MiB pages work but cost several times more; it needs Linux 6.1."
                    .into(),
            );
        }
        if self.thp == "never" {
            said.push(
                "transparent huge pages are off: private backing moves 2 MiB as 512 base pages; to allow them: \
                       `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`."
                    .into(),
            );
        }
        if self.max_map_count != 0 && self.max_map_count < 65530 {
            said.push(format!(
                "vm.max_map_count is {}: regions whose pages alternate between CPU and device reach it soon; `sysctl vm.max_map_count=1048576` raises it.",
                self.max_map_count
            ));
        }
        if self.overcommit == 2 {
            said.push(
                "vm.overcommit_memory is 2: reserving large address spaces is refused; `sysctl vm.overcommit_memory=0` allows it.".into(),
            );
        }
    }
}

/// Whether this thread's table has room for what the host opens when it starts, by opening as many for a moment.
pub(crate) fn room_for_descriptors() -> Result<(), Errno> {
    let trial: Result<ArrayVec<_, OPENED>, _> = (0..OPENED).map(|_| eventfd(0, EventfdFlags::CLOEXEC)).collect();
    trial.map(drop)
}

/// The best kind of userfaultfd that works here.
pub(crate) fn best_access() -> UffdAccess {
    [UffdAccess::Full, UffdAccess::Device, UffdAccess::UserModeOnly]
        .into_iter()
        .find(|access| uffd_features(*access).is_ok())
        .unwrap_or(UffdAccess::Refused)
}

/// The features of the kernel, by a handshake on a throw-away descriptor: a descriptor can make it once.
pub(crate) fn uffd_features(access: UffdAccess) -> Result<u64, Errno> {
    uffd::handshake(&uffd::open_raw(access)?, 0)
}

/// Makes one huge page in a memfd. `None`: there is not even a memfd.
fn try_collapse() -> Option<bool> {
    let memfd = memfd_create("gmem-probe", MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&memfd, PageSize::Size2M.bytes()).ok()?;
    let area = Area::reserve(PageSize::Size2M.bytes()).ok()?;
    area.map_file(area.range(), &memfd, 0, Prot::RW).ok()?;
    let first = VirtRange::page(area.range().start(), PageSize::Size4K)?;
    let collapse = || area.advise(area.range(), Advice::Collapse);
    let touched = area.advise(first, Advice::PopulateWrite).is_ok();
    // The first try may meet a page that is on its way to a list.
    Some(touched && (collapse().is_ok() || collapse().is_ok() || collapse().is_ok()))
}

/// The word in brackets: `always [madvise] never`.
fn selected(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(String::new(), |(word, _)| word.into())
}

fn number(path: &str) -> u64 {
    fs::read_to_string(path).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0)
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_agrees_with_itself_and_says_what_is_missing() {
        let mut p = probe();
        assert!(p.memory_total >= p.memory_available && p.memory_available > 0, "{p:?}");
        assert!(p.memfd && p.cores > 0 && !p.kernel.is_empty(), "{p:?}");
        p.uffd = UffdAccess::Refused;
        p.overcommit = 2;
        let said = p.consequences().join("\n");
        assert!(said.contains("unprivileged_userfaultfd=1") && said.contains("overcommit_memory=0"), "{said}");
    }
}
