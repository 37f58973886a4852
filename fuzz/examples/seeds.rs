//! Writes what the corpora begin with: `cargo run --example seeds`, in the folder `fuzz`.

use gmem_explore::bytes::Script;
use gmem_explore::worlds::{ALL, MIXED, STANDARD};
use gmem_explore::{Point, scripts};
use gmem_sim::random::{Generator, Tolerance, Weights, explore};
use gmem_sim::{Callback, Sim};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, script) in operations() {
        let bytes = script.bytes().unwrap_or_else(|| panic!("{name} has operands that bytes cannot say"));
        std::fs::write(corpus.join("operations").join(name), bytes)?;
    }
    for (name, bytes) in gmem_accel::fuzzing::seeds() {
        std::fs::write(corpus.join("ring").join(name), bytes)?;
    }
    Ok(())
}

/// The scripts by hand, with nothing failing and with each callback failing in some way; and some drawn operations in each kind of world.
fn operations() -> Vec<(String, Script)> {
    let mut all = Vec::new();
    for (kind, ops) in [(STANDARD, scripts::exclusive()), (MIXED, scripts::all_modes())] {
        let script = |points| Script { kind, seed: 1, points, ops: ops.clone() };
        let name = kind.name.replace(' ', "-");
        all.push((format!("script-{name}"), script(Vec::new())));
        for (i, &callback) in Callback::ALL.iter().enumerate() {
            for (j, &error) in callback.errors().iter().enumerate() {
                let point = Point { callback, n: 1 + (i + j) as u64 % 5, error };
                all.push((format!("script-{name}-{}-{j}", callback.name()), script(vec![point])));
            }
        }
    }
    for kind in ALL {
        let seed = 7;
        let mut ops = Vec::new();
        let mut generator = Generator::new(seed, Weights::everything());
        let steps = if kind.page_size.bytes() > 4096 { 40 } else { 150 };
        let drawn = explore(&mut kind.make(&Sim::new(seed)), &kind.shape(), &mut generator, steps, Tolerance::default(), &mut ops);
        drawn.unwrap_or_else(|failure| panic!("{}: {failure}", kind.name));
        let sayable = |op: &_| Script { kind: *kind, seed: 7, points: Vec::new(), ops: vec![*op] }.bytes().is_some();
        ops.retain(sayable);
        all.push((format!("drawn-{}", kind.name.replace(' ', "-")), Script { kind: *kind, seed: 7, points: Vec::new(), ops }));
    }
    all
}
