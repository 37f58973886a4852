//! The host: opening it, and the contract's calls, each passed to the scheme of its region.

use crate::fault::Faults;
use crate::probe::{self, UffdAccess};
use crate::report;
use crate::service;
use crate::space::{LinuxSpace, Scheme};
use crate::sys::fd::GmemFd;
use crate::sys::maps::Maps;
use crate::sys::uffd::Uffd;
use crate::{StartError, Threads};
use core::fmt;
use gmem_hal::{Backing, Delivery, Host, HostError, HostWindow, PageSize, Pages, PhysAddr, Prot, RegionAttrs, Upcalls, VirtRange};
use linux_raw_sys::general as raw;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

/// The userfaultfd features that shared backing with service delivery needs.
const SHARED_FEATURES: u64 = (raw::UFFD_FEATURE_MISSING_SHMEM | raw::UFFD_FEATURE_MINOR_SHMEM) as u64;
/// Asked for where the kernel has them.
const WANTED_FEATURES: u64 = SHARED_FEATURES | (raw::UFFD_FEATURE_MOVE | raw::UFFD_FEATURE_POISON | raw::UFFD_FEATURE_EXACT_ADDRESS) as u64
    // Without it, what the program moves elsewhere would read as zero there. We never move registered memory ourselves, so we never wait for our own reading.
    | raw::UFFD_FEATURE_EVENT_REMAP as u64;

/// What an errno means where no finer meaning is known.
pub(crate) fn error(e: Errno) -> HostError {
    match e {
        Errno::NOMEM => HostError::NoMemory,
        Errno::EXIST => HostError::AddressInUse,
        Errno::PERM | Errno::ACCESS => HostError::NotPermitted,
        Errno::MFILE | Errno::NFILE => HostError::TooManyFiles,
        // The table of gmem's threads is theirs alone, so nobody closed ours.
        Errno::BADF => HostError::ForeignThread,
        other => HostError::Os(other.raw_os_error()),
    }
}

/// What an errno means from a call that may split a mapping. `ENOMEM` then means the limit on mappings: the few hundred bytes for the records themselves
/// are not refused in practice.
pub(crate) fn split_error(e: Errno) -> HostError {
    if e == Errno::NOMEM { HostError::TooManyMappings } else { error(e) }
}

/// What the errno of a failed start means, to be told to the user; 0 is none.
pub(crate) fn cause(errno: i32) -> HostError {
    if errno == 0 { HostError::Os(0) } else { error(Errno::from_raw_os_error(errno)) }
}

/// The host could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// gmem's threads could not be started.
    Threads(StartError),
    /// The fault service could not be started; the errno.
    Service(i32),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(e) => e.fmt(f),
            Self::Service(e) => write!(f, "the fault service could not be started: {}", cause(*e)),
        }
    }
}

impl std::error::Error for OpenError {}

/// What a host and its spaces share; it lives as long as any of them.
pub(crate) struct Core {
    pub(crate) threads: Arc<Threads>,
    pub(crate) faults: Arc<Faults>,
    access: UffdAccess,
    service: Option<Service>,
    mover: Option<Uffd>,
    maps: Option<Maps>,
}

/// The service thread and what it reads.
struct Service {
    uffd: Arc<Uffd>,
    stop: Arc<GmemFd>,
    thread: Option<JoinHandle<()>>,
}

impl Core {
    pub(crate) fn service(&self) -> Option<&Uffd> {
        self.service.as_ref().map(|s| &*s.uffd)
    }

    pub(crate) fn mover(&self) -> Option<&Uffd> {
        self.mover.as_ref()
    }

    /// The mappings of this process, where the kernel can be asked about them.
    pub(crate) fn maps(&self) -> Option<&Maps> {
        self.maps.as_ref()
    }

    /// Makes threads that wait for a fault in `range` look again.
    pub(crate) fn wake(&self, range: VirtRange) {
        if let Some(service) = self.service() {
            service.wake(range);
        }
    }

