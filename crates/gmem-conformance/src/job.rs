//! Which check runs on what: the plan of a run, the same in every process of it.

use crate::case::Case;
use crate::check::{Check, Stop};
use crate::observe::Breach;
use crate::options::Options;
use crate::report::{MEANWHILE, PANICKED, Row, Verdict};
use crate::target::{Target, mode_name};
use gmem::hal::DeviceError;
use gmem::{Mode, PageSize};
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// One check on one target, in one mode, with one page size.
pub(crate) struct Job<'a> {
    pub(crate) check: &'a Check,
    pub(crate) target: &'a Target,
    pub(crate) mode: Mode,
    /// With the check's own choice if `None` is to be said in the report.
    pub(crate) size: PageSize,
    /// Known before it runs to have no meaning.
    pub(crate) reason_not_to: Option<String>,
}

/// Everything that `options` wants.
pub(crate) fn plan<'a>(targets: &'a [Target], checks: &'a [Check], options: &Options) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for target in targets {
        for mode in target.modes().filter(|mode| options.wants_mode(*mode)) {
            let sizes: Vec<_> = target.page_sizes().filter(|size| options.wants_size(*size)).collect();
            for check in checks.iter().filter(|check| options.wants_check(check.name)) {
                let reason_not_to = check.applies.reason_not_to(target, mode);
                let each = check.applies.every_size() && reason_not_to.is_none();
                let count = if each { sizes.len() } else { 1 };
                jobs.extend(sizes.iter().take(count).map(|size| Job {
                    check,
                    target,
                    mode,
                    size: *size,
                    reason_not_to: reason_not_to.clone(),
                }));
            }
        }
    }
    jobs
}

impl Job<'_> {
    /// Runs the check, which may take so long, in this process.
    pub(crate) fn run(&self, number: usize, doom: Option<String>, limit: Duration) -> Verdict {
        let observers = RefCell::default();
        let case = Case {
            target: self.target,
            mode: self.mode,
            size: self.size,
            job: number,
            doom,
            limit,
            observers,
            specimens: RefCell::default(),
        };
        // What a check made goes with it, and the next one makes its own.
        let verdict = match catch_unwind(AssertUnwindSafe(|| (self.check.run)(&case))) {
            Ok(Ok(())) => Verdict::Passed,
            Ok(Err(Stop::Failed(what))) => Verdict::Failed(what),
            Ok(Err(Stop::NotApplicable(why))) => Verdict::NotApplicable(why),
            Err(panic) => Verdict::Failed(format!("{PANICKED}{}", said(&*panic))),
        };
        with_breaches(with_failed(verdict, &case.failed()), &case.breaches(), &case.complaints())
    }

    /// The row of the report.
    pub(crate) fn row(&self, verdict: Verdict, seconds: f64) -> Row {
        let every_size = self.check.applies.every_size() && self.reason_not_to.is_none();
        Row {
            check: self.check.name.to_owned(),
            rule: self.check.rule.to_owned(),
            place: self.check.place.to_owned(),
            device: self.target.label().to_owned(),
            mode: mode_name(self.mode).to_owned(),
            page_size: every_size.then(|| self.size.bytes()),
            verdict,
            seconds,
        }
    }
}

/// How many broken promises a report names: what follows the first is often its consequence.
const NAMED: usize = 4;

/// What gmem says of a failed device does not tell which callback answered so.
fn with_failed(verdict: Verdict, failed: &[(&str, DeviceError)]) -> Verdict {
    let Verdict::Failed(mut what) = verdict else { return verdict };
    let mut errors: Vec<DeviceError> = Vec::new();
    for (_, error) in failed {
        if !errors.contains(error) {
            errors.push(*error);
        }
    }
    for error in errors {
        let callbacks: Vec<_> = failed.iter().filter(|(_, other)| *other == error).map(|(name, _)| *name).collect();
        what += &format!("\n{MEANWHILE}{error:?} to {}", callbacks.join(", "));
    }
    Verdict::Failed(what)
}

/// A check during which a promise of the contracts was broken has failed, whatever it looked at.
fn with_breaches(verdict: Verdict, breaches: &[Breach], complaints: &[String]) -> Verdict {
    if breaches.is_empty() && complaints.is_empty() {
        return verdict;
    }
    let told = complaints.iter().map(|asked| format!("the core asked the driver for what the contracts exclude: {asked}"));
    let mut lines: Vec<String> = breaches.iter().map(ToString::to_string).chain(told).take(NAMED).collect();
    if let Verdict::Failed(what) = verdict {
        lines.insert(0, what);
    }
    Verdict::Failed(lines.join("\n"))
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message")
}
