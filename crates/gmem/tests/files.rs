//! Regions whose bytes are those of a file: when they are read, what is written back, and what is refused.

mod common;

use common::*;
use gmem::{Access, Args, Backing, Delivery, Error, FileError, FileSharing, Mode, Prot, Region, accel, hal};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// A file of so many bytes, each word the number of its place plus one.
fn file(name: &str, len: u64) -> (File, PathBuf) {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("files-{name}-{}", std::process::id()));
    let bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|i| (i + 1).to_ne_bytes()).take(len as usize).collect();
    std::fs::write(&path, bytes).unwrap();
    (File::options().read(true).write(true).open(&path).unwrap(), path)
}

fn word_of(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Reads the bytes of a region as the CPU.
fn bytes_at(region: &Region, offset: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (get(at(region, (offset + i) & !7)) >> (8 * ((offset + i) & 7))) as u8).collect()
}

#[test]
fn what_either_side_changed_is_written_back_and_nothing_else() {
    watched(|| {
        for (size, memory) in sizes() {
            for backing in [Backing::Shared, Backing::Private] {
                let world = World::new(accel::Discrete::builder().memory(memory).cores(1), Mode::CoherentExclusive);
                let len = 3 * size.bytes();
                let (file, path) = file("changes", len);
                let map = world.space.region().page_size(size).backing(backing);
                let region = map.map_file(&file, 0, len, FileSharing::Shared).unwrap();
                assert_eq!((get(at(&region, 0)), get(at(&region, len - 8))), (1, len / 8));
                set(at(&region, 8), 70);
                world.run(&ADD, &[at(&region, size.bytes()), 1000]).unwrap();
                // Somebody else changes what we do not, after we read it: it must stay theirs.
                file.write_all_at(&5u64.to_ne_bytes(), 2 * size.bytes()).unwrap();
                assert_eq!(word_of(&file, 8), 2, "nothing is written before it is asked for");
                region.sync().unwrap();
                let seen = [0, 8, size.bytes(), 2 * size.bytes()].map(|offset| word_of(&file, offset));
                assert_eq!(seen, [1, 70, size.bytes() / 8 + 1001, 5], "{size} {backing:?}");
                // Back to a value the file had before: still a change.
                set(at(&region, 8), 2);
                world.run(&STORE, &[at(&region, size.bytes()), 9]).unwrap();
                drop(region);
                assert_eq!(
                    (word_of(&file, 8), word_of(&file, size.bytes()), word_of(&file, 2 * size.bytes())),
                    (2, 9, 5),
                    "{size} {backing:?}"
                );
                assert_eq!(file.metadata().unwrap().len(), len);
                verify(&world.gmem);
                std::fs::remove_file(path).unwrap();
            }
        }
    });
}

