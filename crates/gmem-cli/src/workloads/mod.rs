//! The workloads. Each keeps its kernels, what the CPU does, and the check of the result in one place.

pub(crate) mod backprop;
pub(crate) mod crc;
pub(crate) mod vector_add;
