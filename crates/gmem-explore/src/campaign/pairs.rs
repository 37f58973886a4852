//! Which acts were under way at the same time.

use super::act::{Act, KINDS};

const N: usize = KINDS.len();

/// How often acts of two kinds, about the same address space or device, were under way at once.
pub(super) struct Pairs {
    met: [[u64; N]; N],
    /// What each thread of control is at, and the number of that act, from 1.
    at: Vec<Option<(Act, u64)>>,
    begun: u64,
}

impl Pairs {
    /// For so many threads of control.
    pub(super) fn new(threads: usize) -> Self {
        Self { met: [[0; N]; N], at: vec![None; threads], begun: 0 }
    }

    /// A thread of control begins an act: it meets what the others are in the middle of.
    pub(super) fn begin(&mut self, me: usize, act: Act) {
        self.begun += 1;
        if let Some(kind) = act.kind() {
            for (other, _) in self.at.iter().enumerate().filter(|(n, _)| *n != me).filter_map(|(_, at)| *at) {
                if let Some(other_kind) = other.kind().filter(|_| act.meets(&other)) {
                    self.met[kind.min(other_kind)][kind.max(other_kind)] += 1;
                }
            }
        }
        self.at[me] = Some((act, self.begun));
    }

    /// It has ended.
    pub(super) fn end(&mut self, me: usize) {
        self.at[me] = None;
    }

    /// The numbers of the acts that are under way, by thread of control.
    pub(super) fn acts(&self, into: &mut Vec<Option<u64>>) {
        into.clear();
        into.extend(self.at.iter().map(|at| at.map(|(_, number)| number)));
    }

    /// How many acts were begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Every pair of kinds, the first no later in the list than the second, and how often they met.
    pub(super) fn met(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        (0..N).flat_map(move |a| (a..N).map(move |b| (a, b, self.met[a][b])))
    }
}
