//! Shared backing: the homes are the bytes of one memfd, at fixed offsets.
//!
//! # Why 2 MiB pages begin as anonymous memory
//!
//! A home of 2 MiB should be one huge page. `MADV_COLLAPSE` makes one out of a single touched base page in some 150 µs, but refuses
//! while any mapping of that part of the file is registered for missing pages (the kernel would hide the misses of the other 511). So the user range starts as
//! registered *anonymous* memory, which never holds a page, and the memfd is **placed** over it, piece by piece, when a page is first given to the CPU.
//! From then on the piece is the memfd's: registered while the page is absent, unregistered (so that the kernel maps the huge page by
//! itself, at once) while the CPU has it. There is no atomic way back; a home that is discarded later and populated again is built from 512 base pages,
//! which costs one to two milliseconds, once.

use crate::host::{error, split_error};
use crate::space::LinuxSpace;
use crate::sys::area::{Advice, BASE_PAGE};
use crate::sys::uffd::{Absence, Stop, Uffd};
use gmem_hal::{HostError, PageSize, Prot, VirtAddr, VirtRange};
use rustix::io::Errno;

/// Tries again at most so often when the kernel says `EAGAIN` or a page is locked for a moment.
const PATIENCE: u32 = 1000;

/// Performs `step` on `range` until it is done. `step` may stop early with progress; then it is called with the rest. A stop without progress is
/// tried again if the kernel says so, and given to `decide` otherwise, which answers how many bytes to pass over (0: try again).
pub(crate) fn drive(
    range: VirtRange,
    mut step: impl FnMut(VirtRange) -> Result<(), Stop>,
    mut decide: impl FnMut(VirtRange, Errno) -> Result<u64, HostError>,
) -> Result<(), HostError> {
    let mut at = range.start().get();
    let mut patience = PATIENCE;
    while let Some(rest) = VirtRange::new(VirtAddr::new(at), range.end()) {
        let Err(stop) = step(rest) else { return Ok(()) };
        if stop.done > 0 {
            at += stop.done;
            patience = PATIENCE;
            continue;
        }
        match stop.why {
            Errno::AGAIN | Errno::INTR if patience > 0 => {
                patience -= 1;
                std::thread::yield_now();
            }
            why => at += decide(rest, why)?,
        }
    }
    Ok(())
}

impl LinuxSpace {
    fn service(&self) -> &Uffd {
        self.core.service().expect("a region with service delivery exists only where the service does")
    }

    // ---- homes ----

    pub(crate) fn shared_populate(&self, range: VirtRange, size: PageSize) -> Result<(), HostError> {
        if size != PageSize::Size2M {
            return self.shared_fill(range);
        }
        for piece in range.pages(size).filter(|p| !self.populated.get(p.start())) {
            self.shared_build_huge(piece)?;
            self.populated.set(piece, true);
        }
        Ok(())
    }

    /// Makes every base page of `range` present in the alias.
    fn shared_fill(&self, range: VirtRange) -> Result<(), HostError> {
        let home = self.in_homes(&self.alias, range);
        self.alias.advise(home, Advice::PopulateWrite).map_err(|e| match e {
            // What would have been a SIGBUS: no memory for the file (a cgroup limit, a full file system).
            Errno::FAULT | Errno::NOMEM => HostError::NoMemory,
            other => error(other),
        })
    }

    fn shared_build_huge(&self, piece: VirtRange) -> Result<(), HostError> {
        let first = VirtRange::page(piece.start(), PageSize::Size4K).expect("inside the piece");
        // The kernel collapses only what has a page. Populating, unlike a store, changes no byte and reports failure.
        self.shared_fill(first)?;
        // With the memfd placed and registered, holes cannot be collapsed over (see the module's documentation).
        if !self.placed.get(piece.start()) && self.collapse(piece) {
            return Ok(());
        }
        self.shared_fill(piece)?;
        // Base pages are right too, only slower.
        self.collapse(piece);
        Ok(())
    }

