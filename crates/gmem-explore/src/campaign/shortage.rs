//! Memory that stays short for long. A shortage ends when its time is over and every act that was under way then has ended in it: one that can only end when
//! there is memory again keeps it going until the run is stopped as one without progress.

use super::ledger::Step;

/// A shortage under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shortage {
    until: Step,
    /// The acts that were under way when its time was over, as far as they have not ended.
    left: Option<Vec<u64>>,
}

impl Shortage {
    /// One that lasts until `until`, or a little longer.
    pub(super) fn new(until: Step) -> Self {
        Self { until, left: None }
    }

    /// Whether it is over `now`, when these acts are under way.
    pub(super) fn is_over(&mut self, now: Step, acts: &[Option<u64>]) -> bool {
        if now < self.until {
            return false;
        }
        let left = self.left.get_or_insert_with(|| acts.iter().copied().flatten().collect());
        left.retain(|act| acts.contains(&Some(*act)));
        left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_outlasts_the_acts_that_were_under_way_at_its_end() {
        let mut shortage = Shortage::new(10);
        assert!(!shortage.is_over(9, &[]), "its time is not over");
        assert!(!shortage.is_over(10, &[Some(3), None, Some(4)]));
        assert!(!shortage.is_over(11, &[Some(5), Some(6), Some(4)]), "4 has not ended");
        assert!(shortage.is_over(12, &[Some(5), Some(6), Some(7)]), "what began later does not count");
    }
}
