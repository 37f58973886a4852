//! `gmem conformance`: the conformance kit on the software accelerators.

use crate::args::ConformanceArgs;
use crate::failure::Failure;
use crate::output;
use gmem_conformance::{checks, conclude, list, ready, run_aloud, shipped};

/// Runs the checks that were asked for, and fails if one of them does.
pub(crate) fn conformance(args: &ConformanceArgs) -> Result<(), Failure> {
    let checks = checks::all();
    let options = &args.options;
    let listed = list(&checks, options);
    if listed.is_empty() {
        let filter = options.filter.join("` or `");
        return Err(Failure::Usage(format!(
            "no check has a name that contains `{filter}`; `gmem conformance --list` says which there are"
        )));
    }
    if options.list {
        return output::line(&listed);
    }
    ready().map_err(Failure::Failed)?;
    let report = run_aloud(&shipped(&args.device), &checks, options);
    if report.rows.is_empty() {
        return Err(Failure::Usage(format!("--device {} has none of the modes or page sizes asked for", args.device)));
    }
    output::line(&conclude(&report, options))?;
    match report.failed {
        0 if report.passed == 0 => {
            Err(Failure::Usage(format!("nothing was checked: no check that was asked for has a meaning for --device {}", args.device)))
        }
        0 => Ok(()),
        failed => Err(Failure::Failed(format!("{failed} of {} checks failed", failed + report.passed))),
    }
}
