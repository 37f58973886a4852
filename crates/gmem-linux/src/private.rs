//! Private backing: anonymous memory that moves between the user range and a private alias range by `UFFDIO_MOVE`.
//!
//! A page is in one of the two places, never in both, so what the CPU can write is never also the home. The kernel refuses to move a page that is
//! pinned for I/O, which is the point of this backing.
//!
//! The user range is registered with the service userfaultfd, the alias with a second one, the **mover**, which exists because the
//! destination of a move must be registered. Nobody reads the mover; it is in SIGBUS mode, so that a copy engine that touches a home which is not there dies
//! instead of hanging.
//!
//! **Regions that are not writable are frozen.** The kernel moves pages between writable mappings only, so there the bytes stay in the
//! alias and the CPU gets a copy, which cannot differ because nobody can write it. Which of the two a region is changes only while none of its pages is
//! with the CPU and no operation on one is under way ([`gmem_hal::Host::region_protect`]).

use crate::FutexLock;
use crate::host::{error, split_error};
use crate::shared::drive;
use crate::space::LinuxSpace;
use crate::sys::area::{Advice, Area, BASE_PAGE};
use crate::sys::uffd::{Absence, Uffd};
use gmem_hal::{HostError, PageSize, Prot, RegionAttrs, VirtAddr, VirtRange, lock_api::Mutex};
use rustix::io::Errno;

/// Largest piece of zeros that is copied in at once.
const ZERO_CHUNK: u64 = 1 << 16;

/// Moves that the kernel calls busy are tried so often, with a write in between that breaks copy-on-write, before the page counts as pinned.
const BUSY_TRIES: u32 = 3;

/// The alias range of private regions, and where fresh huge pages are made.
#[derive(Debug)]
pub(crate) struct PrivateHomes {
    homes: Area,
    /// 2 MiB each, unregistered. A page of zeros is made here and moved away. Two, so that one call need not wait for another's zeroing.
    scratch: [Mutex<FutexLock, Area>; 2],
}

impl PrivateHomes {
    pub(crate) fn new(mover: &Uffd, length: u64) -> Result<Self, HostError> {
        let homes = anonymous(length)?;
        mover.register(&homes, homes.range(), Absence::Missing).map_err(error)?;
        let scratch = || {
            let area = anonymous(PageSize::Size2M.bytes())?;
            // A kernel without huge pages says EINVAL and gives base pages.
            let _ = area.advise(area.range(), Advice::HugePage);
            Ok(Mutex::new(area))
        };
        Ok(Self { homes, scratch: [scratch()?, scratch()?] })
    }

    pub(crate) fn area(&self) -> &Area {
        &self.homes
    }

    pub(crate) fn release(&self) {
        self.homes.release();
        self.scratch.iter().for_each(|s| s.lock().release());
    }
}

fn anonymous(length: u64) -> Result<Area, HostError> {
    let area = Area::reserve(length).map_err(error)?;
    area.map_anonymous(area.range(), Prot::RW).map_err(error)?;
    area.advise(area.range(), Advice::DontFork).map_err(error)?;
    Ok(area)
}

/// Which pages of a call were moved, so that they can be moved back: a bit per page.
struct Moved<'a> {
    bits: &'a mut [u64],
    first: VirtAddr,
    size: PageSize,
}

impl Moved<'_> {
    fn mark(&mut self, start: VirtAddr, bytes: u64) {
        let from = (start.get() - self.first.get()) >> self.size.shift();
        let to = (start.get() + bytes - self.first.get()).div_ceil(self.size.bytes());
        (from..to).for_each(|i| self.bits[(i / 64) as usize] |= 1 << (i % 64));
    }

    fn pages(&self) -> impl Iterator<Item = VirtRange> + '_ {
        let marked = (0..self.bits.len() as u64 * 64).filter(|i| self.bits[(i / 64) as usize] & (1 << (i % 64)) != 0);
        marked.map(|i| VirtRange::page(VirtAddr::new(self.first.get() + (i << self.size.shift())), self.size).expect("a page of the call"))
    }
}

/// Whether a region has its bytes in the alias, and the CPU copies of them.
fn is_frozen(attrs: &RegionAttrs) -> bool {
    !attrs.prot.contains(Prot::RW)
}

/// The rest of the page of `size` that begins, or goes on, at `rest`.
fn rest_of_page(rest: VirtRange, size: PageSize) -> VirtRange {
    let page = VirtRange::page(rest.start(), size).expect("a page of the region");
    page.intersection(rest).expect("both hold the start of the rest")
}

impl LinuxSpace {
    fn movers(&self) -> (&Uffd, &Uffd) {
        let pair = self.core.service().zip(self.core.mover());
        pair.expect("a private region exists only where pages can be moved")
    }

    pub(crate) fn private_map(&self, range: VirtRange, attrs: &RegionAttrs) -> Result<(), HostError> {
        let (service, _) = self.movers();
        self.reset_user(range).map_err(split_error)?;
        let advice = if attrs.page_size == PageSize::Size2M { Advice::HugePage } else { Advice::NoHugePage };
        // A kernel without huge pages says EINVAL.
        let _ = self.user().advise(range, advice);
        // Registered before it is accessible.
        let done = service.register(self.user(), range, Absence::Missing).and_then(|()| self.user().protect(range, attrs.prot));
        if done.is_err() {
            let _ = self.reset_user(range);
        }
        done.map_err(split_error)
    }

