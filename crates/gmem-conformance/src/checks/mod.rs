//! The checks, a module for each subject matter.

mod access;
mod copying;
mod device_calls;
mod dying;
mod failing;
mod files;
mod fork;
mod launches;
mod limits;
mod manners;
mod meet;
mod moves;
mod page_calls;
mod peers;
mod pressure;
mod program;
mod races;
mod ranges;
mod refuse;
mod regress;
mod space_calls;
mod steps;
mod stopping;
mod translation;

use crate::check::Check;

/// Every check, in the order of the report.
pub fn all() -> Vec<Check> {
    let gmem =
        [access::CHECKS, moves::CHECKS, ranges::CHECKS, pressure::CHECKS, program::CHECKS, files::CHECKS, fork::CHECKS, limits::CHECKS];
    let calls = [device_calls::CHECKS, space_calls::CHECKS, page_calls::CHECKS];
    let history = [failing::CHECKS, regress::CHECKS, races::CHECKS];
    let drivers = [translation::CHECKS, copying::CHECKS, launches::CHECKS, stopping::CHECKS, dying::CHECKS, manners::CHECKS, peers::CHECKS];
    gmem.into_iter().chain(calls).chain(history).chain(drivers).flatten().copied().collect()
}
