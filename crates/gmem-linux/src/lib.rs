//! gmem on Linux: the host side of the contracts, from user space, on an unmodified kernel.
//!
//! * [`Threads`]: gmem's own threads. They share a descriptor table that the program cannot close, and take no signals.
//! * [`LinuxHost`]: reserves addresses, keeps the homes of pages, gives pages to the CPU and takes them away, and hears of CPU faults.
//! * [`LinuxPlatform`]: the host with the lock, the event and the memory accounting that the core stands on.
//! * [`probe()`]: what this machine permits, and what follows from it.
//!
//! # How the CPU's page table is a cache here
//!
//! A page that the CPU may not touch must fault to us, and must not become zeros behind our back. There are two ways to be told:
//! a **userfaultfd**, read by a service thread ([`gmem_hal::Delivery::Service`]), and **`PROT_NONE` with a SIGSEGV handler**
//! ([`gmem_hal::Delivery::InThread`]). Each space has a *user* range, where the program works, and an *alias* range of the same length
//! elsewhere in the process, where copy engines reach the homes. [`LinuxHost`] lists how each
//! pair of backing and delivery gives pages to the CPU and takes them away.
//!
//! # Where the unsafe code is
//!
//! In `sys` (memory areas, userfaultfd, the signal handler), `threads` (a closure lent to another thread) and `futex` (the
//! lock, whose trait is unsafe to implement). Everything else is checked by the compiler.

#![deny(unsafe_code)]

mod bits;
mod fault;
mod futex;
mod host;
mod in_thread;
mod ownership;
mod platform;
mod pressure;
mod private;
mod probe;
mod report;
mod service;
mod shared;
mod space;
mod sync;
mod sys;
mod threads;

pub use futex::{FutexEvent, FutexLock};
pub use host::{LinuxHost, OpenError};
pub use platform::LinuxPlatform;
pub use probe::{Probe, UffdAccess, probe};
pub use space::LinuxSpace;
pub use threads::{Forked, StartError, Threads};
