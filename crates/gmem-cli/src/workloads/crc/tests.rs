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
fn a_device_memory_too_small_without_replay_is_a_usage_error() {
    let (_dir, found) = directory();
    let shape = Shape::of(&found.files, u64::MAX);
    assert!(matches!(run(&Plain { workers: 1 }, &setup(false, 8192), &found.files, shape), Err(Failure::Usage(_))));
}

#[test]
fn a_file_that_shrinks_is_named() {
    let (dir, found) = directory();
    let path = dir.path().join("b");
    File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    let shape = Shape::of(&found.files, u64::MAX);
    match run(&Plain { workers: 1 }, &setup(true, 8192), &found.files, shape) {
        Err(Failure::Failed(message)) => assert!(message.contains("/b: the file became shorter"), "{message}"),
        other => panic!("{other:?}"),
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
