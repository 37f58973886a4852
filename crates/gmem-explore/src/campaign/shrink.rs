//! Making a failure short: fewer threads of control, fewer acts, fewer switches between them.
//!
//! A shorter list of acts makes other calls at other steps, so the schedule under which the longer one failed may mean nothing for it. It is tried first, as far as it
//! can be followed; then a few others, drawn from seeds. What fails is taken with the schedule under which it did, if it fails as the first did: one that fails
//! in another way is another finding, and must not be told in its place.

use super::{Campaign, Case, Ended, Failure};

/// How many schedules are drawn for a case: more for short ones, which are run faster and depend more on it.
const DRAWN: [(usize, u64); 3] = [(16, 24), (128, 8), (usize::MAX, 3)];

/// A failure, as short as it could be made.
pub struct Short {
    /// What to do again.
    pub case: Case,
    /// What goes wrong then.
    pub failure: Failure,
}

/// Makes a failed run short, in at most about `steps` steps of runs; with fewer, it ends up longer.
///
/// None if it does not fail when it is done again, which is a defect of the simulation.
pub fn shrink(campaign: &Campaign, case: Case, steps: u64) -> Option<Short> {
    let mut shrinking = Shrinking { campaign, left: steps, best: None, class: None };
    if !shrinking.replay(&case) {
        return None;
    }
    shrinking.drop_threads();
    shrinking.drop_acts();
    shrinking.drop_switches();
    // Fewer switches may have made more acts needless.
    shrinking.drop_acts();
    shrinking.drop_switches();
    shrinking.best
}

struct Shrinking<'a> {
    campaign: &'a Campaign,
    left: u64,
    best: Option<Short>,
    /// How the first run failed.
    class: Option<String>,
}

