//! Who waits for what in a process that hangs.

use std::fmt::Write;
use std::path::Path;

/// The threads of process `pid`, with the kernel function each waits in and the system call it made.
pub(crate) fn of(pid: u32) -> String {
    let mut text = String::from("its threads wait in:");
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| read(&task.path(), name);
        let syscall = read("syscall");
        let call = syscall.split_whitespace().next().unwrap_or("?");
        let _ = write!(text, "\n  {} ({}): system call {call}", read("comm"), read("wchan"));
    }
    text
}

fn read(task: &Path, name: &str) -> String {
    std::fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned()
}
