//! Tests of the accelerators against a tiny pager in the place of the core.

#[path = "../common/mod.rs"]
mod common;

mod exclusive;
mod glue;
mod integrated;
mod peer;
mod replicate;
