//! `crc`: the CPU reads files into unified memory with ordinary system calls, the device computes the CRC-32 of every block, and the CPU, reading
//! the files once more by itself, agrees.

mod checksum;
mod files;
mod plan;

pub(crate) use files::{Found, PassedOver, Problem, find};

use crate::engine::Engine;
use crate::failure::Failure;
use crate::progress;
use crate::setup::{Needs, Setup};
use checksum::{Block, CRC};
use files::{Content, Input, Stamp};
use gmem::Args;
use gmem::PageSize;
use plan::{BLOCK, Batch};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How the files go through the memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of the data buffer.
    capacity: u64,
    /// Blocks in it at most.
    rows: usize,
}

impl Shape {
    /// All files at once if they fit in `limit` bytes, otherwise as many blocks as do.
    pub(crate) fn of(files: &[Input], limit: u64) -> Self {
        let (bytes, rows) = plan::whole(files, SMALLEST_BLOCK);
        Self { capacity: bytes.min(limit.max(BLOCK)), rows: rows.min(MOST_ROWS) }
    }

    /// The bytes the buffers take.
    pub(crate) fn needs(&self) -> Needs {
        let (rows, sums) = ((self.rows * size_of::<Block>()) as u64, (self.rows * size_of::<u32>()) as u64);
        let data = self.capacity.min(BLOCK);
        Needs { page_size: PageSize::Size2M, buffers: vec![self.capacity, rows, sums], launches: vec![vec![data, data, rows, sums]] }
    }
}

/// With little device memory and no replay, blocks get smaller so that one fits; not smaller than this.
const SMALLEST_BLOCK: u64 = 4096;

/// 16 MiB of rows.
const MOST_ROWS: usize = 1 << 20;

/// How a run went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The time on the device.
    pub(crate) device: Duration,
    /// What the device found for each file.
    pub(crate) sums: Vec<Sum>,
    /// The first disagreement, if there is one.
    pub(crate) mismatch: Option<String>,
    /// The number of blocks.
    pub(crate) blocks: usize,
}

/// The checksum of a file.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Sum {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) crc32: String,
}

/// Reads, computes, checks.
pub(crate) fn run<E: Engine>(engine: &E, setup: &Setup, files: &[Input], shape: Shape) -> Result<Outcome, Failure> {
    let held = setup.held_at_once();
    let block = held.map_or(BLOCK, |held| (1 << (held / 4).max(1).ilog2()).clamp(SMALLEST_BLOCK, BLOCK));
    let batches = plan::batches(files, block, shape.capacity, shape.rows);
    let mut data = engine.zeroed::<u8>(shape.capacity as usize)?;
    let mut rows = engine.zeroed::<Block>(shape.rows)?;
    let mut sums = engine.zeroed::<u32>(shape.rows)?;
    let mut reader = Reader::new(files);
    let mut checker = Checker::new(files);
    let mut device = Duration::ZERO;
    let total = files.iter().map(|f| f.len).sum::<u64>();
    let phase = progress::phase("crc", total);
    for batch in &batches {
        if !setup.system_calls {
            touch(&mut data, setup.page_size);
        }
        for (at, file) in batch.blocks.iter().zip(&batch.files) {
            reader.fill(*file, &mut data[at.offset as usize..][..at.len as usize])?;
        }
        let count = batch.blocks.len();
        rows[..count].copy_from_slice(&batch.blocks);
        let launches = match held {
            Some(held) => plan::launches(&batch.blocks, held, setup.page_size).ok_or_else(|| too_small(setup))?,
            None => std::iter::once(0..count).collect(),
        };
        let started = Instant::now();
        for launch in launches {
            checksums(engine, &data, &rows, &mut sums, &batch.blocks, launch)?;
        }
        device += started.elapsed();
        checker.compare(batch, &sums[..count])?;
        phase.advance(batch.blocks.iter().map(|b| b.len).sum());
    }
    let blocks = batches.iter().map(|b| b.blocks.len()).sum();
    let (sums, mismatch) = checker.finish();
    Ok(Outcome { device, sums, mismatch, blocks })
}

fn too_small(setup: &Setup) -> Failure {
    Failure::Usage(format!(
        "without replay a launch holds a block of data, its row and its sum: --device-memory {} is too small for that with pages of {}; \
         4 pages are enough",
        gmem::ByteLen(setup.device_memory),
        setup.page_size
    ))
}

/// Puts every page of the buffer in place by touching it: with delivery in the faulting thread, or a userfaultfd for user code only, a system call
/// on an absent page fails, so a program must do this before it lets the kernel write there.
fn touch(data: &mut [u8], page: PageSize) {
    for page in data.chunks_mut(page.bytes() as usize) {
        page[0] = 0;
    }
}

