//! The command `gmem`: workloads, a probe and benchmarks of unified memory.
//!
//! `gmem run` shows a CPU and an accelerator at work through the same pointers, on more data than the accelerator has memory, with the results checked.

mod args;
mod bench;
mod conformance;
mod engine;
mod failure;
mod machine;
mod measure;
mod output;
mod probe;
mod progress;
mod report;
mod run;
mod setup;
mod size;
mod workloads;

use args::{Cli, Command, WORKLOADS};
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Probe(args) => probe::probe(args),
        Command::Bench(args) => bench::bench(args),
        Command::Conformance(args) => conformance::conformance(args),
        Command::BenchOther => bench::other_process(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::OutputClosed) => Failure::OutputClosed.status(),
        Err(failure) => {
            output::note(&failure.to_string());
            failure.status()
        }
    }
}

/// Prints what the parser of the command line has to say; for an unknown workload, which workloads there are.
fn refuse(error: &clap::Error) -> ExitCode {
    let unknown = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) if error.kind() == ErrorKind::InvalidSubcommand => Some(name),
        _ => None,
    };
    match unknown {
        Some(name) if std::env::args_os().nth(1).is_some_and(|first| first == "run") => {
            output::note(&format!("there is no workload `{name}`; there are: {}", WORKLOADS.join(", ")));
        }
        // A closed output is no reason to panic: nobody reads it any more.
        _ => drop(error.print()),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
