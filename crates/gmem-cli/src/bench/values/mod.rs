//! The figures themselves: the same things as the floors, through gmem.

mod faults;
mod kernels;

pub(crate) use faults::{CpuFault, DeviceFault, ReplicaFaults, touch_here, touch_on_device};
