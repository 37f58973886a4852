//! The system calls that the compiler cannot check, behind interfaces that it can.
//!
//! The rule that makes [`area::Area`] and [`uffd::Uffd`] safe to use: an `Area` owns its addresses, nothing in this process holds a Rust reference into
//! them (managed memory is reached by raw pointers only), and every operation is checked to stay inside.
#![allow(unsafe_code)]

pub(crate) mod area;
pub(crate) mod fd;
pub(crate) mod maps;
pub(crate) mod process;
pub(crate) mod sigsegv;
pub(crate) mod stack;
pub(crate) mod uffd;
