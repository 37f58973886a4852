//! Files in an address space.

use super::steps::both_read;
use crate::check::{Applies, Check, Outcome, Stop};
use crate::world::{World, at, get, pattern, same_bytes, set};
use crate::{Case, ensure_eq};
use gmem::{Access, FileSharing, Prot, Region};
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "device-reads-a-file",
        rule: "A device reads the bytes of a mapped file, and zeros past its end.",
        place: "gmem `RegionBuilder::map_file`",
        applies: Applies::EVERYWHERE,
        run: device_reads_a_file,
    },
    Check {
        name: "device-writes-a-file",
        rule: "What a device wrote to the region of a shared file is read through the region at once, and by pread after a sync; nothing else in the file is written.",
        place: "gmem `Region::sync`",
        applies: Applies::EVERYWHERE,
        run: device_writes_a_file,
    },
    Check {
        name: "private-file-is-never-written",
        rule: "The region of a private file goes to the device and is written there, and the file stays as it is.",
        place: "gmem `FileSharing::Private`",
        applies: Applies::EVERYWHERE,
        run: private_file_is_never_written,
    },
];

/// A file without a name, with so many bytes.
fn file(bytes: &[u8]) -> Result<File, Stop> {
    // SAFETY: makes a descriptor, which is ours if there is one.
    let file = unsafe {
        let fd = libc::memfd_create(c"gmem-conformance-file".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        File::from(OwnedFd::from_raw_fd(fd))
    };
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

fn contents(file: &File) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn map(world: &World, file: &File, pages: u64, sharing: FileSharing, prot: Prot) -> Result<Region, gmem::Error> {
    world.space.region().page_size(world.size).prot(prot).map_file(file, 0, pages * world.page(), sharing)
}

fn device_reads_a_file(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let len = (2 * world.page()) as usize + 100;
    let file = file(&pattern(1, len))?;
    let region = map(&world, &file, 3, FileSharing::Shared, Prot::READ)?;
    let mut expected = pattern(1, len);
    expected.resize(region.range().len().get() as usize, 0);
    both_read(&world, &region, 0, &expected)
}

fn device_writes_a_file(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let len = (2 * world.page()) as usize + 100;
    let mut expected = pattern(2, len);
    let file = file(&expected)?;
    let region = map(&world, &file, 3, FileSharing::Shared, Prot::RW)?;
    let (first, last) = (8, 2 * world.page() + 64);
    world.unit.store(at(&region, first), 70)?;
    world.unit.add(at(&region, last), 1)?;
    world.unit.store(at(&region, 2 * world.page() + 104), 71)?;
    // Written by somebody else where we write nothing, since it was read: it is theirs.
    let theirs = world.page() as usize + 16;
    file.write_all_at(&[9; 8], theirs as u64)?;
    expected[theirs..theirs + 8].copy_from_slice(&[9; 8]);
    ensure_eq!("the word the device wrote, through the region", get(at(&region, first)), 70);
    region.sync()?;
    for (offset, word) in [(first, 70u64), (last, get(at(&region, last)))] {
        expected[offset as usize..][..8].copy_from_slice(&word.to_ne_bytes());
    }
    same_bytes("the file after a sync", &contents(&file)?, &expected)?;
    // What is dropped while it is on the device is written too.
    world.unit.store(at(&region, first), 72)?;
    set(at(&region, first + 8), 73);
    drop(region);
    expected[first as usize..][..8].copy_from_slice(&72u64.to_ne_bytes());
    expected[first as usize + 8..][..8].copy_from_slice(&73u64.to_ne_bytes());
    same_bytes("the file after its region is gone", &contents(&file)?, &expected)?;
    world.verify()
}

fn private_file_is_never_written(case: &Case<'_>) -> Outcome {
    let world = case.world(4)?;
    let bytes = pattern(3, (2 * world.page()) as usize);
    let file = file(&bytes)?;
    let region = map(&world, &file, 2, FileSharing::Private, Prot::RW)?;
    world.space.prefetch(region.range(), Some(&world.unit.device), Access::Write)?;
    let mut expected = bytes.clone();
    world.unit.store(at(&region, 16), 70)?;
    set(at(&region, world.page()), 71);
    expected[16..24].copy_from_slice(&70u64.to_ne_bytes());
    expected[world.page() as usize..][..8].copy_from_slice(&71u64.to_ne_bytes());
    both_read(&world, &region, 0, &expected)?;
    region.sync()?;
    drop(region);
    same_bytes("the file", &contents(&file)?, &bytes)
}
