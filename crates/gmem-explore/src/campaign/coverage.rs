//! What a campaign has been through.

use super::act::KINDS;
use super::audit::Auditor;
use super::pairs::Pairs;
use crate::CoreWorld;
use gmem_core::TRANSITIONS;
use gmem_sim::{Callback, Injected};

/// Counts by what can happen. Those of several runs add up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// How often each row of the state table was taken.
    pub transitions: Vec<(String, u64)>,
    /// How often each callback was called.
    pub called: Vec<(String, u64)>,
    /// How often each callback was made to answer with each error that it may answer with.
    pub failed: Vec<(String, u64)>,
    /// How often each two kinds of acts were under way at once, about the same address space or device.
    pub pairs: Vec<(String, u64)>,
    /// How often a page came to a device, by its size and the backing of its region.
    pub arrivals: Vec<(String, u64)>,
}

impl Coverage {
    pub(super) fn of(world: &CoreWorld, pairs: &Pairs, auditor: &Auditor) -> Self {
        let rows = TRANSITIONS.iter().zip(world.core.transitions());
        let callbacks = Callback::ALL.iter();
        let errors = callbacks.clone().flat_map(|callback| callback.errors().iter().map(move |error| (*callback, *error)));
        Self {
            transitions: rows.map(|((from, event, to), n)| (format!("{from:?} {event:?} -> {to:?}"), n)).collect(),
            called: callbacks.map(|callback| (callback.name().to_owned(), world.sim.coverage(*callback).calls)).collect(),
            failed: errors.map(|(callback, error)| (answer(callback, error), world.sim.answered(callback, error))).collect(),
            pairs: pairs.met().map(|(a, b, n)| (format!("{} x {}", KINDS[a], KINDS[b]), n)).collect(),
            arrivals: auditor.arrivals().map(|((size, backing), n)| (format!("{size} {backing:?}").to_lowercase(), n)).collect(),
        }
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Coverage) {
        for (all, more) in [
            (&mut self.transitions, &other.transitions),
            (&mut self.called, &other.called),
            (&mut self.failed, &other.failed),
            (&mut self.pairs, &other.pairs),
            (&mut self.arrivals, &other.arrivals),
        ] {
            if all.is_empty() {
                all.clone_from(more);
            } else {
                all.iter_mut().zip(more).for_each(|((_, n), (_, m))| *n += m);
            }
        }
    }
}

/// The rows that never happened.
pub fn missing(rows: &[(String, u64)]) -> Vec<&str> {
    rows.iter().filter(|(_, n)| *n == 0).map(|(name, _)| name.as_str()).collect()
}

fn answer(callback: Callback, error: Injected) -> String {
    let error = match error {
        Injected::Device(error) => format!("{error:?}"),
        Injected::Peer(gmem_hal::PeerError::Device(error)) => format!("{error:?}"),
        Injected::Peer(error) => format!("{error:?}"),
        Injected::Host(error) => format!("{error:?}"),
        Injected::OutOfMemory => "OutOfMemory".to_owned(),
    };
    format!("{} {error}", callback.name())
}
