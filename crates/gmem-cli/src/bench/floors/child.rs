//! The other process of the floors: waits for requests, maps, faults.

use super::memory::{Window, byte_of};
use super::other::Layout;
use super::ring::{LOOKS, Request, Ring, spin, wait_for_change};
use crate::failure::Failure;
use rustix::mm::ProtFlags;
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Everything the process has; the signal handler finds it here.
struct State {
    object: OwnedFd,
    layout: Layout,
    ring: Window,
    window: Window,
    parent: Option<rustix::process::Pid>,
}

static STATE: OnceLock<State> = OnceLock::new();

/// Serves the parent until it ends. The memory object is the standard input.
pub(crate) fn serve() -> Result<(), Failure> {
    let wrong = |e: rustix::io::Errno| Failure::while_doing("this is a part of `gmem bench`; its standard input is no memory object", e);
    let object = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).map_err(wrong)?;
    let bytes = rustix::fs::fstat(&object).map_err(wrong)?.st_size;
    let layout = Layout::of(u64::try_from(bytes).unwrap_or(0).max(super::memory::PAGE as u64));
    if layout.pages == 0 {
        return Err(Failure::Usage("this is a part of `gmem bench` and of no use by itself".to_owned()));
    }
    let ring = Window::on(object.as_fd(), 0, 1)?;
    let window = Window::reserve(layout.pages)?;
    let state = STATE.get_or_init(|| State { object, layout, ring, window, parent: rustix::process::getppid() });
    catch_faults()?;
    let (mut seen, mut looks) = (0, LOOKS);
    loop {
        match wait_for_change(&state.ring().asked, seen, looks) {
            Some(asked) => seen = asked,
            None if state.parent_lives() => continue,
            None => return Ok(()),
        }
        // Unmapping is the last request of a turn. While gmem has its turn this process must not take a processor from it.
        looks = if state.ring().request.load(Ordering::Relaxed) == Request::Unmap as u32 { 0 } else { LOOKS };
        let failed = state.answer().is_err();
        state.ring().failed.store(failed.into(), Ordering::Relaxed);
        state.ring().done.store(seen, Ordering::Release);
    }
}

impl State {
    fn ring(&self) -> &Ring {
        // SAFETY: mapped for as long as `self` lives; it consists of atomics, which two processes may share, and began as zeros.
        unsafe { &*self.ring.page(0).cast::<Ring>() }
    }

    fn parent_lives(&self) -> bool {
        rustix::process::getppid() == self.parent
    }

    fn answer(&self) -> Result<(), Failure> {
        const MAP_HOME: u32 = Request::MapHome as u32;
        const TOUCH: u32 = Request::Touch as u32;
        const UNMAP: u32 = Request::Unmap as u32;
        let page = self.ring().page.load(Ordering::Relaxed) as usize % self.layout.pages;
        match self.ring().request.load(Ordering::Relaxed) {
            MAP_HOME => {
                self.map(page, self.layout.home(page))?;
                self.touch(page);
                Ok(())
            }
            TOUCH => {
                let started = Instant::now();
                self.touch(page);
                self.ring().nanoseconds.store(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                Ok(())
            }
            UNMAP => self.window.unmap(page),
            _ => Ok(()),
        }
    }

    fn map(&self, page: usize, from: usize) -> Result<(), Failure> {
        self.window.map(page, 1, self.object.as_fd(), from, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn touch(&self, page: usize) {
        // SAFETY: the page is mapped, or the handler maps it and the access is tried again.
        let byte = unsafe { self.window.page(page).read_volatile() };
        assert_eq!(byte, byte_of(page), "the page holds what the parent put there");
    }

    /// Has the parent bring a page, and maps it. Async-signal-safe.
    fn fault(&self, page: usize) -> Result<(), Failure> {
        let ring = self.ring();
        let fault = ring.faulted.fetch_add(1, Ordering::Release) + 1;
        spin(|| ring.resolved.load(Ordering::Acquire) == fault, || self.parent_lives())?;
        self.map(page, self.layout.frame(page))
    }
}

fn catch_faults() -> Result<(), Failure> {
    // SAFETY: a `sigaction` of zeros is a valid value: the default action with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = resolve as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is valid; the handler reads and writes atomics and makes one system call.
    match unsafe { libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Failure::while_doing("sigaction", std::io::Error::last_os_error())),
    }
}

extern "C" fn resolve(_signal: i32, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` for SIGSEGV, whose address is set.
    let address = unsafe { (*info).si_addr() }.addr();
    let found = STATE.get().and_then(|state| Some((state, state.window.find(address)?)));
    if found.is_none_or(|(state, page)| state.fault(page).is_err()) {
        // SAFETY: the default action is a valid one; the access is then tried again and ends the process.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    }
}
