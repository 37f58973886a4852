//! The floor of a CPU fault that the faulting thread resolves: a signal, one copy of 2 MiB, one call that changes the protection.

use super::memory::{PAGE, Pair, Window, byte_of, failed};
use crate::bench::Timed;
use crate::failure::Failure;
use rustix::mm::{MprotectFlags, ProtFlags, mprotect};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

/// What the handler needs; set while the handler is installed.
static CURRENT: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

struct Shared {
    pair: Pair,
    window: Window,
}

/// The floor.
pub(crate) struct InThreadFault {
    // Boxed, because the handler finds it by its address.
    shared: Box<Shared>,
    next: usize,
}

impl InThreadFault {
    /// With `pages` pages, taken in turn so that none is in a cache when its turn comes.
    pub(crate) fn new(pages: usize) -> Result<Self, Failure> {
        let pair = Pair::new(pages)?;
        let window = Window::reserve(pages)?;
        window.map(0, pages, pair.object.as_fd(), 0, ProtFlags::empty())?;
        Ok(Self { shared: Box::new(Shared { pair, window }), next: 0 })
    }
}

impl Timed for InThreadFault {
    fn once(&mut self) -> Result<f64, Failure> {
        let page = self.next;
        self.next = (page + 1) % self.shared.window.pages();
        let at = self.shared.window.page(page);
        // Installed for this one access, so that it cannot meet a handler of gmem or be met by one.
        let handler = Handler::install(&self.shared)?;
        let started = Instant::now();
        // SAFETY: the handler makes the page readable, and the access is then tried again.
        let byte = unsafe { at.read_volatile() };
        let nanoseconds = started.elapsed().as_nanos() as f64;
        drop(handler);
        assert_eq!(byte, byte_of(page), "the frame's content came home");
        // SAFETY: the page belongs to the window and nobody uses it now.
        unsafe { mprotect(at.cast(), PAGE, MprotectFlags::empty()) }.map_err(failed("mprotect"))?;
        Ok(nanoseconds)
    }
}

/// The signal handler, for as long as this lives.
struct Handler {
    before: libc::sigaction,
}

impl Handler {
    fn install(shared: &Shared) -> Result<Self, Failure> {
        CURRENT.store(std::ptr::from_ref(shared).cast_mut(), Ordering::SeqCst);
        // SAFETY: a `sigaction` of zeros is a valid value: the default action with an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = resolve as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut before = action;
        // SAFETY: both are valid; the handler is async-signal-safe: it copies memory and makes one system call.
        match unsafe { libc::sigaction(libc::SIGSEGV, &action, &mut before) } {
            0 => Ok(Self { before }),
            _ => Err(Failure::while_doing("the hand-written floor: sigaction", std::io::Error::last_os_error())),
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: `before` is what the kernel gave us.
        unsafe { libc::sigaction(libc::SIGSEGV, &self.before, std::ptr::null_mut()) };
        CURRENT.store(std::ptr::null_mut(), Ordering::SeqCst);
    }
}

/// Resolves a fault in the window; any other is left to end the program.
extern "C" fn resolve(_signal: i32, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` for SIGSEGV, whose address is set.
    let address = unsafe { (*info).si_addr() }.addr();
    // SAFETY: set to a living `Shared` while this handler is installed, or null.
    let shared = unsafe { CURRENT.load(Ordering::SeqCst).as_ref() };
    if let Some((shared, page)) = shared.and_then(|s| Some((s, s.window.find(address)?))) {
        shared.pair.bring_home(page);
        // SAFETY: the page belongs to the window; its home was just filled.
        if unsafe { mprotect(shared.window.page(page).cast(), PAGE, MprotectFlags::READ | MprotectFlags::WRITE) }.is_ok() {
            return;
        }
    }
    // SAFETY: the default action is a valid one; the access is then tried again and ends the program.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_brings_the_frame_home_each_time() {
        let mut floor = InThreadFault::new(2).unwrap();
        for _ in 0..6 {
            assert!(floor.once().unwrap() > 0.0);
        }
    }
}
