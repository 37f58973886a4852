//! What changed on a machine since somebody last looked: what makes a check after every step cheap enough to be made.

use crate::sim::lock;
use gmem_hal::{ByteLen, PhysAddr, SpaceId, VirtRange};
use std::sync::{Arc, Mutex};

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The CPU's page table, at these addresses.
    Cpu(VirtRange),
    /// A device's page table, at these addresses of an address space.
    Device(SpaceId, VirtRange),
    /// These bytes were written, or are no longer there.
    Bytes(PhysAddr, ByteLen),
    /// A device lost all of its memory.
    Power,
}

/// The changes, while somebody wants to know them. Shared by all parts of a machine that keep tables or bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Arc<Mutex<Option<Vec<Change>>>>);

impl Changes {
    pub(crate) fn record(&self) {
        lock(&self.0).get_or_insert_default();
    }

    pub(crate) fn note(&self, change: Change) {
        if let Some(changes) = &mut *lock(&self.0)
            && changes.last() != Some(&change)
        {
            changes.push(change);
        }
    }

    /// Moves them to `into`, which was empty; its room is used for the next.
    pub(crate) fn take(&self, into: &mut Vec<Change>) {
        into.clear();
        if let Some(changes) = &mut *lock(&self.0) {
            std::mem::swap(changes, into);
        }
    }
}