    pub(crate) fn private_discard(&self, range: VirtRange) {
        let homes = self.private_homes().area();
        self.populated.set(range, false);
        let zapped = homes.zap(self.in_homes(homes, range));
        debug_assert_eq!(zapped, Ok(()), "the homes of {range} were not freed");
    }

    // ---- populate ----

    pub(crate) fn private_populate(&self, range: VirtRange, size: PageSize) -> Result<(), HostError> {
        if size != PageSize::Size2M {
            return self.private_fill(range);
        }
        for piece in range.pages(size).filter(|p| !self.populated.get(p.start())) {
            self.private_build_huge(piece)?;
            self.populated.set(piece, true);
        }
        Ok(())
    }

    /// Puts zeros where nothing is: the home of one page.
    fn private_build(&self, page: VirtRange, size: PageSize) -> Result<(), HostError> {
        if size == PageSize::Size2M { self.private_build_huge(page) } else { self.private_fill(page) }
    }

    /// Puts zeros into the absent base pages of the homes of `range`.
    fn private_fill(&self, range: VirtRange) -> Result<(), HostError> {
        let homes = self.private_homes().area();
        let (_, mover) = self.movers();
        let step = |rest: VirtRange| {
            let chunk = VirtRange::new(rest.start(), rest.end().min(VirtAddr::new(rest.start().get() + ZERO_CHUNK))).expect("not empty");
            mover.fill_zero(homes, chunk)?;
            // Done with the chunk, not with the rest: say how far it came.
            if chunk == rest { Ok(()) } else { Err(crate::sys::uffd::Stop { done: chunk.len().get(), why: Errno::AGAIN }) }
        };
        drive(self.in_homes(homes, range), step, |_, why| match why {
            Errno::EXIST => Ok(BASE_PAGE),
            other => Err(error(other)),
        })
    }

    fn private_build_huge(&self, piece: VirtRange) -> Result<(), HostError> {
        let private = self.private_homes();
        let (_, mover) = self.movers();
        let home = self.in_homes(&private.homes, piece);
        let [first, second] = &private.scratch;
        let scratch = first.try_lock().or_else(|| second.try_lock()).unwrap_or_else(|| first.lock());
        scratch.advise(scratch.range(), Advice::PopulateWrite).map_err(|e| match e {
            Errno::FAULT | Errno::NOMEM => HostError::NoMemory,
            other => error(other),
        })?;
        // `at` of the drive is a scratch address; the two ranges advance together.
        let shift = |rest: VirtRange| VirtAddr::new(home.start().get() + (rest.start().get() - scratch.range().start().get()));
        let moved = drive(
            scratch.range(),
            |rest| mover.move_pages((&private.homes, shift(rest)), (&scratch, rest), false),
            // There already: keep those bytes.
            |_, why| if why == Errno::EXIST { Ok(BASE_PAGE) } else { Err(error(why)) },
        );
        let _ = scratch.zap(scratch.range());
        moved
    }

    // ---- give to the CPU ----

    pub(crate) fn private_cpu_map(&self, range: VirtRange, attrs: &RegionAttrs) -> Result<(), HostError> {
        let (size, frozen) = (attrs.page_size, is_frozen(attrs));
        let homes = self.private_homes().area();
        let (service, _) = self.movers();
        let (mut busy, mut filled) = (0, None);
        let given = drive(
            range,
            |rest| {
                let (to, from) = ((self.user(), rest.start()), (homes, self.in_homes(homes, rest)));
                if frozen { service.copy_pages(to, from) } else { service.move_pages(to, from, false) }
            },
            |rest, why| match why {
                // The CPU has this page already, all of it if it has its beginning.
                Errno::EXIST if rest.start().is_aligned(size) => Ok(size.bytes()),
                Errno::EXIST => Ok(BASE_PAGE),
                Errno::NOENT => self.private_nowhere(rest, size),
                // No home to copy from: the program gave the page back before it was frozen. It reads as zero.
                Errno::FAULT if frozen && filled != Some(rest.start()) => {
                    filled = Some(rest.start());
                    self.private_fill(VirtRange::page(rest.start(), PageSize::Size4K).expect("a page of the region"))?;
                    Ok(0)
                }
                Errno::BUSY if busy < 1000 => {
                    busy += 1;
                    std::thread::yield_now();
                    Ok(0)
                }
                Errno::BUSY => Err(HostError::Pinned),
                // Something lies there that is not ours.
                Errno::INVAL => Err(HostError::Displaced),
                other => Err(error(other)),
            },
        );
        if given.is_err() && self.check_ours(range).is_ok() {
            // Nobody will say that the CPU has what was given so far. Pages that it had before may fault once more.
            let _ = self.private_cpu_unmap(range, attrs);
        }
        given
    }

