//! What the core stands on, simulated.

use crate::sim::{Sim, lock};
use crate::{Callback, SimEvent, SimHost, SimLock, current};
use gmem_hal::{HnodeId, OutOfMemory, Platform};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// The platform of a simulated machine.
pub struct SimPlatform {
    sim: Arc<Sim>,
    host: SimHost,
    account: Arc<Account>,
    /// Operations by thread of control.
    under_way: Mutex<BTreeMap<u32, u32>>,
}

/// What the platform was told by the core. Outlives the platform, so that a test can see that everything was given back.
#[derive(Debug, Default)]
pub struct Account {
    charged: AtomicU64,
    peak: AtomicU64,
    pressure: Mutex<Vec<HnodeId>>,
}

impl Account {
    /// Bytes of metadata charged and not given back.
    pub fn charged(&self) -> u64 {
        self.charged.load(Relaxed)
    }

    /// The most that was ever charged at a time.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// The pools under pressure since the last call, oldest first, each once: whoever calls this owes the core its background eviction.
    pub fn take_pressure(&self) -> Vec<HnodeId> {
        std::mem::take(&mut *lock(&self.pressure))
    }
}

impl SimPlatform {
    /// The platform of `sim`.
    pub fn new(sim: &Arc<Sim>) -> Self {
        Self { sim: sim.clone(), host: SimHost::new(sim), account: Arc::default(), under_way: Mutex::default() }
    }

    /// What the platform was told.
    pub fn account(&self) -> Arc<Account> {
        self.account.clone()
    }
}

impl Platform for SimPlatform {
    type RawLock = SimLock;
    type Event = SimEvent;
    type Host = SimHost;

    fn host(&self) -> &SimHost {
        &self.host
    }

    fn pressure(&self, hnode: HnodeId) {
        self.sim.event("pressure", [u64::from(hnode.0), 0, 0, 0]);
        let mut pressure = lock(&self.account.pressure);
        if !pressure.contains(&hnode) {
            pressure.push(hnode);
        }
    }

    fn under_way(&self, change: i32) -> u32 {
        let mut under_way = lock(&self.under_way);
        let count = under_way.entry(current()).or_default();
        *count = count.checked_add_signed(change).expect("an operation ends in the thread that began it");
        *count
    }

    fn charge(&self, bytes: usize) -> Result<(), OutOfMemory> {
        if self.sim.count(Callback::Charge, None, [bytes as u64, 0, 0]).is_some() {
            return Err(OutOfMemory);
        }
        let now = self.account.charged.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        self.account.peak.fetch_max(now, Relaxed);
        Ok(())
    }

    fn uncharge(&self, bytes: usize) {
        self.sim.event("uncharge", [bytes as u64, 0, 0, 0]);
        let before = self.account.charged.fetch_sub(bytes as u64, Relaxed);
        assert!(before >= bytes as u64, "{bytes} bytes of metadata are given back, but only {before} are charged");
    }
}
