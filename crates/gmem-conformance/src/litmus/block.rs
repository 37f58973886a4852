//! The block: memory that the participants of a round share beside unified memory, so that they meet, are told what to do and give what they saw by way of
//! something that is not under test.
//!
//! It is a memory object that a device process opens as `/proc/<process>/fd/<descriptor>`. Any process may change it at any time, so every field is an atomic, and what is read
//! is checked.

use super::program::{OPS, Op, PARTICIPANTS, PLACES, REGISTERS};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The most iterations of a round.
pub(crate) const ITERATIONS: usize = 512;

/// The layout. All zeros to begin with, which is valid for atomics.
#[repr(C)]
pub(crate) struct Layout {
    /// Not zero: everybody is to end.
    pub(crate) stop: AtomicU32,
    /// How many iterations, participants and places there are.
    pub(crate) iterations: AtomicU32,
    pub(crate) participants: AtomicU32,
    pub(crate) places: AtomicU32,
    /// They meet before every so many iterations.
    pub(crate) stride: AtomicU32,
    /// The longest pause before an iteration, in turns of an empty loop.
    pub(crate) pause: AtomicU32,
    /// The longest pause between two operations of an iteration.
    pub(crate) gap: AtomicU32,
    /// The tag of the first iteration's first word, and by how much that of the next iteration is greater. See [`Layout::tag`].
    pub(crate) tag: AtomicU32,
    pub(crate) tag_step: AtomicU32,
    _pad: [u32; 7],
    /// How many came to the next meeting, how many meetings there were, and how many participants have noticed, over all meetings.
    pub(crate) arrived: AtomicU32,
    pub(crate) meetings: AtomicU32,
    pub(crate) noticed: AtomicU32,
    _pad1: [u32; 13],
    pub(crate) lines: [Line; PARTICIPANTS],
    pub(crate) programs: [[AtomicU64; OPS]; PARTICIPANTS],
    /// Where the places of each iteration are.
    pub(crate) addresses: [[AtomicU64; PLACES]; ITERATIONS],
    /// What was read, as whole words.
    pub(crate) registers: [[[AtomicU64; REGISTERS]; ITERATIONS]; PARTICIPANTS],
    /// What the places held in the end, as whole words.
    pub(crate) ends: [[AtomicU64; PLACES]; ITERATIONS],
}

/// Where a participant is; a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Line {
    /// The iteration.
    pub(crate) iteration: AtomicU32,
    /// One of [`phase`].
    pub(crate) phase: AtomicU32,
}

impl Layout {
    /// The upper half of the word of a place in an iteration. No two words have the same for a long time, so one that is in the wrong place, or left over, is recognized.
    pub(crate) fn tag(&self, iteration: usize, place: usize) -> u64 {
        let step = self.tag_step.load(Ordering::Relaxed).wrapping_mul(iteration as u32);
        u64::from(self.tag.load(Ordering::Relaxed).wrapping_add(step).wrapping_add(place as u32)) << 32
    }
}

/// What a participant does at the moment.
pub(crate) mod phase {
    pub(crate) const NOT_BEGUN: u32 = 0;
    pub(crate) const MEETS: u32 = 1;
    pub(crate) const WORKS: u32 = 2;
    pub(crate) const ENDED: u32 = 3;

    /// In words.
    pub(crate) fn name(phase: u32) -> &'static str {
        match phase {
            NOT_BEGUN => "has not begun",
            MEETS => "waits for the others",
            WORKS => "works on its places",
            ENDED => "has ended",
            _ => "is lost",
        }
    }
}

/// A mapping of a block.
pub(crate) struct Block {
    layout: NonNull<Layout>,
    /// The object, if it is ours.
    file: Option<File>,
}

// SAFETY: the mapping lives until drop, is valid from any thread, and is only reached through atomics.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// A block of this process.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub(crate) fn new() -> std::io::Result<Self> {
        // SAFETY: makes a descriptor, which is ours if there is one.
        let file = unsafe {
            let fd = libc::memfd_create(c"gmem-litmus".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(size_of::<Layout>() as u64)?;
        let layout = map(file.as_raw_fd()).ok_or_else(std::io::Error::last_os_error)?;
        Ok(Self { layout, file: Some(file) })
    }

    /// How a kernel finds this block: process and descriptor.
    pub(crate) fn words(&self) -> [u64; 2] {
        let descriptor = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        [u64::from(std::process::id()), descriptor as u64]
    }

    /// The block of another process, or of this one under another table of descriptors. `None` if it is gone.
    pub(crate) fn open(words: [u64; 2]) -> Option<Self> {
        let mut path = [0u8; 64];
        write!(&mut path[..63], "/proc/{}/fd/{}", words[0], words[1]).ok()?;
        // SAFETY: the path ends with a zero.
        let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
        let layout = if fd < 0 { None } else { map(fd) };
        // SAFETY: the descriptor, if there is one, was opened here; the mapping does not need it.
        unsafe { libc::close(fd) };
        Some(Self { layout: layout?, file: None })
    }

    /// The iterations of this round, bounded.
    pub(crate) fn iterations(&self) -> usize {
        (self.iterations.load(Ordering::Relaxed) as usize).min(ITERATIONS)
    }

    /// The places of this round, bounded.
    pub(crate) fn places(&self) -> usize {
        (self.places.load(Ordering::Relaxed) as usize).min(PLACES)
    }

    /// The program of a participant.
    pub(crate) fn program(&self, participant: usize) -> impl Iterator<Item = Op> {
        self.programs[participant].iter().map_while(|code| Op::decode(code.load(Ordering::Relaxed)))
    }

    /// Whether everybody is to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) != 0
    }
}

impl std::ops::Deref for Block {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        // SAFETY: the mapping is as long as the layout and lives as long as this; it consists of atomics and padding that nobody touches.
        unsafe { self.layout.as_ref() }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: ends the mapping that was made for this, whose borrows have ended.
        unsafe { libc::munmap(self.layout.as_ptr().cast(), size_of::<Layout>()) };
    }
}

fn map(fd: RawFd) -> Option<NonNull<Layout>> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping wherever the system finds room, which touches none that exists.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Layout>(), prot, flags, fd, 0) };
    if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mappings_are_one_memory_and_a_stranger_finds_none() {
        let block = Block::new().unwrap();
        let other = Block::open(block.words()).unwrap();
        other.programs[1][0].store(Op::Fence.encode(), Ordering::Relaxed);
        other.iterations.store(1 << 20, Ordering::Relaxed);
        assert_eq!(block.program(1).collect::<Vec<_>>(), [Op::Fence]);
        assert_eq!(block.iterations(), ITERATIONS, "what a device claims is bounded");
        assert!(Block::open([u64::from(std::process::id()), 9999]).is_none());
    }
}
