//! Every workload on every device, in every mode that applies, in every kind of memory: verified, and with the counters that the combination must show.

mod common;

use common::{gmem, json};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn number(object: &Value, path: &str) -> u64 {
    path.split('.').fold(object, |o, key| &o[key]).as_u64().unwrap_or_else(|| panic!("{path} in {object}"))
}

/// The movement of pages that a combination must show.
#[derive(Clone, Copy, PartialEq)]
enum Moves {
    /// Nothing moves.
    Nothing,
    /// Everything the device touches moves, and does not fit.
    MoreThanFits,
    /// Pages move.
    Some,
}

/// Runs and checks what every result must say.
#[track_caller]
fn verified(args: &[&str], moves: Moves) -> Value {
    let object = json(args);
    assert_eq!(object["verified"], true, "{args:?}: {object}");
    assert!(object["seconds"].as_f64() > Some(0.0) && object["memcpy_bytes_per_second"].as_f64() > Some(1e6), "{args:?}: {object}");
    let (h2d, d2h, d2d) =
        (number(&object, "migrated_bytes.h2d"), number(&object, "migrated_bytes.d2h"), number(&object, "migrated_bytes.d2d"));
    let (memory, evictions) = (number(&object, "device_memory"), number(&object, "evictions"));
    assert_eq!(d2d, 0, "one device: {args:?}: {object}");
    match moves {
        Moves::Nothing => assert_eq!((h2d, d2h, evictions), (0, 0, 0), "{args:?}: {object}"),
        Moves::Some => assert!(h2d > 0 && d2h > 0, "{args:?}: {object}"),
        Moves::MoreThanFits => {
            assert!(h2d > memory && d2h > 0 && evictions > 0, "{args:?}: {object}");
            assert!(number(&object, "bytes_managed") > memory, "{args:?}: {object}");
        }
    }
    // The device's limit is real, and metadata was counted while the data existed.
    for pool in object["peak_frames"].as_array().expect("a list") {
        assert!(number(pool, "bytes") <= memory, "{args:?}: {object}");
    }
    let most = match number(&object, "page_size") {
        4096 => 0.01,
        65536 => 0.002,
        _ => 0.001,
    };
    // A region costs something however small it is.
    let regions = 512.0;
    let (metadata, managed) = (number(&object, "metadata_bytes") as f64, number(&object, "bytes_managed") as f64);
    assert!(metadata > 0.0 && metadata <= regions + most * managed, "{args:?}: {object}");
    object
}

/// 24 MiB of vectors through 8 MiB of device memory, unless told otherwise.
#[track_caller]
fn vector_add(more: &[&str], moves: Moves) -> Value {
    verified(&[&["run", "vector-add", "--elements", "1Mi", "--device-memory", "8MiB"], more].concat(), moves)
}

#[test]
fn vector_add_discrete_exclusive() {
    let object = vector_add(&[], Moves::MoreThanFits);
    assert_eq!((&object["device"], &object["mode"], &object["replay"]), (&"discrete".into(), &"exclusive".into(), &true.into()));
    assert_eq!(number(&object, "bytes_managed"), 24 * MIB);
    // Twelve pages at least, each of which the device had to ask for; and eight that the CPU filled.
    assert!(number(&object, "faults.device") >= 12 && number(&object, "faults.cpu") >= 8, "{object}");
    assert!(number(&object, "clean_evictions") > 0, "what was only read is not copied back: {object}");
}

#[test]
fn vector_add_in_every_page_size() {
    for size in ["4KiB", "64KiB", "2MiB"] {
        let object = vector_add(&["--page-size", size], Moves::MoreThanFits);
        assert!(number(&object, "faults.device") >= 24 * MIB / number(&object, "page_size"), "{object}");
    }
}

#[test]
fn vector_add_in_every_page_size_of_private_memory() {
    for size in ["4KiB", "64KiB", "2MiB"] {
        let object = vector_add(&["--backing", "private", "--page-size", size], Moves::MoreThanFits);
        assert_eq!(object["backing"], "private");
    }
}

#[test]
fn vector_add_with_faults_resolved_in_their_threads() {
    for size in ["4KiB", "64KiB", "2MiB"] {
        let object = vector_add(&["--delivery", "inthread", "--page-size", size], Moves::MoreThanFits);
        assert_eq!(object["delivery"], "inthread");
    }
}

#[test]
fn vector_add_without_replay_never_faults_on_the_device() {
    for more in [&[][..], &["--page-size", "4KiB"], &["--backing", "private"], &["--delivery", "inthread"]] {
        let object = vector_add(&[&["--no-replay"], more].concat(), Moves::MoreThanFits);
        assert_eq!((number(&object, "faults.device"), &object["replay"]), (0, &false.into()), "{object}");
    }
}

