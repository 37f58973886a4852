//! The platform: host, lock, event, eviction calls and metadata accounting.

use crate::pressure::Pressure;
use crate::{FutexEvent, FutexLock, LinuxHost};
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering::*};
use gmem_hal::{HnodeId, OutOfMemory, Platform};

thread_local! {
    /// Operations of this thread, on pages of any core. A signal handler that faults leaves it as it was.
    static UNDER_WAY: Cell<u32> = const { Cell::new(0) };
}

/// Linux as the core's platform.
#[derive(Debug)]
pub struct LinuxPlatform {
    host: LinuxHost,
    pressure: Pressure,
    charged: AtomicUsize,
    limit: usize,
}

impl LinuxPlatform {
    /// A platform without a limit on metadata.
    pub fn new(host: LinuxHost) -> Self {
        Self::with_metadata_limit(host, usize::MAX)
    }

    /// A platform on which the core's metadata may take `limit` bytes.
    pub fn with_metadata_limit(host: LinuxHost, limit: usize) -> Self {
        // Every id has a bit, so that none is ever confused with another.
        Self { host, pressure: Pressure::new(usize::from(u16::MAX) + 1), charged: AtomicUsize::new(0), limit }
    }

    /// Waits until some hnode is short of free frames, and gives it; each report of pressure is given out once. `None` after
    /// [`LinuxPlatform::stop_pressure`]. For the thread that runs the background eviction.
    pub fn next_pressure(&self) -> Option<HnodeId> {
        self.pressure.next().map(|id| HnodeId(id as u16))
    }

    /// Makes every call of [`LinuxPlatform::next_pressure`], present and future, answer `None`.
    pub fn stop_pressure(&self) {
        self.pressure.stop();
    }

    /// Bytes of metadata charged and not uncharged.
    pub fn metadata_bytes(&self) -> usize {
        self.charged.load(Relaxed)
    }
}

impl Platform for LinuxPlatform {
    type RawLock = FutexLock;
    type Event = FutexEvent;
    type Host = LinuxHost;

    fn host(&self) -> &LinuxHost {
        &self.host
    }

    fn pressure(&self, hnode: HnodeId) {
        self.pressure.report(hnode.0.into());
    }

    fn under_way(&self, change: i32) -> u32 {
        UNDER_WAY.set(UNDER_WAY.get().wrapping_add_signed(change));
        UNDER_WAY.get()
    }

    fn charge(&self, bytes: usize) -> Result<(), OutOfMemory> {
        let within = |charged: usize| charged.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.charged.fetch_update(Relaxed, Relaxed, within).map(drop).map_err(|_| OutOfMemory)
    }

    fn uncharge(&self, bytes: usize) {
        let before = self.charged.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "{bytes} bytes uncharged of {before} charged");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Threads, UffdAccess};
    use std::sync::Arc;

    fn platform(limit: usize) -> LinuxPlatform {
        let threads = Arc::new(Threads::start().expect("threads"));
        let host = LinuxHost::open_as(threads, UffdAccess::Refused).expect("a host without userfaultfd");
        LinuxPlatform::with_metadata_limit(host, limit)
    }

    #[test]
    fn pressure_is_given_out_once_per_hnode() {
        let platform = Arc::new(platform(usize::MAX));
        for hnode in [3, 70, 65535, 3] {
            platform.pressure(HnodeId(hnode));
        }
        let got: Vec<_> = (0..3).map(|_| platform.next_pressure()).collect();
        assert_eq!(got, [Some(HnodeId(3)), Some(HnodeId(70)), Some(HnodeId(65535))]);
        let waiter = platform.clone();
        let t = std::thread::spawn(move || (waiter.next_pressure(), waiter.next_pressure()));
        platform.pressure(HnodeId(5));
        while platform.pressure.is_reported(5) {
            std::thread::yield_now();
        }
        platform.stop_pressure();
        assert_eq!(t.join().expect("no panic"), (Some(HnodeId(5)), None));
    }

    #[test]
    fn metadata_is_limited() {
        let platform = platform(100);
        assert_eq!(platform.charge(60), Ok(()));
        assert_eq!(platform.charge(41), Err(OutOfMemory));
        assert_eq!(platform.charge(40), Ok(()));
        platform.uncharge(100);
        assert_eq!(platform.metadata_bytes(), 0);
    }
}
