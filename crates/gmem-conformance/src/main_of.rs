//! The `main` of a conformance test.

use crate::check::Check;
use crate::checks;
use crate::options::Options;
use crate::report::Report;
use crate::target::Target;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// The arguments of a conformance test: its own, and those that `cargo test` hands to every test.
#[derive(Parser, Debug)]
#[command(about = "Runs the conformance checks of gmem against a device driver")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Only checks whose name contains this, as for every test; none is no error
    name: Option<String>,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    color: Option<String>,
}

/// Runs every check on `targets`, as the process's arguments say. What [`crate::main!`] expands to.
pub fn main_of(targets: Vec<Target>) -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.ignored {
        // No check is marked so.
        return ExitCode::SUCCESS;
    }
    let options = arguments.options;
    let mut checks = checks::all();
    if !options.filter.is_empty() && !checks.iter().any(|check| options.wants_check(check.name)) {
        eprintln!("no check has a name that contains `{}`; --list says which there are", options.filter.join("` or `"));
        return ExitCode::from(2);
    }
    if let Some(name) = &arguments.name {
        // Both must fit, as everywhere.
        checks.retain(|check| check.name.contains(name) && (!arguments.exact || check.name == name));
    }
    if options.list {
        print(&list(&checks, &options));
        return ExitCode::SUCCESS;
    }
    if let Err(why) = ready() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    if targets.is_empty() {
        eprintln!("the subject can make no device of any shape, so nothing could be checked");
        return ExitCode::from(2);
    }
    let report = run_aloud(&targets, &checks, &options);
    print(&conclude(&report, &options));
    match report.passed + report.failed {
        // `cargo test NAME` gives the name of any test to every one, and most have nothing of that name.
        0 if arguments.name.is_none() => {
            eprintln!("nothing was checked: no check that was asked for has a meaning for what can be made here");
            ExitCode::from(2)
        }
        _ => ExitCode::from(u8::from(report.failed > 0)),
    }
}

/// Says why nothing could be checked at all, whatever the driver does.
///
/// # Errors
/// What to do about it: gmem is switched off, or this machine does not permit it.
pub fn ready() -> Result<(), String> {
    if crate::runner::is_check_process() {
        return Ok(());
    }
    small_world().map_err(|error| match error {
        gmem::Error::NoPlace { len, .. } => no_place(len),
        other => other.to_string(),
    })
}

/// What helps whoever started a program for whose address spaces, of `len` each, the process has no addresses left.
pub fn no_place(len: gmem::ByteLen) -> String {
    format!("no place is left for an address space of {len}: allow the process more addresses (ulimit -v unlimited)")
}

/// Makes what every check makes, with an accelerator that is known to work: what is refused here is no driver's fault.
fn small_world() -> Result<(), gmem::Error> {
    let gmem = gmem::Gmem::new()?;
    let device = gmem.add_device(gmem::accel::Discrete::builder().memory(2 << 20).cores(1).build()?)?;
    let space = gmem.address_space().create()?;
    let context = space.attach(&device, gmem::Mode::CoherentExclusive)?;
    space.region().map(2 << 20)?;
    Ok(context.detach()?)
}

/// Runs the checks, shows how far they are on a terminal, and prints each failure as it comes, unless the result is to be one JSON object.
pub fn run_aloud(targets: &[Target], checks: &[Check], options: &Options) -> Report {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} checks {wide_bar}").unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = crate::run(targets, checks, options, &|row, of| {
        bar.set_length(of as u64);
        bar.inc(1);
        if let Some(failure) = row.failure().filter(|_| !options.json) {
            bar.suspend(|| print(&failure));
        }
    });
    bar.finish_and_clear();
    report
}

/// The report as the options want it.
pub fn conclude(report: &Report, options: &Options) -> String {
    if options.json { report.json() } else { report.text() }
}

/// The checks that the options want, with their rules and where those are written; nothing if there is none.
pub fn list(checks: &[Check], options: &Options) -> String {
    if options.json {
        let wanted = checks.iter().filter(|check| options.wants_check(check.name));
        let rows: Vec<_> =
            wanted.map(|check| serde_json::json!({ "check": check.name, "rule": check.rule, "where": check.place })).collect();
        return if rows.is_empty() { String::new() } else { serde_json::Value::from(rows).to_string() };
    }
    let mut text = String::new();
    for check in checks.iter().filter(|check| options.wants_check(check.name)) {
        let _ = writeln!(text, "{}\n  {}\n  {}", check.name, check.rule, check.place);
    }
    text.trim_end().to_owned()
}

fn print(text: &str) {
    // A reader that left wants nothing more.
    let _ = writeln!(std::io::stdout(), "{text}");
}
