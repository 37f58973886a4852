//! Regions whose bytes are those of a file.
//!
//! The bytes are read once, when the region is mapped, by system calls straight into unified memory; there is no second copy of the file. So that only what was changed is ever
//! written back, a shared region keeps a digest of each 4 KiB as the file has it: 32 bytes, 0.8 % of the data. A digest cannot tell two contents apart wrongly: to
//! find two with one BLAKE3 digest is as hard as to break it.

use crate::error::Error;
use crate::region::Region;
use crate::space::RegionBuilder;
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{Access, ByteLen, Delivery, FaultError, HostError, Prot, VirtAddr, VirtRange};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// What happens to what is written to a file's region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileSharing {
    /// [`Region::sync`], unmapping and dropping write it back to the file.
    Shared,
    /// Nothing is ever written back.
    Private,
}

/// A file cannot be mapped as asked, or not be read or written. The file is as it was, except for what was written back before the error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum FileError {
    /// Not a regular file: there is no place to read from and write back to.
    NotRegular,
    /// The descriptor was not opened for reading.
    NotReadable,
    /// The descriptor was not opened for writing, and a shared region that may be written needs that.
    NotWritable,
    /// The descriptor is in append mode, in which the kernel writes at the end whatever it is told.
    Append,
    /// The region has in-thread delivery, where system calls cannot put bytes on absent pages.
    InThread,
    /// The offset and the length pass the last offset a file can have.
    Offset,
    /// The process, or the system, has as many files open as it may, and a shared region keeps a descriptor.
    TooManyFiles,
    /// The contents of a shared region are the file's: unmap it to be rid of its memory.
    Discard,
    /// The kernel refused to read or write at this offset of the file; the errno is kept.
    Io {
        /// The offset in bytes.
        offset: u64,
        /// The errno, or 0 if there was none.
        errno: i32,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegular => f.write_str("only a regular file can be mapped"),
            Self::NotReadable => f.write_str("the file was not opened for reading"),
            Self::NotWritable => f.write_str("the file was not opened for writing: open it so, or map it private or read-only"),
            Self::Append => f.write_str("the file is in append mode, in which nothing can be written back to its place: open it without"),
            Self::InThread => f.write_str("a file needs a region of service delivery: the kernel's own accesses raise no signal"),
            Self::Offset => f.write_str("the offset and length pass the largest offset of a file"),
            Self::TooManyFiles => HostError::TooManyFiles.fmt(f),
            Self::Discard => f.write_str("the contents of a shared file's region cannot be given up: unmap it instead"),
            Self::Io { offset, errno } => write!(f, "the kernel answered errno {errno} at offset {offset} of the file"),
        }
    }
}

impl std::error::Error for FileError {}

/// The unit of writing back. Each has a digest.
const PIECE: usize = 4096;

/// How much is read by one system call, and held home at a time while it is written back.
const CHUNK: u64 = 2 << 20;

/// The file of a shared region.
pub(crate) struct Backing {
    file: File,
    offset: u64,
    /// Where the region begins, and how much of it the file had when it was mapped.
    start: VirtAddr,
    valid: u64,
    /// Whether the descriptor was opened for writing, which nothing can change. If not, the region never can be written. Append mode is another matter: the program
    /// may set and clear it at any time, by any descriptor of the open file.
    writable: bool,
    /// Of each piece, as the file has it; none if the region never can be written.
    digests: Mutex<Vec<blake3::Hash>>,
}

impl RegionBuilder {
    /// Maps `bytes` bytes, rounded up to whole pages, that hold what `file` has from `offset` on. The offset may be any.
    ///
    /// * The file is **read now**, all of it that the region covers: later changes of the file by others are not seen, and the region is no part of the kernel's page cache. Two
    ///   regions of one file do not see each other's changes.
    /// * **Past the end** of the file the region reads as zero. It can be written there like any memory; that is never written back, so the file never grows.
    /// * [`FileSharing::Shared`]: what the CPU and the devices changed is written back, in units of 4 KiB that are written only if they were changed, by [`Region::sync`], by
    ///   [`Region::unmap`], and when the region is dropped. An error while it is dropped can be told to nobody and is a line on standard error: call
    ///   [`Region::sync`] first. If others **cut** the file meanwhile, what lies past its new end is not written back; each piece is written where the file ends at that moment, and
    ///   only who cuts it in the very microsecond in which a piece there is written has a race with the kernel. While `file` is in **append mode** (`O_APPEND`, which a program can set
    ///   later) writing back is refused.
    /// * [`FileSharing::Private`]: nothing is written back.
    ///
    /// A descriptor of the same open file is kept for as long as a shared region lives; `file` may be closed. May block for as long as reading takes.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be mapped so or not be read; [`Error::Range`] and [`Error::Length`] as [`RegionBuilder::map`]; [`Error::DevicesOnly`] in an address
    /// space that the CPU does not see, where the kernel could not put the bytes. Nothing is mapped then.
    pub fn map_file(self, file: &File, offset: u64, bytes: u64, sharing: FileSharing) -> Result<Region, Error> {
        if !self.space.inner.cpu_visible {
            return Err(Error::DevicesOnly);
        }
        let prot = if self.attrs.prot.contains(Prot::WRITE) { Prot::RW } else { self.attrs.prot };
        if self.attrs.delivery != Delivery::Service {
            return Err(FileError::InThread.into());
        }
        let limit = i64::MAX as u64;
        if offset > limit || bytes > limit - offset {
            return Err(FileError::Offset.into());
        }
        check(file, sharing == FileSharing::Shared && prot == Prot::RW)?;
        // The kernel can only put bytes where the program may write; what was asked for follows.
        let region = self.prot(Prot::RW).map(bytes)?;
        let valid = fill(&region, file, offset, bytes)?;
        let backing = match sharing {
            FileSharing::Private => None,
            FileSharing::Shared => Some(Backing::new(file, offset, region.range().start(), valid)?),
        };
        if prot != Prot::RW {
            region.protect(region.range(), prot)?;
        }
        let region = region.asked_with(prot);
        Ok(match backing {
            Some(backing) => region.backed_by(backing),
            None => region,
        })
    }
}

