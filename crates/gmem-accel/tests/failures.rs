//! What a device can do wrong, and that nothing is left behind.

#[path = "common/mod.rs"]
mod common;

use common::*;
use gmem_accel::Discrete;
use gmem_hal::*;
use std::io::BufRead;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// These tests count threads and descriptors of the whole program, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Checks when dropped that no descriptor and no thread of gmem is left. (Declared before what it watches, so dropped after.)
struct NothingLeft {
    fds: usize,
    _alone: MutexGuard<'static, ()>,
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok()).filter(|name| name.starts_with("gmem-")).collect()
}

fn nothing_left() -> NothingLeft {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(threads(), [""; 0]);
    NothingLeft { fds: fds(), _alone: alone }
}

impl Drop for NothingLeft {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // A thread that is done still takes a moment to go.
        eventually("threads end", || threads().is_empty());
        eventually("descriptors are closed", || fds() == self.fds);
        assert!(children().is_empty(), "processes are left: {:?}", children());
    }
}

/// The ids of child processes, zombies included.
fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: `kill` takes any numbers; the process is a device of this test, not yet reaped.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

fn device() -> gmem_accel::Builder {
    Discrete::builder().memory(4 * PAGE).cores(1)
}

/// Runs a kernel that never ends, and waits until it writes.
fn spinning(pager: &Pager) -> Ticket {
    let ticket = pager.start_launch("spin", &[pager.start(), pager.start() + PAGE], true).unwrap();
    eventually("both pages are on the device", || pager.state.lock().unwrap().resident.len() == 2);
    ticket
}

/// The first word of a frame, by way of the copy engine.
fn first_word(pager: &Pager, frame: u64) -> u64 {
    pager.device.copy_engine().copy(pager.home(3), PhysAddr { hnode: HNODE, addr: frame }, ByteLen(PAGE)).unwrap();
    pager.get(3 * PAGE / 8)
}

#[test]
fn an_orderly_life_leaves_nothing() {
    let (_dog, _left) = (watchdog("orderly"), nothing_left());
    for _ in 0..3 {
        let pager = Pager::new(device(), PAGE, 4, |_| {});
        pager.launch("store", &[pager.start(), 1]).unwrap();
        let pid = pager.device.process(pager.pmap()).unwrap();
        pager.destroy();
        assert!(gone(pid));
        assert!(pager.state.lock().unwrap().lost.is_empty(), "an expected end was reported as a loss");
    }
    // Dropped with contexts in it, and with a kernel running.
    let pager = Pager::new(device(), PAGE, 4, |_| {});
    spinning(&pager);
}

#[test]
fn a_killed_device_loses_no_data_and_hangs_nobody() {
    let (_dog, _left) = (watchdog("killed"), nothing_left());
    let pager = Pager::new(device(), PAGE, 4, |_| {});
    pager.set(0, 1 << 40);
    let ticket = spinning(&pager);
    let frame = pager.state.lock().unwrap().resident.iter().find(|(page, _)| *page == 0).unwrap().1;
    eventually("the kernel writes", || first_word(&pager, frame) > 1 << 40);
    let pid = pager.device.process(pager.pmap()).unwrap();
    signal(pid, libc::SIGKILL);
    assert_eq!(pager.device.compute().unwrap().wait(ticket), Err(LaunchError::Device(DeviceError::Dead)));
    pager.wait_lost();
    assert_eq!(pager.state.lock().unwrap().lost, [pager.pmap()]);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
    let last = first_word(&pager, frame);
    assert!(last > 1 << 40, "the device's memory is gone");

    let dead = Err(DeviceError::Dead);
    assert_eq!(pager.enter(0, frame, Prot::RW), dead);
    assert_eq!(pager.mmu().pmap_release(pager.pmap(), pager.page_range(0)), dead);
    assert_eq!(pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(0)), dead);
    assert_eq!(pager.launch("nothing", &[]), Err(LaunchError::Device(DeviceError::Dead)));

    let second = pager.mmu().pmap_create(&pager.request()).unwrap();
    let mapping = Mapping { va: pager.range.start(), frame: PhysAddr { hnode: HNODE, addr: frame }, len: ByteLen(PAGE), prot: Prot::RW };
    pager.mmu().pmap_enter(second, &mapping).unwrap();
    let args = [pager.start(), 1];
    let request = LaunchRequest { pmap: Some(second), kernel: "increment", args: &args, replay: false };
    let compute = pager.device.compute().unwrap();
    compute.wait(compute.start(&request).unwrap()).unwrap();
    assert_eq!(first_word(&pager, frame), last + 1);
    pager.mmu().pmap_destroy(second).unwrap();
    pager.destroy();
}