impl Shrinking<'_> {
    fn case(&self) -> Case {
        self.best.as_ref().map(|short| short.case.clone()).unwrap_or_default()
    }

    /// Whether a run failed as the first one did; then it is the best so far, with what was begun and who went on until it did.
    fn take(&mut self, ended: Ended) -> bool {
        self.left = self.left.saturating_sub(ended.steps.max(1000));
        let Some(failure) = ended.failure.filter(|failure| self.is_the_same(failure)) else { return false };
        self.class.get_or_insert_with(|| class(&failure.why));
        self.best = Some(Short { case: ended.case, failure });
        true
    }

    fn is_the_same(&self, failure: &Failure) -> bool {
        self.class.as_ref().is_none_or(|first| *first == class(&failure.why))
    }

    fn replay(&mut self, case: &Case) -> bool {
        let ended = self.campaign.replay(case);
        self.take(ended)
    }

    /// Whether a case fails under its own schedule or one of a few others.
    fn fails(&mut self, case: &Case) -> bool {
        if self.replay(case) {
            return true;
        }
        let acts: usize = case.acts.iter().map(Vec::len).sum();
        let drawn = DRAWN.iter().find(|(most, _)| acts <= *most).map_or(0, |(_, drawn)| *drawn);
        (0..drawn).any(|seed| {
            if self.left == 0 {
                return false;
            }
            let ended = self.campaign.reschedule(case, seed);
            self.take(ended)
        })
    }

    fn drop_threads(&mut self) {
        for me in 0..self.case().acts.len() {
            let mut case = self.case();
            if self.left > 0 && !case.acts[me].is_empty() {
                case.acts[me].clear();
                self.fails(&case);
            }
        }
    }

    /// Leaves parts of the lists out, from halves down to single acts, until none can go.
    fn drop_acts(&mut self) {
        let mut chunk = self.case().acts.iter().map(Vec::len).max().unwrap_or(0).next_power_of_two();
        while chunk > 0 && self.left > 0 {
            let mut dropped = false;
            for me in 0..self.case().acts.len() {
                // From the end: what comes last is what failed, and what comes before may only have led there.
                let mut end = self.case().acts[me].len();
                while end > 0 && self.left > 0 {
                    let mut case = self.case();
                    end = end.min(case.acts[me].len());
                    let from = end.saturating_sub(chunk);
                    case.acts[me].drain(from..end);
                    dropped |= self.fails(&case);
                    end = from;
                }
            }
            if chunk > 1 || !dropped {
                chunk /= 2;
            }
        }
    }

    /// Leaves turns of threads of control out of the schedule, so that they are joined with others.
    fn drop_switches(&mut self) {
        let mut chunk = turns(&self.case().schedule).len().next_power_of_two() / 2;
        while chunk > 0 && self.left > 0 {
            let mut at = 0;
            loop {
                let case = self.case();
                let all = turns(&case.schedule);
                if at >= all.len() || self.left == 0 {
                    break;
                }
                let shorter: Vec<_> = all[..at].iter().chain(&all[(at + chunk).min(all.len())..]).copied().collect();
                let shorter = Case { schedule: schedule(&shorter), ..case };
                let ended = self.campaign.replay(&shorter);
                // Others may have to make the turns that were left out, so that in the end there are as many.
                let fewer = ended.failure.as_ref().is_some_and(|failure| self.is_the_same(failure))
                    && turns(&ended.case.schedule).len() < all.len();
                self.left = self.left.saturating_sub(ended.steps.max(1000));
                if fewer {
                    self.take(ended);
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
    }
}

/// What a failure says without what differs from run to run: who did what, numbers, and what stands in brackets.
fn class(why: &str) -> String {
    let why = why.lines().next().unwrap_or_default();
    let why = why.split_once(" of thread ").and_then(|(_, rest)| rest.split_once(": ")).map_or(why, |(_, what)| what);
    let mut depth = 0;
    let outside = |c: &char| {
        depth += i32::from(matches!(c, '(' | '[' | '{'));
        let outside = depth == 0;
        depth -= i32::from(matches!(c, ')' | ']' | '}'));
        outside
    };
    let words: String = why.chars().filter(outside).collect();
    let word = |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { "#".to_owned() } else { word.to_owned() };
    words.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// A schedule as turns: who, for how many steps.
pub fn turns(schedule: &[u8]) -> Vec<(u8, usize)> {
    let mut turns: Vec<(u8, usize)> = Vec::new();
    for who in schedule {
        match turns.last_mut() {
            Some((last, steps)) if last == who => *steps += 1,
            _ => turns.push((*who, 1)),
        }
    }
    turns
}

/// The schedule of these turns.
pub fn schedule(turns: &[(u8, usize)]) -> Vec<u8> {
    turns.iter().flat_map(|(who, steps)| std::iter::repeat_n(*who, *steps)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_differ_by_what_they_say_and_not_by_where() {
        let lost =
            "page 5 of space 0 (0x1000005000): byte 0x386 in hnode0:0x1005000 is 0x00, but must be 0x4c (Some(PageSight { busy: false }))";
        let also = "page 71 of space 1 (0x2000047000): byte 0x0 in hnode3:0x7000 is 0xee, but must be 0x01 (None)";
        let load = "Do(CpuRead(Spot { space: 0, page: 5 })) of thread 7: it was refused (Failed), but nothing stood in its way";
        let store = "Do(DevWrite(2, Spot { space: 1, page: 9 }, 3)) of thread 1: it was refused (NoRoom), but nothing stood in its way";
        assert_eq!(class(lost), class(also));
        assert_eq!(class(load), class(store));
        assert_ne!(class(lost), class(load));
        assert_eq!(class(load), "it was refused , but nothing stood in its way");
    }

    /// Of a case that fails in another way, nothing is taken.
    #[test]
    fn another_failure_is_not_taken_for_the_first() {
        let campaign = Campaign::new(1);
        let failure = |why: &str| Some(Failure { why: why.to_owned(), controls: String::new(), tail: Vec::new() });
        let ended = |why: &str| Ended { failure: failure(why), ..campaign.replay(&Case::default()) };
        let mut shrinking = Shrinking { campaign: &campaign, left: u64::MAX, best: None, class: None };
        assert!(shrinking.take(ended("byte 0x3 is wrong")));
        assert!(!shrinking.take(ended("deadlock: every thread of control waits")));
        assert!(shrinking.take(ended("byte 0x7 is wrong")));
    }
}
