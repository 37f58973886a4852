//! The command line.

use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const RUN_EXAMPLES: &str = "\
Examples:
  gmem run vector-add                              2400 MiB of vectors through 600 MiB of device memory
  gmem run vector-add --elements 1000000 --device-memory 8MiB --json
  gmem run crc /usr/share/doc                      CRC-32 of every file below a directory
  gmem run backprop --check                        train on the device and compare with the CPU, bit for bit
  gmem run vector-add --device integrated          a device that walks the CPU's own page table
  gmem run vector-add --mode replicate             the device maps host memory, nothing moves
  gmem run backprop --device peer --page-size 64k";

const TOP_EXAMPLES: &str = "\
Examples:
  gmem run vector-add      see a CPU and an accelerator work through the same pointers
  gmem probe               what this machine allows, and what follows
  gmem bench               what it costs, beside the same done by hand
  gmem conformance         whether the accelerators keep every rule of their contracts
  gmem sim                 the core on a simulated machine on which everything fails
  gmem litmus              whether concurrent accesses stay coherent

The exit status is 0 if all is well, 1 if something failed or is not verified, 2 if the command line asks for what cannot be.";

const VECTOR_ADD_EXAMPLES: &str = "\
Examples:
  gmem run vector-add
  gmem run vector-add --elements 26214400 --device-memory 150MiB --cores 2
  gmem run vector-add --no-replay --json";

const CRC_EXAMPLES: &str = "\
Examples:
  gmem run crc Cargo.lock
  gmem run crc /usr/share/doc /usr/bin/env --device-memory 16MiB
  gmem run crc big.iso --mode replicate --json";

const BACKPROP_EXAMPLES: &str = "\
Examples:
  gmem run backprop
  gmem run backprop --check --epochs 5
  gmem run backprop --page-size 2MiB --device-memory 8MiB --seed 7";

const PROBE_EXAMPLES: &str = "\
Examples:
  gmem probe
  gmem probe --json | jq .";

const CONFORMANCE_EXAMPLES: &str = "\
Examples:
  gmem conformance                                 every check on every software accelerator
  gmem conformance --device peer --page-size 64k
  gmem conformance --filter forbidden --list       what those checks enforce, and where it is written
  gmem conformance --device discrete --json | jq .failed";

const BENCH_EXAMPLES: &str = "\
Examples:
  gmem bench
  gmem bench --only cpu_fault_2mib --only idle_cpu
  gmem bench --json > bench.json";

const SIM_EXAMPLES: &str = "\
Examples:
  gmem sim                                  100000 steps of seed 1 with everything failing
  gmem sim --seed 7 --steps 1000000         a longer run of another seed; the same seed gives the same trace hash
  gmem sim --seeds 0..100 --jobs 2 --json   a campaign of ten million steps
  gmem sim --faults none                    only threads of control that get in each other's way
  gmem sim --canary                         plant known defects, and find every one";

const LITMUS_EXAMPLES: &str = "\
Examples:
  gmem litmus                              every test, 20 rounds each
  gmem litmus --test sb --test iriw --rounds 200 --devices 4
  gmem litmus --seed 7 --json | jq .counts
  gmem litmus --canary skips-copies        a driver that is broken on purpose: must be found";

/// One address space for the CPU and its accelerators, in user space, on an unmodified kernel.
#[derive(Parser, Debug)]
#[command(name = "gmem", version, after_help = TOP_EXAMPLES, arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a workload on a device and check its result
    #[command(after_help = RUN_EXAMPLES, subcommand_value_name = "WORKLOAD", subcommand_help_heading = "Workloads", disable_help_subcommand = true)]
    Run(RunArgs),
    /// Say what this machine can do, and what follows
    #[command(after_help = PROBE_EXAMPLES)]
    Probe(ProbeArgs),
    /// Measure what gmem costs beside the same work written by hand
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// Check that accelerators keep the rules of their contracts
    #[command(after_help = CONFORMANCE_EXAMPLES)]
    Conformance(ConformanceArgs),
    /// Run the core on a simulated machine, interleaved and made to fail by a seed
    #[command(after_help = SIM_EXAMPLES)]
    Sim(SimArgs),
    /// Try whether concurrent loads and stores of the CPU and its accelerators show an outcome that coherence forbids
    #[command(after_help = LITMUS_EXAMPLES)]
    Litmus(LitmusArgs),
    /// The other process of the hand-written floors of `gmem bench`.
    #[command(hide = true, name = crate::bench::OTHER_PROCESS)]
    BenchOther,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) workload: WorkloadArgs,
}

