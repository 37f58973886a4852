//! Pages that the kernel holds, and pages shared with a child.

mod common;

use common::{Rig, attrs, watchdog};
use gmem_hal::{Backing, Delivery, HostError, PageSize};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// Pins `len` bytes at `at` as a registered buffer of a new io_uring, until the answer is dropped. `None` where io_uring is not permitted.
fn pin(at: u64, len: usize) -> Option<OwnedFd> {
    const REGISTER_BUFFERS: u32 = 0;
    // Larger than struct io_uring_params; all zeros asks for the defaults.
    let mut params = [0u64; 32];
    // SAFETY: system calls with a valid parameter block and iovec.
    unsafe {
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr());
        if ring < 0 {
            return None;
        }
        let ring = OwnedFd::from_raw_fd(ring as i32);
        let buffer = libc::iovec { iov_base: at as *mut _, iov_len: len };
        let err =
            libc::syscall(libc::SYS_io_uring_register, std::os::fd::AsRawFd::as_raw_fd(&ring), REGISTER_BUFFERS, &raw const buffer, 1);
        assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
        Some(ring)
    }
}

#[test]
fn a_pinned_page_stays_and_nothing_is_lost() {
    let _w = watchdog(60);
    for size in PageSize::ALL {
        let rig = Rig::new(attrs(Backing::Private, Delivery::Service, size), 4);
        (0..4).for_each(|p| rig.word(p, 0).store(p as u64 + 1, SeqCst));
        let Some(ring) = pin(rig.va(2, 0), 4096) else {
            eprintln!("skipped: io_uring is not permitted here");
            return;
        };
        assert_eq!(rig.to_device(2), Err(HostError::Pinned), "{size}");
        // A run with a pinned page in the middle: all are as they were, that is, on the CPU.
        let whole = rig.pager.region;
        let unmapped = rig.threads.run(|| gmem_hal::Host::cpu_unmap(&rig.pager.host, &rig.pager.space, &whole));
        assert_eq!(unmapped, Err(HostError::Pinned), "{size}");
        let faults = rig.pager.faults.load(SeqCst);
        assert_eq!([0, 1, 2, 3].map(|p| rig.word(p, 0).load(SeqCst)), [1, 2, 3, 4], "{size}");
        assert_eq!(rig.pager.faults.load(SeqCst), faults, "they never left, {size}");
        drop(ring);
        // The kernel lets go a little after the descriptor is closed.
        let end = Instant::now() + Duration::from_secs(20);
        while rig.to_device(2) == Err(HostError::Pinned) {
            assert!(Instant::now() < end, "still pinned, {size}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!([0, 1, 2, 3].map(|p| rig.word(p, 0).load(SeqCst)), [1, 2, 3, 4], "{size}");
    }
}

#[test]
fn pages_shared_with_a_child_can_be_taken_after_a_write() {
    let _w = watchdog(60);
    for size in PageSize::ALL {
        let rig = Rig::new(attrs(Backing::Private, Delivery::Service, size), 2);
        (0..2).for_each(|p| rig.word(p, 8).store(p as u64 + 1, SeqCst));
        // The host keeps children out; a program that lets them in gets copy-on-write, after which the kernel refuses to move a page until it is written.
        let len = 2 * rig.page_bytes() as usize;
        // SAFETY: advice on memory of the rig; the children do nothing but wait or exit.
        let (alive, dead) = unsafe {
            assert_eq!(libc::madvise(rig.va(0, 0) as *mut _, len, libc::MADV_DOFORK), 0);
            let child = || match libc::fork() {
                0 => libc::pause(),
                pid => pid,
            };
            (child(), child())
        };
        // SAFETY: ends and reaps a child made here.
        let reap = |pid| unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        };
        reap(dead);
        rig.to_device(0).expect("with a child alive");
        reap(alive);
        rig.to_device(1).expect("with the children dead");
        assert_eq!([0, 1].map(|p| rig.word(p, 8).load(SeqCst)), [1, 2], "{size}");
    }
}

#[test]
fn what_the_program_gave_back_to_the_kernel_reads_as_zero() {
    let _w = watchdog(60);
    for size in PageSize::ALL {
        let rig = Rig::new(attrs(Backing::Private, Delivery::Service, size), 2);
        let last = rig.page_bytes() - 8;
        (0..2).for_each(|p| {
            rig.word(p, 0).store(1, SeqCst);
            rig.word(p, last).store(2, SeqCst);
        });
        // The first base page of page 0, and the whole of page 1.
        // SAFETY: advice on memory of the rig.
        unsafe {
            assert_eq!(libc::madvise(rig.va(0, 0) as *mut _, 4096, libc::MADV_DONTNEED), 0);
            assert_eq!(libc::madvise(rig.va(1, 0) as *mut _, rig.page_bytes() as usize, libc::MADV_DONTNEED), 0);
        }
        rig.to_device(0).expect("to the device");
        let kept = if size == PageSize::Size4K { 0 } else { 2 };
        assert_eq!((rig.word(0, 0).load(SeqCst), rig.word(0, last).load(SeqCst)), (0, kept), "{size}");
        assert_eq!((rig.word(1, 0).load(SeqCst), rig.word(1, last).load(SeqCst)), (0, 0), "{size}");
    }
}
