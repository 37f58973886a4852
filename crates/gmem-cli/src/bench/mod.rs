//! Bench.
pub(crate) const OTHER_PROCESS: &str = "bench-other-process";
pub(crate) const ROWS: [&str; 1] = ["cpu_fault_2mib"];
