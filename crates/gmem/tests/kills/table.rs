//! What a campaign did, for a person to read at its end.

use super::arena::KINDS;
use std::fmt;

/// What the device was at when it was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// A launch over pages that are all on the device.
    Launch,
    /// A launch whose pages are on their way to it, and are taken back by others.
    Migration,
    /// A launch over more than fits, so that every fault evicts.
    Eviction,
    /// A prefetch.
    Prefetch,
    /// A detach, which brings everything home.
    Detach,
}

impl Phase {
    pub(crate) const ALL: [Phase; 5] = [Phase::Launch, Phase::Migration, Phase::Eviction, Phase::Prefetch, Phase::Detach];
}

/// Counts of a campaign.
#[derive(Default)]
pub(crate) struct Table {
    kills: [[u64; Phase::ALL.len()]; KINDS.len()],
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    /// Words of the launches that were cut off: as before, and as the launch wrote them.
    pub(crate) old: u64,
    pub(crate) new: u64,
}

impl Table {
    pub(crate) fn kill(&mut self, kind: usize, phase: Phase) {
        self.kills[kind][phase as usize] += 1;
    }

    pub(crate) fn all(&self) -> u64 {
        self.kills.iter().flatten().sum()
    }

    pub(crate) fn of(&self, phase: Phase) -> u64 {
        self.kills.iter().map(|row| row[phase as usize]).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28}{:>10}{:>10}{:>10}{:>10}{:>10}", "kills during", "launch", "migration", "eviction", "prefetch", "detach")?;
        for (kind, row) in KINDS.iter().zip(&self.kills) {
            write!(f, "{:<28}", kind.to_string())?;
            row.iter().try_for_each(|n| write!(f, "{n:>10}"))?;
            writeln!(f)?;
        }
        write!(f, "{:<28}", "all")?;
        Phase::ALL.iter().try_for_each(|phase| write!(f, "{:>10}", self.of(*phase)))?;
        writeln!(f, "\nkills {}, errors received {}, bytes checked {}, wrong 0, leaks 0", self.all(), self.errors, self.bytes)?;
        write!(f, "words of launches that were cut off: {} old, {} new, neither 0", self.old, self.new)
    }
}
