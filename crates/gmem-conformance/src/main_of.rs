//! The `main` of a conformance test.

use crate::check::Check;
use crate::checks;
use crate::options::Options;
use crate::report::Report;
use crate::target::Target;
use clap::Parser;
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
    let mut options = arguments.options;
    let checks = checks::all();
    if !options.filter.is_empty() && !checks.iter().any(|check| options.wants_check(check.name)) {
        eprintln!("no check has a name that contains `{}`; --list says which there are", options.filter.join("` or `"));
        return ExitCode::from(2);
    }
    options.filter.extend(arguments.name);
    if options.list {
        print(&list(&checks, &options));
        return ExitCode::SUCCESS;
    }
    if targets.is_empty() {
        eprintln!("the subject can make no device of any shape, so nothing could be checked");
        return ExitCode::from(2);
    }
    let report = crate::run(&targets, &checks, &options);
    print(&conclude(&report, &options));
    ExitCode::from(u8::from(report.failed > 0))
}

/// The report as the options want it.
pub fn conclude(report: &Report, options: &Options) -> String {
    if options.json { report.json() } else { report.text() }
}

/// The checks that the options want, with their rules and where those are written.
pub fn list(checks: &[Check], options: &Options) -> String {
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