    fn open(threads: &Arc<Threads>, access: UffdAccess) -> Result<Self, i32> {
        let faults = Arc::new(Faults::default());
        let mut core = Self { threads: threads.clone(), faults, access, service: None, mover: None, maps: Maps::open(threads) };
        let features = probe::uffd_features(access).unwrap_or(0) & WANTED_FEATURES;
        if features & SHARED_FEATURES != SHARED_FEATURES {
            return Ok(core);
        }
        let os = |e: Errno| e.raw_os_error();
        let uffd = Arc::new(Uffd::open(threads, access, features).map_err(os)?);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os)?;
        let stop = Arc::new(GmemFd::new(stop, threads));
        let thread = {
            let (uffd, stop, faults) = (uffd.clone(), stop.clone(), core.faults.clone());
            threads.spawn("gmem-faults", move || service::serve(&uffd, &faults, &*stop))
        };
        let thread = thread.map_err(|e| e.raw_os_error().unwrap_or(0))?;
        core.service = Some(Service { uffd, stop, thread: Some(thread) });
        if features & u64::from(raw::UFFD_FEATURE_MOVE) != 0 {
            let features = u64::from(raw::UFFD_FEATURE_MOVE | raw::UFFD_FEATURE_SIGBUS);
            core.mover = Uffd::open(threads, access, features).ok();
        }
        Ok(core)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let Some(mut service) = self.service.take() else { return };
        let stop = &service.stop;
        self.threads.run(|| {
            // An eventfd takes a 1 unless it overflows, and then it is readable too.
            let _ = rustix::io::write(stop, &1u64.to_ne_bytes());
        });
        if let Some(thread) = service.thread.take()
            // The service may hold the last reference, by way of the core it asked.
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Linux as a host.
///
/// | backing, delivery, page size | absent | `cpu_map` | `cpu_unmap` |
/// |---|---|---|---|
/// | shared, service, 2 MiB | registered, not in the page table | `UFFDIO_UNREGISTER` (first time: `mmap` of the memfd) | `UFFDIO_REGISTER`, zap |
/// | shared, service, smaller | the same | `UFFDIO_CONTINUE` | zap |
/// | shared, in-thread | `PROT_NONE` | `mprotect` | `mprotect` |
/// | private, service | registered, no page | `UFFDIO_MOVE` from the alias | `UFFDIO_MOVE` to the alias |
///
/// The calls of [`Host`] are to be made on the host's own [`Threads`] (where the descriptors are); those on the pages of an in-thread region may also be made in
/// the signal handler that asked the core.
pub struct LinuxHost {
    core: Arc<Core>,
}

impl LinuxHost {
    /// Opens the host with the best userfaultfd that the machine permits, or without any.
    pub fn open(threads: Arc<Threads>) -> Result<Self, OpenError> {
        // Without descriptors the best that can be opened would be nothing, and would count as refused.
        threads.run(probe::room_for_descriptors).map_err(|e| OpenError::Service(e.raw_os_error()))?;
        let access = threads.run(probe::best_access);
        Self::open_as(threads, access)
    }

    /// Opens the host with a certain kind of userfaultfd. With [`UffdAccess::Refused`] there is no service delivery.
    pub fn open_as(threads: Arc<Threads>, access: UffdAccess) -> Result<Self, OpenError> {
        let core = threads.run(|| Core::open(&threads, access)).map_err(OpenError::Service)?;
        Ok(Self { core: Arc::new(core) })
    }

    /// Says who resolves CPU faults. Until then they are nobody's and kill. The host does not keep the core alive: whoever calls this does, until no access
    /// to managed memory is under way.
    ///
    /// # Panics
    /// If called twice.
    pub fn set_upcalls(&self, upcalls: Weak<dyn Upcalls>) {
        self.core.faults.set_upcalls(upcalls);
    }

    /// The threads this host lives on.
    pub fn threads(&self) -> &Arc<Threads> {
        &self.core.threads
    }

    /// The kind of userfaultfd in use.
    pub fn uffd_access(&self) -> UffdAccess {
        if self.core.service.is_some() { self.core.access } else { UffdAccess::Refused }
    }
}

impl fmt::Debug for LinuxHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.core.service().map(Uffd::features);
        f.debug_struct("LinuxHost").field("uffd_access", &self.uffd_access()).field("features", &features).finish_non_exhaustive()
    }
}

impl Host for LinuxHost {
    type Space = LinuxSpace;

    fn space_create(&self, range: VirtRange, cpu_visible: bool) -> Result<LinuxSpace, HostError> {
        LinuxSpace::create(&self.core, range, cpu_visible)
    }

    fn space_destroy(&self, space: &LinuxSpace) {
        space.destroy();
    }

    fn window(&self, space: &LinuxSpace) -> Option<HostWindow> {
        space.window()
    }

    fn supports(&self, attrs: &RegionAttrs) -> Result<(), HostError> {
        match (attrs.backing, attrs.delivery) {
            (Backing::Shared, Delivery::InThread) => Ok(()),
            // Private backing is for memory that the kernel may be given, and the kernel's own accesses raise no signal.
            (Backing::Private, Delivery::InThread) => Err(HostError::Unsupported),
            (_, Delivery::Service) if self.core.access == UffdAccess::Refused => Err(HostError::NotPermitted),
            (_, Delivery::Service) if self.core.service.is_none() => Err(HostError::Unsupported),
            (Backing::Shared, Delivery::Service) => Ok(()),
            (Backing::Private, Delivery::Service) if self.core.mover.is_none() => Err(HostError::Unsupported),
            (Backing::Private, Delivery::Service) => Ok(()),
        }
    }

    fn region_map(&self, space: &LinuxSpace, region: &Pages) -> Result<(), HostError> {
        let (range, attrs) = (region.range, &region.attrs);
        self.supports(attrs)?;
        let scheme = space.scheme(attrs);
        if scheme != Scheme::DeviceOnly {
            self.core.faults.region_changed();
            space.reclaim(range)?;
        }
        match scheme {
            Scheme::DeviceOnly => Ok(()),
            Scheme::Huge => space.huge_map(range, attrs.prot),
            Scheme::Small => space.small_map(range, attrs.prot),
            Scheme::InThread => space.in_thread_map(range),
            Scheme::Private => space.private_map(range, attrs),
        }
    }

