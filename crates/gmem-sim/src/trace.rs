//! What happened, as a hash and as a tail.

use std::collections::VecDeque;
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// How many events the tail keeps: enough to see the operation that failed and the few before it.
const TAIL: usize = 256;

/// As much of an event's name is in the hash; no two names begin with as many equal bytes.
const NAME: usize = 24;

/// One event of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceEvent {
    /// What happened, a callback's name or an access's.
    pub what: &'static str,
    /// Numbers that say to what; their meaning depends on `what`.
    pub args: [u64; 4],
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.args;
        write!(f, "{:<24} {a:#x} {b:#x} {c:#x} {d:#x}", self.what)
    }
}

/// The record of a simulation: a running hash over everything, and the last events.
///
/// Two runs with one seed must end with equal hashes; the first point where they differ is where something other than the seed had a say.
#[derive(Clone, Default)]
pub(crate) struct Trace {
    hash: Xxh3,
    events: u64,
    tail: VecDeque<TraceEvent>,
}

impl Trace {
    pub(crate) fn event(&mut self, what: &'static str, args: [u64; 4]) {
        // One update an event: most of the time goes into beginning one.
        let mut record = [0; NAME + 32];
        let name = &what.as_bytes()[..what.len().min(NAME)];
        record[..name.len()].copy_from_slice(name);
        for (to, arg) in record[NAME..].chunks_exact_mut(8).zip(args) {
            to.copy_from_slice(&arg.to_le_bytes());
        }
        self.hash.update(&record);
        self.events += 1;
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(TraceEvent { what, args });
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn tail(&self) -> Vec<TraceEvent> {
        self.tail.iter().copied().collect()
    }
}