    fn collapse(&self, piece: VirtRange) -> bool {
        let home = self.in_homes(&self.alias, piece);
        for _ in 0..8 {
            match self.alias.advise(home, Advice::Collapse) {
                Ok(()) => return true,
                // A page is locked or on its way to a list; it soon is not.
                Err(Errno::BUSY | Errno::AGAIN) => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
        false
    }

    pub(crate) fn shared_discard(&self, range: VirtRange) {
        let home = self.in_homes(&self.alias, range);
        self.populated.set(range, false);
        // By the alias and not by the descriptor, which a handler in a program's thread does not have. It cannot fail on a memfd without a write seal.
        let punched = self.alias.advise(home, Advice::Remove);
        debug_assert_eq!(punched, Ok(()), "no hole at {range}");
    }

    // ---- 2 MiB pages, service ----

    pub(crate) fn huge_map(&self, range: VirtRange, prot: Prot) -> Result<(), HostError> {
        self.reset_user(range).map_err(split_error)?;
        self.placed.set(range, false);
        // Registered before it is accessible: there is no moment in which an access would be served with zeros.
        let done = self.service().register(self.user(), range, Absence::Missing).and_then(|()| self.user().protect(range, prot));
        self.undo_map(range, done)
    }

    fn undo_map(&self, range: VirtRange, done: Result<(), Errno>) -> Result<(), HostError> {
        if done.is_err() {
            let _ = self.reset_user(range);
        }
        done.map_err(split_error)
    }

    pub(crate) fn huge_cpu_map(&self, range: VirtRange, prot: Prot) -> Result<(), HostError> {
        for (placed, run) in self.placed.runs(range) {
            let done = if placed { self.huge_open(run) } else { self.huge_place(run, prot) };
            if let Err(e) = done {
                if let Some(before) = VirtRange::new(range.start(), run.start()) {
                    // Pages that were CPU-mapped before may fault once more.
                    let _ = self.huge_cpu_unmap(before);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Puts the memfd where registered anonymous memory without pages was, for good.
    fn huge_place(&self, run: VirtRange, prot: Prot) -> Result<(), HostError> {
        self.check_ours(run)?;
        self.map_user_file(run, prot).map_err(split_error)?;
        self.placed.set(run, true);
        Ok(())
    }

    /// Lets the kernel serve the faults of `run`.
    fn huge_open(&self, run: VirtRange) -> Result<(), HostError> {
        match self.service().unregister(self.user(), run) {
            // No room for another mapping: leave it registered and enter base pages, which needs none.
            Err(Errno::NOMEM) => self.small_cpu_map(run),
            // Nothing lies there any more.
            Err(Errno::INVAL) => Err(HostError::Displaced),
            other => other.map_err(error),
        }
    }

    pub(crate) fn huge_cpu_unmap(&self, range: VirtRange) -> Result<(), HostError> {
        // What is not placed was never given to the CPU. Registering changes nothing for pages that are mapped, so a failure half way is harmless.
        for (_, run) in self.placed.runs(range).filter(|(placed, _)| *placed) {
            self.huge_close(run)?;
        }
        for (_, run) in self.placed.runs(range).filter(|(placed, _)| *placed) {
            self.user().zap(run).map_err(error)?;
        }
        Ok(())
    }

    /// Makes accesses to what is placed in `range`, and goes with its region, faults for us, as far as there is room for mappings.
    pub(crate) fn huge_forget(&self, range: VirtRange) {
        for (_, run) in self.placed.runs(range).filter(|(placed, _)| *placed) {
            let _ = self.huge_close(run);
        }
    }

    /// Makes the coming absence of `run` a fault for us.
    fn huge_close(&self, run: VirtRange) -> Result<(), HostError> {
        let register = |range| self.service().register(self.user(), range, Absence::MissingOrUnmapped);
        match register(run) {
            // No room for another mapping. A wider registration merges neighbours and so needs fewer; their pages stay mapped and do not fault.
            Err(Errno::NOMEM) => register(self.placed.widen(run)).map_err(split_error),
            other => other.map_err(error),
        }
    }

    // ---- smaller pages, service ----

    pub(crate) fn small_map(&self, range: VirtRange, prot: Prot) -> Result<(), HostError> {
        let done = self
            .map_user_file(range, Prot::empty())
            .and_then(|()| self.service().register(self.user(), range, Absence::MissingOrUnmapped))
            .and_then(|()| self.user().protect(range, prot));
        self.undo_map(range, done)
    }

    pub(crate) fn small_cpu_map(&self, range: VirtRange) -> Result<(), HostError> {
        let step = |rest| self.service().map_existing(self.user(), rest);
        drive(range, step, |_, why| match why {
            Errno::EXIST => Ok(BASE_PAGE),
            // Nothing of ours lies there any more.
            Errno::NOENT => Err(HostError::Displaced),
            other => Err(error(other)),
        })
    }

    pub(crate) fn small_cpu_unmap(&self, range: VirtRange) -> Result<(), HostError> {
        self.user().zap(range).map_err(error)
    }

    // ---- in-thread ----

    pub(crate) fn in_thread_map(&self, range: VirtRange) -> Result<(), HostError> {
        self.listen_in_thread()?;
        let done = self.map_user_file(range, Prot::empty());
        self.undo_map(range, done)
    }

    pub(crate) fn in_thread_protect(&self, range: VirtRange, prot: Prot) -> Result<(), HostError> {
        // The kernel's answer is the same for a hole and for no room to split a mapping; a hole cannot be synchronised either.
        self.user().protect(range, prot).map_err(|e| match e {
            Errno::NOMEM if self.user().has_hole(range) => HostError::Displaced,
            other => split_error(other),
        })
    }
}
