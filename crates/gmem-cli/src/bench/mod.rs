//! `gmem bench`: what gmem costs, each figure beside the same work written by hand and measured in the same run.

mod floors;
mod idle;
mod row;
mod rows;
mod values;

use crate::args::BenchArgs;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::{output, progress};
use gmem::{Backing, Delivery};
use row::Row;
use rows::Bench;
use serde::Serialize;

/// Something that can be timed again and again.
pub(crate) trait Timed {
    /// Does it once and returns the nanoseconds it took. What has to be put back for the next time is not counted.
    fn once(&mut self) -> Result<f64, Failure>;
}

/// The hidden command of the floors' other process.
pub(crate) const OTHER_PROCESS: &str = "bench-other-process";

/// Every row, in the order in which they are measured.
pub(crate) const ROWS: [&str; 9] = [
    "cpu_fault_2mib",
    "cpu_fault_2mib_inthread",
    "replicate_fault_2mib",
    "exclusive_fault_2mib",
    "fault_in_1tib",
    "metadata_2mib",
    "metadata_4kib",
    "idle_cpu",
    "vector_add_bandwidth",
];

/// The row about faults that gmem's thread resolves.
const SERVICE_ROW: &str = ROWS[0];

#[derive(Serialize)]
struct Rows {
    rows: Vec<Row>,
}

/// Measures the rows asked for and prints them.
pub(crate) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let machine = Machine::inspect()?;
    let wanted: Vec<&'static str> = ROWS.into_iter().filter(|row| args.only.is_empty() || args.only.iter().any(|o| o == row)).collect();
    let bench = Bench { machine: &machine, quick: args.quick };
    let phase = progress::phase("measuring", wanted.len() as u64);
    let mut rows = Vec::new();
    for name in wanted {
        match (bench.measure(name), machine.refuses(Backing::Shared, Delivery::Service)) {
            (Ok(row), _) => rows.push(row),
            // Without a userfaultfd there is neither the value nor the floor of this row; the others are none the worse.
            (Err(_), Some(why)) if name == SERVICE_ROW && args.only.is_empty() => {
                output::note(&format!("{name} is left out: {why}\n{}", machine.remedies()));
            }
            (Err(failure), _) => return Err(failure.in_context(name)),
        }
        phase.advance(1);
    }
    drop(phase);
    if args.json {
        return output::json(&Rows { rows });
    }
    let titles = ["name", "value", "unit", "floor", "ratio"].map(str::to_owned).to_vec();
    let table: Vec<Vec<String>> = std::iter::once(titles).chain(rows.iter().map(Row::cells)).collect();
    output::line(&output::columns(&table))
}

/// The other process of the floors.
pub(crate) fn other_process() -> Result<(), Failure> {
    floors::child::serve()
}
