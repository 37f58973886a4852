//! However a program ends, and whenever, no process and no memory of gmem's outlives it.

mod common;

use common::*;
use gmem::{Gmem, Mode, accel};
use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Starts the test `name` of this binary as a program of its own, which finds `how` and a number of its own in its environment, and so do its device processes.
fn program(name: &str, how: &str) -> (Child, String) {
    let token = format!("{how}-{}-{name}", std::process::id());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("GMEM_TEST_CHILD", name)
        .env("GMEM_TEST_PARAM", &token)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, token)
}

/// The processes that have `token` in their environment, zombies left out: those of a program and of its devices.
fn processes(token: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    let needle = format!("GMEM_TEST_PARAM={token}");
    let has = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == needle.as_bytes())
    };
    pids.filter(has).filter(|pid| !gone(*pid)).collect()
}

/// Everything of gmem's that a process has: memory and descriptors.
fn gmem_parts(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut parts: Vec<_> = maps.lines().filter(|l| l.contains("memfd:gmem")).map(str::to_owned).collect();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = fds.filter_map(|f| std::fs::read_link(f.path()).ok()).map(|l| l.to_string_lossy().into_owned());
    parts.extend(links.filter(|l| l.contains("memfd:gmem") || l.contains("userfaultfd")));
    parts
}

/// A program with a kernel running on each of three devices, which then ends in the way it was told.
fn live_and_end() {
    let gmem = Gmem::new().unwrap();
    let space = gmem.address_space().create().unwrap();
    let builder = || accel::Discrete::builder().memory(4 * PAGE).cores(1);
    let devices = [(builder(), Mode::CoherentExclusive), (builder().peer(true), Mode::CoherentExclusive), (builder(), Mode::Replicate)];
    let (started, running) = channel();
    for (builder, mode) in devices {
        let (gmem, space, started) = (gmem.clone(), space.clone(), started.clone());
        std::thread::spawn(move || {
            let device = gmem.add_device(builder.build().unwrap()).unwrap();
            let context = space.attach(&device, mode).unwrap();
            let region = space.region().map(2 * PAGE).unwrap();
            let (word, stop) = (at(&region, 0), at(&region, PAGE));
            std::thread::scope(|threads| {
                threads.spawn(|| run(&context, &SPIN, &[word, stop]));
                eventually("the kernel runs", || get(word) > 0);
                started.send(()).unwrap();
            });
        });
    }
    (0..3).for_each(|_| running.recv_timeout(Duration::from_secs(60)).unwrap());
    println!("running");
    match param().split_once('-').unwrap().0 {
        "killed" => std::thread::sleep(Duration::from_secs(100)),
        "aborts" => std::process::abort(),
        "exits" => std::process::exit(0),
        // SAFETY: ends the process.
        "leaves" => unsafe { libc::_exit(0) },
        "panics" => std::panic::resume_unwind(Box::new("as the test wants")),
        "crashes" => set(8, 1),
        "becomes" => panic!("{}", Command::new("/bin/sleep").arg("100").exec()),
        // The test ends, and with it `main`; threads and kernels still run.
        "returns" => {}
        other => panic!("no such end: {other}"),
    }
}

#[test]
fn a_program_that_ends_leaves_no_process_and_no_memory() {
    const NAME: &str = "a_program_that_ends_leaves_no_process_and_no_memory";
    if is_child(NAME) {
        return live_and_end();
    }
    watched(|| {
        for how in ["killed", "aborts", "exits", "leaves", "panics", "crashes", "becomes", "returns"] {
            let (mut child, token) = program(NAME, how);
            let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("running")), "{how}");
            let start = Instant::now();
            match how {
                "killed" => child.kill().unwrap(),
                "becomes" => {
                    let name = || std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
                    eventually("the program is another one", || name().trim() == "sleep");
                    eventually("its devices are gone", || processes(&token) == [child.id()]);
                    assert_eq!(gmem_parts(child.id()), [""; 0], "what the new program inherited");
                    child.kill().unwrap();
                }
                _ => {}
            }
            let status = child.wait().unwrap();
            eventually("everything has ended", || processes(&token).is_empty());
            println!("{how}: {status}, everything was gone after {:?}", start.elapsed());
        }
    });
}

/// A program that makes, uses and drops devices without end.
fn churn() {
    let gmem = Gmem::new().unwrap();
    for round in 0.. {
        let space = gmem.address_space().create().unwrap();
        let device = gmem.add_device(accel::Discrete::builder().memory(4 * PAGE).cores(1).peer(round % 2 == 1).build().unwrap()).unwrap();
        if round == 0 {
            println!("running");
        }
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        let region = space.region().map(8 * PAGE).unwrap();
        run(&context, &STRIDE, &[at(&region, 0), round, PAGE, 8]).unwrap();
        assert_eq!(get(at(&region, PAGE)), round + 1);
    }
}

#[test]
fn a_program_killed_at_any_moment_leaves_no_process() {
    const NAME: &str = "a_program_killed_at_any_moment_leaves_no_process";
    if is_child(NAME) {
        return churn();
    }
    let rounds = std::env::var("GMEM_CAMPAIGN").map_or(12, |n| n.parse::<u64>().expect("a number of kills"));
    let (mut seed, mut longest, mut devices) = (11, Duration::ZERO, 0);
    for round in 0..rounds {
        watched(|| {
            let (mut child, token) = program(NAME, "killed");
            let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("running")), "round {round}");
            // A spawn, a launch, an end: each takes some milliseconds.
            std::thread::sleep(Duration::from_micros(next(&mut seed) % 60_000));
            devices += processes(&token).len() - 1;
            child.kill().unwrap();
            let start = Instant::now();
            child.wait().unwrap();
            eventually("everything has ended", || processes(&token).is_empty());
            longest = longest.max(start.elapsed());
        });
    }
    println!("programs killed {rounds}, device processes seen {devices}, left 0, the last was gone after {longest:?} at most");
}
