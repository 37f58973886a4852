//! What a program does around managed memory: system calls, signals, descriptors, forks, death.

mod common;

use common::{Rig, assert_signal, attrs, child, is_child, triple_of_param, triples, watchdog};
use gmem_hal::{
    Access, Backing, Delivery, DeviceId, EvictOutcome, FaultError, FaultHint, Host, HostFault, PageSize, PmapId, Upcalls, VirtAddr,
    VirtRange,
};
use gmem_linux::{LinuxHost, Threads, UffdAccess};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Runs the test `name` in a child per triple, and gives the exit statuses.
fn per_triple(name: &str) -> Vec<(gmem_hal::RegionAttrs, std::process::ExitStatus)> {
    triples().into_iter().enumerate().map(|(i, attrs)| (attrs, child(name, &i.to_string()))).collect()
}

#[test]
fn system_calls_on_absent_pages_work_by_service_and_fail_cleanly_in_thread() {
    let _w = watchdog(60);
    for attrs in triples() {
        let rig = Rig::new(attrs, 3);
        if attrs.delivery == Delivery::Service && rig.pager.host.uffd_access() == UffdAccess::UserModeOnly {
            eprintln!("skipped: {}", gmem_linux::probe().consequences().join(" "));
            return;
        }
        rig.word(0, 0).store(0x0123_4567_89ab_cdef, SeqCst);
        rig.to_device(0).expect("to the device");
        let (mut from, mut to) = std::io::pipe().expect("a pipe");
        // SAFETY: raw system calls on memory of the rig.
        let wrote = unsafe { libc::write(to.as_raw_fd(), rig.va(0, 0) as *const _, 8) };
        if attrs.delivery == Delivery::InThread {
            assert_eq!((wrote, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)), "{attrs:?}");
            continue;
        }
        assert_eq!(wrote, 8, "write(2) from an absent page, {attrs:?}");
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).expect("the bytes");
        assert_eq!(u64::from_ne_bytes(bytes), 0x0123_4567_89ab_cdef, "{attrs:?}");
        rig.word(1, 8).store(1, SeqCst);
        rig.to_device(1).expect("to the device");
        to.write_all(&[9; 8]).expect("eight bytes");
        // SAFETY: as above.
        let read = unsafe { libc::read(from.as_raw_fd(), rig.va(1, 0) as *mut _, 8) };
        assert_eq!(read, 8, "read(2) into an absent page, {attrs:?}");
        assert_eq!((rig.word(1, 0).load(SeqCst), rig.word(1, 8).load(SeqCst)), (0x0909_0909_0909_0909, 1), "{attrs:?}");
    }
}

#[test]
fn user_mode_only_serves_user_code() {
    let _w = watchdog(60);
    let threads = Arc::new(Threads::start().expect("threads"));
    let host = LinuxHost::open_as(threads, UffdAccess::UserModeOnly).expect("a host");
    let rig = Rig::on(host, attrs(Backing::Shared, Delivery::Service, PageSize::Size2M), 2);
    rig.word(0, 0).store(1, SeqCst);
    rig.to_device(0).expect("to the device");
    let (_from, to) = std::io::pipe().expect("a pipe");
    // SAFETY: a raw system call on memory of the rig.
    let wrote = unsafe { libc::write(to.as_raw_fd(), rig.va(0, 0) as *const _, 8) };
    assert_eq!((wrote, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    assert_eq!(rig.word(0, 0).load(SeqCst), 1);
}

#[test]
fn closing_every_descriptor_in_the_program_changes_nothing() {
    const NAME: &str = "closing_every_descriptor_in_the_program_changes_nothing";
    let _w = watchdog(60);
    if !is_child(NAME) {
        for (attrs, status) in per_triple(NAME) {
            assert!(status.success(), "{attrs:?}: {status}");
        }
        return;
    }
    let rig = Rig::new(triple_of_param(), 2);
    rig.word(0, 0).store(5, SeqCst);
    rig.to_device(0).expect("to the device");
    // SAFETY: closes the program's own table, whose owners do nothing with it any more in this child.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    assert_eq!((rig.word(0, 0).load(SeqCst), rig.word(1, 0).load(SeqCst)), (5, 0));
    rig.to_device(0).expect("to the device");
    assert_eq!(rig.word(0, 0).load(SeqCst), 5);
}

#[test]
fn a_forked_child_that_touches_managed_memory_dies_cleanly_and_the_parent_is_unharmed() {
    let _w = watchdog(60);
    for attrs in triples() {
        let rig = Rig::new(attrs, 3);
        (0..2).for_each(|p| rig.word(p, 0).store(p as u64 + 1, SeqCst));
        rig.to_device(1).expect("to the device");
        // One page on the CPU, one on the device, one nowhere.
        for page in 0..3 {
            let at = rig.va(page, 0) as *const u64;
            // SAFETY: the child makes one load and exits: nothing in it allocates or locks.
            let pid = unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    at.read_volatile();
                    libc::_exit(0);
                }
                pid
            };
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "page {page}: status {status:#x}, {attrs:?}");
        }
        assert_eq!([0, 1, 2].map(|p| rig.word(p, 0).load(SeqCst)), [1, 2, 0], "{attrs:?}");
        (0..2).for_each(|p| rig.to_device(p).expect("nothing is pinned after a fork"));
        assert_eq!([0, 1, 2].map(|p| rig.word(p, 0).fetch_add(1, SeqCst)), [1, 2, 0], "{attrs:?}");
    }
}

