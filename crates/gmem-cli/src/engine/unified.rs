//! Unified memory and an accelerator, by way of the library.

use super::Engine;
use crate::args::DeviceKind;
use crate::failure::Failure;
use crate::report::{Counters, Faults, Migrated, Peak};
use crate::setup::Setup;
use bytemuck::Pod;
use gmem::{AddressSpace, Args, Context, Device, Error, Gmem, Kernel, PageSize, Region, RegionBuilder, UnifiedVec, accel};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// An address space with one device attached.
pub(crate) struct Unified {
    context: Context,
    gmem: Gmem,
    setup: Setup,
    managed: Cell<u64>,
    metadata: Rc<Cell<u64>>,
}

/// A buffer of unified memory.
pub(crate) struct Buffer<T: Pod> {
    elements: UnifiedVec<T>,
    gmem: Gmem,
    metadata: Rc<Cell<u64>>,
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.elements
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        // The entries go with the region; the first buffer to go sees them all.
        self.metadata.set(self.metadata.get().max(self.gmem.stats().metadata.get()));
    }
}

impl Unified {
    /// Starts gmem, makes the device and attaches it to an address space of at least `space` bytes.
    pub(crate) fn open(setup: &Setup, space: u64) -> Result<Self, Failure> {
        let gmem = Gmem::new()?;
        let device = add_device(&gmem, setup)?;
        let len = space.checked_next_multiple_of(PageSize::Size2M.bytes()).ok_or(Error::Length)?;
        let context = gmem.address_space().len(len).create()?.attach(&device, setup.mode)?;
        Ok(Self { context, gmem, setup: *setup, managed: Cell::new(0), metadata: Rc::default() })
    }

    /// The address space.
    pub(crate) fn space(&self) -> &AddressSpace {
        self.context.space()
    }

    /// A region as the setup wants it.
    fn builder(&self) -> RegionBuilder {
        self.space().region().page_size(self.setup.page_size).backing(self.setup.backing).delivery(self.setup.delivery)
    }

    /// Zero bytes with an address and without a type, for those who change what may be done with them.
    pub(crate) fn region(&self, bytes: u64) -> Result<Region, Failure> {
        Ok(self.builder().map(bytes)?)
    }

    /// The bytes of all buffers made so far, in whole pages.
    pub(crate) fn bytes_managed(&self) -> u64 {
        self.managed.get()
    }

    /// What was counted so far; of metadata, the most there was.
    pub(crate) fn counters(&self) -> Counters {
        let stats = self.gmem.stats();
        let smallest = self.setup.page_size.bytes();
        let peak = |h: &gmem::HnodeStats| Peak { hnode: h.hnode.to_string(), frames: h.peak.get() / smallest, bytes: h.peak.get() };
        Counters {
            faults: Faults { cpu: stats.cpu_faults, device: stats.device_faults },
            migrated_bytes: Migrated {
                h2d: stats.h2d_fault_bytes + stats.h2d_prefetch_bytes,
                d2h: stats.d2h_fault_bytes + stats.d2h_evict_bytes + stats.d2h_other_bytes,
                d2d: stats.d2d_bytes,
            },
            evictions: stats.evictions,
            clean_evictions: stats.clean_evictions,
            peak_frames: stats.hnodes.iter().map(peak).collect(),
            metadata_bytes: stats.metadata.get().max(self.metadata.get()),
        }
    }
}

/// Makes the device that was asked for.
fn add_device(gmem: &Gmem, setup: &Setup) -> Result<Device, Error> {
    let discrete = |peer: bool| accel::Discrete::builder().memory(setup.device_memory).cores(setup.cores).replay(setup.replay).peer(peer);
    match setup.device {
        DeviceKind::Discrete => gmem.add_device(discrete(false).build()?),
        DeviceKind::Peer => gmem.add_device(discrete(true).build()?),
        DeviceKind::Integrated => gmem.add_device(accel::Integrated::builder().cores(setup.cores).build()?),
    }
}

impl Engine for Unified {
    type Buffer<T: Pod + Send + Sync> = Buffer<T>;

    fn zeroed<T: Pod + Send + Sync>(&self, len: usize) -> Result<Buffer<T>, Failure> {
        let elements = self.builder().vec::<T>(len)?;
        self.managed.set(self.managed.get() + elements.range().len().get());
        Ok(Buffer { elements, gmem: self.gmem.clone(), metadata: self.metadata.clone() })
    }

    unsafe fn launch(&self, kernel: &'static Kernel, args: Args<'_>) -> Result<(), Failure> {
        // SAFETY: forwarded to the caller.
        Ok(unsafe { self.context.run(kernel, args) }?)
    }
}
