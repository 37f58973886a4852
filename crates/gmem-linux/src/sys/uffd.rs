//! userfaultfd.

use super::area::{Area, BASE_PAGE};
use super::fd::GmemFd;
use super::process::errno;
use crate::{Threads, UffdAccess};
use arrayvec::ArrayVec;
use gmem_hal::{Access, PageSize, VirtAddr, VirtRange};
use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::opcode;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const API: libc::Ioctl = opcode::read_write::<raw::uffdio_api>(0xaa, 0x3f) as libc::Ioctl;
const REGISTER: libc::Ioctl = opcode::read_write::<raw::uffdio_register>(0xaa, 0) as libc::Ioctl;
const UNREGISTER: libc::Ioctl = opcode::read::<raw::uffdio_range>(0xaa, 1) as libc::Ioctl;
const WAKE: libc::Ioctl = opcode::read::<raw::uffdio_range>(0xaa, 2) as libc::Ioctl;
const COPY: libc::Ioctl = opcode::read_write::<raw::uffdio_copy>(0xaa, 3) as libc::Ioctl;
const MOVE: libc::Ioctl = opcode::read_write::<raw::uffdio_move>(0xaa, 5) as libc::Ioctl;
const CONTINUE: libc::Ioctl = opcode::read_write::<raw::uffdio_continue>(0xaa, 7) as libc::Ioctl;
const POISON: libc::Ioctl = opcode::read_write::<raw::uffdio_poison>(0xaa, 8) as libc::Ioctl;
/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd`.
const DEVICE_NEW: libc::Ioctl = opcode::none(0xaa, 0) as libc::Ioctl;

const POISON_DONTWAKE: u64 = 1;
const MOVE_ALLOW_SRC_HOLES: u64 = 2;

/// Which absences of a registered range are faults for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absence {
    /// No page there. For anonymous memory.
    Missing,
    /// No page in the file, or one in the file that is not in the page table. For memfds.
    MissingOrUnmapped,
}

/// How far an operation on a range came, and why it went no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stop {
    /// Bytes done before the page that stopped it.
    pub(crate) done: u64,
    pub(crate) why: Errno,
}

/// A fault that the kernel reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) va: VirtAddr,
    pub(crate) access: Access,
}

/// A userfaultfd after the handshake.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: GmemFd,
    features: u64,
}

/// Opens a userfaultfd without handshake, in one way.
pub(crate) fn open_raw(access: UffdAccess) -> Result<OwnedFd, Errno> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = match access {
        UffdAccess::Refused => return Err(Errno::PERM),
        // SAFETY: the system call takes flags and makes a descriptor.
        UffdAccess::Full => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) },
        // SAFETY: as above.
        UffdAccess::UserModeOnly => unsafe { libc::syscall(libc::SYS_userfaultfd, flags | raw::UFFD_USER_MODE_ONLY as i32) },
        UffdAccess::Device => {
            let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
            let device = device.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            // SAFETY: this ioctl takes flags and makes a descriptor.
            unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_NEW, flags) }.into()
        }
    };
    // SAFETY: a descriptor just made that nobody else owns.
    if fd < 0 { Err(errno()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}

/// The handshake: asks for `features` and gives those the kernel has. It can be made once per descriptor.
pub(crate) fn handshake(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one uffdio_api.
    let err = unsafe { libc::ioctl(fd.as_raw_fd(), API, &raw mut api) };
    if err < 0 { Err(errno()) } else { Ok(api.features) }
}

fn raw_range(range: VirtRange) -> raw::uffdio_range {
    raw::uffdio_range { start: range.start().get(), len: range.len().get() }
}

/// The kernel says in the argument how many bytes were done, or a negative errno if none.
fn stopped(done: i64, why: Errno) -> Stop {
    Stop { done: done.max(0) as u64, why }
}

impl Uffd {
    /// Opens one with `features`, on a gmem thread.
    pub(crate) fn open(threads: &Arc<Threads>, access: UffdAccess, features: u64) -> Result<Self, Errno> {
        let fd = open_raw(access)?;
        handshake(&fd, features)?;
        Ok(Self { fd: GmemFd::new(fd, threads), features })
    }

    /// The features that were asked for.
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    /// The descriptor, for polling.
    pub(crate) fn fd(&self) -> &GmemFd {
        &self.fd
    }

    fn call<T>(&self, op: libc::Ioctl, arg: &mut T) -> Result<(), Errno> {
        let fd = self.fd.here()?.as_raw_fd();
        // SAFETY: every caller in this module pairs `op` with the structure it was computed from, so the kernel reads and writes one `T`. What
        // the operation does to memory was checked by the caller to lie inside areas that gmem owns.
        let err = unsafe { libc::ioctl(fd, op, &raw mut *arg) };
        if err < 0 { Err(errno()) } else { Ok(()) }
    }

    /// From now on absent pages of `range` are faults for this userfaultfd.
    pub(crate) fn register(&self, area: &Area, range: VirtRange, absence: Absence) -> Result<(), Errno> {
        area.check(range);
        let mode = match absence {
            Absence::Missing => raw::UFFDIO_REGISTER_MODE_MISSING,
            Absence::MissingOrUnmapped => raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_MINOR,
        };
        self.call(REGISTER, &mut raw::uffdio_register { range: raw_range(range), mode: mode.into(), ioctls: 0 })
    }

    /// From now on the kernel serves faults in `range` by itself. Does not wake all waiters.
    pub(crate) fn unregister(&self, area: &Area, range: VirtRange) -> Result<(), Errno> {
        area.check(range);
        self.call(UNREGISTER, &mut raw_range(range))
    }

    /// Makes threads that wait for a fault in `range` try again. Needs no registration, and touches no memory.
    pub(crate) fn wake(&self, range: VirtRange) {
        // It fails only for a range that is not page aligned.
        let _ = self.call(WAKE, &mut raw_range(range));
    }

    /// Maps the pages of a memfd that lie behind `range`.
    pub(crate) fn map_existing(&self, area: &Area, range: VirtRange) -> Result<(), Stop> {
        area.check(range);
        let mut arg = raw::uffdio_continue { range: raw_range(range), mode: 0, mapped: 0 };
        self.call(CONTINUE, &mut arg).map_err(|why| stopped(arg.mapped, why))
    }

    /// Moves pages from `src` to `to`, which is absent and registered here, without copying. With `holes`, absent source pages are passed over.
    pub(crate) fn move_pages(&self, dst: (&Area, VirtAddr), src: (&Area, VirtRange), holes: bool) -> Result<(), Stop> {
        let (from, to) = (src.1, VirtRange::from_len(dst.1, src.1.len()).expect("inside an area"));
        src.0.check(from);
        dst.0.check(to);
        let mode = if holes { MOVE_ALLOW_SRC_HOLES } else { 0 };
        let mut arg = raw::uffdio_move { dst: to.start().get(), src: from.start().get(), len: from.len().get(), mode, move_: 0 };
        self.call(MOVE, &mut arg).map_err(|why| stopped(arg.move_, why))
    }

    /// Fills `range`, absent and registered here, with a copy of the bytes at `src`, which lie in an area or in static memory.
    fn copy(&self, range: VirtRange, src: u64) -> Result<(), Stop> {
        let mut arg = raw::uffdio_copy { dst: range.start().get(), src, len: range.len().get(), mode: 0, copy: 0 };
        self.call(COPY, &mut arg).map_err(|why| stopped(arg.copy, why))
    }

    /// Whether the base page at `va`, anonymous memory, is registered. Nothing changes: what is asked for makes sense for files only, and the kernel looks at the
    /// registration first.
    pub(crate) fn watches(&self, area: &Area, va: VirtAddr) -> bool {
        let page = VirtRange::page(va, PageSize::Size4K).expect("inside an area");
        !matches!(self.map_existing(area, page), Err(Stop { why: Errno::NOENT, .. }))
    }

    /// Fills `to`, absent and registered here, with a copy of the bytes of `from` in `src`.
    pub(crate) fn copy_pages(&self, dst: (&Area, VirtAddr), src: (&Area, VirtRange)) -> Result<(), Stop> {
        let to = VirtRange::from_len(dst.1, src.1.len()).expect("inside an area");
        src.0.check(src.1);
        dst.0.check(to);
        self.copy(to, src.1.start().get())
    }

    /// Fills `range`, absent and registered here, with zeros, at most 64 KiB.
    pub(crate) fn fill_zero(&self, area: &Area, range: VirtRange) -> Result<(), Stop> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        area.check(range);
        assert!(range.len().get() <= ZEROS.len() as u64, "{range} is longer than 64 KiB");
        self.copy(range, ZEROS.as_ptr().expose_provenance() as u64)
    }

    /// Makes the next access to the absent base page at `va` die with SIGBUS. `va` must have come from a message of this descriptor, so that it lies
    /// in a range registered here; the kernel refuses others. Does not wake.
    pub(crate) fn poison(&self, va: VirtAddr) -> Result<(), Errno> {
        let range = raw::uffdio_range { start: va.get() & !(BASE_PAGE - 1), len: BASE_PAGE };
        self.call(POISON, &mut raw::uffdio_poison { range, mode: POISON_DONTWAKE, updated: 0 })
    }

    /// Reads faults that wait, without blocking, into `messages`. `EAGAIN`: there are none.
    pub(crate) fn read(&self, messages: &mut ArrayVec<Message, 16>) -> Result<(), Errno> {
        // SAFETY: `uffd_msg` is plain old data; all zeros is one.
        let mut raw_messages: [raw::uffd_msg; 16] = unsafe { core::mem::zeroed() };
        // SAFETY: the kernel writes at most the given number of bytes, the size of the array.
        let n = unsafe { libc::read(self.fd.as_fd().as_raw_fd(), raw_messages.as_mut_ptr().cast(), size_of_val(&raw_messages)) };
        if n < 0 {
            return Err(errno());
        }
        messages.clear();
        for message in &raw_messages[..n as usize / size_of::<raw::uffd_msg>()] {
            // The only other event is that the program moved registered memory elsewhere with `mremap`: it waits until we have read of it. The memory stays registered, so
            // what is absent there still faults to us, and to nobody's page.
            if u32::from(message.event) == raw::UFFD_EVENT_PAGEFAULT {
                // SAFETY: the event says that the kernel wrote the pagefault variant.
                let fault = unsafe { message.arg.pagefault };
                let write = fault.flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0;
                let access = if write { Access::Write } else { Access::Read };
                messages.push(Message { va: VirtAddr::new(fault.address), access });
            }
        }
        Ok(())
    }
}
