//! What a program does to its own address space and processes while a kernel runs on other memory: it works, or it is refused cleanly. Nothing reads as zero that was not, no
//! byte of the program's is overwritten, and what gmem holds stays right.

mod common;

use common::*;
use gmem::hal::{FaultError, HostError};
use gmem::{Backing, Delivery, Mode, PageSize, Region, accel};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A world, four pages of a kind, and a kernel that runs on other pages meanwhile.
struct Setting {
    world: World,
    region: Region,
    busy: Region,
    size: u64,
    kind: (Backing, Delivery),
}

impl Setting {
    /// The bytes of a page.
    fn page(&self, n: u64) -> u64 {
        at(&self.region, n * self.size)
    }

    fn private(&self) -> bool {
        self.kind.0 == Backing::Private
    }
}

/// Calls `body` in a process of its own for each kind and size, while a kernel runs on other pages. Pages 0 and 2 are on the CPU and hold 10 and 12 in their first
/// word; 1 and 3 are on the device and hold 11 and 13.
fn beside_a_kernel(name: &str, body: impl Fn(&Setting)) {
    let cases: Vec<_> = [PageSize::Size2M, PageSize::Size4K].into_iter().flat_map(|size| kinds().map(|kind| (size, kind))).collect();
    if !is_child(name) {
        watched(|| {
            for (n, case) in cases.iter().enumerate() {
                let output = child(name, &n.to_string());
                assert!(output.status.success(), "{case:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
            }
        });
        return;
    }
    let (size, kind) = cases[param().parse::<usize>().unwrap()];
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(8 * size.bytes()).cores(1), Mode::CoherentExclusive);
        let region = region_of(&world, size, kind, 4);
        let busy = region_of(&world, size, kind, 2);
        let setting = Setting { world, region, busy, size: size.bytes(), kind };
        let other = setting.world.space.attach(&discrete(&setting.world.gmem, 8 * PAGE), Mode::CoherentExclusive).unwrap();
        (0..4).for_each(|n| set(setting.page(n), n));
        [0, 2].into_iter().for_each(|n| set(setting.page(n), 10 + n));
        [1, 3].into_iter().for_each(|n| setting.world.run(&ADD, &[setting.page(n), 10]).unwrap());
        let (word, stop) = (at(&setting.busy, 0), at(&setting.busy, setting.size));
        std::thread::scope(|threads| {
            let kernel = threads.spawn(|| run(&other, &SPIN, &[word, stop]));
            let _stops = AtEnd(|| set(stop, 1));
            eventually("the kernel runs", || get(word) > 0);
            body(&setting);
            let before = get(word);
            eventually("the kernel still runs", || get(word) > before);
            set(stop, 1);
            kernel.join().unwrap().expect("nobody touched its memory");
        });
        // Whatever was done to the addresses, the rest works.
        setting.world.run(&ADD, &[setting.page(0), 1]).unwrap();
        assert_eq!(get(setting.page(0)), 11);
        verify(&setting.world.gmem);
    });
}

/// What a process that was forked did: its exit code, or the signal that ended it.
#[derive(PartialEq, Eq, Debug)]
enum End {
    Code(i32),
    Signal(i32),
}

/// Forks; the child calls `act`, which neither allocates nor locks, and exits with its answer.
fn in_a_fork(act: impl FnOnce() -> i32) -> End {
    let mut status = 0;
    // SAFETY: the child calls what its caller promises to be async-signal-safe, and exits. The parent waits for the child just made.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(act());
        }
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
    }
    if libc::WIFSIGNALED(status) { End::Signal(libc::WTERMSIG(status)) } else { End::Code(libc::WEXITSTATUS(status)) }
}

/// The first word at an address, by way of a system call: `None` where there is nothing to read.
fn peek(va: u64) -> Option<u64> {
    let (from, to) = std::io::pipe().unwrap();
    let mut word = 0u64;
    // SAFETY: system calls, which check the address, on eight bytes of a pipe.
    unsafe {
        if libc::write(to.as_raw_fd(), va as *const _, 8) != 8 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
            return None;
        }
        assert_eq!(libc::read(from.as_raw_fd(), (&raw mut word).cast(), 8), 8);
    }
    Some(word)
}

fn unmap(va: u64, len: u64) {
    // SAFETY: this is what these tests are about: nothing of the program's own lies there.
    assert_eq!(unsafe { libc::munmap(va as *mut _, len as usize) }, 0);
}

