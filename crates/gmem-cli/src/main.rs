//! The command `gmem`.
mod args;
mod bench;
mod engine;
mod failure;
mod kernel;
mod machine;
mod output;
mod progress;
mod setup;
mod size;
mod workloads;
fn main() {}