#[test]
fn a_private_region_never_writes_back() {
    watched(|| {
        let world = World::small();
        let (writable, path) = file("private", 2 * PAGE);
        let read_only = File::open(&path).unwrap();
        let region = world.space.region().map_file(&read_only, 0, 2 * PAGE, FileSharing::Private).unwrap();
        set(at(&region, 0), 70);
        world.run(&STORE, &[at(&region, PAGE), 71]).unwrap();
        region.sync().unwrap();
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (70, 71));
        // What is given up reads as zero, as everywhere.
        region.discard(part(&region, 0, PAGE)).unwrap();
        assert_eq!(get(at(&region, 0)), 0);
        drop(region);
        assert_eq!((word_of(&writable, 0), word_of(&writable, PAGE)), (1, PAGE / 8 + 1));
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn the_end_of_the_file_is_where_it_was() {
    watched(|| {
        let world = World::small();
        let len = PAGE + 4096 + 13;
        let (file, path) = file("end", len);
        let region = world.space.region().map_file(&file, 5, 3 * PAGE, FileSharing::Shared).unwrap();
        let mut all = Vec::new();
        (&file).read_to_end(&mut all).unwrap();
        let mapped = len - 5;
        assert_eq!(bytes_at(&region, mapped - 32, 40), [&all[all.len() - 32..], &[0; 8]].concat(), "the tail of the last page is zero");
        assert_eq!(get(at(&region, 2 * PAGE)), 0, "and so are the pages after it");
        // Both sides write the last word, which the end cuts, and behind it.
        let last = mapped & !7;
        set(at(&region, last), u64::MAX);
        world.run(&STORE, &[at(&region, last + 8), 9]).unwrap();
        set(at(&region, 2 * PAGE), 9);
        region.sync().unwrap();
        assert_eq!(file.metadata().unwrap().len(), len);
        // Others let the file grow: what they put there is theirs.
        file.write_all_at(&[7; 64], len).unwrap();
        set(at(&region, last - 8), 3);
        region.sync().unwrap();
        let mut theirs = [0; 64];
        file.read_exact_at(&mut theirs, len).unwrap();
        assert_eq!(theirs, [7; 64]);
        let mut tail = vec![0; (mapped - last) as usize];
        file.read_exact_at(&mut tail, 5 + last).unwrap();
        assert!(tail.iter().all(|byte| *byte == 0xff), "{tail:?}");
        // Others cut the file where nothing was changed here, and write there: that is theirs.
        file.set_len(5 + PAGE + 100).unwrap();
        file.write_all_at(&[7; 8], 5 + PAGE + 56).unwrap();
        region.sync().unwrap();
        assert_eq!(word_of(&file, 5 + PAGE + 56), u64::from_ne_bytes([7; 8]));
        // Others cut the file: what lies past its new end is not written, and the file does not grow again.
        set(at(&region, 0), u64::MAX);
        set(at(&region, PAGE), u64::MAX);
        file.set_len(100).unwrap();
        region.sync().unwrap();
        assert_eq!((file.metadata().unwrap().len(), word_of(&file, 5)), (100, u64::MAX));
        file.set_len(0).unwrap();
        drop(region);
        assert_eq!(file.metadata().unwrap().len(), 0);
        std::fs::remove_file(path).unwrap();
    });
}

// Waits for the gate args[0].
gmem::kernel!(WAIT = "files-wait", |grid, args| {
    if grid.worker == 0 {
        wait_at_gate(args[0]);
    }
});

#[test]
fn a_file_that_is_cut_while_it_is_written_back_stays_cut() {
    watched(|| {
        let world = World::new(accel::Discrete::builder().memory(4 * PAGE).cores(1).replay(false), Mode::CoherentExclusive);
        let (file, path) = file("cut", 3 * PAGE);
        let region = world.space.region().map_file(&file, 0, 3 * PAGE, FileSharing::Shared).unwrap();
        (0..3).for_each(|page| set(at(&region, page * PAGE), 100 + page));
        let gate = KernelGate::new();
        world.context.scope(|scope| {
            // The launch holds the second page, for which writing back has to wait.
            let held = part(&region, PAGE, PAGE);
            let args = Args::new().number(gate.number()).range(held.start(), held.len(), Access::Read);
            // SAFETY: the kernel takes a number.
            let launch = unsafe { scope.launch(&WAIT, args) }.unwrap();
            std::thread::scope(|threads| {
                let sync = threads.spawn(|| region.sync());
                eventually("the first page is written", || word_of(&file, 0) == 100);
                assert!(!sync.is_finished(), "nothing was waited for");
                file.set_len(PAGE + 24).unwrap();
                gate.open();
                sync.join().unwrap().unwrap();
            });
            launch.wait().unwrap();
        });
        assert_eq!(file.metadata().unwrap().len(), PAGE + 24, "what others cut off came back");
        assert_eq!((word_of(&file, 0), word_of(&file, PAGE)), (100, 101));
        drop(region);
        assert_eq!(file.metadata().unwrap().len(), PAGE + 24);
        std::fs::remove_file(path).unwrap();
        verify(&world.gmem);
    });
}

#[test]
fn what_is_unmapped_or_hidden_is_written_back_first() {
    watched(|| {
        let world = World::small();
        let (file, path) = file("unmap", 4 * PAGE);
        let region = world.space.region().map_file(&file, 0, 4 * PAGE, FileSharing::Shared).unwrap();
        for page in 0..4 {
            world.run(&STORE, &[at(&region, page * PAGE), 100 + page]).unwrap();
        }
        region.unmap(part(&region, PAGE, PAGE)).unwrap();
        let seen = [0, 1, 2].map(|page| word_of(&file, page * PAGE));
        assert_eq!(seen, [1, 101, 2 * PAGE / 8 + 1]);
        // A region that nobody may read cannot be synced, but dropping it loses nothing.
        region.protect(part(&region, 2 * PAGE, 2 * PAGE), Prot::empty()).unwrap();
        let refused = region.sync();
        assert!(matches!(refused, Err(Error::Range(gmem::RangeError::Fault(_, hal::FaultError::Protection)))), "{refused:?}");
        drop(region);
        let seen = [0, 1, 2, 3].map(|page| word_of(&file, page * PAGE));
        assert_eq!(seen, [100, 101, 102, 103]);
        // Mapped so from the start, it is not taken for changed.
        let region = world.space.region().prot(Prot::empty()).map_file(&file, 0, PAGE, FileSharing::Shared).unwrap();
        file.write_all_at(&7u64.to_ne_bytes(), 0).unwrap();
        drop(region);
        assert_eq!(word_of(&file, 0), 7);
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason() {
    watched(|| {
        let world = World::small();
        let (file, path) = file("refused", PAGE);
        let shared = |file: &File| world.space.region().map_file(file, 0, PAGE, FileSharing::Shared).map(drop);
        #[track_caller]
        fn refused(result: Result<(), Error>, why: FileError) {
            assert!(matches!(&result, Err(Error::File(e)) if *e == why), "{result:?}, not {why:?}");
        }
        let read_only = File::open(&path).unwrap();
        refused(shared(&read_only), FileError::NotWritable);
        refused(shared(&File::options().write(true).open(&path).unwrap()), FileError::NotReadable);
        refused(shared(&File::options().read(true).append(true).open(&path).unwrap()), FileError::Append);
        refused(shared(&File::options().read(true).custom_flags(libc::O_PATH).open(&path).unwrap()), FileError::NotReadable);
        refused(shared(&File::open("/").unwrap()), FileError::NotRegular);
        refused(shared(&File::options().read(true).write(true).open("/dev/zero").unwrap()), FileError::NotRegular);
        let in_thread = world.space.region().delivery(Delivery::InThread);
        refused(in_thread.map_file(&file, 0, PAGE, FileSharing::Shared).map(drop), FileError::InThread);
        refused(world.space.region().map_file(&file, u64::MAX - 5, 1, FileSharing::Shared).map(drop), FileError::Offset);
        assert!(matches!(world.space.region().map_file(&file, 0, 0, FileSharing::Shared), Err(Error::Length)));
        let devices_only = world.gmem.address_space().devices_only().create().unwrap();
        assert!(matches!(devices_only.region().map_file(&file, 0, PAGE, FileSharing::Shared), Err(Error::DevicesOnly)));
        // Read-only is fine as long as it stays so.
        let region = world.space.region().prot(Prot::READ).map_file(&read_only, 0, PAGE, FileSharing::Shared).unwrap();
        refused(region.protect(region.range(), Prot::RW), FileError::NotWritable);
        refused(region.discard(region.range()), FileError::Discard);
        assert_eq!(region.attrs().prot, Prot::READ, "what it was mapped with");
        assert_eq!(get(at(&region, 8)), 2);
        assert_eq!(fault(world.run(&STORE, &[at(&region, 0), 1])), (at(&region, 0), hal::FaultError::Protection));
        drop(region);
        // A file shorter than where the region begins is all end.
        let region = world.space.region().map_file(&file, 10 * PAGE, PAGE, FileSharing::Shared).unwrap();
        assert_eq!(get(at(&region, 0)), 0);
        set(at(&region, 0), 1);
        drop(region);
        assert_eq!(file.metadata().unwrap().len(), PAGE);
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn a_file_that_cannot_be_written_is_told_and_nothing_is_unmapped() {
    alone("a_file_that_cannot_be_written_is_told_and_nothing_is_unmapped", || {
        let world = World::small();
        let (file, path) = file("full", 2 * PAGE);
        let region = world.space.region().map_file(&file, 0, 2 * PAGE, FileSharing::Shared).unwrap();
        set(at(&region, 0), 70);
        set(at(&region, PAGE), 71);
        // No write past the first page of the region, and the signal that tells of one ignored.
        let limit = |bytes: u64| {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: sets a limit of this process, which nobody else shares.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
            }
        };
        limit(PAGE);
        let too_big = FileError::Io { offset: PAGE, errno: libc::EFBIG };
        assert!(matches!(region.sync(), Err(Error::File(e)) if e == too_big));
        assert!(matches!(region.unmap(part(&region, PAGE, PAGE)), Err(Error::File(e)) if e == too_big));
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (70, 71), "everything is still there");
        assert_eq!((word_of(&file, 0), word_of(&file, PAGE)), (70, PAGE / 8 + 1), "what lies before was written");
        limit(libc::RLIM_INFINITY);
        region.sync().unwrap();
        assert_eq!(word_of(&file, PAGE), 71);
        std::fs::remove_file(path).unwrap();
    });
}

/// Sets the status flags of the open file, which every descriptor of it shares.
fn set_flags(file: &File, flags: i32) {
    // SAFETY: one system call on a descriptor that is open.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }, 0);
}

#[test]
fn append_mode_set_later_is_told_and_loses_nothing() {
    alone("append_mode_set_later_is_told_and_loses_nothing", || {
        let world = World::small();
        let (file, path) = file("append", 2 * PAGE);
        let region = world.space.region().map_file(&file, 0, 2 * PAGE, FileSharing::Shared).unwrap();
        set_flags(&file, libc::O_APPEND);
        // With nothing to write there is nothing to refuse.
        region.sync().unwrap();
        set(at(&region, 0), 70);
        world.run(&STORE, &[at(&region, PAGE), 71]).unwrap();
        let append = |result: Result<(), Error>| assert!(matches!(result, Err(Error::File(FileError::Append))), "{result:?}");
        append(region.sync());
        append(region.unmap(part(&region, PAGE, PAGE)));
        append(region.protect(region.range(), Prot::RW));
        assert_eq!((get(at(&region, 0)), get(at(&region, PAGE))), (70, 71), "everything is still there");
        assert_eq!((word_of(&file, 0), file.metadata().unwrap().len()), (1, 2 * PAGE), "nothing was written to a wrong place");
        set_flags(&file, 0);
        region.unmap(part(&region, PAGE, PAGE)).unwrap();
        region.sync().unwrap();
        assert_eq!((word_of(&file, 0), word_of(&file, PAGE)), (70, 71));
        // A drop can tell nobody but whoever reads standard error.
        set(at(&region, 0), 80);
        set_flags(&file, libc::O_APPEND);
        let line = standard_error_of(|| drop(region));
        assert!(line.contains("was written back") && line.contains("append mode"), "{line:?}");
        assert_eq!((word_of(&file, 0), file.metadata().unwrap().len()), (70, 2 * PAGE));
        std::fs::remove_file(path).unwrap();
    });
}

/// What `work` writes to standard error, which is everybody's: for a test that is alone.
fn standard_error_of(work: impl FnOnce()) -> String {
    let (mut from, to) = std::io::pipe().unwrap();
    // SAFETY: replaces descriptor 2, which stays open, and puts the former one back.
    unsafe {
        let kept = libc::dup(2);
        assert_eq!(libc::dup2(to.as_raw_fd(), 2), 2);
        work();
        assert_eq!(libc::dup2(kept, 2), 2);
        libc::close(kept);
    }
    drop(to);
    let mut line = String::new();
    from.read_to_string(&mut line).unwrap();
    line
}

#[test]
fn append_mode_cleared_later_writes_back_what_was_changed_and_nothing_else() {
    watched(|| {
        let world = World::small();
        let (other, path) = file("appended", 8192);
        let file = File::options().read(true).append(true).open(&path).unwrap();
        let region = world.space.region().prot(Prot::READ).map_file(&file, 0, 8192, FileSharing::Shared).unwrap();
        let refused = region.protect(region.range(), Prot::RW);
        assert!(matches!(refused, Err(Error::File(FileError::Append))), "{refused:?}");
        set_flags(&file, 0);
        region.protect(region.range(), Prot::RW).unwrap();
        other.write_all_at(&9u64.to_ne_bytes(), 4096).unwrap();
        set(at(&region, 0), 77);
        region.sync().unwrap();
        assert_eq!((word_of(&other, 0), word_of(&other, 4096)), (77, 9), "what others wrote is theirs");
        std::fs::remove_file(path).unwrap();
    });
}
