//! The same work written by hand, without gmem: what every figure of `gmem bench` is held against.

pub(crate) mod child;
mod inthread;
mod memory;
mod other;
mod ring;
mod service;

pub(crate) use inthread::InThreadFault;
pub(crate) use other::{FaultElsewhere, MapElsewhere, OtherProcess};
pub(crate) use service::ServiceFault;
