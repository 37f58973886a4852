//! Every check on the discrete accelerator when it cannot replay faults.

gmem_conformance::main!(targets: gmem_conformance::shipped("discrete-no-replay"));
