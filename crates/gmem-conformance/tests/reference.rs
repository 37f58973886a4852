//! Every check on the reference driver, in each of its forms: memory in two parts that the program registers, an allocator of its own, and a system of its own.

use gmem_conformance::{Reference, ReferenceSubject, Target};
use std::sync::Arc;

fn targets() -> Vec<Target> {
    let plain = Reference::builder();
    let forms = [
        ("reference", plain.registered_by_hand(), false),
        ("own frames", plain.own_frames().accessed_bits(), false),
        ("reference peer", plain, true),
    ];
    let target = |(label, builder, peer): (&str, _, _)| {
        Target::new(label, Arc::new(ReferenceSubject(builder)), true, peer).expect("it has this form")
    };
    forms.into_iter().map(target).collect()
}

gmem_conformance::main!(targets: targets());
