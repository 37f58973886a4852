//! What the tests of the facade share: a watchdog, children, words of unified memory, a count of what is left behind, and kernels.
#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

mod kernels;

pub(crate) use kernels::*;

use gmem::{AddressSpace, Backing, Context, Delivery, Device, Gmem, Mode, PageSize, Region, VirtAddr, VirtRange, accel, hal};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The default page.
pub(crate) const PAGE: u64 = 2 << 20;

/// Runs `test`, and aborts the process with a dump of every thread's wait channel if it takes longer than a minute and a half: faults, signals and child
/// processes can hang, and a hung test says nothing.
pub(crate) fn watched<T>(test: impl FnOnce() -> T) -> T {
    let (done, waiting) = channel::<()>();
    let dog = std::thread::spawn(move || {
        if waiting.recv_timeout(Duration::from_secs(90)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test hangs; its threads:");
            for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
                let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
                let (comm, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
                eprintln!("  {:?} {} in {wchan}: {}", task.file_name(), comm.trim(), syscall.trim());
            }
            std::process::abort();
        }
    });
    let result = test();
    drop(done);
    let _ = dog.join();
    result
}

/// Waits until `done` says so; a panic after ten seconds.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

// ---- children ----

/// Whether this process was started by [`child`] for the test `name`.
pub(crate) fn is_child(name: &str) -> bool {
    std::env::var("GMEM_TEST_CHILD").is_ok_and(|v| v == name)
}

/// What [`child`] passed on.
pub(crate) fn param() -> String {
    std::env::var("GMEM_TEST_PARAM").unwrap_or_default()
}

/// Runs the test `name` of this binary alone in a process of its own, where [`is_child`] is true.
pub(crate) fn child(name: &str, param: &str) -> Output {
    child_with(name, param, &[])
}

/// A [`child`] with more in its environment.
pub(crate) fn child_with(name: &str, param: &str, env: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("GMEM_TEST_CHILD", name)
        .env("GMEM_TEST_PARAM", param)
        .envs(env.iter().copied())
        .output()
        .expect("a child process")
}

/// Runs `body` in a process of its own: a test that counts what the process has must be alone in it, and one that closes or kills must not meet others.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if is_child(name) {
        watched(body);
        return;
    }
    let output = child(name, "");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

// ---- worlds ----

/// A discrete device of one core.
pub(crate) fn discrete(gmem: &Gmem, memory: u64) -> Device {
    gmem.add_device(accel::Discrete::builder().memory(memory).cores(1).build().unwrap()).unwrap()
}

/// gmem with one address space and one discrete device attached to it.
pub(crate) struct World {
    pub(crate) context: Context,
    pub(crate) device: Device,
    pub(crate) driver: Arc<accel::Discrete>,
    pub(crate) space: AddressSpace,
    pub(crate) gmem: Gmem,
}

impl World {
    pub(crate) fn new(builder: accel::Builder, mode: Mode) -> Self {
        let gmem = Gmem::new().unwrap();
        let driver = builder.build().unwrap();
        let device = gmem.add_device(driver.clone()).unwrap();
        let space = gmem.address_space().create().unwrap();
        let context = space.attach(&device, mode).unwrap();
        Self { context, device, driver, space, gmem }
    }

    /// With four pages of 2 MiB and one core, exclusive.
    pub(crate) fn small() -> Self {
        Self::new(accel::Discrete::builder().memory(4 * PAGE).cores(1), Mode::CoherentExclusive)
    }

    /// The device process.
    pub(crate) fn pid(&self) -> u32 {
        self.driver.process(self.context.pmap().unwrap()).unwrap()
    }

    /// Runs a kernel on plain numbers.
    pub(crate) fn run(&self, kernel: &gmem::Kernel, args: &[u64]) -> Result<(), gmem::Error> {
        run(&self.context, kernel, args)
    }

    /// Region of so many pages of 2 MiB.
    pub(crate) fn pages(&self, pages: u64) -> Region {
        self.space.region().map(pages * PAGE).unwrap()
    }
}

/// Runs a kernel on plain numbers, among them addresses of regions, which are not borrowed.
pub(crate) fn run(context: &Context, kernel: &gmem::Kernel, args: &[u64]) -> Result<(), gmem::Error> {
    let args = args.iter().fold(gmem::Args::new(), |args, n| args.number(*n));
    // SAFETY: the kernels of these tests take numbers and addresses of regions that live; no Rust reference to their bytes exists meanwhile.
    unsafe { context.run(kernel, args) }
}

/// Stops what a test has running when it is dropped, also if the test fails: a scope would wait for it for ever, and the message of the failure would be lost.
pub(crate) struct AtEnd<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The address of byte `offset` of a region.
pub(crate) fn at(region: &Region, offset: u64) -> u64 {
    assert!(offset < region.range().len().get());
    region.range().start().get() + offset
}

