//! The kernel's own accesses to unified memory: system calls on pages that are on a device, and asynchronous I/O that holds pages.

mod common;

use common::*;
use gmem::{Access, Backing, Delivery, Error, Mode, accel, hal};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const PATTERN: u64 = 0x1111_1111_1111_1111;

fn temporary(name: &str, flags: i32) -> std::fs::File {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).custom_flags(flags).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn errno() -> Option<i32> {
    std::io::Error::last_os_error().raw_os_error()
}

#[test]
fn system_calls_reach_pages_that_are_on_the_device() {
    watched(|| {
        // Direct I/O as well: it pins the pages for as long as the call takes.
        for flags in [0, libc::O_DIRECT] {
            for (size, memory) in sizes() {
                for kind in kinds() {
                    let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
                    let region = region_of(&world, size, kind, 4);
                    let file = temporary("io", flags);
                    let bytes = 4 * size.bytes() as usize;
                    let case = format!("{size} {kind:?} flags {flags:#x}");
                    // They were the CPU's before: a page that never was is absent in another way.
                    (0..4).for_each(|page| set(at(&region, page * size.bytes()), 1));
                    world.run(&STRIDE, &[at(&region, 0), 7, size.bytes(), 4]).unwrap();
                    // SAFETY: plain system calls on a region that lives.
                    let wrote = unsafe { libc::pwrite(file.as_raw_fd(), at(&region, 0) as *const _, bytes, 0) };
                    if kind.1 == Delivery::InThread {
                        // Documented: the kernel's own accesses raise no signal. The data is where it was.
                        assert_eq!((wrote, errno()), (-1, Some(libc::EFAULT)), "{case}");
                        (0..4).for_each(|page| assert_eq!(get(at(&region, page * size.bytes())), 7 + page, "{case}"));
                        continue;
                    }
                    assert_eq!(wrote, bytes as isize, "{case}: {:?}", errno());
                    world.run(&STRIDE, &[at(&region, 0), 1000, size.bytes(), 4]).unwrap();
                    // SAFETY: as above.
                    let read = unsafe { libc::pread(file.as_raw_fd(), at(&region, 0) as *mut _, bytes, 0) };
                    assert_eq!(read, bytes as isize, "{case}: {:?}", errno());
                    // The device sees what the kernel read from the file.
                    world.run(&STRIDE, &[at(&region, 8), 50, size.bytes(), 4]).unwrap();
                    for page in 0..4 {
                        let words = [0, 8].map(|word| get(at(&region, page * size.bytes() + word)));
                        assert_eq!(words, [7 + page, 50 + page], "{case}");
                    }
                }
            }
        }
    });
}

/// An io_uring with `len` bytes at `va` as its only registered buffer, which pins them. `None` where io_uring is not permitted.
struct Ring {
    fd: OwnedFd,
    sq: *mut u8,
    sqes: *mut u8,
    params: [u32; 30],
}

/// Size of what is mapped of the queues: one entry needs far less.
const QUEUES: usize = 4096;

impl Ring {
    fn with_buffer(va: u64, len: usize) -> Option<Self> {
        let mut params = [0u32; 30];
        // SAFETY: system calls with a parameter block of 120 bytes, an iovec, and mappings of the ring at places the kernel chooses.
        unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr());
            if fd < 0 {
                eprintln!("skipped: io_uring is not permitted here");
                return None;
            }
            let fd = OwnedFd::from_raw_fd(fd as i32);
            let buffer = libc::iovec { iov_base: va as *mut _, iov_len: len };
            let registered = libc::syscall(libc::SYS_io_uring_register, fd.as_raw_fd(), 0, &raw const buffer, 1);
            assert_eq!(registered, 0, "{:?}", errno());
            let map = |offset: i64| {
                let at =
                    libc::mmap(std::ptr::null_mut(), QUEUES, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd.as_raw_fd(), offset);
                assert_ne!(at, libc::MAP_FAILED);
                at.cast::<u8>()
            };
            Some(Self { sq: map(0), sqes: map(0x1000_0000), fd, params })
        }
    }

    /// Has the kernel read 8 bytes of `file` into `va` by the registered buffer; does not wait for it.
    fn read_fixed(&self, file: i32, va: u64) {
        // Offsets of struct io_uring_params: sq_off from word 10, head tail mask entries flags dropped array.
        let (tail, array) = (self.params[11] as usize, self.params[16] as usize);
        // SAFETY: inside the mapped queues, whose only entry is free: each ring is used once. Entry layout: opcode at 0 (READ_FIXED is 4), fd at 4,
        // offset at 8, address at 16, length at 24.
        unsafe {
            self.sqes.write_bytes(0, 64);
            self.sqes.write(4);
            self.sqes.add(4).cast::<i32>().write(file);
            self.sqes.add(8).cast::<u64>().write(u64::MAX);
            self.sqes.add(16).cast::<u64>().write(va);
            self.sqes.add(24).cast::<u32>().write(8);
            self.sq.add(array).cast::<u32>().write(0);
            AtomicU32::from_ptr(self.sq.add(tail).cast()).store(1, Ordering::Release);
            let submitted = libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 1, 0, 0, 0, 0);
            assert_eq!(submitted, 1, "{:?}", errno());
        }
    }

    fn wait(&self) {
        // SAFETY: waits for one completion.
        let waited = unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 0, 1, 1, 0, 0) };
        assert_eq!(waited, 0, "{:?}", errno());
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mappings are the ring's own.
        unsafe {
            libc::munmap(self.sq.cast(), QUEUES);
            libc::munmap(self.sqes.cast(), QUEUES);
        }
    }
}

