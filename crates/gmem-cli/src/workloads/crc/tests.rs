use super::*;
use crate::args::{Common, DeviceKind};
use crate::engine::Plain;
use crate::machine::Machine;

fn setup(replay: bool, device_memory: u64) -> Setup {
    let machine = Machine::permissive(8 << 30, 8 << 30);
    let common = Common {
        device: Some(DeviceKind::Discrete),
        device_memory: Some(device_memory),
        page_size: Some(4096),
        no_replay: !replay,
        ..Default::default()
    };
    Setup::resolve(&common, &Needs { page_size: PageSize::Size4K, buffers: vec![], launches: vec![] }, &machine).unwrap()
}

fn directory() -> (tempfile::TempDir, Found) {
    let dir = tempfile::tempdir().unwrap();
    for (name, len) in [("a", 1usize), ("b", 70_000), ("c", (2 << 20) + 17), ("d", 4096)] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + name.len() + i / 257) as u8).collect();
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let found = find(&[dir.path().to_path_buf()]);
    (dir, found)
}

#[test]
fn the_sums_are_those_of_the_files() {
    let (dir, found) = directory();
    for (replay, memory, limit) in [(true, 8192, u64::MAX), (true, 8192, BLOCK), (false, 16384, u64::MAX), (false, 1 << 20, BLOCK)] {
        let shape = Shape::of(&found.files, limit);
        let outcome = run(&Plain { workers: 3 }, &setup(replay, memory), &found.files, shape).unwrap();
        assert_eq!(outcome.mismatch, None);
        assert_eq!(outcome.sums.len(), 4);
        for sum in &outcome.sums {
            let bytes = std::fs::read(&sum.path).unwrap();
            assert_eq!((sum.bytes, &sum.crc32), (bytes.len() as u64, &format!("{:08x}", crc32fast::hash(&bytes))));
        }
    }
    drop(dir);
}

#[test]
fn the_sum_of_a_file_without_a_size_is_that_of_what_was_taken() {
    let bytes: Vec<u8> = (0..50_001u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let files = [Input { path: "made up".into(), len: bytes.len() as u64, content: Content::Taken(bytes.clone()) }];
    let outcome = run(&Plain { workers: 2 }, &setup(false, 16384), &files, Shape::of(&files, u64::MAX)).unwrap();
    assert_eq!((outcome.mismatch, outcome.blocks), (None, 13));
    assert_eq!(outcome.sums[0].crc32, format!("{:08x}", crc32fast::hash(&bytes)));
}

#[test]
fn a_device_memory_too_small_without_replay_is_a_usage_error() {
    let (_dir, found) = directory();
    let shape = Shape::of(&found.files, u64::MAX);
    assert!(matches!(run(&Plain { workers: 1 }, &setup(false, 8192), &found.files, shape), Err(Failure::Usage(_))));
}

#[test]
fn a_file_that_changes_is_named_and_never_verified() {
    let overwrite = |path: &std::path::Path| {
        let mut file = File::options().write(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, b"other").unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    let replace = |path: &std::path::Path| {
        // The same in all but itself.
        std::fs::copy(path, path.with_extension("new")).unwrap();
        let time = std::fs::metadata(path).unwrap().modified().unwrap();
        File::options().write(true).open(path.with_extension("new")).unwrap().set_modified(time).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    };
    let set_len = |len: u64| move |path: &std::path::Path| File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    // Whether whoever has the file open sees it too.
    let changes: [(&dyn Fn(&std::path::Path), bool, &str); 5] = [
        (&set_len(10), true, "became shorter"),
        (&set_len(70_001), true, "became longer"),
        (&set_len(4 << 20), true, "became longer"),
        (&overwrite, true, "changed"),
        (&replace, false, "changed"),
    ];
    for (change, seen_open, what) in changes {
        for moment in ["before the run", "between two reads", "before it is read to check"] {
            let (dir, found) = directory();
            let path = dir.path().join("b");
            let index = found.files.iter().position(|f| f.path == path).unwrap();
            let mut bytes = vec![0; found.files[index].len as usize];
            let (first, second) = bytes.split_at_mut(50);
            let mut reader = Reader::new(&found.files);
            let result = match moment {
                "before the run" => {
                    change(&path);
                    let shape = Shape::of(&found.files, u64::MAX);
                    run(&Plain { workers: 1 }, &setup(true, 8192), &found.files, shape).map(|_| ())
                }
                "between two reads" => {
                    reader.fill(index, first).unwrap();
                    change(&path);
                    let result = reader.fill(index, second);
                    if !seen_open {
                        result.unwrap();
                        continue;
                    }
                    result
                }
                _ => {
                    reader.fill(index, first).unwrap();
                    reader.fill(index, second).unwrap();
                    change(&path);
                    Reader::new(&found.files).fill(index, first)
                }
            };
            match result {
                Err(Failure::Failed(message)) => assert!(message.contains(&format!("/b: the file {what} while it was read")), "{message}"),
                other => panic!("{what} {moment}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_wrong_sum_is_found() {
    let (_dir, found) = directory();
    let batches = plan::batches(&found.files, BLOCK, u64::MAX, usize::MAX);
    let mut checker = Checker::new(&found.files);
    let sums: Vec<u32> = vec![7; batches[0].blocks.len()];
    checker.compare(&batches[0], &sums).unwrap();
    let (_, mismatch) = checker.finish();
    assert!(mismatch.unwrap().contains("/a: a block of 1 bytes should have CRC"));
}
