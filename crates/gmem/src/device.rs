//! A device that was added.

use crate::error::Error;
use crate::launch::Holding;
use crate::runtime::{Gmem, Runtime};
use gmem_core::HnodeStats;
use gmem_hal::{ByteLen, DeviceId, DeviceInfo, HnodeId};
use std::fmt;
use std::sync::Arc;

/// A device known to gmem. Clones name the same device; when the last one and every context on it are gone, the device is destroyed.
#[derive(Clone)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) id: DeviceId,
    pub(crate) driver: Arc<dyn gmem_hal::Device>,
    pub(crate) holding: Arc<Holding>,
}

impl Gmem {
    /// Adds a device and registers the memory it has ([`gmem_hal::Device::physical_memory`]).
    ///
    /// # Errors
    /// [`Error::Device`] with what the driver or the core refused; the device is gone again then.
    pub fn add_device(&self, driver: Arc<dyn gmem_hal::Device>) -> Result<Device, Error> {
        let runtime = self.runtime.clone();
        let id = runtime.call(|core| {
            let id = core.device_create(driver.clone())?;
            for range in driver.physical_memory() {
                if let Err(e) = core.device_register_memory(id, range) {
                    let _ = core.device_destroy(id);
                    return Err(e);
                }
            }
            Ok(id)
        })?;
        Ok(Device { inner: Arc::new(Inner { runtime, id, driver, holding: Arc::default() }) })
    }
}

impl Device {
    /// The id.
    pub fn id(&self) -> DeviceId {
        self.inner.id
    }

    /// The driver's facts.
    pub fn info(&self) -> &DeviceInfo {
        self.inner.driver.info()
    }

    /// The device's memory pools.
    pub fn hnodes(&self) -> Vec<HnodeId> {
        self.inner.runtime.call(|core| core.hnodes_of(self.inner.id))
    }

    /// The figures of the device's memory pools.
    pub fn memory(&self) -> Vec<HnodeStats> {
        self.inner.runtime.call(|core| core.hnodes_of(self.inner.id).into_iter().filter_map(|h| core.hnode_stats(h)).collect())
    }

    /// Uses at most `limit` bytes of each of the device's memory pools (`max_memsize` of the original).
    ///
    /// # Errors
    /// [`Error::Device`] if more is in use now, or the pool is smaller.
    pub fn set_memory_limit(&self, limit: ByteLen) -> Result<(), Error> {
        self.inner.runtime.call(|core| core.hnodes_of(self.inner.id).into_iter().try_for_each(|h| core.hnode_set_limit(h, limit)))?;
        Ok(())
    }

    /// Evicts up to `pages` pages from the device, oldest first, and returns how many.
    pub fn evict(&self, pages: usize) -> usize {
        self.inner.runtime.call(|core| core.hnodes_of(self.inner.id).into_iter().map(|h| core.evict(h, pages)).sum())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Contexts keep the device alive, so none is left and nothing can be in use.
        let _ = self.runtime.call(|core| core.device_destroy(self.id));
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.inner.id).field("name", &self.info().name).finish()
    }
}