/// Whether the descriptor can do what the region will need.
fn check(file: &File, write: bool) -> Result<(), Error> {
    let regular = file.metadata().map_err(|e| io_error(0, &e))?.is_file();
    if !regular {
        return Err(FileError::NotRegular.into());
    }
    let flags = open_flags(file)?;
    let mode = flags & libc::O_ACCMODE;
    if flags & libc::O_PATH != 0 || mode == libc::O_WRONLY {
        return Err(FileError::NotReadable.into());
    }
    if write { check_writable(flags) } else { Ok(()) }
}

fn check_writable(flags: i32) -> Result<(), Error> {
    if !opened_for_writing(flags) {
        return Err(FileError::NotWritable.into());
    }
    if flags & libc::O_APPEND != 0 {
        return Err(FileError::Append.into());
    }
    Ok(())
}

fn opened_for_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

fn open_flags(file: &File) -> Result<i32, Error> {
    // SAFETY: asks for the flags of a descriptor that is open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 { Err(io_error(0, &std::io::Error::last_os_error())) } else { Ok(flags) }
}

fn io_error(offset: u64, error: &std::io::Error) -> Error {
    match error.raw_os_error().unwrap_or(0) {
        libc::EMFILE | libc::ENFILE => FileError::TooManyFiles.into(),
        errno => FileError::Io { offset, errno }.into(),
    }
}

/// Reads the file into a region that nobody else knows yet, and returns how many bytes it had.
fn fill(region: &Region, file: &File, offset: u64, bytes: u64) -> Result<u64, Error> {
    let mut done = 0;
    let mut touched = 0;
    while done < bytes {
        let len = CHUNK.min(bytes - done) as usize;
        let to = region.as_ptr().wrapping_add(done as usize);
        // SAFETY: inside the region, which is mapped for reading and writing and known to nobody else; any bytes are bytes.
        let chunk = unsafe { std::slice::from_raw_parts_mut(to, len) };
        match file.read_at(chunk, offset + done) {
            Ok(0) => break,
            Ok(n) => done += n as u64,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Where userfaultfd serves only faults of user mode, the pages must be there before the kernel comes.
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) && touched <= done => {
                chunk.iter_mut().step_by(PIECE).for_each(|byte| *byte = 0);
                chunk[len - 1] = 0;
                touched = done + 1;
            }
            Err(e) => return Err(io_error(offset + done, &e)),
        }
    }
    Ok(done)
}

/// The digests of the first `valid` bytes from `start` on, which the CPU may read.
fn digests_of(start: VirtAddr, valid: u64) -> Vec<blake3::Hash> {
    let mut piece = [0; PIECE];
    let pieces = (0..valid).step_by(PIECE);
    pieces.map(|at| blake3::hash(load(&mut piece, start.get() + at, PIECE.min((valid - at) as usize)))).collect()
}

/// Copies `len` bytes at `va`, which begin a piece, and which others may be writing.
fn load(piece: &mut [u8; PIECE], va: u64, len: usize) -> &[u8] {
    let words = std::ptr::with_exposed_provenance::<u64>(va as usize);
    for (i, to) in piece[..len.next_multiple_of(8)].chunks_exact_mut(8).enumerate() {
        // SAFETY: the caller's region holds the whole piece, because its pages are whole multiples of one, and lives. Volatile, since devices and other threads
        // may write meanwhile: what is digested and written is this copy.
        to.copy_from_slice(&unsafe { words.add(i).read_volatile() }.to_ne_bytes());
    }
    &piece[..len]
}