#[test]
fn a_wild_pointer_still_kills() {
    const NAME: &str = "a_wild_pointer_still_kills";
    let _w = watchdog(60);
    if !is_child(NAME) {
        for where_ in ["null", "none", "beyond", "unmapped"] {
            assert_signal(child(NAME, where_), libc::SIGSEGV, where_);
        }
        return;
    }
    let rig = Rig::new(attrs(Backing::Shared, Delivery::InThread, PageSize::Size2M), 2);
    assert_eq!(rig.word(0, 0).load(SeqCst), 0, "the handler is installed and works");
    let wild = match common::param().as_str() {
        "null" => 8,
        // SAFETY: asks for a page nobody may touch.
        "none" => unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) as u64 },
        "beyond" => rig.va(1, 0) + rig.page_bytes(),
        _ => {
            rig.threads.run(|| rig.pager.host.region_unmap(&rig.pager.space, &rig.pager.region));
            rig.va(0, 0)
        }
    };
    // "unmapped": the tiny pager does not know; it fails the fault instead of mapping what is gone.
    rig.pager.fail.store(true, SeqCst);
    // SAFETY: this is meant to die.
    unsafe { (wild as *const u64).read_volatile() };
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn program_handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    HANDLED.store(unsafe { (*info).si_addr() } as u64, SeqCst);
    // SAFETY: async-signal-safe; ends the child with a code of its own.
    unsafe { libc::_exit(42) };
}

#[test]
fn a_handler_of_the_program_gets_what_is_not_ours() {
    const NAME: &str = "a_handler_of_the_program_gets_what_is_not_ours";
    let _w = watchdog(60);
    if !is_child(NAME) {
        assert_eq!(child(NAME, "").code(), Some(42));
        return;
    }
    // SAFETY: installs a handler that only exits.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = program_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
    }
    let rig = Rig::new(attrs(Backing::Shared, Delivery::InThread, PageSize::Size4K), 1);
    assert_eq!(rig.word(0, 0).load(SeqCst), 0, "ours");
    assert_eq!(HANDLED.load(SeqCst), 0);
    // SAFETY: goes to the handler, which exits.
    unsafe { (16 as *const u64).read_volatile() };
}

#[test]
fn a_fault_that_fails_kills_with_a_bus_error_by_service_and_a_segfault_in_thread() {
    const NAME: &str = "a_fault_that_fails_kills_with_a_bus_error_by_service_and_a_segfault_in_thread";
    let _w = watchdog(60);
    if !is_child(NAME) {
        for (attrs, status) in per_triple(NAME) {
            let signal = if attrs.delivery == Delivery::Service { libc::SIGBUS } else { libc::SIGSEGV };
            assert_signal(status, signal, &format!("{attrs:?}"));
        }
        return;
    }
    let rig = Rig::new(triple_of_param(), 2);
    rig.word(0, 0).store(1, SeqCst);
    rig.to_device(0).expect("to the device");
    rig.pager.fail.store(true, SeqCst);
    rig.word(0, 0).load(SeqCst);
}

#[test]
fn a_page_whose_fault_failed_works_again_when_it_is_mapped() {
    let _w = watchdog(60);
    for attrs in triples().into_iter().filter(|a| a.delivery == Delivery::Service) {
        let rig = Rig::new(attrs, 1);
        rig.word(0, 0).store(77, SeqCst);
        rig.to_device(0).expect("to the device");
        rig.pager.fail.store(true, SeqCst);
        let (_from, to) = std::io::pipe().expect("a pipe");
        // A system call fails where the program's own access would die.
        // SAFETY: a raw system call on memory of the rig.
        let wrote = unsafe { libc::write(to.as_raw_fd(), rig.va(0, 0) as *const _, 8) };
        assert_eq!(wrote, -1, "{attrs:?}");
        rig.pager.fail.store(false, SeqCst);
        rig.threads.run(|| rig.pager.to_cpu(0)).expect("to the CPU");
        assert_eq!(rig.word(0, 0).load(SeqCst), 77, "{attrs:?}");
    }
}

