//! `gmem run`.

use crate::args::{BackpropArgs, CrcArgs, RunArgs, VectorAddArgs, WorkloadArgs};
use crate::engine::Unified;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::measure::{CopySpeed, warm};
use crate::report::{Details, Report};
use crate::setup::{Needs, Setup};
use crate::workloads::{backprop, crc, vector_add};
use crate::{output, progress};
use std::time::{Duration, Instant};

/// Runs the workload, and prints its result.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let machine = Machine::inspect()?;
    let report = match &args.workload {
        WorkloadArgs::VectorAdd(own) => vector_add(args, own, &machine)?,
        WorkloadArgs::Crc(own) => crc(args, own, &machine)?,
        WorkloadArgs::Backprop(own) => backprop(args, own, &machine)?,
    };
    // Looked at last: a reader that left does not make a wrong result right.
    let printed = if args.common.json { output::json(&report) } else { output::line(&report.table()) };
    if !report.verified {
        let why = report.mismatch.as_deref().unwrap_or("the result is wrong");
        return Err(after(printed, format!("{} is not verified: {why}", report.workload)));
    }
    match &report.details {
        Details::Crc { skipped, .. } if !skipped.is_empty() => Err(after(printed, unusable(skipped))),
        _ => printed,
    }
}

/// What is wrong although there is a result, which may have been printed.
fn after(printed: Result<(), Failure>, wrong: String) -> Failure {
    match printed {
        Ok(()) => Failure::Printed(wrong),
        Err(unwritten) => Failure::Failed(format!("{wrong}\n{unwritten}")),
    }
}

/// What a workload brings back.
struct Done {
    /// When the work was done, before any comparison with other ways of doing it.
    at: Instant,
    device: Duration,
    mismatch: Option<String>,
    /// The bytes that had to cross, for the effective bandwidth.
    crossed: Option<u64>,
    details: Details,
}

/// Opens the address space, does `work` in it, and measures copies before and after.
fn measured(
    workload: &'static str,
    setup: &Setup,
    needs: &Needs,
    machine: &Machine,
    work: impl FnOnce(&Unified) -> Result<Done, Failure>,
) -> Result<Report, Failure> {
    let phase = progress::phase("memory is put in place", 0);
    warm(needs.managed(setup.page_size).unwrap_or(0) + setup.device_memory)?;
    let mut speed = CopySpeed::new(machine);
    speed.sample()?;
    drop(phase);
    let unified = Unified::open(setup, setup.space(needs)?)?;
    let started = Instant::now();
    let done = work(&unified)?;
    let counters = unified.counters();
    let managed = unified.bytes_managed();
    drop(unified);
    speed.sample()?;

    let mut report = Report::new(workload, setup, managed, done.details);
    report.verified = done.mismatch.is_none();
    report.mismatch = done.mismatch;
    report.seconds = (done.at - started).as_secs_f64();
    report.device_seconds = done.device.as_secs_f64();
    report.counters = counters;
    report.must_cross_bytes = done.crossed;
    report.effective_bytes_per_second = done.crossed.map(|bytes| bytes as f64 / report.device_seconds);
    report.memcpy_bytes_per_second = speed.bytes_per_second();
    Ok(report)
}

fn vector_add(args: &RunArgs, own: &VectorAddArgs, machine: &Machine) -> Result<Report, Failure> {
    let elements = own.elements.unwrap_or(vector_add::DEFAULT_ELEMENTS);
    let needs = vector_add::needs(elements);
    let setup = Setup::resolve(&args.common, &needs, machine)?;
    measured("vector-add", &setup, &needs, machine, |unified| {
        let outcome = vector_add::run(unified, &setup, elements as usize)?;
        Ok(Done {
            at: Instant::now(),
            device: outcome.device,
            mismatch: outcome.mismatch.map(|m| m.to_string()),
            crossed: Some(vector_add::bytes_that_must_cross(elements, setup.device_memory)),
            details: Details::VectorAdd { elements },
        })
    })
}

fn crc(args: &RunArgs, own: &CrcArgs, machine: &Machine) -> Result<Report, Failure> {
    let crc::Found { files, problems, passed_over } = crc::find(&own.paths);
    if files.is_empty() {
        return Err(Failure::Failed(unusable(&problems)));
    }
    // The data and the device memory together stay well within what is free.
    let shape = crc::Shape::of(&files, machine.available / 4);
    let needs = shape.needs();
    let setup = Setup::resolve(&args.common, &needs, machine)?;
    measured("crc", &setup, &needs, machine, |unified| {
        let outcome = crc::run(unified, &setup, &files, shape)?;
        let details = Details::Crc { blocks: outcome.blocks, files: outcome.sums, passed_over, skipped: problems };
        let crossed = files.iter().map(|f| f.len).sum();
        Ok(Done { at: Instant::now(), device: outcome.device, mismatch: outcome.mismatch, crossed: Some(crossed), details })
    })
}

/// The files that could not be used, each with its reason.
fn unusable(problems: &[crc::Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", output::visible(&p.path), p.reason)).collect();
    lines.join("\n")
}

fn backprop(args: &RunArgs, own: &BackpropArgs, machine: &Machine) -> Result<Report, Failure> {
    let needs = backprop::needs();
    let setup = Setup::resolve(&args.common, &needs, machine)?;
    backprop::fits(&setup)?;
    let params = backprop::Params { epochs: own.epochs, seed: own.seed };
    measured("backprop", &setup, &needs, machine, |unified| {
        let trained = backprop::run(unified, params)?;
        let at = Instant::now();
        let accuracy = trained.epochs.last().map_or(0.0, |e| e.accuracy);
        let mismatch = if own.check { backprop::check(params, &trained)? } else { too_low(accuracy) };
        let details = Details::Backprop { seed: own.seed, accuracy, checked_against_cpu: own.check, epochs: trained.epochs };
        Ok(Done { at, device: trained.device, mismatch, crossed: None, details })
    })
}

/// Without a comparison, learning to read is the proof.
fn too_low(accuracy: f64) -> Option<String> {
    (accuracy <= backprop::GOAL).then(|| {
        format!(
            "{:.1} % of the held-out samples are recognized, not more than {:.0} %; give it more --epochs, or compare with --check",
            100.0 * accuracy,
            100.0 * backprop::GOAL
        )
    })
}