    fn region_unmap(&self, space: &LinuxSpace, region: &Pages) {
        let (range, scheme) = (region.range, space.scheme(&region.attrs));
        if scheme != Scheme::DeviceOnly {
            space.for_each_of_ours(range, |part| {
                if space.reset_user(part).is_err() {
                    // No room to split a mapping: see to it that every access faults, which is answered with death, and take the pages away. A region that comes
                    // here later does what could not be done now.
                    match scheme {
                        Scheme::Huge => space.huge_forget(part),
                        Scheme::InThread => space.in_thread_forget(part),
                        _ => {}
                    }
                    let _ = space.user().zap(part);
                }
            });
        }
        match scheme {
            Scheme::Private => space.private_discard(range),
            _ => space.shared_discard(range),
        }
        if region.attrs.page_size == PageSize::Size2M {
            space.placed.set(range, false);
        }
        self.core.wake(range);
    }

    fn region_protect(&self, space: &LinuxSpace, region: &Pages, prot: Prot) -> Result<(), HostError> {
        let range = region.range;
        let scheme = space.scheme(&region.attrs);
        if scheme == Scheme::DeviceOnly {
            return Ok(());
        }
        // What was refused before may be allowed now.
        self.core.faults.region_changed();
        let back = prot == region.attrs.prot;
        if !back {
            space.check_ours(range)?;
        }
        match scheme {
            // Which pages are absent is known by their protection alone, and what was made absent comes back by a soft fault.
            Scheme::InThread if back => return Ok(()),
            Scheme::InThread => return space.in_thread_protect(range, Prot::empty()),
            // What is as it was needs no split, and what was changed was split already. But others of the process may take that mapping, or lower its limits, at
            // this very moment; then all that is left is to say so.
            _ if back => space.for_each_of_ours(range, |part| {
                if let Err(e) = space.user().protect(part, prot) {
                    report::line(format_args!("gmem: the protection of {part} could not be given back: {}", split_error(e)));
                }
            }),
            _ => space.user().protect(range, prot).map_err(split_error)?,
        }
        self.core.faults.clear_poison(space.user(), range, prot);
        Ok(())
    }

    fn home(&self, space: &LinuxSpace, pages: &Pages) -> PhysAddr {
        space.home(pages.range.start(), &pages.attrs)
    }

    fn populate(&self, space: &LinuxSpace, pages: &Pages) -> Result<(), HostError> {
        match space.scheme(&pages.attrs) {
            Scheme::Private => space.private_populate(pages.range, pages.attrs.page_size),
            _ => space.shared_populate(pages.range, pages.attrs.page_size),
        }
    }

    fn cpu_map(&self, space: &LinuxSpace, pages: &Pages) -> Result<(), HostError> {
        let (range, attrs) = (pages.range, &pages.attrs);
        let scheme = space.scheme(attrs);
        if !matches!(scheme, Scheme::DeviceOnly | Scheme::InThread) {
            self.core.faults.clear_poison(space.user(), range, attrs.prot);
        }
        match scheme {
            Scheme::DeviceOnly => return Ok(()),
            Scheme::Huge => space.huge_cpu_map(range, attrs.prot)?,
            Scheme::Small => space.small_cpu_map(range)?,
            Scheme::InThread => return space.in_thread_protect(range, attrs.prot),
            Scheme::Private => space.private_cpu_map(range, attrs)?,
        }
        // Not all of the above wakes, and a thread may wait for a page that was there already.
        self.core.wake(range);
        Ok(())
    }

    fn cpu_unmap(&self, space: &LinuxSpace, pages: &Pages) -> Result<(), HostError> {
        let (range, attrs) = (pages.range, &pages.attrs);
        let scheme = space.scheme(attrs);
        if scheme != Scheme::DeviceOnly {
            space.check_ours(range)?;
        }
        match scheme {
            Scheme::DeviceOnly => Ok(()),
            Scheme::Huge => space.huge_cpu_unmap(range),
            Scheme::Small => space.small_cpu_unmap(range),
            Scheme::InThread => space.in_thread_protect(range, Prot::empty()),
            Scheme::Private => space.private_cpu_unmap(range, attrs),
        }
    }

    fn discard(&self, space: &LinuxSpace, pages: &Pages) {
        match space.scheme(&pages.attrs) {
            Scheme::Private => space.private_discard(pages.range),
            _ => space.shared_discard(pages.range),
        }
    }

    fn wake(&self, space: &LinuxSpace, pages: &Pages) {
        // In-thread waiters wait in the core, not here.
        if matches!(space.scheme(&pages.attrs), Scheme::Huge | Scheme::Small | Scheme::Private) {
            self.core.wake(pages.range);
        }
    }
}
