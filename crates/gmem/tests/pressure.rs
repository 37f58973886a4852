//! Limits of the system: on address space, descriptors, processes and memory; and regions in thousands. What cannot be had is refused by an error of its kind; what was had stays right.

mod common;

use common::*;
use gmem::hal::{DeviceError, FaultError, HostError};
use gmem::{AttachError, Backing, DeviceCallError, Error, Gmem, Mode, PageSize, RangeError, SpaceError, accel};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

/// Whether an error says that the system has no more of something: memory, mappings, processes, descriptors.
fn is_limit(error: &Error) -> bool {
    use RangeError::{Fault, Host, OutOfMemory};
    let host = |e: &HostError| {
        matches!(e, HostError::NoMemory | HostError::TooManyMappings | HostError::TooManyFiles | HostError::Os(libc::EAGAIN))
    };
    match error {
        Error::Start(_) | Error::NoPlace { .. } | Error::Build(accel::BuildError::MoreThanMachine { .. }) => true,
        Error::Space(SpaceError::OutOfMemory(_)) | Error::Range(OutOfMemory(_)) | Error::Attach(AttachError::OutOfMemory(_)) => true,
        Error::Space(SpaceError::Host(e)) | Error::Range(Host(e)) => host(e),
        Error::Attach(AttachError::Device(e)) | Error::Device(DeviceCallError::Device(e)) => {
            matches!(e, DeviceError::NoMemory | DeviceError::TooManyFiles)
        }
        Error::Range(Fault(_, FaultError::Host(e))) => host(e),
        Error::Range(Fault(_, FaultError::Device(DeviceError::NoMemory))) => true,
        Error::Launch(gmem::hal::LaunchError::Fault { error: FaultError::Host(e), .. }) => host(e),
        _ => false,
    }
}

fn set_limit(resource: libc::__rlimit_resource_t, limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: lowers a limit of this process, which is a child made for that.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0, "{:?}", std::io::Error::last_os_error());
}

/// What a child said after one of these words, which stands in a line with what the test harness says.
fn said(out: &[u8], words: &[&str]) -> String {
    let out = String::from_utf8_lossy(out);
    let from = words.iter().find_map(|word| out.find(word));
    from.and_then(|from| out[from..].lines().next()).unwrap_or("no word of it").to_owned()
}

/// Bytes of address space that this process has in use.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 4096
}

/// Checks that a world still works in both directions.
fn works(world: &World, region: &gmem::Region) {
    let before = get(at(region, PAGE));
    world.run(&ADD, &[at(region, PAGE), 1]).unwrap();
    assert_eq!(get(at(region, PAGE)), before + 1);
    verify(&world.gmem);
}