/// Maps memory of the program's own at `va`, or anywhere with 0, and fills it with a pattern.
fn own_memory(va: u64, len: u64) -> u64 {
    let fixed = if va == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed);
    // SAFETY: never replaces a mapping.
    let at = unsafe { libc::mmap(va as *mut _, len as usize, prot, flags, -1, 0) };
    assert!(at != libc::MAP_FAILED && (va == 0 || at as u64 == va));
    (0..len / 8).for_each(|word| set(at as u64 + 8 * word, pattern(word)));
    at as u64
}

fn pattern(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0123_4567_89ab_cdef
}

#[track_caller]
fn assert_own(va: u64, len: u64, when: &str) {
    for word in 0..len / 8 {
        assert_eq!(get(va + 8 * word), pattern(word), "the program's own memory was changed {when}, at word {word}");
    }
}

/// Moves `len` bytes of mapping from `va` to `to`, or anywhere with 0.
fn remap(va: u64, len: u64, to: u64) -> u64 {
    let flags = libc::MREMAP_MAYMOVE | if to == 0 { 0 } else { libc::MREMAP_FIXED };
    // A place that is free now, beside which nothing lies that the kernel could take for a continuation.
    // SAFETY: reserves addresses, or moves what these tests are about.
    unsafe {
        let place = if to != 0 {
            to as *mut libc::c_void
        } else {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let room = libc::mmap(std::ptr::null_mut(), (len + PAGE) as usize, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(room, libc::MAP_FAILED);
            (room as u64).next_multiple_of(PAGE) as *mut _
        };
        let moved = libc::mremap(va as *mut _, len as usize, len as usize, flags | libc::MREMAP_FIXED, place);
        assert_ne!(moved, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        moved as u64
    }
}

/// The error of a launch that wants a page whose CPU mapping is gone.
fn assert_displaced(setting: &Setting, page: u64) {
    let result = fault(setting.world.run(&ADD, &[page, 1]));
    assert_eq!(result, (page, FaultError::Host(HostError::Displaced)), "{:?}", setting.kind);
}

#[test]
fn children_of_every_kind_beside_a_running_kernel() {
    beside_a_kernel("children_of_every_kind_beside_a_running_kernel", |s| {
        let segv = End::Signal(libc::SIGSEGV);
        for n in 0..4 {
            let va = s.page(n);
            assert_eq!(in_a_fork(|| get(va) as i32), segv, "a child read page {n}");
            assert_eq!(
                in_a_fork(|| {
                    set(va, 99);
                    0
                }),
                segv,
                "a child wrote page {n}"
            );
            // A system call of the child's gets no zeros either.
            let (_from, to) = std::io::pipe().unwrap();
            // SAFETY: one system call, which checks the address.
            let wrote = in_a_fork(|| unsafe { libc::write(to.as_raw_fd(), va as *const _, 8) } as i32 & 0xff);
            assert_eq!(wrote, End::Code(0xff), "a child wrote page {n} to a pipe");
        }
        // SAFETY: replaces the child at once.
        let executed = in_a_fork(|| unsafe { libc::execl(c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null::<libc::c_char>()) });
        assert_eq!(executed, End::Code(0));
        // posix_spawn, which the standard library uses if it can, and fork with something to do before exec.
        assert!(Command::new("/bin/true").status().unwrap().success());
        let mut command = Command::new("/bin/true");
        // SAFETY: does nothing.
        unsafe { command.pre_exec(|| Ok(())) };
        assert!(command.status().unwrap().success());
        // SAFETY: a command without arguments.
        assert_eq!(unsafe { libc::system(c"exit 7".as_ptr()) }, 7 << 8);
        (0..4).for_each(|n| assert_eq!(get(s.page(n)), 10 + n, "{:?}", s.kind));
        s.world.run(&ADD, &[s.page(2), 1]).unwrap();
        assert_eq!(get(s.page(2)), 13);
    });
}

#[test]
fn munmap_leaves_what_the_device_has_and_gmem_leaves_what_the_program_puts_there() {
    beside_a_kernel("munmap_leaves_what_the_device_has_and_gmem_leaves_what_the_program_puts_there", |s| {
        unmap(s.page(2), 2 * s.size);
        assert_eq!([0, 1].map(|n| get(s.page(n))), [10, 11], "the rest is untouched");
        assert_eq!([2, 3].map(|n| peek(s.page(n))), [None, None], "nothing is there for the CPU");
        // What was the CPU's is gone for everybody; what the device has, it has.
        assert_displaced(s, s.page(2));
        s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        own_memory(s.page(2), 2 * s.size);
        assert_displaced(s, s.page(2));
        assert_own(s.page(2), 2 * s.size, "by a device that wanted the page");
        s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        s.world.device.evict(8);
        assert_own(s.page(2), 2 * s.size, "by an eviction");
        let _ = s.world.space.prefetch(s.region.range(), None, gmem::Access::Read);
        assert_own(s.page(2), 2 * s.size, "by a prefetch");
        let protected = s.region.protect(s.region.range(), gmem::Prot::READ);
        assert!(s.kind.1 == Delivery::InThread || protected.is_err(), "{protected:?}");
        s.region.protect(part(&s.region, 0, 2 * s.size), gmem::Prot::RW).unwrap();
        assert_own(s.page(2), 2 * s.size, "by a change of protection");
        s.region.discard(part(&s.region, 2 * s.size, 2 * s.size)).ok();
        assert_own(s.page(2), 2 * s.size, "by a discard");
        s.region.unmap(part(&s.region, s.size, 3 * s.size)).unwrap();
        assert_own(s.page(2), 2 * s.size, "by unmapping the region");
        // The addresses are the program's: a region there is refused as long as they are.
        let size = s.region.attrs().page_size;
        let there = || s.world.space.region().page_size(size).at(gmem::VirtAddr::new(s.page(2))).map(s.size);
        assert!(matches!(there(), Err(gmem::Error::Range(gmem::RangeError::Host(HostError::AddressInUse)))));
        assert_own(s.page(2), 2 * s.size, "by a region that was refused");
        unmap(s.page(2), 2 * s.size);
        let again = there().unwrap();
        assert_eq!(get(at(&again, 0)), 0);
        s.world.run(&ADD, &[at(&again, 0), 5]).unwrap();
        assert_eq!(get(at(&again, 0)), 5);
    });
}

#[test]
fn what_the_program_maps_over_a_space_outlives_it() {
    beside_a_kernel("what_the_program_maps_over_a_space_outlives_it", |s| {
        let world = World::small();
        let region = region_of(&world, PageSize::Size2M, s.kind, 4);
        (0..4).for_each(|n| set(at(&region, n * PAGE), n));
        world.run(&ADD, &[at(&region, 2 * PAGE), 1]).unwrap();
        // Inside a region, and where none is.
        let places = [at(&region, PAGE), at(&region, 2 * PAGE), region.range().end().get() + 64 * PAGE];
        for place in places {
            unmap(place, 8192);
            own_memory(place, 8192);
        }
        drop((region, world));
        places.into_iter().for_each(|place| assert_own(place, 8192, "by the end of the address space"));
    });
}

#[test]
fn memory_moved_away_is_never_zero_and_never_stale() {
    beside_a_kernel("memory_moved_away_is_never_zero_and_never_stale", |s| {
        // Page 3 is on the device and was on the CPU before; page 1 of another region was never anywhere but on the device.
        let fresh = region_of(&s.world, s.region.attrs().page_size, s.kind, 2);
        s.world.run(&STORE, &[at(&fresh, s.size), 77]).unwrap();
        let [kept, absent, never] = [s.page(2), s.page(3), at(&fresh, s.size)].map(|va| remap(va, s.size, 0));
        assert_eq!(peek(kept), Some(12), "what the CPU had, it still has");
        assert_eq!([peek(absent), peek(never)], [None, None], "what it had not, it does not get: {:?}", s.kind);
        assert_eq!([2, 3].map(|n| peek(s.page(n))), [None, None], "the old place is empty");
        // As long as the program can write the page there, no device gets a copy.
        set(kept, 120);
        assert_displaced(s, s.page(2));
        assert_eq!(peek(kept), Some(120));
        s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        s.world.run(&ADD, &[at(&fresh, s.size), 1]).unwrap();
        s.world.device.evict(8);
        assert_eq!(
            (peek(kept), peek(absent).unwrap_or(14)),
            (Some(120), 14),
            "the page came home, where this is a view of it, or it did not"
        );
        assert!([None, Some(78)].contains(&peek(never)));
        assert_eq!([0, 1].map(|n| get(s.page(n))), [10, 11]);
        // Put back, it is what it was.
        assert_eq!(remap(kept, s.size, s.page(2)), s.page(2));
        s.world.run(&ADD, &[s.page(2), 1]).unwrap();
        assert_eq!(get(s.page(2)), 121);
    });
}

#[test]
fn memory_moved_onto_a_region_stays_the_programs() {
    beside_a_kernel("memory_moved_onto_a_region_stays_the_programs", |s| {
        for n in [2, 3] {
            let own = own_memory(0, s.size);
            assert_eq!(remap(own, s.size, s.page(n)), s.page(n));
        }
        let check = |when: &str| (2..4).for_each(|n| assert_own(s.page(n), s.size, when));
        assert_displaced(s, s.page(2));
        check("by a device that wanted the page");
        s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        s.world.device.evict(8);
        check("by an eviction");
        s.world.run(&ADD, &[s.page(1), 1]).unwrap();
        assert_eq!([0, 1].map(|n| get(s.page(n))), [10, 12]);
        s.region.unmap(part(&s.region, s.size, 3 * s.size)).unwrap();
        check("by unmapping the region");
    });
}

#[test]
fn protection_and_advice_by_the_program_lose_nothing() {
    beside_a_kernel("protection_and_advice_by_the_program_lose_nothing", |s| {
        let all = (s.page(0) as *mut libc::c_void, 4 * s.size as usize);
        // SAFETY: system calls on a region that lives.
        let protect = |prot| unsafe { assert_eq!(libc::mprotect(all.0, all.1, prot), 0) };
        if s.kind.1 == Delivery::Service {
            // With in-thread delivery the protection is what says where a page is, and not the program's to change.
            protect(libc::PROT_NONE);
            assert_eq!([0, 1, 2, 3].map(|n| peek(s.page(n))), [None; 4]);
            // The device does not mind, except that the kernel moves private memory only while it is writable.
            if s.private() {
                assert_displaced(s, s.page(2));
                protect(libc::PROT_READ | libc::PROT_WRITE);
                s.world.run(&ADD, &[s.page(2), 100]).unwrap();
            } else {
                s.world.run(&ADD, &[s.page(2), 100]).unwrap();
                protect(libc::PROT_READ | libc::PROT_WRITE);
            }
            assert_eq!(get(s.page(2)), 112);
            s.world.run(&ADD, &[s.page(1), 100]).unwrap();
            (0..4).for_each(|n| assert_eq!(get(s.page(n)) % 100, 10 + n, "{:?}", s.kind));
            s.world.run(&ADD, &[s.page(1), 1]).unwrap();
            s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        } else {
            (1..4).for_each(|n| set(s.page(n), 10 + n));
            s.world.run(&ADD, &[s.page(1), 1]).unwrap();
            s.world.run(&ADD, &[s.page(3), 1]).unwrap();
        }
        for advice in [libc::MADV_DONTNEED, libc::MADV_COLD, libc::MADV_PAGEOUT, libc::MADV_NOHUGEPAGE] {
            // SAFETY: as above.
            unsafe { libc::madvise(all.0, all.1, advice) };
            let seen = [0, 1, 2, 3].map(|n| get(s.page(n)) % 100);
            // Anonymous memory that is given back reads as zero, as it does without gmem; what is on the device is not there to be given back.
            let expected = if s.private() { [0, 12, 0, 14] } else { [10, 12, 12, 14] };
            assert_eq!(seen, expected, "{:?} after advice {advice}", s.kind);
            (0..4).for_each(|n| set(s.page(n), expected[n as usize].max(10 + n)));
            [1, 3].into_iter().for_each(|n| set(s.page(n), 11 + n));
            [1, 3].into_iter().for_each(|n| s.world.run(&ADD, &[s.page(n), 0]).unwrap());
            if s.private() && advice == libc::MADV_DONTNEED {
                break;
            }
        }
        set(s.page(0), 10);
    });
}

#[test]
fn closing_every_descriptor_beside_a_running_kernel() {
    beside_a_kernel("closing_every_descriptor_beside_a_running_kernel", |s| {
        // SAFETY: closes the program's own table; in this child nobody uses it any more.
        assert_eq!(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) }, 0);
        (0..4).for_each(|n| assert_eq!(get(s.page(n)), 10 + n, "{:?}", s.kind));
        s.world.run(&ADD, &[s.page(2), 1]).unwrap();
        let context = s.world.space.attach(&discrete(&s.world.gmem, 8 * PAGE), Mode::CoherentExclusive).unwrap();
        run(&context, &ADD, &[s.page(2), 1]).unwrap();
        assert_eq!(get(s.page(2)), 14);
    });
}