/// Computes the sums of the blocks in `launch` on the device.
fn checksums<E: Engine>(
    engine: &E,
    data: &[u8],
    rows: &[Block],
    sums: &mut [u32],
    blocks: &[Block],
    launch: Range<usize>,
) -> Result<(), Failure> {
    let (first, last) = (&blocks[launch.start], &blocks[launch.end - 1]);
    let (rows, sums) = (&rows[launch.clone()], &mut sums[launch.clone()]);
    if *rows != blocks[launch] {
        return Err(Failure::Failed("unified memory no longer holds the table of blocks the CPU wrote there".to_owned()));
    }
    let used = &data[first.offset as usize..(last.offset + last.len) as usize];
    let count = sums.len();
    let args = Args::new().base(data).touches(used).read(rows).write(sums).number(count);
    // SAFETY: these are the arguments of `CRC`; the rows were just compared with blocks that lie inside `data`, and there are `count` rows and sums.
    unsafe { engine.launch(&CRC, args) }
}

/// Reads the files into memory, in order, with one open file at a time.
struct Reader<'a> {
    files: &'a [Input],
    open: Option<Open>,
}

/// A file that is being read.
struct Open {
    /// Its number.
    file: usize,
    /// Nothing if its bytes were taken before.
    source: Option<File>,
    /// How far it is read.
    at: u64,
}

impl<'a> Reader<'a> {
    fn new(files: &'a [Input]) -> Self {
        Self { files, open: None }
    }

    /// Reads the next bytes of `file`, straight into `to`. A file that is not what it was when it was found is refused: what was read of it is nobody's
    /// contents.
    fn fill(&mut self, file: usize, to: &mut [u8]) -> Result<(), Failure> {
        let input = &self.files[file];
        let path = input.path.display();
        let failed = |e: std::io::Error| match e.kind() {
            ErrorKind::UnexpectedEof => Failure::while_doing(&path, "the file became shorter while it was read"),
            _ => Failure::while_doing(&path, e),
        };
        let check = |source: &File, was: &Stamp| match was.became(&Stamp::of(&source.metadata().map_err(failed)?)) {
            Some(what) => Err(Failure::while_doing(&path, what)),
            None => Ok(()),
        };
        let mut open = match self.open.take().filter(|open| open.file == file) {
            Some(open) => open,
            None => {
                let source = match &input.content {
                    Content::File(was) => {
                        let source = files::open(&input.path).map_err(failed)?;
                        check(&source, was)?;
                        Some(source)
                    }
                    Content::Taken(_) => None,
                };
                Open { file, source, at: 0 }
            }
        };
        let end = open.at + to.len() as u64;
        match (&mut open.source, &input.content) {
            (Some(source), Content::File(was)) => {
                source.read_exact(to).map_err(failed)?;
                if end == input.len {
                    check(source, was)?;
                }
            }
            (_, Content::Taken(bytes)) => to.copy_from_slice(&bytes[open.at as usize..end as usize]),
            (None, Content::File(_)) => unreachable!("such a file was opened above"),
        }
        open.at = end;
        self.open = Some(open);
        Ok(())
    }
}

/// Reads the files again into ordinary memory and compares.
struct Checker<'a> {
    reader: Reader<'a>,
    buffer: Vec<u8>,
    /// Per file: the sums of the device combined, and the sum of the CPU.
    sums: Vec<(crc32fast::Hasher, crc32fast::Hasher)>,
    mismatch: Option<String>,
}

impl<'a> Checker<'a> {
    fn new(files: &'a [Input]) -> Self {
        let sums = files.iter().map(|_| Default::default()).collect();
        Self { reader: Reader::new(files), buffer: vec![0; BLOCK as usize], sums, mismatch: None }
    }

    fn compare(&mut self, batch: &Batch, found: &[u32]) -> Result<(), Failure> {
        for ((block, file), found) in batch.blocks.iter().zip(&batch.files).zip(found) {
            let bytes = &mut self.buffer[..block.len as usize];
            self.reader.fill(*file, bytes)?;
            let expected = crc32fast::hash(bytes);
            let (device, cpu) = &mut self.sums[*file];
            cpu.update(bytes);
            device.combine(&crc32fast::Hasher::new_with_initial_len(*found, block.len));
            if expected != *found && self.mismatch.is_none() {
                let path = self.reader.files[*file].path.display();
                self.mismatch = Some(format!("{path}: a block of {} bytes should have CRC {expected:08x} and has {found:08x}", block.len));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> (Vec<Sum>, Option<String>) {
        let mut sums = Vec::with_capacity(self.sums.len());
        for (input, (device, cpu)) in self.reader.files.iter().zip(self.sums) {
            let (device, cpu) = (device.finalize(), cpu.finalize());
            let path = input.path.display().to_string();
            if device != cpu && self.mismatch.is_none() {
                self.mismatch = Some(format!("{path}: the file should have CRC {cpu:08x} and has {device:08x}"));
            }
            sums.push(Sum { path, bytes: input.len, crc32: format!("{device:08x}") });
        }
        (sums, self.mismatch)
    }
}

#[cfg(test)]
mod tests;