    /// A page that is to be given to the CPU is not in the alias. Either the CPU has it, or the program gave it back to the kernel (`madvise`), upon which
    /// it reads as zero. Answers how many bytes to pass over.
    fn private_nowhere(&self, rest: VirtRange, size: PageSize) -> Result<u64, HostError> {
        let (service, _) = self.movers();
        let base = VirtRange::page(rest.start(), PageSize::Size4K).expect("a page of the region");
        match service.fill_zero(self.user(), base) {
            Ok(()) => Ok(BASE_PAGE),
            Err(stop) if stop.why == Errno::EXIST => Ok(if rest.start().is_aligned(size) { size.bytes() } else { BASE_PAGE }),
            Err(stop) if stop.why == Errno::AGAIN => Ok(0),
            // Nothing of ours lies there any more.
            Err(stop) if stop.why == Errno::NOENT => Err(HostError::Displaced),
            Err(stop) => Err(error(stop.why)),
        }
    }

    // ---- take from the CPU ----

    pub(crate) fn private_cpu_unmap(&self, range: VirtRange, attrs: &RegionAttrs) -> Result<(), HostError> {
        if is_frozen(attrs) {
            return self.user().zap(range).map_err(error);
        }
        let size = attrs.page_size;
        // On the stack for the fault path, which moves a page or a few; from the heap for calls on thousands, which come from elsewhere.
        let (mut few, mut many) = ([0u64; 64], Vec::new());
        let words = (range.len().get() >> size.shift()).div_ceil(64) as usize;
        let bits = if words <= few.len() {
            &mut few[..]
        } else {
            many.try_reserve_exact(words).map_err(|_| HostError::NoMemory)?;
            many.resize(words, 0);
            &mut many[..]
        };
        let mut moved = Moved { bits, first: range.start(), size };
        let done = self.private_take(range, size, &mut moved);
        if done.is_err() {
            moved.pages().for_each(|page| self.private_give_back(page));
        }
        done
    }

    fn private_take(&self, range: VirtRange, size: PageSize, moved: &mut Moved<'_>) -> Result<(), HostError> {
        let homes = self.private_homes().area();
        let (_, mover) = self.movers();
        let (mut busy_at, mut tries) = (range.end(), 0);
        drive(
            range,
            |rest| {
                let result = mover.move_pages((homes, self.in_homes(homes, rest).start()), (self.user(), rest), false);
                let bytes = result.map_or_else(|stop| stop.done, |()| rest.len().get());
                if bytes > 0 {
                    moved.mark(rest.start(), bytes);
                }
                result
            },
            |rest, why| match why {
                Errno::BUSY => {
                    tries = if busy_at == rest.start() { tries + 1 } else { 0 };
                    busy_at = rest.start();
                    if tries >= BUSY_TRIES {
                        return Err(HostError::Pinned);
                    }
                    // Shared with a child after a fork, until it is written: busy means present, so the write does not fault to us.
                    self.user().touch(rest.start());
                    Ok(0)
                }
                Errno::NOENT | Errno::EXIST => self.private_take_sparse(rest_of_page(rest, size), size),
                // The program took the right to write away, without which the kernel moves nothing.
                Errno::INVAL => Err(HostError::Displaced),
                other => Err(error(other)),
            },
        )
    }

    /// Takes what there is of a page that is not wholly there. Either it is not CPU-mapped, or the program gave it or parts of it back to the kernel
    /// (`madvise`), and these read as zero. Answers how many bytes to pass over: all of `part`.
    fn private_take_sparse(&self, part: VirtRange, size: PageSize) -> Result<u64, HostError> {
        let page = VirtRange::page(part.start(), size).expect("a page of the region");
        if part == page && !self.user().any_present(page).map_err(error)? {
            let homes = self.private_homes().area();
            if !homes.any_present(self.in_homes(homes, page)).map_err(error)? {
                // Neither here nor there: the caller, who thinks it is on the CPU, will read the home.
                self.private_build(page, size)?;
            }
            return Ok(part.len().get());
        }
        let homes = self.private_homes().area();
        let (_, mover) = self.movers();
        let mut tries = 0;
        drive(
            part,
            |rest| mover.move_pages((homes, self.in_homes(homes, rest).start()), (self.user(), rest), true),
            |rest, why| match why {
                Errno::EXIST => Ok(BASE_PAGE),
                Errno::BUSY if tries < BUSY_TRIES => {
                    tries += 1;
                    self.user().touch(rest.start());
                    Ok(0)
                }
                Errno::BUSY => Err(HostError::Pinned),
                other => Err(error(other)),
            },
        )?;
        self.private_fill(page)?;
        Ok(part.len().get())
    }

    /// Undoes one move. A failure leaves the page at home, where the next access finds it by a fault.
    fn private_give_back(&self, page: VirtRange) {
        let homes = self.private_homes().area();
        let (service, _) = self.movers();
        let _ = drive(
            page,
            |rest| service.move_pages((self.user(), rest.start()), (homes, self.in_homes(homes, rest)), true),
            |_, why| if why == Errno::EXIST { Ok(BASE_PAGE) } else { Err(error(why)) },
        );
    }
}
