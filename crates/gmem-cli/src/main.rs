//! The command `gmem`: workloads, a probe, benchmarks and a simulation of unified memory.
//!
//! `gmem run` shows a CPU and an accelerator at work through the same pointers, on more data than the accelerator has memory, with the results checked.

mod args;
mod bench;
mod conformance;
mod engine;
mod failure;
mod litmus;
mod machine;
mod measure;
mod output;
mod probe;
mod progress;
mod report;
mod run;
mod setup;
mod sim;
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
        Command::Sim(args) => sim::sim(args),
        Command::Litmus(args) => litmus::litmus(args),
        Command::BenchOther => bench::other_process(),
    };
    result.map_or_else(|failure| failure.report(wants_json()), |()| ExitCode::SUCCESS)
}

/// Whether `--json` is among the arguments, also when they cannot be understood otherwise.
fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json")
}

/// Prints what the parser of the command line has to say; for an unknown workload, which workloads there are.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help and the version are results like any other.
        return output::help(error).map_or_else(|failure| failure.report(false), |()| ExitCode::SUCCESS);
    }
    let unknown = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) if error.kind() == ErrorKind::InvalidSubcommand => Some(name),
        _ => None,
    };
    match unknown {
        Some(name) if std::env::args_os().nth(1).is_some_and(|first| first == "run") => {
            Failure::Usage(format!("there is no workload `{name}`; there are: {}", WORKLOADS.join(", "))).report(wants_json())
        }
        _ => {
            // The parser knows colours. A closed standard error is nobody's loss.
            drop(error.print());
            let text = error.render().to_string();
            let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
            let failure = Failure::Usage(message.to_owned());
            failure.print(message, wants_json());
            ExitCode::from(failure.status())
        }
    }
}