#[test]
fn vector_add_replicate_moves_nothing() {
    for more in [&[][..], &["--page-size", "64KiB"], &["--delivery", "inthread"], &["--no-replay"]] {
        let object = vector_add(&[&["--mode", "replicate"], more].concat(), Moves::Nothing);
        // Only the result, which the CPU had not touched, can have been missing in the device's table.
        let result = 8 * MIB / number(&object, "page_size");
        assert!(number(&object, "faults.device") <= result + 1, "{object}");
    }
}

#[test]
fn vector_add_integrated_shares_the_table() {
    for more in [&[][..], &["--mode", "share"], &["--page-size", "4KiB"], &["--backing", "private"], &["--delivery", "inthread"]] {
        let args = [&["run", "vector-add", "--elements", "1Mi", "--device", "integrated"], more].concat();
        let object = verified(&args, Moves::Nothing);
        assert_eq!((number(&object, "faults.device"), number(&object, "device_memory")), (0, 0), "{object}");
        assert_eq!((&object["mode"], object["peak_frames"].as_array().map(Vec::len)), (&"share".into(), Some(0)));
    }
}

#[test]
fn vector_add_peer() {
    for more in [&[][..], &["--page-size", "64KiB"], &["--page-size", "4KiB"], &["--backing", "private"], &["--no-replay"]] {
        let object = vector_add(&[&["--device", "peer"], more].concat(), Moves::MoreThanFits);
        assert_eq!(object["device"], "peer");
    }
}

#[test]
fn vector_add_fits_or_hardly_fits() {
    verified(&["run", "vector-add", "--elements", "1Mi", "--device-memory", "64MiB"], Moves::Some);
    // Two pages for three vectors and two cores.
    verified(&["run", "vector-add", "--elements", "64k", "--device-memory", "4MiB", "--cores", "2"], Moves::Some);
    for elements in ["1", "511", "262145"] {
        verified(&["run", "vector-add", "--elements", elements, "--page-size", "64KiB"], Moves::Some);
    }
    vector_add(&["--cores", "1"], Moves::MoreThanFits);
    vector_add(&["--cores", "5", "--page-size", "64KiB"], Moves::MoreThanFits);
}

/// Files of about 6 MiB: some small, one that ends in the middle of a block, one of a single byte.
fn files(dir: &Path) {
    for (name, len) in [("one", 1usize), ("odd", 777_777), ("large", (4 << 20) + 13), ("page", 1 << 20)] {
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn crc_of_files_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let path = dir.path().to_str().unwrap();
    let small = ["--device-memory", "1MiB", "--page-size", "64KiB"];
    let tiny = ["--device-memory", "1MiB", "--page-size", "4KiB"];
    let exclusive: [&[&str]; 6] = [
        &[],
        &["--backing", "private"],
        &["--delivery", "inthread"],
        &["--no-replay"],
        &["--device", "peer"],
        &["--device", "peer", "--no-replay"],
    ];
    for more in exclusive {
        for size in [small, tiny] {
            let object = verified(&[&["run", "crc", path], more, &size].concat(), Moves::MoreThanFits);
            let sums = object["files"].as_array().expect("a list");
            assert_eq!(sums.len(), 4, "{object}");
            for sum in sums {
                let bytes = std::fs::read(sum["path"].as_str().unwrap()).unwrap();
                assert_eq!(sum["crc32"], format!("{:08x}", crc32fast::hash(&bytes)), "{sum}");
            }
        }
    }
    verified(&["run", "crc", path, "--mode", "replicate"], Moves::Nothing);
    verified(&["run", "crc", path, "--mode", "replicate", "--no-replay", "--delivery", "inthread"], Moves::Nothing);
    verified(&["run", "crc", path, "--device", "integrated"], Moves::Nothing);
    verified(&["run", "crc", path, "--device", "integrated", "--delivery", "inthread", "--page-size", "4k"], Moves::Nothing);
    verified(&["run", "crc", path, "--device-memory", "16MiB"], Moves::Some);
}

#[test]
fn crc_skips_what_it_cannot_read_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let missing = dir.path().join("missing").display().to_string();
    let ended = gmem(&["run", "crc", &dir.path().display().to_string(), &missing, "--json"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&missing), "{}", ended.stderr);
    let object: Value = serde_json::from_str(&ended.stdout).expect("the others were done");
    assert_eq!((object["verified"].as_bool(), object["skipped"][0]["path"].as_str()), (Some(true), Some(missing.as_str())));
}

