//! The checks, a module for each subject matter.

mod coherence;

use crate::check::Check;

/// Every check, in the order of the report.
pub fn all() -> Vec<Check> {
    [coherence::CHECKS].concat()
}
