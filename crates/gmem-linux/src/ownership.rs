//! What the program did to gmem's addresses behind its back: `munmap`, `mremap`, `mmap` over them.
//!
//! The kernel could tell us of such calls (`UFFD_EVENT_UNMAP`), but only for memory that is registered at the time, which a 2 MiB page is not while the
//! CPU has it; and our own calls would have to wait until our own thread reads of them. So nothing is noticed when it happens. Instead the kernel is asked what lies at
//! an address before anything there is taken away or replaced. What is not ours any more is left alone:
//!
//! * a page whose mapping is gone stays at home, or on the device that has it; taking it from the CPU is refused ([`HostError::Displaced`]), because whoever got
//!   the mapping, by `mremap` for instance, could still write it;
//! * what the program put there is neither zapped, nor replaced, nor unmapped with the region or the address space.
//!
//! Asking takes about a microsecond, on threads that have gmem's descriptors. A program that does such things at the very moment in which we ask has a race with
//! itself.

use crate::space::LinuxSpace;
use crate::sys::maps::Mapped;
use gmem_hal::{HostError, PageSize, Prot, VirtAddr, VirtRange};
use rustix::io::Errno;

impl LinuxSpace {
    /// Whether `part` of the user range, at which `mapped` lies, is as we mapped it for a region.
    fn is_ours(&self, part: VirtRange, mapped: &Mapped) -> bool {
        match mapped.file {
            Some(file) => {
                let offset = mapped.offset + (part.start().get() - mapped.range.start().get());
                file == self.file && offset == self.offset(part.start())
            }
            // Reserved, or absent and registered, or private memory, which is always registered.
            None => !mapped.accessible || self.core.service().is_some_and(|service| service.watches(self.user(), part.start())),
        }
    }

    /// The parts of `range` with what lies there; `None` where the kernel cannot be asked: then everything is taken for ours.
    fn parts(&self, range: VirtRange) -> Option<impl Iterator<Item = (VirtRange, Option<Mapped>)> + '_> {
        self.core.maps()?.parts(range)
    }

    /// Checks that the CPU's mapping of `range` is as we left it.
    pub(crate) fn check_ours(&self, range: VirtRange) -> Result<(), HostError> {
        let Some(mut parts) = self.parts(range) else { return Ok(()) };
        let ours = parts.all(|(part, mapped)| mapped.is_some_and(|m| self.is_ours(part, &m)));
        if ours { Ok(()) } else { Err(HostError::Displaced) }
    }

    /// Calls `each` with the parts of `range` that are still ours, neighbours together: our own pieces differ in registration and protection, and there may
    /// be thousands.
    pub(crate) fn for_each_of_ours(&self, range: VirtRange, mut each: impl FnMut(VirtRange)) {
        let Some(parts) = self.parts(range) else { return each(range) };
        let mut run: Option<VirtRange> = None;
        for (part, mapped) in parts {
            let ours = mapped.is_some_and(|m| self.is_ours(part, &m));
            run = match run {
                Some(before) if ours => VirtRange::new(before.start(), part.end()),
                None if ours => Some(part),
                Some(before) => {
                    each(before);
                    None
                }
                None => None,
            };
        }
        run.into_iter().for_each(each);
    }

    /// Takes all access away from the mappings that `range` lies in, which needs no split. What of them belongs to others is absent then, and comes back by a soft fault.
    pub(crate) fn in_thread_forget(&self, range: VirtRange) {
        let Some(parts) = self.parts(range) else { return };
        for (part, mapped) in parts {
            if let Some(whole) = mapped.filter(|m| self.is_ours(part, m)).and_then(|m| m.range.intersection(self.user().range())) {
                let _ = self.user().protect(whole, Prot::empty());
            }
        }
    }

    fn holds_pages(&self, part: VirtRange) -> Result<bool, HostError> {
        let mut rest = Some(part);
        while let Some(left) = rest {
            let end = left.end().min(VirtAddr::new(left.start().get() + PageSize::Size2M.bytes()));
            let piece = VirtRange::new(left.start(), end).expect("not empty");
            if self.user().any_present(piece).map_err(crate::host::error)? {
                return Ok(true);
            }
            rest = VirtRange::new(end, left.end());
        }
        Ok(false)
    }

    /// Makes sure that `range`, where no region lies, is reserved. A hole that the program made is reserved again, unless something lies there, and what an
    /// unmapping had to leave is taken away.
    pub(crate) fn reclaim(&self, range: VirtRange) -> Result<(), HostError> {
        let Some(parts) = self.parts(range) else { return Ok(()) };
        for (part, mapped) in parts {
            match mapped {
                Some(mapped) if self.is_ours(part, &mapped) => {
                    if mapped.accessible {
                        // What an unmapping had to leave is empty; what the program moved here is not, though we still watch it.
                        if mapped.file.is_none() && self.holds_pages(part)? {
                            return Err(HostError::AddressInUse);
                        }
                        self.reset_user(part).map_err(crate::host::split_error)?;
                        // Somebody may have stored there since.
                        self.shared_discard(part);
                    }
                }
                Some(_) => return Err(HostError::AddressInUse),
                None => self.user().reserve_again(part).map_err(|e| match e {
                    Errno::EXIST => HostError::AddressInUse,
                    other => crate::host::split_error(other),
                })?,
            }
        }
        Ok(())
    }
}
