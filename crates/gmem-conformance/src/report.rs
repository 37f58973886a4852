//! What came of a run.

use crate::observe::{Rule, rules};
use gmem::ByteLen;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// How a line begins that names a promise of the driver that it broke.
pub(crate) const BROKE: &str = "the driver broke ";

/// How a line begins that names callbacks that the driver answered with an error.
pub(crate) const MEANWHILE: &str = "meanwhile the driver answered ";

/// How the reason begins that a check failed with an error that it did not expect: that says little about the rule of that check.
pub(crate) const UNEXPECTED: &str = "an unexpected error: ";

/// How the reasons begin that do not tell that the rule of their check was broken.
const SILENT: [&str; 6] = [BROKE, UNEXPECTED, NOT_DONE, ENDED, PANICKED, MEANWHILE];
pub(crate) const NOT_DONE: &str = "not done within ";
pub(crate) const ENDED: &str = "the check ended its process: ";
pub(crate) const PANICKED: &str = "a panic: ";

/// Promises of a driver that nothing but the driver's own code for them breaks.
const CAUSES: [Rule; 3] = [rules::NO_PANIC, rules::OWN_THREADS, rules::ERROR_ENDS];

/// The checks without whose rules next to nothing holds, each before those that need it.
const BASICS: [&str; 7] = [
    "entered-page-is-its-frame",
    "copies-are-whole",
    "read-only-page-refuses-stores",
    "invalidated-translation-is-not-used",
    "blank-pages-are-zeroed",
    "access-into-a-hole-ends-with-its-fault",
    "lowered-access-is-enforced",
];

/// How one check ended on one target, in one mode, with one page size.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "snake_case")]
pub enum Verdict {
    /// The rule held.
    Passed,
    /// The rule was broken: what was seen and what was expected.
    Failed(String),
    /// The rule has no meaning here, and why.
    NotApplicable(String),
    /// Too many checks before it were not done in time.
    NotRun,
}

/// A line of the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The check.
    pub check: String,
    /// The rule it enforces.
    pub rule: String,
    /// Where the rule is written.
    #[serde(rename = "where")]
    pub place: String,
    /// The target's label.
    pub device: String,
    /// The mode.
    pub mode: String,
    /// The page size in bytes; `None` if it makes no difference.
    pub page_size: Option<u64>,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long it took.
    pub seconds: f64,
}

