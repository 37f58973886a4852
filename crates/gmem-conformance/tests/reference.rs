//! Every check on the reference driver, in each of its forms.

use gmem_conformance::{Reference, ReferenceSubject, Target};
use std::sync::Arc;

fn targets() -> Vec<Target> {
    let plain = Reference::builder();
    let forms = [("reference", plain, false), ("own frames", plain.own_frames().accessed_bits(), false), ("reference peer", plain, true)];
    let target = |(label, builder, peer): (&str, _, _)| {
        Target::new(label, Arc::new(ReferenceSubject(builder)), true, peer).expect("it has this form")
    };
    forms.into_iter().map(target).collect()
}

gmem_conformance::main!(targets: targets());
