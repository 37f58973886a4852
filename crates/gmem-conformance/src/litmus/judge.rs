//! Counts what was seen in a round.

use super::block::Block;
use super::model::Verdicts;
use super::outcome::{Class, FOREIGN, Outcome};
use super::program::{PLACES, REGISTERS, Repetition, Test};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// What a round has shown.
#[derive(Default, Debug)]
pub(crate) struct Judgement {
    /// How often each outcome was seen.
    pub(crate) counts: BTreeMap<(Class, String), u64>,
    /// The first outcome that is forbidden, and the iteration.
    pub(crate) forbidden: Option<String>,
}

impl Judgement {
    fn count(&mut self, class: Class, text: String, iteration: usize) {
        if class == Class::Forbidden && self.forbidden.is_none() {
            self.forbidden = Some(format!("{text} in iteration {iteration}"));
        }
        *self.counts.entry((class, text)).or_default() += 1;
    }
}

/// Judges the round that is in the block.
pub(crate) fn judge(block: &Block, test: &Test, verdicts: &Verdicts) -> Judgement {
    let mut judgement = Judgement::default();
    match test.repetition {
        Repetition::Afresh => (0..block.iterations()).for_each(|i| {
            let outcome = outcome(block, test, i);
            let class = verdicts.class(&outcome);
            judgement.count(class, outcome.text(test, class == Class::Forbidden), i);
        }),
        Repetition::Counting => count_up(block, test, &mut judgement),
    }
    judgement
}

/// The outcome of an iteration.
fn outcome(block: &Block, test: &Test, i: usize) -> Outcome {
    let mut outcome = Outcome::default();
    for participant in 0..test.programs.len() {
        // A register belongs to the place of the operation that filled it.
        let kept = test.programs[participant].iter().filter(|op| op.keeps()).filter_map(|op| op.place());
        for (register, place) in kept.enumerate().take(REGISTERS) {
            let word = block.registers[participant][i][register].load(Ordering::Relaxed);
            outcome.registers[participant][register] = value(word, block.tag(i, place.into()));
        }
    }
    for place in 0..test.places().min(PLACES) {
        outcome.places[place] = value(block.ends[i][place].load(Ordering::Relaxed), block.tag(i, place));
    }
    outcome
}

/// The value in a word that carries this tag.
fn value(word: u64, tag: u64) -> u8 {
    if word ^ tag < u64::from(FOREIGN) { (word ^ tag) as u8 } else { FOREIGN }
}

/// Judges a count: the numbers kept by all participants are 0, 1, 2 ... with none twice, and the sum follows. An iteration is forbidden if a number that one of them kept in it is.
fn count_up(block: &Block, test: &Test, judgement: &mut Judgement) {
    let (iterations, participants) = (block.iterations(), test.programs.len());
    let place = test.places() - 1;
    let tag = block.tag(0, place);
    let mut kept: Vec<(u64, usize, usize)> = Vec::with_capacity(iterations * participants);
    for participant in 0..participants {
        for i in 0..iterations {
            kept.push((block.registers[participant][i][0].load(Ordering::Relaxed) ^ tag, participant, i));
        }
    }
    kept.sort_unstable();
    let total = kept.len() as u64;
    let mut seen = vec![(Class::Counted, "each after its own last one"); iterations];
    let mut before = None;
    for (number, participant, i) in kept {
        let now = match before {
            _ if number >= total => (Class::Forbidden, "a number that nobody stored"),
            Some((last, _)) if last == number => (Class::Forbidden, "the same number again: an addition was lost"),
            Some((_, other)) if other != participant => (Class::Counted, "one after another's"),
            _ => seen[i],
        };
        before = Some((number, participant));
        if seen[i].0 != Class::Forbidden {
            seen[i] = now;
        }
    }
    seen.iter().enumerate().for_each(|(i, (class, text))| judgement.count(*class, (*text).to_owned(), i));
    let sum = block.ends[0][place].load(Ordering::Relaxed) ^ tag;
    if sum != total {
        let sum = if sum < total { sum.to_string() } else { "foreign".to_owned() };
        judgement.count(Class::Forbidden, format!("the sum is not {total} but {sum}"), iterations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::litmus::TESTS;
    use std::sync::atomic::AtomicU64;

    fn test(name: &str) -> &'static Test {
        TESTS.iter().find(|test| test.name == name).expect("a test of this name")
    }

    fn block(test: &Test, iterations: u32) -> Block {
        let block = Block::new().unwrap();
        block.iterations.store(iterations, Ordering::Relaxed);
        block.tag.store(77, Ordering::Relaxed);
        block.tag_step.store(if test.repetition == Repetition::Counting { 0 } else { PLACES as u32 }, Ordering::Relaxed);
        block
    }

    fn seen(judgement: &Judgement) -> Vec<(Class, &str, u64)> {
        judgement.counts.iter().map(|((class, text), n)| (*class, text.as_str(), *n)).collect()
    }

    #[test]
    fn words_of_their_iteration_are_judged_and_others_are_foreign() {
        let mp = test("mp+rel+acq");
        let block = block(mp, 3);
        let put = |at: &AtomicU64, i: usize, place: usize, value: u64| at.store(block.tag(i, place) | value, Ordering::Relaxed);
        // Iteration 0 missed the message, 1 has the flag without the message, 2 reads the word of iteration 1.
        for (i, [flag, message]) in [[0, 1], [1, 0], [1, 1]].into_iter().enumerate() {
            put(&block.registers[1][i][0], i, 1, flag);
            put(&block.registers[1][i][1], i.min(1), 0, message);
            (0..2).for_each(|place| put(&block.ends[i][place], i, place, 1));
        }
        let judgement = judge(&block, mp, &Verdicts::of(mp));
        let expected = [(Class::Interleaved, "1:0,1", 1), (Class::Forbidden, "1:1,0 x=1 y=1", 1), (Class::Forbidden, "1:1,? x=1 y=1", 1)];
        assert_eq!(seen(&judgement), expected);
        assert_eq!(judgement.forbidden.as_deref(), Some("1:1,0 x=1 y=1 in iteration 1"));
    }

    #[test]
    fn a_store_that_is_lost_in_the_end_is_forbidden() {
        let sb = test("sb");
        let block = block(sb, 1);
        block.registers[0][0][0].store(block.tag(0, 1) | 1, Ordering::Relaxed);
        block.registers[1][0][0].store(block.tag(0, 0) | 1, Ordering::Relaxed);
        block.ends[0][0].store(block.tag(0, 0) | 1, Ordering::Relaxed);
        block.ends[0][1].store(block.tag(0, 1), Ordering::Relaxed);
        assert_eq!(seen(&judge(&block, sb, &Verdicts::of(sb))), [(Class::Forbidden, "0:1 1:1 x=1 y=0", 1)]);
    }

    #[test]
    fn a_number_kept_twice_is_a_lost_addition() {
        let counter = test("counter");
        let block = block(counter, 2);
        for (participant, numbers) in [[0, 2], [1, 3], [1, 4]].into_iter().enumerate() {
            for (i, number) in numbers.into_iter().enumerate() {
                block.registers[participant][i][0].store(block.tag(0, 0) | number, Ordering::Relaxed);
            }
        }
        block.ends[0][0].store(block.tag(0, 0) | 5, Ordering::Relaxed);
        let judgement = judge(&block, counter, &Verdicts::of(counter));
        let expected = [
            (Class::Counted, "one after another's", 1),
            (Class::Forbidden, "the same number again: an addition was lost", 1),
            (Class::Forbidden, "the sum is not 6 but 5", 1),
        ];
        assert_eq!(seen(&judgement), expected);
    }
}
