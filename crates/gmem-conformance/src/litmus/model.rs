//! Which outcomes a memory model allows, found by trying every execution of a test.
//!
//! One machine serves every model. A participant's operations are *performed*, each once, in any order that keeps certain pairs in the order of the program; a store that is not
//! yet performed is seen by the participant's own later loads. Which pairs keep their order is the whole difference between the models:
//!
//! | model | pairs of one participant that keep their order |
//! |---|---|
//! | [`Model::Apart`] | all, and participants run one after another |
//! | [`Model::Interleaved`] | all: sequential consistency |
//! | [`Model::Tso`] | all but a store before a load: x86-64, whose stores wait in a buffer that a barrier or an atomic operation drains |
//! | [`Model::Weak`] | those on one place, those with a barrier between, what follows an acquire, and what precedes a release: aarch64, whose stores reach all others at once |
//!
//! gmem adds nothing to what the processor allows: a page that moves is taken from everyone before it is copied, so what is allowed within one page that all participants map is what is
//! allowed wherever the pages are. Where a translation is taken by an interrupt, as on most x86-64 processors, the interrupt drains the buffers of stores. Where it is taken by a broadcast
//! that interrupts nobody, TLBI on aarch64 or INVLPGB on AMD, the barrier that waits for the broadcast (DSB, TLBSYNC) ends only once every access that used the old translation is done.

use super::outcome::{Class, Outcome};
use super::program::{OPS, Op, PARTICIPANTS, Test};
use std::collections::HashSet;

/// A memory model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Model {
    /// One participant after another.
    Apart,
    /// Sequential consistency.
    Interleaved,
    /// Total store order.
    Tso,
    /// Multi-copy atomic, and otherwise unordered.
    Weak,
}

/// The model of the processor this was compiled for. One that is not known counts as weak.
pub(crate) const HARDWARE: Model = if cfg!(target_arch = "x86_64") { Model::Tso } else { Model::Weak };

/// Which outcomes of a test mean what.
#[derive(Debug)]
pub(crate) struct Verdicts {
    apart: HashSet<Outcome>,
    interleaved: HashSet<Outcome>,
    allowed: HashSet<Outcome>,
}

impl Verdicts {
    /// Of a test, on the processor at hand.
    pub(crate) fn of(test: &Test) -> Self {
        let outcomes = |model| outcomes(test, model);
        Self { apart: outcomes(Model::Apart), interleaved: outcomes(Model::Interleaved), allowed: outcomes(HARDWARE) }
    }

    pub(crate) fn class(&self, outcome: &Outcome) -> Class {
        if self.apart.contains(outcome) {
            Class::Sequential
        } else if self.interleaved.contains(outcome) {
            Class::Interleaved
        } else if self.allowed.contains(outcome) {
            Class::Weak
        } else {
            Class::Forbidden
        }
    }

    /// Every outcome that is not forbidden.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = &Outcome> {
        self.allowed.iter()
    }
}

/// How far an execution has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    /// The operations performed, a bit each.
    done: [u8; PARTICIPANTS],
    /// What was read and what the places hold.
    so_far: Outcome,
}

const _: () = assert!(OPS <= 8, "a bit for each operation");

/// Every outcome of `test` under `model`.
pub(crate) fn outcomes(test: &Test, model: Model) -> HashSet<Outcome> {
    let (mut ends, mut seen, mut ahead) = (HashSet::new(), HashSet::new(), vec![State::default()]);
    while let Some(state) = ahead.pop() {
        if !seen.insert(state) {
            continue;
        }
        let whole = |p: usize| (1u16 << test.programs[p].len()) as u8 - 1;
        let unfinished: Vec<usize> = (0..test.programs.len()).filter(|p| state.done[*p] != whole(*p)).collect();
        if unfinished.is_empty() {
            ends.insert(state.so_far);
        }
        // Apart from each other, one that has begun goes on alone.
        let begun = unfinished.iter().find(|p| model == Model::Apart && state.done[**p] != 0).copied();
        for participant in begun.map_or(unfinished, |one| vec![one]) {
            ahead.extend((0..test.programs[participant].len()).filter_map(|op| perform(test, model, &state, participant, op)));
        }
    }
    ends
}

/// The state after operation `index` of a participant, if it can be performed now.
fn perform(test: &Test, model: Model, state: &State, participant: usize, index: usize) -> Option<State> {
    let program = test.programs[participant];
    let done = |i: usize| state.done[participant] & 1 << i != 0;
    if done(index) || (0..index).any(|earlier| !done(earlier) && keeps_order(model, program[earlier], program[index])) {
        return None;
    }
    let mut next = *state;
    next.done[participant] |= 1 << index;
    let (op, kept) = (program[index], program[..index].iter().filter(|op| op.keeps()).count());
    let Some(place) = op.place() else { return Some(next) };
    let word = &mut next.so_far.places[usize::from(place)];
    let registers = &mut next.so_far.registers[participant];
    match op {
        Op::Load(_) | Op::LoadAcquire(_) => {
            // The latest store of its own that is still under way comes before what the place holds.
            let own = program[..index].iter().enumerate().rev().filter(|(i, _)| !done(*i)).find_map(|(_, op)| stored(*op, place));
            registers[kept] = own.unwrap_or(*word);
        }
        Op::Store(_, value) | Op::StoreRelease(_, value) => *word = value,
        Op::Unlock(_) => *word = 0,
        Op::StoreNext(_) => *word = registers[kept - 1] + 1,
        Op::Add(_) => {
            registers[kept] = *word;
            *word += 1;
        }
        Op::Lock(_) if *word != 0 => return None,
        Op::Lock(_) => *word = 1,
        Op::Fence => {}
    }
    Some(next)
}