impl Backing {
    /// The region is as the file is now.
    fn new(file: &File, offset: u64, start: VirtAddr, valid: u64) -> Result<Self, Error> {
        let file = file.try_clone().map_err(|e| io_error(offset, &e))?;
        let writable = opened_for_writing(open_flags(&file)?);
        let digests = if writable { digests_of(start, valid) } else { Vec::new() };
        Ok(Self { file, offset, start, valid, writable, digests: Mutex::new(digests) })
    }

    /// The part of `range` that is the file's, in whole pieces but for its end.
    fn valid(&self, range: VirtRange) -> Option<VirtRange> {
        range.intersection(VirtRange::from_len(self.start, ByteLen(self.valid))?)
    }

    /// Whether the file can be written now, as a region that may be written needs.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        check_writable(open_flags(&self.file)?)
    }

    /// Writes what was changed in `range`, whole pages of the region, back to the file. With `forced`, also where nobody may read.
    pub(crate) fn write_back(&self, region: &Region, range: VirtRange, forced: bool) -> Result<(), Error> {
        let Some(valid) = self.valid(range).filter(|_| self.writable) else { return Ok(()) };
        let Some(kept) = VirtRange::from_len(self.start, ByteLen(self.len_now()?)).and_then(|file| valid.intersection(file)) else {
            return Ok(());
        };
        for chunk in cut(kept, CHUNK.max(region.attrs().page_size.bytes())) {
            match self.write_chunk(region, chunk) {
                Err(Error::Range(RangeError::Fault(_, FaultError::Protection))) if forced => self.write_hidden(region, chunk)?,
                result => result?,
            }
        }
        Ok(())
    }

    /// How many bytes the file has now, from the region's first on.
    fn len_now(&self) -> Result<u64, Error> {
        Ok(self.file.metadata().map_err(|e| io_error(self.offset, &e))?.len().saturating_sub(self.offset))
    }

    /// Brings a chunk home, keeps it there while it is looked at, and writes what was changed.
    fn write_chunk(&self, region: &Region, chunk: VirtRange) -> Result<(), Error> {
        let (runtime, id) = (&region.space().inner.runtime, region.space().id());
        let held = [HoldRange { range: chunk, access: Access::Read }];
        runtime.call(|core| core.hold(id, None, &held))??;
        let written = self.write_pieces(chunk);
        // The address space lives as long as the region.
        let _ = runtime.call(|core| core.unhold(id, None, &held));
        written
    }

    /// The same page by page, for a chunk with pages that nobody may read: they hold somebody's writes all the same.
    fn write_hidden(&self, region: &Region, chunk: VirtRange) -> Result<(), Error> {
        let size = region.attrs().page_size;
        let (runtime, id) = (&region.space().inner.runtime, region.space().id());
        for part in cut(chunk, size.bytes()) {
            match self.write_chunk(region, part) {
                Err(Error::Range(RangeError::Fault(_, FaultError::Protection))) => {
                    let page = VirtRange::page(part.start(), size).ok_or(Error::Length)?;
                    runtime.call(|core| core.protect(id, page, Prot::READ))??;
                    let written = self.write_chunk(region, part);
                    // Giving back what was in force before cannot fail.
                    let _ = runtime.call(|core| core.protect(id, page, Prot::empty()));
                    written?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn write_pieces(&self, chunk: VirtRange) -> Result<(), Error> {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut piece = [0; PIECE];
        let mut at = chunk.start().get();
        while at < chunk.end().get() {
            let offset = at - self.start.get();
            let len = PIECE.min((chunk.end().get() - at) as usize);
            // The digest is of what the file had, also where others cut it inside a piece: what is left of that is not written unless something was changed.
            let bytes = load(&mut piece, at, PIECE.min((self.valid - offset) as usize));
            let digest = blake3::hash(bytes);
            let number = (offset / PIECE as u64) as usize;
            if digests.get(number) != Some(&digest) {
                // Others may have cut the file since the chunk was begun, which may have waited for a launch: nothing is written past where it ends now.
                let kept = (len as u64).min(self.len_now()?.saturating_sub(offset)) as usize;
                if kept == 0 {
                    return Ok(());
                }
                // The descriptor shares its flags with the program's, and in append mode the kernel would write at the end.
                self.check_writable()?;
                self.file.write_all_at(&bytes[..kept], self.offset + offset).map_err(|e| io_error(self.offset + offset, &e))?;
                if let Some(old) = digests.get_mut(number) {
                    *old = digest;
                }
            }
            at += len as u64;
        }
        Ok(())
    }
}

/// `range` in parts of `step` bytes, the last of which may be shorter.
fn cut(range: VirtRange, step: u64) -> impl Iterator<Item = VirtRange> {
    let starts = (range.start().get()..range.end().get()).step_by(step as usize);
    starts.filter_map(move |at| VirtRange::from_len(VirtAddr::new(at), ByteLen(step)).and_then(|part| part.intersection(range)))
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing")
            .field("file", &self.file)
            .field("offset", &self.offset)
            .field("valid", &self.valid)
            .finish_non_exhaustive()
    }
}
