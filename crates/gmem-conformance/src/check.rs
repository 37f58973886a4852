//! A check: a rule, where the rule is written, where it has a meaning, and the function that tries it.

use crate::case::Case;
use crate::report::UNEXPECTED;
use crate::target::{Target, mode_name, mode_names};
use gmem::Mode;
use gmem::hal::{Capabilities, Modes};
use std::fmt;

/// One rule and how it is tried.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name: words joined by hyphens, unique.
    pub name: &'static str,
    /// The rule, one sentence.
    pub rule: &'static str,
    /// Where the rule is written: a document of the repository and its heading, or an item of a crate, as in ``gmem-hal `Mmu::pmap_enter` ``.
    pub place: &'static str,
    /// Where the rule has a meaning.
    pub applies: Applies,
    /// Tries it. A panic is a failure too, with the panic's message.
    pub run: fn(&Case<'_>) -> Outcome,
}

/// How a check ends.
pub type Outcome = Result<(), Stop>;

/// Why a check ended other than by passing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The rule was broken: what was seen, and what was expected.
    Failed(String),
    /// The rule turned out to have no meaning here, and why.
    NotApplicable(String),
}

impl<E: std::error::Error> From<E> for Stop {
    /// An error that the check did not expect.
    fn from(error: E) -> Self {
        Self::Failed(format!("{UNEXPECTED}{error}"))
    }
}

/// Ends a check as failed unless the condition holds: `ensure!(seen == expected, "the CPU reads {seen}, not {expected}")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::Stop::Failed(format!($($words)+)));
        }
    };
}

/// Ends a check as failed unless two values are equal: `ensure_eq!(what, seen, expected)`, where `what` names what was looked at.
#[macro_export]
macro_rules! ensure_eq {
    ($what:expr, $seen:expr, $expected:expr $(,)?) => {
        match (&$seen, &$expected) {
            (seen, expected) => $crate::ensure!(seen == expected, "{}: seen {seen:?}, expected {expected:?}", $what),
        }
    };
}

/// Where a check has a meaning.
#[derive(Clone, Copy, Debug)]
pub struct Applies {
    modes: Modes,
    capabilities: Capabilities,
    without: Capabilities,
    every_size: bool,
    never: Option<&'static str>,
}

impl Applies {
    /// Everywhere, once for each page size.
    pub const EVERYWHERE: Self =
        Self { modes: Modes::all(), capabilities: Capabilities::empty(), without: Capabilities::empty(), every_size: true, never: None };

    /// Where pages have frames in the device's own memory: in COHERENT_EXCLUSIVE mode.
    pub const EXCLUSIVE: Self = Self::EVERYWHERE.modes(Modes::COHERENT_EXCLUSIVE);

    /// Where the device has a page table of its own.
    pub const OWN_TABLE: Self = Self::EVERYWHERE.modes(Modes::COHERENT_EXCLUSIVE.union(Modes::REPLICATE));

    /// Nowhere, and why.
    pub const fn never(reason: &'static str) -> Self {
        Self { never: Some(reason), ..Self::EVERYWHERE }.once()
    }

    /// Only in these modes.
    pub const fn modes(self, modes: Modes) -> Self {
        Self { modes, ..self }
    }

    /// Only on devices with all of these capabilities.
    pub const fn needs(self, capabilities: Capabilities) -> Self {
        Self { capabilities, ..self }
    }

    /// Only on devices with none of these capabilities.
    pub const fn without(self, without: Capabilities) -> Self {
        Self { without, ..self }
    }

    /// The page size makes no difference: once, with the device's smallest.
    pub const fn once(self) -> Self {
        Self { every_size: false, ..self }
    }

    /// Whether it has a meaning for no device at all.
    #[cfg(test)]
    pub(crate) fn is_nowhere(&self) -> bool {
        self.never.is_some()
    }

    pub(crate) fn every_size(&self) -> bool {
        self.every_size
    }

    /// Why the check has no meaning for this device in this mode, if so.
    pub(crate) fn reason_not_to(&self, target: &Target, mode: Mode) -> Option<String> {
        let has = target.info().capabilities;
        if let Some(reason) = self.never {
            return Some(reason.to_owned());
        }
        if !self.modes.contains(mode.as_set()) {
            return Some(format!("it is about the modes {}, not {}", mode_names(self.modes), mode_name(mode)));
        }
        if !has.contains(self.capabilities) {
            return Some(format!("it needs a device that is {}", names(self.capabilities - has)));
        }
        if has.intersects(self.without) {
            return Some(format!("it needs a device that is not {}", names(self.without & has)));
        }
        None
    }
}

fn names(capabilities: Capabilities) -> String {
    let names: Vec<_> = capabilities.iter_names().map(|(name, _)| name).collect();
    names.join(" and ")
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).field("rule", &self.rule).field("place", &self.place).finish_non_exhaustive()
    }
}
