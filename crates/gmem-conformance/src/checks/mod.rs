//! The checks, a module for each subject matter.

mod access;
mod copying;
mod files;
mod fork;
mod limits;
mod manners;
mod moves;
mod peers;
mod pressure;
mod ranges;
mod steps;
mod translation;

use crate::check::Check;

/// Every check, in the order of the report.
pub fn all() -> Vec<Check> {
    let gmem = [access::CHECKS, moves::CHECKS, ranges::CHECKS, pressure::CHECKS, files::CHECKS, fork::CHECKS, limits::CHECKS];
    let drivers = [translation::CHECKS, copying::CHECKS, manners::CHECKS, peers::CHECKS];
    gmem.into_iter().chain(drivers).flatten().copied().collect()
}
