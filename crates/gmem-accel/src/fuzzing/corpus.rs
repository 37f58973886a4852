//! Every file of the fuzz target's corpus, through the same function as in the fuzzer.

use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn every_file_of_the_corpus_goes_well() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/ring");
    let files: Vec<_> =
        std::fs::read_dir(&corpus).expect("the corpus is kept").map(|file| file.expect("it can be listed").path()).collect();
    assert!(files.len() > 20, "{} files are no corpus", files.len());
    let mut requests = 0;
    for file in files {
        let data = std::fs::read(&file).expect("it can be read");
        requests += catch_unwind(|| super::run(&data)).unwrap_or_else(|_| panic!("{} went wrong", file.display()));
    }
    assert!(requests > 200, "{requests} requests are no corpus");
}

#[test]
fn what_the_corpus_begins_with_goes_well() {
    for (name, bytes) in super::seeds() {
        assert!(super::run(&bytes) > 0, "{name} asks for nothing");
    }
}
