//! What a run can be told, the same for the command and for a driver's own test.

use crate::target::mode_name;
use clap::{Args, ValueEnum};
use gmem::{Mode, PageSize};

/// Which checks to run, and how to say what came of them.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Only checks whose name contains this (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub filter: Vec<String>,
    /// Only this mode (may be given several times)
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Vec<ModeName>,
    /// Only this page size (may be given several times)
    #[arg(long, value_enum, value_name = "SIZE")]
    pub page_size: Vec<SizeName>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Say which checks there are and what they enforce, and run none
    #[arg(long)]
    pub list: bool,
    /// Run all checks, however many were not done in time
    #[arg(long)]
    pub keep_going: bool,
    /// Seconds that one check may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub time_limit: u64,
}

/// A mode on the command line.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeName {
    /// A page is on one side at a time, and moves to whoever touches it
    Exclusive,
    /// The device uses the CPU's page table
    Share,
    /// The device's table receives every mapping; data stays in host memory
    Replicate,
}

/// A page size on the command line.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeName {
    /// 4 KiB
    #[value(name = "4k", alias = "4KiB")]
    Small,
    /// 64 KiB
    #[value(name = "64k", alias = "64KiB")]
    Medium,
    /// 2 MiB
    #[value(name = "2m", alias = "2MiB")]
    Large,
}

impl Options {
    pub(crate) fn wants_check(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|text| name.contains(text.as_str()))
    }

    pub(crate) fn wants_mode(&self, mode: Mode) -> bool {
        let named = |wanted: &ModeName| wanted.to_possible_value().is_some_and(|v| v.get_name() == mode_name(mode));
        self.mode.is_empty() || self.mode.iter().any(named)
    }

    pub(crate) fn wants_size(&self, size: PageSize) -> bool {
        let same = |wanted: &SizeName| match wanted {
            SizeName::Small => size == PageSize::Size4K,
            SizeName::Medium => size == PageSize::Size64K,
            SizeName::Large => size == PageSize::Size2M,
        };
        self.page_size.is_empty() || self.page_size.iter().any(same)
    }
}