#[test]
fn a_device_that_does_not_answer_is_found_out_in_time_and_can_be_fenced() {
    let (_dog, _left) = (watchdog("stopped"), nothing_left());
    let pager = Pager::new(device().time_limit(Duration::from_millis(300)), PAGE, 4, |_| {});
    let pid = pager.device.process(pager.pmap()).unwrap();
    signal(pid, libc::SIGSTOP);
    let start = Instant::now();
    assert_eq!(pager.enter(0, 0, Prot::RW), Err(DeviceError::NoAnswer));
    let took = start.elapsed();
    assert!((Duration::from_millis(290)..Duration::from_secs(3)).contains(&took), "took {took:?}");
    // What failed with NoAnswer must not happen later.
    signal(pid, libc::SIGCONT);
    std::thread::sleep(Duration::from_millis(100));
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains("gmem-dram"), "a mapping that was given up came after all:\n{maps}");
    // Nothing more is asked of such a device, so nothing waits again.
    let start = Instant::now();
    assert_eq!(pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(0)), Err(DeviceError::NoAnswer));
    assert_eq!(pager.launch("nothing", &[]), Err(LaunchError::Device(DeviceError::NoAnswer)));
    assert!(start.elapsed() < Duration::from_millis(200));
    signal(pid, libc::SIGSTOP);
    pager.device.fence(pager.pmap()).unwrap();
    assert!(gone(pid));
    assert_eq!(pager.enter(0, 0, Prot::RW), Err(DeviceError::Dead));
    assert!(pager.state.lock().unwrap().lost.is_empty(), "a fence that was confirmed needs no other word");
    pager.destroy();
}

#[test]
fn an_invalidation_without_answer_is_reported() {
    let (_dog, _left) = (watchdog("invalidation"), nothing_left());
    let pager = Pager::new(device().time_limit(Duration::from_millis(200)), PAGE, 4, |_| {});
    pager.launch("store", &[pager.start(), 1]).unwrap();
    signal(pager.device.process(pager.pmap()).unwrap(), libc::SIGSTOP);
    pager.mmu().pmap_release(pager.pmap(), pager.page_range(0)).unwrap();
    assert_eq!(pager.mmu().tlb_invalidate(pager.pmap(), pager.page_range(0)), Err(DeviceError::NoAnswer));
    // Destroying does not ask the device: it ends it.
    pager.destroy();
}

#[test]
fn a_fence_ends_a_running_kernel() {
    let (_dog, _left) = (watchdog("fence"), nothing_left());
    let pager = Pager::new(device(), PAGE, 4, |_| {});
    let ticket = spinning(&pager);
    pager.device.fence(pager.pmap()).unwrap();
    assert_eq!(pager.device.compute().unwrap().wait(ticket), Err(LaunchError::Device(DeviceError::Dead)));
    assert_eq!(pager.device.fence(PmapId(12345)), Err(DeviceError::BadRequest));
    pager.destroy();
}

