//! Every check on the integrated accelerator.

gmem_conformance::main!(targets: gmem_conformance::shipped("integrated"));
