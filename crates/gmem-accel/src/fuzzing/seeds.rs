//! What the corpus of the fuzz target begins with.

use super::host::letter;

/// Requests that an honest device carries out, and each step once in each mode.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (mode, name) in ["exclusive", "replicate", "peer"].into_iter().enumerate() {
        let begin = [mode as u8];
        let every: Vec<u8> = (0..letter::STOP).flat_map(|letter| request(letter, 1, &[])).collect();
        all.push((format!("{name}-honest"), [&begin[..], &every].concat()));
        for step in 0..16u8 {
            let steps = [step, 0, 1, 3, 4, 0, 7, 2, 1];
            let lies = [letter::MAP, letter::CALL, letter::FAULTS, letter::START, letter::WAIT, letter::UNMAP, letter::FLUSH];
            let requests: Vec<u8> = lies.into_iter().flat_map(|letter| request(letter, 0, &[&[1][..], &steps].concat())).collect();
            all.push((format!("{name}-step-{step}"), [&begin[..], &request(letter::MAP, 0, &[]), &requests].concat()));
        }
        for (kind, byte) in [(5, 0), (5, 255), (4, 63), (4, 30), (4, 12), (1, 1), (3, 0)] {
            // Every command there is, and some there are not: length and frame are this number, the address is a page or this number too.
            let ops = (0..30u8).flat_map(|op| [[1, 2], [kind, byte]].map(|va| (op, va)));
            let nonsense = ops.flat_map(|(op, va)| [letter::CALL, 0, op, va[0], va[1], kind, byte, 0x40]);
            all.push((format!("{name}-nonsense-{kind}-{byte}"), begin.into_iter().chain(nonsense).collect()));
        }
        let crowd = [letter::MAP_ALL, letter::MAP, letter::UNMAP, letter::FAULTS, letter::FLOOD, letter::FLUSH, letter::STOP];
        let crowd: Vec<u8> = crowd.into_iter().flat_map(|letter| request(letter, 2, &[])).collect();
        all.push((format!("{name}-crowd"), [&begin[..], &crowd].concat()));
    }
    // A peer whose memory is full of pages of every size, and whose host wants one more of each.
    let sizes = [0, 240, 241, 255, 242, 243, 244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254, 1];
    let full: Vec<u8> = sizes.into_iter().chain(0..100).flat_map(|page| request(letter::MAP, page, &[])).collect();
    all.push(("peer-full".into(), [&[2], &full[..]].concat()));
    all.extend(LIES.iter().map(|lie| {
        let requests = lie.requests.iter().flat_map(|(letter, steps)| request(*letter, 0, steps));
        (lie.name.into(), std::iter::once(lie.mode).chain(requests).collect())
    }));
    all
}

/// Something that a device says and that is not so.
struct Lie {
    name: &'static str,
    mode: u8,
    /// Letters, and steps with their count first.
    requests: &'static [(u8, &'static [u8])],
}

/// What found a defect, or finds the lack of a check. Where the host only looks how much time is left, the device waits.
const LIES: &[Lie] = &[
    Lie { name: "says-that-a-command-is-done-and-has-not-begun-it", mode: 0, requests: &[(letter::CALL, &[1, 3, 1])] },
    // No room, twice given some, still none; and the victim is eight bytes.
    Lie {
        name: "names-a-part-of-a-page-as-victim",
        mode: 2,
        requests: &[(letter::MAP, &[8, 1, 2, 1, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 1, 2, 0, 7, 0, 3])],
    },
    // The same, and the victim is a page far away.
    Lie {
        name: "names-a-victim-outside-the-window",
        mode: 2,
        requests: &[(letter::MAP, &[8, 1, 2, 1, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 1, 2, 0, 0, 12])],
    },
    Lie { name: "names-a-frame-of-another-context", mode: 2, requests: &[(letter::MAP, &[2, 1, 2, 0, 2, 0])] },
    Lie { name: "names-a-frame-beyond-its-memory", mode: 2, requests: &[(letter::MAP, &[2, 1, 2, 0, 4, 30])] },
    Lie { name: "faults-outside-the-window", mode: 0, requests: &[(letter::SETTLE, &[1, 6, 0, 1, 0, 200]), (letter::FAULTS, &[])] },
];

/// A request about a page, with small operands, and with steps (their count first).
fn request(letter: u8, page: u8, steps: &[u8]) -> Vec<u8> {
    let steps = if steps.is_empty() { &[0] } else { steps };
    [&[letter, page, 0, 2, page, 2, 1], steps].concat()
}
