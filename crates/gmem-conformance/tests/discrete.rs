//! Every check on the discrete accelerator.

gmem_conformance::main!(targets: gmem_conformance::shipped("discrete"));