#[test]
fn crc_reads_what_has_no_size_and_passes_over_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("one"), "123456789").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::os::unix::fs::symlink(".", at("circle")).unwrap();
    std::os::unix::fs::symlink("two-loops", at("one-loop")).unwrap();
    std::os::unix::fs::symlink("one-loop", at("two-loops")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let made_up = ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let object = verified(&["run", "crc", &dir.path().display().to_string(), made_up[0], made_up[1]], Moves::Some);
    let of = |path: &str| object["files"].as_array().unwrap().iter().find(|f| f["path"] == path).unwrap()["crc32"].clone();
    assert_eq!(of(&at("one").display().to_string()), "cbf43926");
    for path in made_up {
        assert_eq!(of(path), format!("{:08x}", crc32fast::hash(&std::fs::read(path).unwrap())), "{path}");
    }
    assert_eq!(object["passed_over"], serde_json::json!({ "empty": 1, "links": 3, "special": 2 }));
}

/// Two epochs, compared with the CPU bit by bit.
#[track_caller]
fn backprop(more: &[&str], moves: Moves) {
    let object = verified(&[&["run", "backprop", "--epochs", "2", "--check"], more].concat(), moves);
    assert_eq!((&object["checked_against_cpu"], object["epochs"].as_array().map(Vec::len)), (&true.into(), Some(2)));
}

#[test]
fn backprop_exclusive_agrees_with_the_cpu_in_every_bit() {
    backprop(&[], Moves::MoreThanFits);
    backprop(&["--backing", "private"], Moves::MoreThanFits);
    backprop(&["--delivery", "inthread"], Moves::MoreThanFits);
    backprop(&["--no-replay"], Moves::MoreThanFits);
    backprop(&["--page-size", "64KiB"], Moves::MoreThanFits);
    backprop(&["--page-size", "2MiB", "--no-replay"], Moves::MoreThanFits);
}

#[test]
fn backprop_on_the_other_devices_agrees_with_the_cpu_in_every_bit() {
    backprop(&["--device", "peer"], Moves::MoreThanFits);
    backprop(&["--device", "peer", "--no-replay"], Moves::MoreThanFits);
    backprop(&["--mode", "replicate"], Moves::Nothing);
    backprop(&["--mode", "replicate", "--no-replay"], Moves::Nothing);
    backprop(&["--device", "integrated"], Moves::Nothing);
    backprop(&["--device", "integrated", "--delivery", "inthread"], Moves::Nothing);
}

#[test]
fn backprop_learns_to_read_digits() {
    let object = verified(&["run", "backprop"], Moves::MoreThanFits);
    assert!(object["accuracy"].as_f64() > Some(0.95), "{object}");
}

#[test]
fn the_table_says_the_same_as_json() {
    let ended = gmem(&["run", "vector-add", "--elements", "1Mi", "--device-memory", "8MiB"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(ended.stderr, "", "nothing is said beside the result when nobody watches");
    for words in
        ["verified", "yes", "24 MiB / 8 MiB", "effective bandwidth", "% of memcpy", "faults: CPU / device", "peak frames of", "metadata"]
    {
        assert!(ended.stdout.contains(words), "`{words}`: {}", ended.stdout);
    }
}

#[test]
fn the_probe_says_what_was_found_and_what_follows() {
    let object = json(&["probe"]);
    for field in ["kernel", "userfaultfd", "consequences", "memory_total", "cores", "max_map_count"] {
        assert!(!object[field].is_null(), "{field}: {object}");
    }
    let ended = gmem(&["probe"]);
    assert!(ended.status.success() && ended.stdout.contains("What follows:"), "{}", ended.stdout);
}

#[test]
fn the_bench_prints_rows_with_floors() {
    let rows = ["metadata_2mib", "metadata_4kib", "idle_cpu", "cpu_fault_2mib_inthread", "replicate_fault_2mib"];
    let only: Vec<&str> = rows.iter().flat_map(|row| ["--only", row]).collect();
    let object = json(&[&["bench", "--quick"], only.as_slice()].concat());
    let found = object["rows"].as_array().expect("a list");
    assert_eq!(found.len(), rows.len(), "{object}");
    for row in found {
        assert!(row["name"].is_string() && row["value"].is_f64() && row["unit"].is_string() && row["floor"].is_f64(), "{row}");
    }
    // The promises that do not depend on how busy the machine is.
    let limit = |name: &str| found.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name}"))["ratio"].as_f64();
    assert!(limit("metadata_2mib") <= Some(1.0) && limit("metadata_4kib") <= Some(1.0), "{object}");
}
