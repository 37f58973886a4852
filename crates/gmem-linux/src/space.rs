//! An address space on the host: its areas, its memory object, and what is known of its pages.

use crate::FutexLock;
use crate::bits::PieceBits;
use crate::host::{Core, error};
use crate::in_thread::Registered;
use crate::private::PrivateHomes;
use crate::sys::area::{Advice, Area};
use crate::sys::fd::GmemFd;
use crate::sys::maps::FileId;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::*};
use gmem_hal::{
    Backing, Delivery, HnodeId, HostError, HostWindow, PageSize, PhysAddr, Prot, RegionAttrs, VirtAddr, VirtRange, lock_api::Mutex,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// An address space, as [`crate::LinuxHost`] keeps it. Made by [`gmem_hal::Host::space_create`].
///
/// Dropping one that was not destroyed destroys it.
pub struct LinuxSpace {
    pub(crate) core: Arc<Core>,
    range: VirtRange,
    /// `range` from a 2 MiB boundary on: file offsets and alias offsets count from here, so that huge pages line up everywhere.
    padded: VirtRange,
    /// Taken when the space is destroyed.
    memfd: Mutex<FutexLock, Option<GmemFd>>,
    /// What the memory object is called where it is mapped.
    pub(crate) file: FileId,
    /// All of the memory object, always mapped readable and writable: where copy engines reach the homes of shared regions.
    pub(crate) alias: Area,
    /// Where the program works, if the CPU sees this space.
    user: Option<Area>,
    /// The homes of private regions, if this host has any.
    pub(crate) private: Option<PrivateHomes>,
    /// Per 2 MiB piece: the memory object is mapped at the user address (shared backing, service delivery, 2 MiB pages).
    pub(crate) placed: PieceBits,
    /// Per 2 MiB piece: the home of the 2 MiB page holds bytes.
    pub(crate) populated: PieceBits,
    in_thread: Mutex<FutexLock, Option<Registered>>,
    destroyed: AtomicBool,
}

/// How the pages of a region are given to the CPU and taken away. One per pair of backing and delivery, and two page size classes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    /// The CPU does not see this space: only homes.
    DeviceOnly,
    /// Shared, service, 2 MiB: registered or not, piece by piece.
    Huge,
    /// Shared, service, smaller: always registered, page table entries by `UFFDIO_CONTINUE`.
    Small,
    /// Shared, in-thread: `mprotect`.
    InThread,
    /// Private, service: `UFFDIO_MOVE`.
    Private,
}

impl LinuxSpace {
    pub(crate) fn create(core: &Arc<Core>, range: VirtRange, cpu_visible: bool) -> Result<Self, HostError> {
        if !range.is_aligned(PageSize::Size4K) {
            return Err(HostError::Unsupported);
        }
        let padded = VirtRange::new(range.start().align_down(PageSize::Size2M), range.end()).ok_or(HostError::Unsupported)?;
        let length = padded.len().get();
        let user = if cpu_visible { Some(reserve_user(range)?) } else { None };
        let memfd = memfd_create("gmem", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(error)?;
        ftruncate(&memfd, length).map_err(error)?;
        // Whoever else gets the descriptor can neither cut nor stretch the homes under us, nor change these seals.
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(error)?;
        let alias = Area::reserve(length).map_err(error)?;
        alias.map_file(alias.range(), &memfd, 0, Prot::RW).map_err(error)?;
        alias.advise(alias.range(), Advice::DontFork).map_err(error)?;
        let private = match core.mover() {
            Some(mover) if cpu_visible => Some(PrivateHomes::new(mover, length)?),
            _ => None,
        };
        Ok(Self {
            core: core.clone(),
            range,
            padded,
            file: FileId::of(&memfd).map_err(error)?,
            memfd: Mutex::new(Some(GmemFd::new(memfd, &core.threads))),
            alias,
            user,
            private,
            placed: PieceBits::new(padded)?,
            populated: PieceBits::new(padded)?,
            in_thread: Mutex::new(None),
            destroyed: AtomicBool::new(false),
        })
    }

    /// Gives everything back; on a gmem thread. Once is enough.
    pub(crate) fn destroy(&self) {
        if self.destroyed.swap(true, AcqRel) {
            return;
        }
        let registered = self.in_thread.lock().take();
        // Outside the lock: it may wait for handlers to end.
        drop(registered);
        if let Some(user) = &self.user {
            user.release_parts(|unmap| self.for_each_of_ours(user.range(), unmap));
            // Whoever waited for a fault here is told to look again, and gets its SIGSEGV.
            self.core.wake(self.range);
        }
        if let Some(private) = &self.private {
            private.release();
        }
        self.alias.release();
        let memfd = self.memfd.lock().take();
        drop(memfd);
    }

    /// The addresses of the space.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    pub(crate) fn scheme(&self, attrs: &RegionAttrs) -> Scheme {
        match (attrs.backing, attrs.delivery, attrs.page_size) {
            _ if self.user.is_none() => Scheme::DeviceOnly,
            (Backing::Private, ..) => Scheme::Private,
            (Backing::Shared, Delivery::InThread, _) => Scheme::InThread,
            (Backing::Shared, Delivery::Service, PageSize::Size2M) => Scheme::Huge,
            (Backing::Shared, Delivery::Service, _) => Scheme::Small,
        }
    }