/// Makes more and more of everything until the system refuses, and returns the refusals.
fn exhaust(gmem: &Gmem, most: usize) -> Vec<Error> {
    let (mut kept, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..most {
        let made = (|| {
            let device = gmem.add_device(accel::Discrete::builder().memory(PAGE).cores(1).build().map_err(Error::from)?)?;
            let space = gmem.address_space().len(64 * PAGE).create()?;
            let context = space.attach(&device, Mode::CoherentExclusive)?;
            let region = space.region().map(4 * PAGE)?;
            set(at(&region, 0), 1);
            run(&context, &ADD, &[at(&region, 0), 1])?;
            assert_eq!(get(at(&region, 0)), 2);
            Ok::<_, Error>((region, context))
        })();
        match made {
            Ok(one) => kept.push(one),
            Err(e) => {
                refused.push(e);
                if refused.len() == 3 {
                    break;
                }
            }
        }
    }
    refused
}

#[test]
fn limits_on_a_process_are_typed_errors_and_what_exists_goes_on() {
    const NAME: &str = "limits_on_a_process_are_typed_errors_and_what_exists_goes_on";
    if !is_child(NAME) {
        watched(|| {
            for limit in ["address space", "descriptors"] {
                let output = child(NAME, limit);
                let err = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{limit}: {} {err}", output.status);
                println!("{limit}: {}", said(&output.stdout, &["refused"]));
            }
        });
        return;
    }
    watched(|| {
        let world = World::small();
        let region = world.pages(6);
        works(&world, &region);
        match param().as_str() {
            // Room for a few spaces more, of 128 MiB in two or three places.
            "address space" => set_limit(libc::RLIMIT_AS, address_space() + (2 << 30)),
            // For each thread of gmem's own table; a device process is started by way of numbers from 64 on.
            _ => set_limit(libc::RLIMIT_NOFILE, 100),
        }
        let refused = exhaust(&world.gmem, 64);
        assert_eq!(refused.len(), 3, "no limit was reached");
        refused.iter().for_each(|e| assert!(is_limit(e), "{e:?}"));
        if param() == "descriptors" {
            // Told as what it is, with what would help.
            refused.iter().for_each(|e| assert!(e.to_string().contains("ulimit -n"), "{e}"));
        }
        works(&world, &region);
        println!("refused by: {}; as {:?}", refused[0], refused[0]);
        // Everything that was made went again, so there is room for one.
        let again = exhaust(&world.gmem, 1);
        assert!(again.is_empty(), "{again:?}");
    });
}

/// The number of processes that a user may have does not bind root, so the child becomes nobody in particular.
#[test]
fn the_limit_on_processes_is_a_typed_error() {
    const NAME: &str = "the_limit_on_processes_is_a_typed_error";
    const USER: u32 = 54_321;
    if !is_child(NAME) {
        // SAFETY: no argument.
        if unsafe { libc::geteuid() } != 0 {
            println!("skipped: only root can become a user that nothing else runs as");
            return;
        }
        let output = child(NAME, "");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {out} {err}", output.status);
        println!("{}", said(&output.stdout, &["refused", "skipped"]));
        return;
    }
    watched(|| {
        let world = World::small();
        let region = world.pages(6);
        works(&world, &region);
        // Threads that exist keep what they have opened; every thread changes, by the C library.
        // SAFETY: gives rights up.
        assert_eq!(unsafe { libc::setresuid(USER, USER, USER) }, 0);
        if std::fs::File::open("/proc/self/exe").is_err() {
            println!("skipped: such a user may not start this executable");
            return;
        }
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count() as u64;
        set_limit(libc::RLIMIT_NPROC, threads + 24);
        let refused = exhaust(&world.gmem, 64);
        assert_eq!(refused.len(), 3, "no limit was reached");
        refused.iter().for_each(|e| assert!(is_limit(e), "{e:?}"));
        works(&world, &region);
        println!("refused by: {}; as {:?}", refused[0], refused[0]);
    });
}

// ---- a limit on memory ----

/// A control group of its own with a limit on memory; gone with its drop.
struct Group(PathBuf);

impl Group {
    /// `None`, with a line that says why, where none may be made.
    fn new(limit: u64) -> Option<Self> {
        let name = format!("gmem-test-{}", std::process::id());
        let version2 = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter().find(|root| {
            std::fs::read_to_string(root.join("cgroup.subtree_control")).is_ok_and(|c| c.split_whitespace().any(|c| c == "memory"))
        });
        let (path, files): (_, &[&str]) = match version2 {
            Some(root) => (root.join(name), &["memory.max", "memory.swap.max"]),
            None => (Path::new("/sys/fs/cgroup/memory").join(name), &["memory.limit_in_bytes"]),
        };
        if let Err(e) = std::fs::create_dir(&path) {
            println!("skipped: no control group can be made at {}: {e}", path.display());
            return None;
        }
        let group = Self(path);
        for file in files {
            let value = if *file == "memory.swap.max" { "0".to_owned() } else { limit.to_string() };
            if let Err(e) = std::fs::write(group.0.join(file), value) {
                println!("skipped: no limit can be set in {}: {e}", group.0.join(file).display());
                return None;
            }
        }
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has just ended may still be counted.
        eventually("the control group is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// A region and a device, each larger than the limit. What the kernel does when a limit on memory is reached is its own: it ends a process of the group, or refuses the allocation.
#[test]
fn a_limit_on_memory_ends_in_an_error_or_in_the_kernels_own_kill() {
    const NAME: &str = "a_limit_on_memory_ends_in_an_error_or_in_the_kernels_own_kill";
    const LIMIT: u64 = 256 << 20;
    if is_child(NAME) {
        let (group, how) = param().split_once(' ').map(|(a, b)| (PathBuf::from(a), b.to_owned())).unwrap();
        std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let world = World::small();
        let region = world.space.region().map(2 * LIMIT).unwrap();
        println!("started");
        let result = match how.as_str() {
            "device" => accel::Discrete::builder()
                .memory(2 * LIMIT)
                .cores(1)
                .build()
                .map_err(Error::from)
                .and_then(|d| world.gmem.add_device(d))
                .map(drop),
            "prefetch" => world.space.prefetch(region.range(), None, gmem::Access::Write).map(drop),
            "evict" => world.run(&STRIDE, &[at(&region, 0), 1, PAGE, 2 * LIMIT / PAGE]),
            _ => {
                (0..2 * LIMIT / 4096).for_each(|page| set(at(&region, page * 4096), 1));
                Ok(())
            }
        };
        println!("ended {result:?}");
        if let Err(e) = result {
            assert!(is_limit(&e), "{e:?}");
        }
        return;
    }
    watched(|| {
        for how in ["device", "prefetch", "evict", "touch"] {
            let Some(group) = Group::new(LIMIT) else { return };
            let output = child(NAME, &format!("{} {how}", group.0.display()));
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(out.contains("started"), "{how}: {} {err}", output.status);
            // SIGKILL: the kernel's. SIGBUS: an access that could not be served, with a line that says why.
            // A device that is too large is refused before it takes anything.
            let fine = output.status.success()
                || how != "device" && output.status.signal() == Some(libc::SIGKILL)
                || how != "device" && output.status.signal() == Some(libc::SIGBUS) && err.contains("out of memory");
            assert!(fine, "{how}: {} {out} {err}", output.status);
            println!("{how}: {}, {}", output.status, said(&output.stdout, &["ended"]));
        }
    });
}

// ---- thousands of regions ----

const REGIONS: u64 = 4000;

/// A case each, so that each has the time limit of a test to itself.
fn thousands(name: &str, size: PageSize, backing: Backing) {
    alone(name, || visit_thousands(size, backing));
}

#[test]
fn four_thousand_regions_of_small_pages_at_once() {
    thousands("four_thousand_regions_of_small_pages_at_once", PageSize::Size4K, Backing::Shared);
}

#[test]
fn four_thousand_private_regions_at_once() {
    thousands("four_thousand_private_regions_at_once", PageSize::Size4K, Backing::Private);
}

#[test]
fn four_thousand_regions_of_large_pages_at_once() {
    thousands("four_thousand_regions_of_large_pages_at_once", PageSize::Size2M, Backing::Shared);
}

/// Maps regions of one page each; two devices that have not the memory for them visit them; every other one goes and comes again.
fn visit_thousands(size: PageSize, backing: Backing) {
    let memory = 256 * size.bytes();
    // Memory for each of the large pages would be 8 GiB: they are all there, and every fortieth is used.
    let step = if size == PageSize::Size2M { 40 } else { 1 };
    let world = World::new(accel::Discrete::builder().memory(memory.min(64 << 20)).cores(1), Mode::CoherentExclusive);
    let peer = world.gmem.add_device(accel::Discrete::builder().memory(memory.min(64 << 20)).cores(1).peer(true).build().unwrap()).unwrap();
    let second = world.space.attach(&peer, Mode::CoherentExclusive).unwrap();
    let map =
        |n: u64| world.space.region().page_size(size).backing(backing).map(size.bytes()).unwrap_or_else(|e| panic!("region {n}: {e}"));
    let regions: Vec<_> = (0..REGIONS).map(map).collect();
    for n in (0..REGIONS).step_by(step) {
        set(at(&regions[n as usize], 0), n);
    }
    // Both devices visit them; there are more than either has memory for.
    for n in (0..REGIONS).step_by(step * 4) {
        world.run(&ADD, &[at(&regions[n as usize], 0), 10_000]).unwrap();
        run(&second, &ADD, &[at(&regions[n as usize], 0), 10_000]).unwrap();
    }
    for n in (0..REGIONS).step_by(step) {
        let more = if n % (step as u64 * 4) == 0 { 20_000 } else { 0 };
        assert_eq!(get(at(&regions[n as usize], 0)), n + more, "{size} {backing:?}");
    }
    // Every other goes, and its place is taken again.
    let kept: Vec<_> = regions.into_iter().enumerate().filter(|(n, _)| n % 2 == 0).collect();
    let again: Vec<_> = (0..REGIONS / 2).map(map).collect();
    again.iter().step_by(step).for_each(|region| assert_eq!(get(at(region, 0)), 0));
    for (n, region) in kept.iter().step_by(step) {
        let more = if (*n as u64).is_multiple_of(step as u64 * 4) { 20_000 } else { 0 };
        assert_eq!(get(at(region, 0)), *n as u64 + more, "{size} {backing:?}");
    }
    drop((kept, again));
    assert_eq!(used(&world.device) + used(&peer), 0);
    verify(&world.gmem);
}