fn write_pattern(to: &impl AsRawFd) {
    let bytes = PATTERN.to_ne_bytes();
    // SAFETY: writes eight bytes that live.
    assert_eq!(unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) }, 8);
}

#[test]
fn a_page_of_private_backing_that_the_kernel_holds_stays_and_no_write_is_lost() {
    watched(|| {
        for (size, memory) in sizes() {
            let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
            let region = region_of(&world, size, (Backing::Private, Delivery::Service), 4);
            let page = at(&region, size.bytes());
            (0..4).for_each(|n| set(at(&region, n * size.bytes()), 10 + n));
            let (from, to) = std::io::pipe().unwrap();
            let Some(ring) = Ring::with_buffer(page, 4096) else { return };
            ring.read_fixed(from.as_raw_fd(), page + 64);
            // The read is in flight. The device wants the page and gets a plain answer.
            let pinned = hal::FaultError::Host(hal::HostError::Pinned);
            assert_eq!(fault(world.run(&ADD, &[page, 1])), (page, pinned), "{size}");
            assert!(!world.context.is_fenced());
            let refused = world.space.prefetch(part(&region, size.bytes(), size.bytes()), Some(&world.device), Access::Write);
            assert!(matches!(refused, Err(Error::Range(gmem::RangeError::Fault(_, e))) if e == pinned), "{refused:?}");
            // Its neighbours come and go.
            world.run(&ADD, &[at(&region, 0), 1]).unwrap();
            world.run(&ADD, &[at(&region, 2 * size.bytes()), 1]).unwrap();
            write_pattern(&to);
            ring.wait();
            assert_eq!((get(page), get(page + 64)), (11, PATTERN), "{size}");
            drop(ring);
            // The kernel lets go a little after the descriptor is closed.
            eventually("the device can have it", || world.run(&ADD, &[page, 1]).is_ok());
            let words = [0, size.bytes(), size.bytes() + 64, 2 * size.bytes()].map(|offset| get(at(&region, offset)));
            assert_eq!(words, [11, 12, PATTERN, 13], "{size}");
        }
    });
}

#[test]
fn memory_of_shared_backing_that_is_pinned_for_io_stays_and_the_device_waits() {
    watched(|| {
        for (size, memory) in sizes() {
            let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
            let region = region_of(&world, size, (Backing::Shared, Delivery::Service), 4);
            let page = at(&region, size.bytes());
            world.run(&STORE, &[page, 11]).unwrap();
            // The page comes home for it, and only this one is held.
            let pin = region.pin_for_io(part(&region, size.bytes() + 64, 8)).unwrap();
            let held = world.space.residency(region.range()).unwrap();
            let held: Vec<_> = held.into_iter().filter(|r| r.pinned).map(|r| r.range).collect();
            assert_eq!(held, [part(&region, size.bytes(), size.bytes())]);
            let (from, to) = std::io::pipe().unwrap();
            let Some(ring) = Ring::with_buffer(page, 4096) else { return };
            ring.read_fixed(from.as_raw_fd(), page + 64);
            let done = AtomicBool::new(false);
            std::thread::scope(|threads| {
                let device = threads.spawn(|| {
                    world.run(&ADD, &[page, 1]).unwrap();
                    assert!(done.load(Ordering::SeqCst), "the device did not wait for the I/O, {size}");
                });
                std::thread::sleep(Duration::from_millis(20));
                assert!(!device.is_finished());
                assert_eq!(get(page), 11, "the CPU does not wait");
                write_pattern(&to);
                ring.wait();
                assert_eq!(get(page + 64), PATTERN);
                drop(ring);
                done.store(true, Ordering::SeqCst);
                drop(pin);
            });
            assert_eq!((get(page), get(page + 64)), (12, PATTERN), "{size}");
        }
    });
}