/// The outcome of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// How many rows passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many have no meaning.
    pub not_applicable: usize,
    /// How many were not run, because too many before them were not done in time.
    pub not_run: usize,
    /// Every row.
    pub rows: Vec<Row>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    pub(crate) fn new(rows: Vec<Row>, seconds: f64) -> Self {
        let count = |is: fn(&Verdict) -> bool| rows.iter().filter(|row| is(&row.verdict)).count();
        Self {
            passed: count(|v| matches!(v, Verdict::Passed)),
            failed: count(|v| matches!(v, Verdict::Failed(_))),
            not_applicable: count(|v| matches!(v, Verdict::NotApplicable(_))),
            not_run: count(|v| matches!(v, Verdict::NotRun)),
            rows,
            seconds,
        }
    }

    /// As one JSON object.
    ///
    /// # Panics
    /// Never: strings and numbers can always be written.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a report is strings and numbers")
    }

    /// As a table for a person: a line per check with its counts, then the reasons why some do not apply, then which failed; [`Row::failure`] says why.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.table(&mut text);
        self.reasons(&mut text);
        self.failures(&mut text);
        let Self { passed, failed, not_applicable, not_run, seconds, .. } = self;
        if *not_run > 0 {
            let _ = writeln!(
                text,
                "\n{not_run} checks were not run, because so many failed and took the time they may, or half of it; --keep-going runs them all the same"
            );
        }
        let _ = write!(text, "\n{passed} passed, {failed} failed, {not_applicable} not applicable, in {seconds:.1} s");
        text
    }

    fn table(&self, text: &mut String) {
        let mut order: Vec<&str> = Vec::new();
        let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for row in &self.rows {
            let count = counts.entry(&row.check).or_insert_with(|| {
                order.push(&row.check);
                [0; 3]
            });
            match row.verdict {
                Verdict::Passed => count[0] += 1,
                Verdict::Failed(_) => count[1] += 1,
                Verdict::NotApplicable(_) => count[2] += 1,
                Verdict::NotRun => {}
            }
        }
        let width = order.iter().map(|name| name.len()).max().unwrap_or(0).max(5);
        let _ = writeln!(text, "{:<width$}  passed  failed  not applicable", "check");
        for name in order {
            let [passed, failed, not_applicable] = counts[name].map(|n| if n == 0 { "-".to_owned() } else { n.to_string() });
            let _ = writeln!(text, "{name:<width$}  {passed:>6}  {failed:>6}  {not_applicable:>14}");
        }
    }

    fn reasons(&self, text: &mut String) {
        let mut reasons: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for row in &self.rows {
            if let Verdict::NotApplicable(why) = &row.verdict {
                reasons.entry((&row.check, why)).or_default().push(row.circumstances());
            }
        }
        if !reasons.is_empty() {
            text.push_str("\nnot applicable:\n");
        }
        for ((check, why), circumstances) in reasons {
            let _ = writeln!(text, "  {check}: {why} ({})", circumstances.join("; "));
        }
    }

    fn failures(&self, text: &mut String) {
        let failed = self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_)));
        for (n, row) in failed.enumerate() {
            let title = if n == 0 { "\nfailed, as told above:\n" } else { "" };
            let _ = writeln!(text, "{title}  {} ({})", row.check, row.circumstances());
        }
        if let Some(first) = self.first_to_mend() {
            let _ = writeln!(text, "\nbegin with this one, since others may follow from it:\n  {first}");
        }
    }

    /// If several checks failed: a promise of [`CAUSES`] that the driver was seen to break; else the first of [`BASICS`] that saw its own rule broken; else any promise that
    /// the driver was seen to break; else an error that most checks met; else the rule of the check that asks the least.
    fn first_to_mend(&self) -> Option<String> {
        let failed = || self.rows.iter().filter_map(|row| if let Verdict::Failed(what) = &row.verdict { Some((row, what)) } else { None });
        let (least, _) = failed().min_by_key(|(row, _)| row.depth())?;
        if failed().all(|(row, _)| row.check == least.check) {
            return None;
        }
        let told = |row: &Row| format!("{}: {} ({})", row.check, row.rule, row.place);
        let broken = || failed().flat_map(|(_, what)| what.lines()).filter(|line| line.starts_with(BROKE));
        let cause = || broken().find(|line| CAUSES.iter().any(|rule| line.contains(rule.text)));
        // What failed for nothing but a broken promise, an error, or its own end says nothing else.
        let speaks = |what: &str| SILENT.iter().all(|silent| !what.starts_with(silent));
        let basic = |name: &&str| failed().find(|(row, what)| row.check == **name && speaks(what));
        let error = || {
            let (errors, all) = (failed().filter_map(|(_, what)| what.strip_prefix(UNEXPECTED)), failed().count());
            // The same of another page, or of memory elsewhere, is the same.
            let kind =
                |error: &str| error.split("0x").map(|part| part.trim_start_matches(|c: char| c.is_ascii_hexdigit())).collect::<String>();
            let mut counts: BTreeMap<String, (&str, usize)> = BTreeMap::new();
            errors.for_each(|error| counts.entry(kind(error)).or_insert((error, 0)).1 += 1);
            let (error, count) = counts.into_values().max_by_key(|(_, count)| *count)?;
            (2 * count > all).then(|| format!("{count} of {all} met the same error: {}", error.replace('\n', "; ")))
        };
        (cause().map(str::to_owned))
            .or_else(|| BASICS.iter().find_map(basic).map(|(row, _)| told(row)))
            .or_else(|| broken().next().map(str::to_owned))
            .or_else(error)
            .or_else(|| Some(told(least)))
    }
}

impl Row {
    /// If it failed: the rule that was broken, where that is written, and what was seen.
    pub fn failure(&self) -> Option<String> {
        let Verdict::Failed(what) = &self.verdict else { return None };
        let Self { check, rule, place, .. } = self;
        let what = what.replace('\n', "\n         ");
        Some(format!("FAILED {check} ({})\n  rule:  {rule}\n  where: {place}\n  seen:  {what}\n", self.circumstances()))
    }

    /// How much must work before the rule can hold: first come the functions of a driver, one by one, then what else the contracts ask of it, and at last what gmem
    /// makes of that.
    fn depth(&self) -> usize {
        const FUNCTIONS: [&str; 5] = ["`Mmu", "`Mapping", "`CopyEngine", "`Frames", "`Peer"];
        const CONTRACTS: [&str; 5] = ["`Device", "`Upcalls", "`HostWindow", "`FaultError", "`LaunchError"];
        let item = self.place.strip_prefix("gmem-hal ").unwrap_or_default();
        let is_one_of = |items: [&str; 5]| items.iter().any(|one| item.starts_with(one));
        if is_one_of(FUNCTIONS) { 0 } else { 1 + usize::from(!is_one_of(CONTRACTS)) }
    }

    /// The device, mode and page size, for a person.
    fn circumstances(&self) -> String {
        match self.page_size {
            Some(bytes) => format!("{}, {}, {}", self.device, self.mode, ByteLen(bytes)),
            None => format!("{}, {}", self.device, self.mode),
        }
    }
}
