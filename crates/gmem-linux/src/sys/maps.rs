//! What lies at an address of this process, as the kernel says.

use super::fd::GmemFd;
use super::process::errno;
use crate::Threads;
use core::mem::size_of;
use gmem_hal::{VirtAddr, VirtRange};
use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::opcode;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// `PROCMAP_QUERY`, Linux 6.11.
const QUERY: libc::Ioctl = opcode::read_write::<raw::procmap_query>(b'f', 17) as libc::Ioctl;
const COVERING_OR_NEXT: u64 = raw::procmap_query_flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64;
const ANY_ACCESS: u64 = raw::procmap_query_flags::PROCMAP_QUERY_VMA_READABLE as u64
    | raw::procmap_query_flags::PROCMAP_QUERY_VMA_WRITABLE as u64
    | raw::procmap_query_flags::PROCMAP_QUERY_VMA_EXECUTABLE as u64;

/// A file, wherever it is mapped: device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    device: (u32, u32),
    inode: u64,
}

impl FileId {
    /// The file behind a descriptor.
    pub(crate) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { device: (libc::major(stat.st_dev), libc::minor(stat.st_dev)), inode: stat.st_ino })
    }
}

/// One mapping of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapped {
    pub(crate) range: VirtRange,
    /// `None` if anonymous.
    pub(crate) file: Option<FileId>,
    /// The offset in the file of the first byte.
    pub(crate) offset: u64,
    /// Somebody may read, write or execute it.
    pub(crate) accessible: bool,
}

/// The mappings of this process, to be asked on gmem's own threads.
#[derive(Debug)]
pub(crate) struct Maps(GmemFd);

impl Maps {
    /// Opens them, on a gmem thread. `None` where the kernel cannot be asked about single addresses: reading all mappings would be too slow.
    pub(crate) fn open(threads: &Arc<Threads>) -> Option<Self> {
        let fd = rustix::fs::open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let maps = Self(GmemFd::new(fd, threads));
        // The code that runs here is mapped, so only a kernel that does not know the question finds nothing.
        let here = VirtAddr::new(Self::open as *const () as u64);
        let found = maps.at_or_above(here).is_ok_and(|m| m.is_some_and(|m| m.range.contains(here)));
        found.then_some(maps)
    }

    /// The mapping that holds `va`, or else the next above it. An error says that there is no answer: this is no thread of gmem's.
    fn at_or_above(&self, va: VirtAddr) -> Result<Option<Mapped>, Errno> {
        let fd = self.0.here()?.as_raw_fd();
        // SAFETY: plain numbers, of which all zeros are valid.
        let mut query: raw::procmap_query = unsafe { core::mem::zeroed() };
        (query.size, query.query_flags, query.query_addr) = (size_of::<raw::procmap_query>() as u64, COVERING_OR_NEXT, va.get());
        // SAFETY: the kernel reads and writes one procmap_query, whose two buffers have the length zero.
        let err = unsafe { libc::ioctl(fd, QUERY, &raw mut query) };
        if err != 0 {
            return match errno() {
                Errno::NOENT => Ok(None),
                other => Err(other),
            };
        }
        let file = FileId { device: (query.dev_major, query.dev_minor), inode: query.inode };
        let range = VirtRange::new(VirtAddr::new(query.vma_start), VirtAddr::new(query.vma_end));
        Ok(range.map(|range| Mapped {
            range,
            file: (query.inode != 0).then_some(file),
            offset: query.vma_offset,
            accessible: query.vma_flags & ANY_ACCESS != 0,
        }))
    }

    /// The parts of `range`, in order, each with what is mapped there. `None` if there is no answer.
    pub(crate) fn parts(&self, range: VirtRange) -> Option<impl Iterator<Item = (VirtRange, Option<Mapped>)> + '_> {
        let (mut at, mut first) = (range.start(), Some(self.at_or_above(range.start()).ok()?));
        Some(core::iter::from_fn(move || {
            let rest = VirtRange::new(at, range.end())?;
            let next = first.take().unwrap_or_else(|| self.at_or_above(at).ok().flatten());
            let (end, here) = match next {
                Some(mapped) if mapped.range.contains(at) => (mapped.range.end(), Some(mapped)),
                Some(mapped) => (mapped.range.start(), None),
                None => (range.end(), None),
            };
            at = end.min(range.end());
            Some((VirtRange::new(rest.start(), at)?, here))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::area::Area;
    use gmem_hal::Prot;

    #[test]
    fn what_is_mapped_where_is_told_in_order() {
        let threads = Arc::new(Threads::start().expect("threads"));
        threads.run(|| {
            let Some(maps) = Maps::open(&threads) else {
                eprintln!("skipped: this kernel cannot be asked about single addresses");
                return;
            };
            let file = rustix::fs::memfd_create("gmem-test", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
            rustix::fs::ftruncate(&file, 8192).expect("two pages");
            let area = Area::reserve(16384).expect("four pages");
            let page = |n: u64| {
                VirtRange::from_len(VirtAddr::new(area.range().start().get() + n * 4096), gmem_hal::ByteLen(4096)).expect("a page")
            };
            area.map_file(page(1), &file, 4096, Prot::READ).expect("mapped");
            // SAFETY: a page of the area just reserved, which nobody uses.
            assert_eq!(unsafe { libc::munmap(page(2).start().get() as *mut _, 4096) }, 0);
            let parts: Vec<_> =
                maps.parts(area.range()).expect("an answer").map(|(r, m)| (r, m.map(|m| (m.file, m.offset, m.accessible)))).collect();
            let id = FileId::of(&file).expect("a file");
            let expected = [
                (page(0), Some((None, 0, false))),
                (page(1), Some((Some(id), 4096, true))),
                (page(2), None),
                (page(3), Some((None, 0, false))),
            ];
            // The offset of anonymous memory means nothing.
            let parts: Vec<_> = parts.into_iter().map(|(r, m)| (r, m.map(|(f, o, a)| (f, if f.is_some() { o } else { 0 }, a)))).collect();
            assert_eq!(parts, expected);
        });
    }
}
