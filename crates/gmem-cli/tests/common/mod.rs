//! Runs the command under a watchdog: one that hangs is shown, ended with all its processes, and fails the test.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Far more than any of these runs takes, on a machine that does a dozen things besides.
const LIMIT: Duration = Duration::from_secs(120);

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command with arguments, not started yet.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gmem"));
    command.args(args).env_remove("GMEM");
    command
}

/// Runs the command.
#[track_caller]
pub(crate) fn gmem(args: &[&str]) -> Ended {
    watch(command(args))
}

/// Runs the command, which must succeed, and reads the one JSON object it must have printed.
#[track_caller]
pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    let ended = gmem(&[args, &["--json"]].concat());
    assert!(ended.status.success(), "{args:?}: {:?}\n{}", ended.status, ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 1, "{args:?}: one object on one line: {}", ended.stdout);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", ended.stdout))
}

/// Runs a command to its end, or fails with what it was doing when its time was over.
#[track_caller]
pub(crate) fn watch(command: Command) -> Ended {
    watch_into(command, Stdio::piped())
}

/// The same with another standard output; what is not captured is empty.
#[track_caller]
pub(crate) fn watch_into(mut command: Command, stdout: Stdio) -> Ended {
    // A group of its own, so that its device processes can be ended with it.
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).process_group(0);
    let name = format!("{command:?}");
    let mut child = command.spawn().expect("the command starts");
    // A pipe that we write to must not be kept open by us.
    drop(command);
    let stdout = child.stdout.take().map(drain);
    let stderr = drain(child.stderr.take().expect("captured"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if started.elapsed() > LIMIT {
            let seen = portrait(child.id());
            end_group(&mut child);
            panic!("{name} did not end within {LIMIT:?}\n{seen}\n{}", stderr.join().unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(5));
    };
    // A device process that outlived its host would keep the pipes open: this is where that would show.
    Ended { status, stdout: stdout.map_or(String::new(), |reader| reader.join().expect("read")), stderr: stderr.join().expect("read") }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("the pipe can be read");
        String::from_utf8(bytes).expect("the command writes text")
    })
}

fn end_group(child: &mut Child) {
    let group = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let _ = child.wait();
}

/// What every thread of the process and of its group does right now.
fn portrait(leader: u32) -> String {
    let mut text = String::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| group_of(*pid) == Some(leader)) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let status = read("status");
            let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim().to_owned();
            let _ = writeln!(text, "process {pid}, thread {:?}: {} {}", task.file_name(), field("Name:"), field("State:"));
            let _ = writeln!(text, "  in {}, system call {}", read("wchan"), read("syscall").trim());
            text.extend(read("stack").lines().take(8).map(|line| format!("  {line}\n")));
        }
    }
    text
}

fn group_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}