#[test]
fn in_thread_faults_work_on_small_signal_stacks_with_errno_and_masks_kept() {
    let _w = watchdog(60);
    // Threads of Rust's standard library have an alternate signal stack of a few KiB: every in-thread test runs so. Here, errno and mask.
    let rig = Rig::new(attrs(Backing::Shared, Delivery::InThread, PageSize::Size2M), 1);
    // SAFETY: errno and the signal mask of this thread.
    unsafe {
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut before);
        *libc::__errno_location() = 123;
        (rig.va(0, 0) as *const u64).read_volatile();
        assert_eq!(*libc::__errno_location(), 123);
        let mut after: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut after);
        for signal in 1..32 {
            assert_eq!(libc::sigismember(&raw const before, signal), libc::sigismember(&raw const after, signal), "signal {signal}");
        }
    }
    assert_eq!(rig.pager.faults.load(SeqCst), 1);
}

#[test]
fn stack_overflow_is_still_reported_by_the_standard_library() {
    const NAME: &str = "stack_overflow_is_still_reported_by_the_standard_library";
    let _w = watchdog(60);
    if !is_child(NAME) {
        assert_signal(child(NAME, ""), libc::SIGABRT, "the standard library's handler says so and aborts");
        return;
    }
    let rig = Rig::new(attrs(Backing::Shared, Delivery::InThread, PageSize::Size4K), 1);
    assert_eq!(rig.word(0, 0).load(SeqCst), 0);
    #[allow(unconditional_recursion, reason = "that is the test")]
    fn deep(x: &mut [u64; 64]) -> u64 {
        let mut y = [x[0] + 1; 64];
        std::hint::black_box(deep(&mut y)) + x[1]
    }
    deep(&mut [0; 64]);
}

/// Answers Pending, as a core does while the page is busy.
struct Busy {
    asked: AtomicBool,
    ready: AtomicBool,
    range: VirtRange,
}

impl Upcalls for Busy {
    fn device_fault(&self, _: DeviceId, _: PmapId, _: VirtAddr, _: Access, _: Option<FaultHint>) -> Result<(), FaultError> {
        Err(FaultError::NotMapped)
    }
    fn device_evict(&self, _: DeviceId, _: PmapId, _: VirtRange) -> EvictOutcome {
        EvictOutcome::NotThere
    }
    fn device_lost(&self, _: DeviceId, _: PmapId) {}
    fn host_fault(&self, va: VirtAddr, _: Access, may_wait: bool) -> HostFault {
        assert!(self.range.contains(va) && !may_wait);
        self.asked.store(true, SeqCst);
        if self.ready.load(SeqCst) { HostFault::Resolved } else { HostFault::Pending }
    }
}

#[test]
fn a_pending_fault_waits_in_the_kernel_until_the_page_is_mapped() {
    let _w = watchdog(60);
    for attrs in triples().into_iter().filter(|a| a.delivery == Delivery::Service) {
        let threads = Arc::new(Threads::start().expect("threads"));
        let host = LinuxHost::open(threads.clone()).expect("a host");
        let range = VirtRange::page(common::fresh_range(2 << 20).start(), attrs.page_size).expect("in range");
        let page = gmem_hal::Pages { range, attrs };
        let space = threads.run(|| {
            let space = host.space_create(range, true).expect("a space");
            host.region_map(&space, &page).expect("a region");
            space
        });
        let core = Arc::new(Busy { asked: AtomicBool::new(false), ready: AtomicBool::new(false), range });
        let weak: std::sync::Weak<Busy> = Arc::downgrade(&core);
        host.set_upcalls(weak);
        let at = range.start().get();
        // SAFETY: an address of the region.
        let reader = std::thread::spawn(move || unsafe { (at as *const u64).read_volatile() });
        while !core.asked.swap(false, SeqCst) {
            std::thread::yield_now();
        }
        // A wake without a page makes it ask again, and wait again.
        threads.run(|| host.wake(&space, &page));
        while !core.asked.load(SeqCst) {
            std::thread::yield_now();
        }
        assert!(!reader.is_finished(), "{attrs:?}");
        threads.run(|| {
            host.populate(&space, &page).expect("populated");
            // SAFETY: populated and not CPU-mapped.
            unsafe { *(host.home(&space, &page).addr as *mut u64) = 99 };
            core.ready.store(true, SeqCst);
            host.cpu_map(&space, &page).expect("mapped");
        });
        assert_eq!(reader.join().expect("no panic"), 99, "{attrs:?}");
    }
}
