//! What host and device processes share without a lock, in every order of their threads. The device's threads are threads of the model, and the memory
//! that both map is one that both reach.

mod bell;
mod evictor;
mod faults;
mod launches;
mod ring;
mod table;

use crate::context::{Command, Context, Facts};
use crate::device::{drain_by, op, pending};
use crate::shm::Shared;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::wait::{Bell, Deadline, Patience};
use gmem_hal::{ByteLen, PmapId, VirtAddr, VirtRange};
use std::sync::Arc;
use std::time::Duration;

/// The host's and the device's side of one context.
struct Both {
    context: Arc<Context>,
    draining: AtomicU32,
    /// The sum of what all commands were about. Relaxed, so whoever reads it sees only what something else orders before.
    performed: AtomicU32,
}

impl Both {
    fn new(workers: usize) -> Arc<Self> {
        let window = VirtRange::from_len(VirtAddr::new(0x1000), ByteLen(0x1000)).expect("it does not wrap");
        // A limit that never passes: a lost wake-up is a deadlock.
        let facts = Facts { pmap: PmapId(1), window, host: None, workers, limit: Duration::from_secs(10), pid: 0 };
        let context = Arc::new(Context::new(facts, Shared::modelled(), None));
        Arc::new(Self { context, draining: AtomicU32::default(), performed: AtomicU32::default() })
    }

    /// Some thread of the device looks at the ring.
    fn drain(&self) {
        drain_by(&self.context.shm, &self.draining, |c| {
            self.performed.fetch_add(c.va as u32, Ordering::Relaxed);
            (0, c.va + 1)
        });
    }

    /// The life of the device's command thread.
    fn command_thread(&self) {
        let shm = &self.context.shm;
        let exit = || shm.exit().load(Ordering::Acquire) != 0;
        loop {
            self.drain();
            if exit() {
                return;
            }
            Bell(shm.command_bell()).wait(&mut patience(), Deadline::Never, || pending(shm) || exit());
        }
    }

    fn performed(&self) -> u32 {
        self.performed.load(Ordering::Relaxed)
    }
}

fn patience() -> Patience {
    Patience::new(Duration::ZERO)
}

/// A command that is about `va`.
fn about(va: u64) -> Command {
    Command { op: op::RELEASE, va, len: 0, frame: 0, prot: 0 }
}
