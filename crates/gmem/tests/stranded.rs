//! Contexts that cannot be detached because data would be lost: they stay usable, and nothing of them outlives their address space.

mod common;

use common::*;
use gmem::hal::{
    self, Compute, CopyEngine, DeviceError, DeviceId, DeviceInfo, FaultError, HnodeId, Mmu, Modes, PhysAddr, PhysRange, PmapId, Upcalls,
};
use gmem::{AddressSpace, AttachError, ByteLen, Context, DetachError, Device, Error, Gmem, Mode, Region, accel};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// A working device that, while `stuck`, copies nothing home.
struct Stuck {
    inner: Arc<accel::Discrete>,
    info: DeviceInfo,
    stuck: AtomicBool,
}

impl Stuck {
    fn is(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::SeqCst);
    }
}

impl hal::Device for Stuck {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        hal::Device::start(&*self.inner, id, upcalls)
    }
    fn stop(&self) {
        hal::Device::stop(&*self.inner);
    }
    fn physical_memory(&self) -> Vec<PhysRange> {
        hal::Device::physical_memory(&*self.inner)
    }
    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        hal::Device::memory_registered(&*self.inner, hnode, range)
    }
    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        hal::Device::memory_unregistered(&*self.inner, hnode, range);
    }
    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        hal::Device::fence(&*self.inner, pmap)
    }
    fn mmu(&self) -> &dyn Mmu {
        hal::Device::mmu(&*self.inner)
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }
    fn compute(&self) -> Option<&dyn Compute> {
        hal::Device::compute(&*self.inner)
    }
}

impl CopyEngine for Stuck {
    fn zero(&self, to: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        hal::Device::copy_engine(&*self.inner).zero(to, len)
    }
    fn copy(&self, to: PhysAddr, from: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        if to.hnode == HnodeId::HOST && self.stuck.load(Ordering::SeqCst) {
            return Err(DeviceError::CopyFailed);
        }
        hal::Device::copy_engine(&*self.inner).copy(to, from, len)
    }
}

fn driver(info: impl Fn(DeviceInfo) -> DeviceInfo) -> Arc<Stuck> {
    let inner = accel::Discrete::builder().memory(8 * PAGE).cores(1).build().unwrap();
    let info = info(hal::Device::info(&*inner).clone());
    Arc::new(Stuck { inner, info, stuck: AtomicBool::new(false) })
}

/// A world with such a device, which has the only copy of 70 in the region's first word.
fn stuck() -> (Gmem, Arc<Stuck>, Device, AddressSpace, Context, Region) {
    let gmem = Gmem::new().unwrap();
    let driver = driver(|info| info);
    let device = gmem.add_device(driver.clone()).unwrap();
    let space = gmem.address_space().create().unwrap();
    let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
    let region = space.region().map(2 * PAGE).unwrap();
    run(&context, &STORE, &[at(&region, 0), 70]).unwrap();
    driver.is(true);
    (gmem, driver, device, space, context, region)
}

#[track_caller]
fn assert_stranded(error: &Error, region: &Region) {
    let stranded = FaultError::Device(DeviceError::CopyFailed);
    assert!(matches!(error, Error::Detach(DetachError::DataStranded(va, e)) if va.get() == at(region, 0) && *e == stranded), "{error:?}");
}

#[test]
fn a_context_that_cannot_be_detached_comes_back_and_works() {
    watched(|| {
        let (gmem, driver, device, space, context, region) = stuck();
        let failed = context.detach().unwrap_err();
        assert_stranded(&failed.error, &region);
        let context = failed.context;
        assert!(!context.is_fenced());
        run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
        let second = space.attach(&device, Mode::CoherentExclusive).unwrap_err();
        assert!(matches!(second, Error::Attach(AttachError::AlreadyAttached)), "{second:?}");
        driver.is(false);
        context.detach().unwrap();
        assert_eq!(get(at(&region, 0)), 71);
        verify(&gmem);
    });
}

#[test]
fn a_context_that_is_dropped_and_cannot_be_detached_goes_when_it_can() {
    watched(|| {
        let (gmem, driver, device, space, context, region) = stuck();
        drop(context);
        let refused = space.attach(&device, Mode::CoherentExclusive).unwrap_err();
        assert_stranded(&refused, &region);
        driver.is(false);
        let context = space.attach(&device, Mode::CoherentExclusive).unwrap();
        assert_eq!(get(at(&region, 0)), 70);
        run(&context, &ADD, &[at(&region, 0), 1]).unwrap();
        // Made into an error, it is dropped too.
        driver.is(true);
        assert_stranded(&Error::from(context.detach().unwrap_err()), &region);
        drop(device);
        assert_eq!(gmem.stats().hnodes.len(), 1, "the device has the only copy");
        driver.is(false);
        assert_eq!(get(at(&region, 0)), 71);
        drop((region, space));
        assert_eq!((gmem.stats().hnodes.len(), Arc::strong_count(&driver)), (0, 1), "the device went with the address space");
        verify(&gmem);
    });
}

#[test]
fn the_end_of_an_address_space_ends_what_could_not_be_detached() {
    watched(|| {
        let (gmem, driver, device, space, context, region) = stuck();
        drop((context, device, region, space));
        assert_eq!((gmem.stats().hnodes.len(), Arc::strong_count(&driver)), (0, 1));
        verify(&gmem);
    });
}

#[test]
fn a_context_whose_table_is_shared_goes_with_the_last_who_shares_it() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        // Two devices of one table format, as far as gmem can tell.
        let same = |info: DeviceInfo| DeviceInfo { mmu_cookie: 7, modes: info.modes | Modes::SHARE, ..info };
        let [owner, sharer] = [driver(same), driver(same)].map(|driver| gmem.add_device(driver).unwrap());
        let owns = space.attach(&owner, Mode::CoherentExclusive).unwrap();
        let shares = space.attach(&sharer, Mode::Share).unwrap();
        let failed = owns.detach().unwrap_err();
        assert!(matches!(&failed.error, Error::Detach(DetachError::Shared(device)) if *device == sharer.id()), "{failed:?}");
        drop((failed, owner));
        assert_eq!(gmem.stats().hnodes.len(), 2);
        drop(shares);
        assert_eq!(gmem.stats().hnodes.len(), 1, "nothing shares the table any more");
        verify(&gmem);
    });
}