    /// The user area. Only schemes that have one ask.
    pub(crate) fn user(&self) -> &Area {
        self.user.as_ref().expect("a space with CPU schemes has a user area")
    }

    /// The private homes. Only regions that `supports` let through ask.
    pub(crate) fn private_homes(&self) -> &PrivateHomes {
        self.private.as_ref().expect("a private region exists only where private homes do")
    }

    /// The offset of `va` in the memory object and in the alias areas.
    pub(crate) fn offset(&self, va: VirtAddr) -> u64 {
        assert!(self.range.start() <= va && va <= self.range.end(), "{va} is not in the space {}", self.range);
        va.get() - self.padded.start().get()
    }

    /// `range` as it lies in `homes`, one of the alias areas.
    pub(crate) fn in_homes(&self, homes: &Area, range: VirtRange) -> VirtRange {
        let start = VirtAddr::new(homes.range().start().get() + self.offset(range.start()));
        VirtRange::from_len(start, range.len()).expect("the alias is as long as the space")
    }

    /// Where copy engines find the home of the page at `va`.
    pub(crate) fn home(&self, va: VirtAddr, attrs: &RegionAttrs) -> PhysAddr {
        let homes = if self.scheme(attrs) == Scheme::Private { self.private_homes().area() } else { &self.alias };
        PhysAddr { hnode: HnodeId::HOST, addr: homes.range().start().get() + self.offset(va) }
    }

    pub(crate) fn window(&self) -> Option<HostWindow> {
        let memfd = self.memfd.lock();
        let handle = memfd.as_ref()?.as_fd().as_raw_fd();
        let offset = self.offset(self.range.start());
        let base = PhysAddr { hnode: HnodeId::HOST, addr: self.alias.range().start().get() + offset };
        Some(HostWindow { handle, offset, base })
    }

    /// Maps the memory object at its user addresses; a forked child does not get it.
    pub(crate) fn map_user_file(&self, range: VirtRange, prot: Prot) -> Result<(), Errno> {
        let memfd = self.memfd.lock();
        let fd = memfd.as_ref().expect("the space was destroyed");
        self.user().map_file(range, fd.here()?, self.offset(range.start()), prot)?;
        // The mapping just made cannot need a split, so this needs no memory that could be refused. In a child the memory would not be a copy, and
        // its faults would go to nobody.
        self.user().advise(range, Advice::DontFork)
    }

    /// Makes the addresses of `range` reserved and nothing else: inaccessible, unregistered, not inherited by children.
    pub(crate) fn reset_user(&self, range: VirtRange) -> Result<(), Errno> {
        self.user().map_anonymous(range, Prot::empty())?;
        self.user().advise(range, Advice::DontFork)
    }

    /// From now on SIGSEGVs in this space come to the core.
    pub(crate) fn listen_in_thread(&self) -> Result<(), HostError> {
        let mut registered = self.in_thread.lock();
        if registered.is_none() {
            *registered = Some(Registered::new(self.range, &self.core.faults)?);
        }
        Ok(())
    }
}

/// Below this no address space is ever, whatever the system permits: no reference points to null, and pointers near it are taken for fields of it.
const LOWEST: u64 = 64 << 10;

fn reserve_user(range: VirtRange) -> Result<Area, HostError> {
    // A privileged program gets memory at null if it asks for it, so it must not ask.
    if range.start().get() < lowest() {
        return Err(HostError::NoSuchAddresses);
    }
    let user = Area::reserve_at(range).map_err(|e| place_error(e, range))?;
    user.advise(range, Advice::DontFork).map_err(error)?;
    Ok(user)
}

/// Where the system lets programs have memory from.
fn lowest() -> u64 {
    let said = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").ok();
    said.and_then(|text| text.trim().parse().ok()).unwrap_or(LOWEST).max(LOWEST)
}

/// What it means that `range` could not be reserved. The kernel has one answer for too many addresses and for those that no process has.
fn place_error(e: Errno, range: VirtRange) -> HostError {
    let refused = |range: Option<VirtRange>| range.is_some_and(|range| Area::reserve_at(range).err() == Some(Errno::NOMEM));
    let last = VirtRange::new(VirtAddr::new(range.end().get() - PageSize::Size4K.bytes()), range.end());
    // One more page can be had, but not the last one of these.
    if e == Errno::NOMEM && refused(last) && Area::reserve(PageSize::Size4K.bytes()).is_ok() {
        HostError::NoSuchAddresses
    } else {
        error(e)
    }
}

impl Drop for LinuxSpace {
    fn drop(&mut self) {
        if !self.destroyed.load(Acquire) {
            let threads = self.core.threads.clone();
            threads.run(|| self.destroy());
        }
    }
}

impl fmt::Debug for LinuxSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxSpace").field("range", &self.range).field("cpu_visible", &self.user.is_some()).finish_non_exhaustive()
    }
}
