//! What this machine has and permits, as far as the command line is checked against it.

use crate::failure::Failure;
use gmem::{Backing, Delivery, Probe, UffdAccess};

/// Memory, processors and permissions.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Bytes of memory in the machine, or allowed to this process if a control group allows less.
    pub(crate) total: u64,
    /// Bytes that can be had now without swapping.
    pub(crate) available: u64,
    /// Processors this process may run on.
    pub(crate) cpus: usize,
    /// What the kernel permits.
    pub(crate) probe: Probe,
}

impl Machine {
    /// Asks the system.
    pub(crate) fn inspect() -> Result<Self, Failure> {
        let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| Failure::while_doing("/proc/meminfo", e))?;
        let available = meminfo(&text, "MemAvailable").ok_or_else(|| Failure::Failed("/proc/meminfo has no MemAvailable".to_owned()))?;
        let total = gmem::accel::machine_memory().get();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { total, available: available.min(total), cpus, probe: gmem::probe() })
    }

    /// Why regions of this kind cannot be had here, if so.
    pub(crate) fn refuses(&self, backing: Backing, delivery: Delivery) -> Option<&'static str> {
        let p = &self.probe;
        match (backing, delivery) {
            (Backing::Private, Delivery::InThread) => {
                Some("private memory is for I/O, and a fault of the kernel raises no signal in a thread")
            }
            (Backing::Shared, Delivery::InThread) => None,
            (_, Delivery::Service) if p.uffd == UffdAccess::Refused => Some("the system refuses userfaultfd"),
            (_, Delivery::Service) if !p.uffd_shmem => Some("this kernel's userfaultfd does not serve shared memory"),
            (Backing::Private, Delivery::Service) if !p.uffd_move => Some("this kernel's userfaultfd cannot move pages"),
            (_, Delivery::Service) => None,
        }
    }

    /// Whether system calls such as read(2) work on absent pages of such regions.
    pub(crate) fn serves_system_calls(&self, delivery: Delivery) -> bool {
        delivery == Delivery::Service && self.probe.uffd != UffdAccess::UserModeOnly
    }

    /// What the machine lacks and what would allow it, a sentence each.
    pub(crate) fn remedies(&self) -> String {
        self.probe.consequences().join("\n")
    }
}

#[cfg(test)]
impl Machine {
    /// A machine on which everything is permitted.
    pub(crate) fn permissive(total: u64, available: u64) -> Self {
        let mut probe = gmem::probe();
        probe.uffd = UffdAccess::Full;
        (probe.uffd_shmem, probe.uffd_move) = (true, true);
        Self { total, available, cpus: 2, probe }
    }
}

/// A field of /proc/meminfo in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24000000 kB\nMemFree: 12 kB\nMemAvailable:   1 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_000_000 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(1024));
        assert_eq!(meminfo(text, "Mem"), None);
        let machine = Machine::inspect().unwrap();
        assert!(machine.total >= machine.available && machine.available > 0 && machine.cpus > 0);
    }
}
