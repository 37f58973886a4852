//! What happens where the system permits less: the refusal is real, by a filter of system calls that the command and its devices inherit.

mod common;

use common::{Ended, command, watch};
use std::os::unix::process::CommandExt;

/// Which userfaultfds the filter refuses.
#[derive(Clone, Copy)]
enum Refuse {
    All,
    /// Those for faults of the kernel too.
    Privileged,
}

/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: u32 = 1;
/// `USERFAULTFD_IOC_NEW`, what /dev/userfaultfd is asked.
const IOC_NEW: u32 = 0xaa00;

/// A program for the kernel's filter. Offsets are those of `struct seccomp_data`: the number at 0, the low half of argument `n` at 16 + 8 `n`.
fn program(refuse: Refuse) -> Vec<libc::sock_filter> {
    let load = |k: u32| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let equal = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt, jf, k };
    let masked = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16, jt, jf, k };
    let answer = |k: u32| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    // With a mask of zero no flag saves the call.
    let saving = match refuse {
        Refuse::All => 0,
        Refuse::Privileged => USER_MODE_ONLY,
    };
    vec![
        load(0),
        equal(libc::SYS_userfaultfd as u32, 3, 0),
        equal(libc::SYS_ioctl as u32, 0, 5),
        load(16 + 8),
        equal(IOC_NEW, 2, 3),
        load(16),
        masked(saving, 1, 0),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}

#[track_caller]
fn gmem(refuse: Refuse, args: &[&str]) -> Ended {
    let program = program(refuse);
    let mut command = command(args);
    let filter = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: both calls only change the calling process; the program outlives the call that copies it. Neither allocates.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else.
    unsafe { command.pre_exec(filter) };
    watch(command)
}

const SMALL: [&str; 6] = ["run", "vector-add", "--elements", "256k", "--device-memory", "2MiB"];

#[test]
fn without_userfaultfd_the_command_falls_back_and_says_so() {
    let ended = gmem(Refuse::All, &[&SMALL[..], &["--page-size", "64KiB", "--json"]].concat());
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("--delivery inthread") && ended.stderr.contains("unprivileged_userfaultfd=1"), "{}", ended.stderr);
    let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&object["verified"], &object["delivery"]), (&true.into(), &"inthread".into()), "{object}");
    // The whole of a workload that makes system calls on unified memory.
    let ended = gmem(Refuse::All, &["run", "crc", env!("CARGO_MANIFEST_DIR"), "--device-memory", "256KiB", "--page-size", "64KiB"]);
    assert!(ended.status.success(), "{}", ended.stderr);
}

#[test]
fn without_userfaultfd_what_was_asked_for_in_words_is_refused_with_the_remedy() {
    for asked in [&["--delivery", "service"][..], &["--backing", "private"]] {
        let ended = gmem(Refuse::All, &[&SMALL[..], asked].concat());
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("unprivileged_userfaultfd=1") && ended.stderr.contains("inthread"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn with_a_userfaultfd_for_user_code_only_files_are_still_read_into_unified_memory() {
    let args = ["run", "crc", env!("CARGO_MANIFEST_DIR"), "--device-memory", "256KiB", "--page-size", "64KiB", "--json"];
    let ended = gmem(Refuse::Privileged, &args);
    assert!(ended.status.success(), "{}", ended.stderr);
    let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&object["verified"], &object["delivery"]), (&true.into(), &"service".into()), "{object}");
}

#[test]
fn the_probe_sees_the_refusal() {
    let probe = |refuse| {
        let ended = gmem(refuse, &["probe", "--json"]);
        assert!(ended.status.success(), "{}", ended.stderr);
        let object: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        object["userfaultfd"].as_str().unwrap().to_owned()
    };
    assert_eq!((probe(Refuse::All), probe(Refuse::Privileged)), ("refused".to_owned(), "user-mode-only".to_owned()));
}

#[test]
fn the_bench_leaves_out_the_row_that_cannot_be() {
    let ended = gmem(Refuse::All, &["bench", "--quick", "--only", "cpu_fault_2mib"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("cpu_fault_2mib"), "{}", ended.stderr);
    // The others need none, and where one for user code can be had nothing is left out.
    for (refuse, row) in [(Refuse::All, "exclusive_fault_2mib"), (Refuse::Privileged, "cpu_fault_2mib")] {
        let ended = gmem(refuse, &["bench", "--quick", "--json", "--only", row]);
        assert!(ended.status.success(), "{row}: {}", ended.stderr);
    }
}

/// No driver is to blame for what this process may not have.
#[test]
fn limits_of_the_process_are_no_broken_rules() {
    let kit = "conformance --device discrete --filter device-reads";
    let litmus = "litmus --rounds 1 --test sb --devices 1";
    for (limit, words, command) in [("-n 20", "ulimit -n", kit), ("-v 4000000", "ulimit -v", kit), ("-v 4000000", "ulimit -v", litmus)] {
        let mut shell = std::process::Command::new("/bin/sh");
        let gmem = env!("CARGO_BIN_EXE_gmem");
        shell.args(["-c", &format!("ulimit {limit}; exec {gmem} {command}")]).env_remove("GMEM");
        let ended = watch(shell);
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""), "{limit}: {}", ended.stderr);
        assert!(ended.stderr.contains(words) && ended.stderr.lines().count() == 1, "{limit}: {}", ended.stderr);
        assert!(!ended.stderr.contains("SpaceBuilder"), "a command has no such call: {}", ended.stderr);
    }
}