/// What every workload can be told.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Common {
    /// The accelerator
    #[arg(long, global = true, value_enum, value_name = "KIND", help_heading = "Device")]
    pub(crate) device: Option<DeviceKind>,
    /// How it takes part in the address space [default: share for integrated, otherwise exclusive]
    #[arg(long, global = true, value_enum, value_name = "MODE", help_heading = "Device")]
    pub(crate) mode: Option<ModeArg>,
    /// Its memory, such as 600MiB [default: chosen by the workload so that pages have to travel]
    #[arg(long, global = true, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse, help_heading = "Device")]
    pub(crate) device_memory: Option<u64>,
    /// Its number of cores [default: one per processor]
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = number::<1, 64>, help_heading = "Device")]
    pub(crate) cores: Option<u32>,
    /// Make a device that cannot replay faults: each launch names the memory it touches
    #[arg(long, global = true, help_heading = "Device")]
    pub(crate) no_replay: bool,
    /// The unit of residency and transfer: 4KiB, 64KiB or 2MiB [default: chosen by the workload]
    #[arg(long, global = true, value_name = "SIZE", allow_hyphen_values = true, value_parser = size::parse, help_heading = "Memory")]
    pub(crate) page_size: Option<u64>,
    /// Where the host keeps the bytes [default: shared]
    #[arg(long, global = true, value_enum, value_name = "KIND", help_heading = "Memory")]
    pub(crate) backing: Option<BackingArg>,
    /// Who resolves the CPU's faults [default: service]
    #[arg(long, global = true, value_enum, value_name = "KIND", help_heading = "Memory")]
    pub(crate) delivery: Option<DeliveryArg>,
    /// Print the result as one JSON object; if there is none, why, with the exit status
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum WorkloadArgs {
    /// Add two vectors of 64-bit integers into a third
    #[command(after_help = VECTOR_ADD_EXAMPLES)]
    VectorAdd(VectorAddArgs),
    /// CRC-32 of files that are read straight into unified memory
    #[command(after_help = CRC_EXAMPLES)]
    Crc(CrcArgs),
    /// Train a small network on handwritten digits
    #[command(after_help = BACKPROP_EXAMPLES)]
    Backprop(BackpropArgs),
}

/// The workloads by name, for messages.
pub(crate) const WORKLOADS: [&str; 3] = ["vector-add", "crc", "backprop"];

#[derive(Args, Debug)]
pub(crate) struct VectorAddArgs {
    /// Elements of each of the three vectors, such as 64k [default: 100Mi, which is 800 MiB]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = size::count)]
    pub(crate) elements: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct CrcArgs {
    /// Files, or directories to walk: links, pipes, sockets, devices and empty files inside them are passed over and counted
    #[arg(required = true, value_name = "FILE")]
    pub(crate) paths: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct BackpropArgs {
    /// Passes over the training samples
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, value_parser = number::<1, 10_000>)]
    pub(crate) epochs: u32,
    /// Seed of the split, of the first weights and of the order of the samples
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Do the same training on the CPU alone and compare every weight, bit for bit
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ProbeArgs {
    /// Print the result as one JSON object; if there is none, why, with the exit status
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConformanceArgs {
    /// The accelerator
    #[arg(long, value_name = "KIND", default_value = "all", value_parser = conformance_devices())]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) options: gmem_conformance::Options,
}

/// The accelerators that can be checked, or all of them.
fn conformance_devices() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(gmem_conformance::SHIPPED.into_iter().chain(["all"]))
}

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Print the rows as one JSON object; if there are none, why, with the exit status
    #[arg(long)]
    pub(crate) json: bool,
    /// Take fewer samples, of less data
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure only this row (may be given several times)
    #[arg(long, value_name = "ROW", value_parser = clap::builder::PossibleValuesParser::new(crate::bench::ROWS))]
    pub(crate) only: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SimArgs {
    /// What decides everything: the same seed does the same, bit for bit
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = seed)]
    pub(crate) seed: u64,
    /// Several seeds: from A to before B
    #[arg(long, value_name = "A..B", value_parser = seeds, conflicts_with = "seed")]
    pub(crate) seeds: Option<std::ops::Range<u64>>,
    /// Steps of each seed; a step is one decision about which thread of control goes on. What is under way then is finished
    #[arg(long, value_name = "M", default_value_t = 100_000, value_parser = steps)]
    pub(crate) steps: u64,
    /// What is made to fail
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub(crate) faults: FaultsArg,
    /// What address spaces, pages and devices there are
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    pub(crate) world: WorldArg,
    /// Plant known defects, one after the other, and find each: in eight seeds of so many steps, which is enough for the worlds that seeds draw. A single --world may need more
    /// --steps for one of them
    #[arg(long)]
    pub(crate) canary: bool,
    /// How many seeds, or canaries, to run at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = jobs)]
    pub(crate) jobs: usize,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads `A..B`.
fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let bounds = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match bounds {
        Some((from, to)) if from < to => Ok(from..to),
        Some(_) => Err("there is no seed in this range; A must be less than B".to_owned()),
        None => Err("seeds are two whole numbers below 2^64, such as 0..100".to_owned()),
    }
}

/// The end of a range of seeds is not in it, so there is a number behind each.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|seed| *seed < u64::MAX).ok_or_else(|| "a whole number below 2^64 - 1".to_owned())
}

/// A number from `LEAST` to `MOST`.
fn number<const LEAST: u32, const MOST: u32>(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
    number.ok_or_else(|| format!("a whole number from {LEAST} to {MOST}"))
}

fn steps(text: &str) -> Result<u64, String> {
    number::<1, 1_000_000_000>(text).map(u64::from)
}

fn devices(text: &str) -> Result<u8, String> {
    // Four at the most.
    number::<1, { gmem_conformance::litmus::DEVICES as u32 }>(text).map(|devices| devices as u8)
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=1024) => Ok(jobs),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum FaultsArg {
    /// Nothing: every refusal needs a reason
    None,
    /// Calls are refused and copies fail; devices go on
    Some,
    /// Devices do not answer, die, are taken out and put back besides
    #[default]
    All,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum WorldArg {
    /// Each seed draws one of the others
    #[default]
    Drawn,
    /// Pages of 4 KiB in shared backing
    Standard,
    /// Pages of 4 KiB, 64 KiB and 2 MiB in one address space, in both backings
    Sizes,
    /// Pages of 4 KiB in both backings
    Backed,
    /// Devices that take what is in their memory with them when they die
    Mortal,
}

#[derive(Args, Debug)]
pub(crate) struct LitmusArgs {
    /// Run only this test (may be given several times)
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(crate::litmus::names()))]
    pub(crate) test: Vec<String>,
    /// Rounds of each test, of up to 512 iterations, each with placements of its own
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, value_parser = number::<1, 1_000_000>)]
    pub(crate) rounds: u32,
    /// Devices beside the CPU, from 1 to 4 [default: drawn again and again]
    #[arg(long, value_name = "N", value_parser = devices)]
    pub(crate) devices: Option<u8>,
    /// Seed of the placements
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Give the devices a driver that is broken on purpose, and fail unless that is found
    #[arg(long, value_enum, value_name = "DEFECT")]
    pub(crate) canary: Option<gmem_conformance::litmus::Defect>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Say which tests there are, and run none
    #[arg(long)]
    pub(crate) list: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum DeviceKind {
    /// A process of its own with its own memory
    #[default]
    Discrete,
    /// Cores on the CPU's own page table
    Integrated,
    /// A process that manages its own addresses and memory
    Peer,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ModeArg {
    /// A page is on one side at a time, and moves to whoever touches it
    Exclusive,
    /// The device uses the CPU's page table
    Share,
    /// The device's table receives every mapping; data stays in host memory
    Replicate,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BackingArg {
    /// A shared memory object: fastest, and what devices can map
    Shared,
    /// Anonymous memory: safe for asynchronous I/O
    Private,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeliveryArg {
    /// A thread of gmem: system calls work on absent pages
    Service,
    /// The faulting thread itself: faster, but system calls on absent pages fail
    Inthread,
}
