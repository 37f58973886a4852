//! What this machine has, as far as the command line is checked against it.

use crate::failure::Failure;

/// Memory and processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Bytes of memory in the machine, or allowed to this process if a control group allows less.
    pub(crate) total: u64,
    /// Bytes that can be had now without swapping.
    pub(crate) available: u64,
    /// Processors this process may run on.
    pub(crate) cpus: usize,
}

impl Machine {
    /// Asks the system.
    pub(crate) fn inspect() -> Result<Self, Failure> {
        let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| Failure::while_doing("/proc/meminfo", e))?;
        let field = |name| meminfo(&text, name).ok_or_else(|| Failure::Failed(format!("/proc/meminfo has no {name}")));
        let (total, available) = (field("MemTotal")?, field("MemAvailable")?);
        let limit = cgroup_limit().unwrap_or(u64::MAX);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { total: total.min(limit), available: available.min(limit), cpus })
    }
}

/// A field of /proc/meminfo in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory limit of this process's control group (version 2), if it has one.
fn cgroup_limit() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let text = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?;
    text.trim().parse().ok()
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
