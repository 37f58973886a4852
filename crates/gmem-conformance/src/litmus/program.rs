//! What the participants of a litmus test do: a few operations each, over a few places.

/// The most participants of a test.
pub(crate) const PARTICIPANTS: usize = 4;
/// The most places of a test.
pub(crate) const PLACES: usize = 3;
/// The most operations of a participant.
pub(crate) const OPS: usize = 6;
/// The most operations of a participant that read.
pub(crate) const REGISTERS: usize = 3;

/// A 64-bit word of unified memory that a test is about, by number: a different word in every iteration.
pub(crate) type Place = u8;

/// One operation. What reads keeps the value it read, in the order of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A plain load.
    Load(Place),
    /// A load that acquires.
    LoadAcquire(Place),
    /// A plain store.
    Store(Place, u8),
    /// A store that releases.
    StoreRelease(Place, u8),
    /// A full barrier.
    Fence,
    /// An atomic addition of one, which keeps the value before.
    Add(Place),
    /// Takes a lock: an atomic compare and exchange of 0 for 1, again until it succeeds.
    Lock(Place),
    /// Lets a lock go, by a store of 0 that releases.
    Unlock(Place),
    /// A plain store of one more than what was read last.
    StoreNext(Place),
}

impl Op {
    /// The place it touches.
    pub(crate) fn place(self) -> Option<Place> {
        match self {
            Self::Fence => None,
            Self::Load(p) | Self::LoadAcquire(p) | Self::Add(p) | Self::Lock(p) | Self::Unlock(p) | Self::StoreNext(p) => Some(p),
            Self::Store(p, _) | Self::StoreRelease(p, _) => Some(p),
        }
    }

    /// Whether the value it read is kept.
    pub(crate) fn keeps(self) -> bool {
        matches!(self, Self::Load(_) | Self::LoadAcquire(_) | Self::Add(_))
    }

    /// Whether it stores and does nothing else.
    pub(crate) fn is_store(self) -> bool {
        matches!(self, Self::Store(..) | Self::StoreRelease(..) | Self::Unlock(_) | Self::StoreNext(_))
    }

    /// Whether it loads and does nothing else.
    pub(crate) fn is_load(self) -> bool {
        matches!(self, Self::Load(_) | Self::LoadAcquire(_))
    }

    /// As a number, for a participant in another process.
    pub(crate) fn encode(self) -> u64 {
        let (kind, place, value) = match self {
            Self::Load(p) => (1, p, 0),
            Self::LoadAcquire(p) => (2, p, 0),
            Self::Store(p, v) => (3, p, v),
            Self::StoreRelease(p, v) => (4, p, v),
            Self::Fence => (5, 0, 0),
            Self::Add(p) => (6, p, 0),
            Self::Lock(p) => (7, p, 0),
            Self::Unlock(p) => (8, p, 0),
            Self::StoreNext(p) => (9, p, 0),
        };
        kind | u64::from(place) << 8 | u64::from(value) << 16
    }

    /// The operation that a number stands for. Zero, and what a device made up, stand for none.
    pub(crate) fn decode(code: u64) -> Option<Self> {
        let (place, value) = ((code >> 8) as u8, (code >> 16) as u8);
        if usize::from(place) >= PLACES {
            return None;
        }
        Some(match code & 0xff {
            1 => Self::Load(place),
            2 => Self::LoadAcquire(place),
            3 => Self::Store(place, value),
            4 => Self::StoreRelease(place, value),
            5 => Self::Fence,
            6 => Self::Add(place),
            7 => Self::Lock(place),
            8 => Self::Unlock(place),
            9 => Self::StoreNext(place),
            _ => return None,
        })
    }
}

/// How a test is repeated, and so how it is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repetition {
    /// Every iteration has words of its own, and an outcome that a memory model allows or forbids.
    Afresh,
    /// All iterations share their words: each adds one to the last place and keeps the value before. None may be kept twice, and the sum must be right.
    Counting,
}

/// A litmus test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its name, as in the literature where it has one.
    pub name: &'static str,
    /// What it asks, one line.
    pub asks: &'static str,
    /// What each participant does.
    pub programs: &'static [&'static [Op]],
    /// How it is repeated.
    pub repetition: Repetition,
}

impl Test {
    /// How many places it has.
    pub(crate) fn places(&self) -> usize {
        let places = self.programs.iter().flat_map(|p| p.iter()).filter_map(|op| op.place());
        usize::from(places.max().unwrap_or(0)) + 1
    }

    /// How many values a participant keeps.
    pub(crate) fn kept(&self, participant: usize) -> usize {
        self.programs[participant].iter().filter(|op| op.keeps()).count()
    }

    /// Whether several participants write the place, so that its last value says who came last.
    pub(crate) fn is_contended(&self, place: usize) -> bool {
        let writes = |op: &&Op| !op.is_load() && op.place() == Some(place as u8);
        self.programs.iter().filter(|program| program.iter().any(|op| writes(&op))).count() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::litmus::TESTS;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else_is() {
        for op in TESTS.iter().flat_map(|test| test.programs.iter().flat_map(|p| p.iter())) {
            assert_eq!(Op::decode(op.encode()), Some(*op));
        }
        assert_eq!([0, 10, 3 << 8 | 1].map(Op::decode), [None; 3]);
    }

    #[test]
    fn every_test_fits_its_participants_and_has_a_name_of_its_own() {
        for (i, test) in TESTS.iter().enumerate() {
            assert!((1..=PARTICIPANTS).contains(&test.programs.len()) && test.places() <= PLACES, "{}", test.name);
            for (participant, program) in test.programs.iter().enumerate() {
                assert!(program.len() <= OPS && test.kept(participant) <= REGISTERS, "{}", test.name);
            }
            assert!(TESTS[..i].iter().all(|other| other.name != test.name), "{} is there twice", test.name);
            let one_each = test.programs.iter().enumerate().all(|(p, _)| test.kept(p) == 1);
            assert!(test.repetition == Repetition::Afresh || one_each, "{} counts, so each keeps one value", test.name);
        }
    }
}
