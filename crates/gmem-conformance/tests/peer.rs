//! Every check on the discrete accelerator that manages its own addresses and memory.

gmem_conformance::main!(targets: gmem_conformance::shipped("peer"));