#[test]
fn a_kernel_that_aborts_ends_its_device_and_is_named() {
    let (_dog, _left) = (watchdog("abort"), nothing_left());
    let pager = Pager::new(device(), PAGE, 4, |_| {});
    pager.launch("store", &[pager.start(), 5]).unwrap();
    let first = pager.start_launch("abort", &[], true).unwrap();
    let second = pager.start_launch("nothing", &[], true).unwrap_or(Ticket(u64::MAX));
    let compute = pager.device.compute().unwrap();
    assert_eq!(compute.wait(first), Err(LaunchError::Crashed(Crash::Abort)));
    if second != Ticket(u64::MAX) {
        assert_eq!(compute.wait(second), Err(LaunchError::Device(DeviceError::Dead)), "it never ran");
    }
    pager.wait_lost();
    assert_eq!(pager.launch("nothing", &[]), Err(LaunchError::Device(DeviceError::Dead)));
    pager.destroy();
}

#[test]
fn a_kill_at_any_moment_is_survived() {
    let (_dog, _left) = (watchdog("any moment"), nothing_left());
    for round in 0..30u64 {
        let pager = Pager::new(Discrete::builder().memory(2 * PAGE).cores(2), PAGE, 8, |_| {});
        let pid = pager.device.process(pager.pmap()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round * 150));
                signal(pid, libc::SIGKILL);
            });
            // Runs until it meets the kill.
            let error = loop {
                if let Err(e) = pager.launch("touch", &[pager.start(), 8, PAGE]) {
                    break e;
                }
            };
            let fine = matches!(error, LaunchError::Device(DeviceError::Dead));
            assert!(fine, "round {round}: {error}");
        });
        pager.wait_lost();
        pager.destroy();
    }
}

/// gmem's threads have a table of descriptors of their own, and a driver is called from the program's threads as well.
#[test]
fn descriptors_are_only_used_where_they_were_opened() {
    let (_dog, _left) = (watchdog("descriptors"), nothing_left());
    // The same numbers name other files in this thread's table.
    let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let started = std::thread::spawn(|| {
        // SAFETY: only this thread and those it starts get another table.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        Pager::new(device(), PAGE, 4, |_| {})
    });
    let pager = started.join().unwrap();
    pager.launch("store", &[pager.start(), 1]).unwrap();
    pager.bring_home();
    assert_eq!(pager.get(0), 1);
    // Another context, wished for by a thread that does not see the device's memory.
    let second = pager.mmu().pmap_create(&pager.request()).unwrap();
    let pid = pager.device.process(second).unwrap();
    let passed = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().filter_map(|f| std::fs::read_link(f.path()).ok());
    let passed: Vec<_> = passed.map(|l| l.to_string_lossy().into_owned()).filter(|l| l != "/dev/null").collect();
    let known = |l: &String| ["/memfd:gmem-dram", "/memfd:gmem-absent", "socket:"].iter().any(|k| l.starts_with(k));
    assert_eq!(passed.iter().filter(|l| known(l)).count(), 3, "{passed:?}");
    assert!(passed.len() <= 4, "the device has more than it was given and its error output: {passed:?}");
    pager.device.fence(second).unwrap();
    pager.mmu().pmap_destroy(second).unwrap();
    pager.destroy();
    drop(pager);
    use std::os::fd::AsRawFd;
    for file in &files {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("/dev/null"), "a descriptor of the program was closed");
    }
}

/// Not a test of its own: the program that the next test kills.
#[test]
fn helper_with_a_device() {
    if std::env::var_os("GMEM_TEST_HELPER").is_none() {
        return;
    }
    let pager = Pager::new(device(), PAGE, 4, |_| {});
    spinning(&pager);
    println!("device {}", pager.device.process(pager.pmap()).unwrap());
    std::thread::sleep(Duration::from_secs(100));
}

#[test]
fn a_device_ends_with_its_program() {
    let (_dog, _left) = (watchdog("orphan"), nothing_left());
    let mut helper = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["helper_with_a_device", "--exact", "--nocapture"])
        .env("GMEM_TEST_HELPER", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(helper.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid =
        lines.filter_map(|l| l.split_once("device ").and_then(|(_, n)| n.parse::<u32>().ok())).next().expect("the helper names its device");
    assert!(!gone(pid), "the device runs");
    helper.kill().unwrap();
    helper.wait().unwrap();
    eventually("the device ends", || gone(pid));
}
