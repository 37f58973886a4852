//! Every file of the fuzz target's corpus, through the same function as in the fuzzer; and operations that survive being written down.

use gmem_explore::worlds::{MIXED, STANDARD};
use gmem_explore::{Point, bytes, scripts};
use gmem_hal::DeviceError;
use gmem_sim::{Callback, Canary, Injected};
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn every_file_of_the_corpus_goes_well() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/operations");
    let files: Vec<_> =
        std::fs::read_dir(&corpus).expect("the corpus is kept").map(|file| file.expect("it can be listed").path()).collect();
    assert!(files.len() > 20, "{} files are no corpus", files.len());
    let mut done = 0;
    for file in files {
        let data = std::fs::read(&file).expect("it can be read");
        done += catch_unwind(|| bytes::run(&data)).unwrap_or_else(|_| panic!("{} went wrong", file.display())).len();
    }
    assert!(done > 1000, "{done} operations are no corpus");
}

#[test]
fn scripts_survive_being_written_down() {
    for (kind, ops) in [(STANDARD, scripts::exclusive()), (MIXED, scripts::all_modes())] {
        let point = Point { callback: Callback::Copy, n: 3, error: Injected::Device(DeviceError::CopyFailed) };
        for points in [vec![], vec![point]] {
            let script = bytes::Script { kind, seed: 1, points, ops: ops.clone() };
            assert_eq!(bytes::run(&script.bytes().expect("bytes can say all of it")), ops);
        }
    }
}

#[test]
fn canaries_are_noticed() {
    let script = bytes::Script { kind: STANDARD, seed: 1, points: Vec::new(), ops: scripts::exclusive() };
    let data = script.bytes().expect("bytes can say all of it");
    for canary in [Canary::KeepsTranslations, Canary::TearsCopies, Canary::ForgetsMappings] {
        assert!(catch_unwind(|| bytes::run_with(&data, Some(canary))).is_err(), "{canary:?} was not noticed");
    }
}