/// Part of a region.
pub(crate) fn part(region: &Region, offset: u64, len: u64) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(region.range().start().get() + offset), gmem::ByteLen(len)).unwrap()
}

/// Reads a word of unified memory.
pub(crate) fn get(va: u64) -> u64 {
    // SAFETY: the tests pass addresses of regions that live, or want to see what happens otherwise.
    unsafe { (va as *const u64).read_volatile() }
}

/// Writes a word of unified memory.
pub(crate) fn set(va: u64, value: u64) {
    // SAFETY: as for `get`.
    unsafe { (va as *mut u64).write_volatile(value) }
}

/// All bytes that were copied between memories.
pub(crate) fn bytes_moved(gmem: &Gmem) -> u64 {
    let s = gmem.stats();
    s.h2d_fault_bytes + s.h2d_prefetch_bytes + s.d2h_fault_bytes + s.d2h_evict_bytes + s.d2h_other_bytes + s.d2d_bytes
}

/// The figures, once `done` says so of them, or after two seconds as they are: a fault is counted just after the thread that faulted goes on.
pub(crate) fn stats_when(gmem: &Gmem, done: impl Fn(&gmem::Stats) -> bool) -> gmem::Stats {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let stats = gmem.stats();
        if done(&stats) || Instant::now() > until {
            return stats;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Checks gmem's own invariants. They hold while nothing is under way, and the last fault's tail may still be: its thread goes on before it is committed.
pub(crate) fn verify(gmem: &Gmem) {
    let until = Instant::now() + Duration::from_secs(2);
    while let Err(violation) = gmem.verify() {
        assert!(Instant::now() < until, "{violation}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes in use in all memories of a device.
pub(crate) fn used(device: &Device) -> u64 {
    device.memory().iter().map(|m| m.used.get()).sum()
}

/// Every page size, each with a device memory of four pages.
pub(crate) fn sizes() -> [(PageSize, u64); 3] {
    PageSize::ALL.map(|size| (size, 4 * size.bytes()))
}

/// Service and in-thread delivery of shared backing, and private backing.
pub(crate) fn kinds() -> [(Backing, Delivery); 3] {
    [(Backing::Shared, Delivery::Service), (Backing::Private, Delivery::Service), (Backing::Shared, Delivery::InThread)]
}

/// A region of such a kind.
pub(crate) fn region_of(world: &World, size: PageSize, (backing, delivery): (Backing, Delivery), pages: u64) -> Region {
    world.space.region().page_size(size).backing(backing).delivery(delivery).map(pages * size.bytes()).unwrap()
}

/// The error of a fault on a launch, with its address.
pub(crate) fn fault(result: Result<(), gmem::Error>) -> (u64, hal::FaultError) {
    match result {
        Err(gmem::Error::Launch(hal::LaunchError::Fault { va, error })) => (va.get(), error),
        other => panic!("not a fault that ended a launch: {other:?}"),
    }
}

// ---- what is left behind ----

/// What a process has that gmem could leave behind.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Census {
    pub(crate) threads: Vec<String>,
    pub(crate) children: Vec<String>,
    pub(crate) descriptors: usize,
    pub(crate) gmem_descriptors: usize,
    pub(crate) mappings: usize,
}

/// Takes the count, once it has been the same for a while: a thread that was just made names itself a moment later.
pub(crate) fn census() -> Census {
    let mut last = count();
    loop {
        std::thread::sleep(Duration::from_millis(30));
        let now = count();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Surplus workers of gmem linger for a while, so their number is left out.
fn count() -> Census {
    let tasks: Vec<_> = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|t| t.path()).collect();
    let name = |t: &PathBuf| std::fs::read_to_string(t.join("comm")).unwrap_or_default().trim().to_owned();
    let mut threads: Vec<_> = tasks.iter().map(name).filter(|n| n.starts_with("gmem-")).collect();
    threads.retain(|n| n != "gmem-worker");
    threads.sort();
    let children = tasks.iter().filter_map(|t| std::fs::read_to_string(t.join("children")).ok());
    let children = children.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let fds = |t: &PathBuf| std::fs::read_dir(t.join("fd")).map_or(0, Iterator::count);
    // Our threads share a table of their own; the largest is theirs while a device shares none of it.
    let gmem_descriptors = tasks.iter().filter(|t| name(t).starts_with("gmem-")).map(fds).max().unwrap_or(0);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|l| l.contains("memfd:gmem") || l.contains("userfaultfd")).count();
    Census { threads, children, descriptors: fds(&"/proc/self".into()), gmem_descriptors, mappings }
}

/// Waits until the count is what it was: threads and processes that are done still take a moment to go.
pub(crate) fn assert_nothing_left(before: &Census) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let now = count();
        if now == *before {
            return;
        }
        assert!(Instant::now() < until, "something is left: {now:#?}\nbefore: {before:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process has ended; a zombie has.
pub(crate) fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Sends a signal to a device process of this test.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: `kill` takes any numbers; the process is a device of this test, not yet reaped.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}
