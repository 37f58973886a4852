//! The outcome of one iteration: what each participant read, and what the places held in the end.

use super::program::{PARTICIPANTS, PLACES, REGISTERS, Test};
use serde::Serialize;
use std::fmt::Write;

/// Stands for a word that nobody stored in this iteration.
pub(crate) const FOREIGN: u8 = u8::MAX;

/// The values read, by participant, and the last values, by place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) registers: [[u8; REGISTERS]; PARTICIPANTS],
    pub(crate) places: [u8; PLACES],
}

/// What an outcome says of those who took part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A count went on by one for each, as it must; whether they ran at the same time it does not say.
    Counted,
    /// They may have run one after another.
    Sequential,
    /// Their operations were interleaved: they ran at the same time.
    Interleaved,
    /// No interleaving explains it, but the processor allows it: they ran at the same time, each with accesses of its own under way.
    Weak,
    /// The processor does not allow it: coherence is broken.
    Forbidden,
}

impl Class {
    /// All, in the order of reports.
    pub const ALL: [Self; 5] = [Self::Counted, Self::Sequential, Self::Interleaved, Self::Weak, Self::Forbidden];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Sequential => "sequential",
            Self::Interleaved => "interleaved",
            Self::Weak => "weak",
            Self::Forbidden => "forbidden",
        }
    }
}

impl Outcome {
    /// As `0:1 1:0`, the values that participants 0 and 1 read, followed by the last values of the places that several wrote, and of all if one is strange.
    pub(crate) fn text(&self, test: &Test, all_places: bool) -> String {
        let value = |v: u8| if v == FOREIGN { "?".to_owned() } else { v.to_string() };
        let mut text = String::new();
        for participant in 0..test.programs.len() {
            let kept = &self.registers[participant][..test.kept(participant)];
            if !kept.is_empty() {
                let kept: Vec<_> = kept.iter().map(|v| value(*v)).collect();
                let _ = write!(text, "{participant}:{} ", kept.join(","));
            }
        }
        for place in (0..test.places()).filter(|place| all_places || test.is_contended(*place)) {
            let _ = write!(text, "{}={} ", ["x", "y", "z"][place], value(self.places[place]));
        }
        text.trim_end().to_owned()
    }
}
