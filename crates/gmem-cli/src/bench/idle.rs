//! The processor time this process and its children have used.

use crate::failure::Failure;
use std::time::Duration;

/// The time used so far by this process, all its threads, and its living children.
pub(crate) fn cpu_time() -> Result<Duration, Failure> {
    let own = std::process::id();
    children(own).into_iter().chain([own]).map(time_of).sum()
}

/// The processes whose parent is `parent`, found in /proc.
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// The second field after the name, which stands in parentheses and may hold any character.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The kernel's own clock of a process: exact, where /proc counts in hundredths of a second.
fn time_of(pid: u32) -> Result<Duration, Failure> {
    let failed = |errno| Failure::while_doing(format_args!("the clock of process {pid}"), std::io::Error::from_raw_os_error(errno));
    let mut clock = 0;
    // SAFETY: `clock` is where the answer goes.
    match unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) } {
        0 => {}
        errno => return Err(failed(errno)),
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is where the answer goes.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))),
        _ => Err(failed(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn work_counts_and_so_does_a_child() {
        let before = cpu_time().unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(20) {
            std::hint::black_box(started.elapsed());
        }
        assert!(cpu_time().unwrap() - before > Duration::from_millis(2));
        let mut child = Command::new("sleep").arg("5").stdin(Stdio::null()).spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
