//! The checks, a module for each subject matter.

mod access;
mod files;
mod fork;
mod limits;
mod moves;
mod pressure;
mod ranges;
mod steps;

use crate::check::Check;

/// Every check, in the order of the report.
pub fn all() -> Vec<Check> {
    [access::CHECKS, moves::CHECKS, ranges::CHECKS, pressure::CHECKS, files::CHECKS, fork::CHECKS, limits::CHECKS].concat()
}
