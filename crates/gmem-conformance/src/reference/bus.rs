//! What connects the devices of this process, so that the copy engine of one reaches the memory of another.
//!
//! The name of a memory is one core's, and several cores may live in a process. A memory whose name was given twice is reached by nobody: the core then copies
//! by way of the host, as it does for devices that nothing connects.

use super::{Reference, lock};
use gmem::hal::HnodeId;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// How many devices have a memory of each name. Apart from [`MEMORIES`], because the core asks under a lock of its own.
static GIVEN: [AtomicU16; 1 << 16] = [const { AtomicU16::new(0) }; 1 << 16];

static MEMORIES: Mutex<Vec<(HnodeId, Weak<Reference>)>> = Mutex::new(Vec::new());

/// A memory on the bus, until it is dropped.
pub(super) struct Memory {
    hnode: HnodeId,
    device: Weak<Reference>,
}

impl Memory {
    /// Makes the memory `hnode` of `device` reachable.
    pub(super) fn connect(hnode: HnodeId, device: Weak<Reference>) -> Self {
        lock(&MEMORIES).push((hnode, device.clone()));
        GIVEN[usize::from(hnode.0)].fetch_add(1, Ordering::AcqRel);
        Self { hnode, device }
    }

    pub(super) fn hnode(&self) -> HnodeId {
        self.hnode
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        GIVEN[usize::from(self.hnode.0)].fetch_sub(1, Ordering::AcqRel);
        let mut memories = lock(&MEMORIES);
        let mine = memories.iter().position(|(hnode, device)| *hnode == self.hnode && device.ptr_eq(&self.device));
        mine.map(|at| memories.swap_remove(at));
    }
}

/// Whether exactly one device has a memory of this name. Takes no lock.
pub(super) fn reaches(hnode: HnodeId) -> bool {
    GIVEN[usize::from(hnode.0)].load(Ordering::Acquire) == 1
}

/// The device that has the memory of this name, if exactly one does.
pub(super) fn device(hnode: HnodeId) -> Option<Arc<Reference>> {
    let memories = lock(&MEMORIES);
    let mut found = memories.iter().filter(|(id, _)| *id == hnode);
    match (found.next(), found.next()) {
        (Some((_, device)), None) => device.upgrade(),
        _ => None,
    }
}
