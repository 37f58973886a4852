//! Which acts were under way at the same time.

use super::act::{Act, KINDS};

const N: usize = KINDS.len();

/// How often acts of two kinds that are about the same pages or the same device were under way at once, and each went on while the other was.
pub(super) struct Pairs {
    met: [[u64; N]; N],
    /// Which acts of others each thread of control's act has made a step during, by the numbers of both.
    during: Vec<Vec<(u64, u64)>>,
    /// What each thread of control is at, and the number of that act, from 1.
    at: Vec<Option<(Act, u64)>>,
    begun: u64,
}

impl Pairs {
    /// For so many threads of control.
    pub(super) fn new(threads: usize) -> Self {
        Self { met: [[0; N]; N], during: vec![vec![(0, 0); threads]; threads], at: vec![None; threads], begun: 0 }
    }

    /// A thread of control begins an act.
    pub(super) fn begin(&mut self, me: usize, act: Act) {
        self.begun += 1;
        self.at[me] = Some((act, self.begun));
    }

    /// A thread of control made a step: it meets those who made one during the act that it is in the middle of, and in the middle of theirs.
    pub(super) fn step(&mut self, me: usize) {
        let Some((act, number)) = self.at[me] else { return };
        let Some(kind) = act.kind() else { return };
        for other in (0..self.at.len()).filter(|other| *other != me) {
            let Some((with, its)) = self.at[other] else { continue };
            if std::mem::replace(&mut self.during[me][other], (number, its)) == (number, its) {
                continue;
            }
            if self.during[other][me] == (its, number)
                && let Some(other_kind) = with.kind().filter(|_| act.meets(&with))
            {
                self.met[kind.min(other_kind)][kind.max(other_kind)] += 1;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use gmem_sim::random::{Op, PageRun};

    #[test]
    fn two_acts_meet_once_if_each_goes_on_during_the_other_at_the_same_pages() {
        let act = |first| Act::Do(Op::Discard(PageRun { space: 0, first, count: 2 }));
        let met = |first: u64, steps: &[usize]| {
            let mut pairs = Pairs::new(2);
            pairs.begin(0, act(4));
            pairs.begin(1, act(first));
            steps.iter().for_each(|me| pairs.step(*me));
            pairs.met().map(|(.., n)| n).sum::<u64>()
        };
        assert_eq!(met(5, &[0, 1, 0, 1, 1]), 1);
        assert_eq!(met(5, &[0, 0, 0]), 0, "the second never went on");
        assert_eq!(met(6, &[0, 1, 0]), 0, "they are about other pages");
    }
}