/// The value that a store puts at `place`. That of [`Op::StoreNext`] is not in the operation: a test of the catalogue sees that no load of its place follows it.
fn stored(op: Op, place: u8) -> Option<u8> {
    match op {
        Op::Store(at, value) | Op::StoreRelease(at, value) if at == place => Some(value),
        Op::Unlock(at) if at == place => Some(0),
        _ => None,
    }
}

/// Whether the earlier of two operations of a participant is performed first.
fn keeps_order(model: Model, earlier: Op, later: Op) -> bool {
    let both = matches!((earlier, later), (Op::Fence, _) | (_, Op::Fence));
    let atomic = |op: Op| matches!(op, Op::Add(_) | Op::Lock(_));
    match model {
        Model::Apart | Model::Interleaved => true,
        Model::Tso => both || !(earlier.is_store() && later.is_load()),
        Model::Weak => {
            let acquires = matches!(earlier, Op::LoadAcquire(_)) || atomic(earlier);
            let releases = matches!(later, Op::StoreRelease(..) | Op::Unlock(_)) || atomic(later);
            // A load may take the value of an own store that is under way, which is how it keeps its order.
            let one_place = earlier.place() == later.place() && !(earlier.is_store() && later.is_load());
            both || acquires || releases || one_place
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::litmus::TESTS;

    /// What participants read, or, where nobody reads, what the places hold in the end.
    fn texts(name: &str, model: Model) -> Vec<String> {
        let test = TESTS.iter().find(|test| test.name == name).expect("a test of this name");
        let mut texts: Vec<_> = outcomes(test, model).iter().map(|outcome| outcome.text(test, false)).collect();
        texts.sort();
        texts
    }

    /// Tests, an outcome that is their question, and whether sequential consistency, x86-64 and aarch64 allow it, as the literature has it.
    const TEXTBOOK: &[(&str, &str, [bool; 3])] = &[
        ("sb", "0:0 1:0", [false, true, true]),
        ("sb+fences", "0:0 1:0", [false, false, false]),
        ("mp", "1:1,0", [false, false, true]),
        ("mp+rel+acq", "1:1,0", [false, false, false]),
        ("lb", "0:1 1:1", [false, false, true]),
        ("s", "1:1 x=2", [false, false, true]),
        ("r", "1:0 y=2", [false, true, true]),
        ("r+fences", "1:0 y=2", [false, false, false]),
        ("2+2w", "x=1 y=1", [false, false, true]),
        ("corr", "1:1,0", [false, false, false]),
        ("coww", "1:2,1", [false, false, false]),
        ("cowr", "0:2 x=1", [false, false, false]),
        ("corw", "0:2 x=2", [false, false, false]),
        ("corr2", "2:1,2 3:2,1 x=1", [false, false, false]),
        ("wrc", "1:1 2:1,0", [false, false, true]),
        ("wrc+rel+acq", "1:1 2:1,0", [false, false, false]),
        ("rwc", "1:1,0 2:0", [false, true, true]),
        ("isa2", "1:1 2:1,0", [false, false, false]),
        ("iriw", "2:1,0 3:1,0", [false, false, true]),
        ("iriw+acq", "2:1,0 3:1,0", [false, false, false]),
    ];

    #[test]
    fn the_models_agree_with_the_literature() {
        for (name, outcome, allowed) in TEXTBOOK {
            for (model, allowed) in [Model::Interleaved, Model::Tso, Model::Weak].into_iter().zip(allowed) {
                let all = texts(name, model);
                assert_eq!(all.iter().any(|text| text == outcome), *allowed, "{name} under {model:?}: {outcome} among {all:?}");
            }
        }
    }

    #[test]
    fn a_load_sees_the_own_unlock_before_it() {
        let test = Test { programs: &[&[Op::Lock(0), Op::Unlock(0), Op::Load(0)]], ..TESTS[0] };
        for model in [Model::Interleaved, Model::Tso, Model::Weak] {
            let read: HashSet<u8> = outcomes(&test, model).iter().map(|outcome| outcome.registers[0][0]).collect();
            assert_eq!(read, HashSet::from([0]), "{model:?}");
        }
    }

    #[test]
    fn no_program_loads_the_place_of_an_own_sum_before_it() {
        for test in TESTS {
            for program in test.programs {
                let sum = |op: &Op| matches!(op, Op::StoreNext(_));
                let loaded = |i: usize| program[i].is_load() && program[..i].iter().any(|op| sum(op) && op.place() == program[i].place());
                assert!(!(0..program.len()).any(loaded), "{}: the model does not know what this load sees", test.name);
            }
        }
    }

    #[test]
    fn a_weaker_model_allows_what_a_stronger_one_does() {
        for test in TESTS {
            let sets = [Model::Apart, Model::Interleaved, Model::Tso, Model::Weak].map(|model| outcomes(test, model));
            assert!(!sets[0].is_empty() && sets.windows(2).all(|pair| pair[0].is_subset(&pair[1])), "{}", test.name);
        }
    }

    #[test]
    fn additions_and_locked_sections_count_up_under_every_model() {
        for model in [Model::Apart, Model::Interleaved, Model::Tso, Model::Weak] {
            for (name, sum) in [("add", "x=3 y=2"), ("counter", "x=3"), ("lock", "x=0 y=3")] {
                assert!(texts(name, model).iter().all(|text| text.ends_with(sum)), "{name} under {model:?}");
            }
        }
    }
}
