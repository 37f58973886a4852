//! Accesses as programs make them: they fault, the fault is resolved, and they go on where they stopped.

use crate::{DeviceFault, FaultKind, SimDevice, SimHost, current, is_scheduled};
use gmem_hal::{Access, DeviceId, Event, FaultError, HostFault, PmapId, Upcalls, VirtAddr, Wait, WaitKind};

/// An access that faults more often than this, with each fault said to be resolved, makes no progress.
const MOST_FAULTS: u32 = 1000;

/// Accesses `len` bytes from `va`; `once` is called with how many bytes are done until it makes the rest of the access without a fault.
fn with_faults<F>(
    va: VirtAddr,
    mut once: impl FnMut(usize) -> Result<(), F>,
    mut resolve: impl FnMut(F) -> Result<VirtAddr, FaultError>,
) -> Result<(), FaultError> {
    let mut done = 0;
    for _ in 0..MOST_FAULTS {
        match once(done) {
            Ok(()) => return Ok(()),
            Err(fault) => done = (resolve(fault)?.get() - va.get()) as usize,
        }
    }
    panic!("an access at {va} faulted {MOST_FAULTS} times, and each fault was said to be resolved");
}

fn at(va: VirtAddr, done: usize) -> VirtAddr {
    VirtAddr::new(va.get() + done as u64)
}

fn resolve_device(id: DeviceId, core: &dyn Upcalls, fault: DeviceFault) -> Result<VirtAddr, FaultError> {
    if fault.kind == FaultKind::Stopped {
        return Err(FaultError::Fenced);
    }
    core.device_fault(id, fault.pmap, fault.va, fault.access, None).map(|()| fault.va)
}

/// A kernel loads by the MMU of `device`; `id` is the device it runs on, which is another one if it shares the table.
pub fn device_read(
    device: &SimDevice,
    id: DeviceId,
    core: &dyn Upcalls,
    pmap: PmapId,
    va: VirtAddr,
    buf: &mut [u8],
) -> Result<(), FaultError> {
    with_faults(va, |done| device.read(pmap, at(va, done), &mut buf[done..]), |fault| resolve_device(id, core, fault))
}

/// A kernel stores by the MMU of `device`; `id` is the device it runs on, which is another one if it shares the table.
pub fn device_write(
    device: &SimDevice,
    id: DeviceId,
    core: &dyn Upcalls,
    pmap: PmapId,
    va: VirtAddr,
    buf: &[u8],
) -> Result<(), FaultError> {
    with_faults(va, |done| device.write(pmap, at(va, done), &buf[done..]), |fault| resolve_device(id, core, fault))
}

/// Of several threads of control, every second one has its faults resolved by a service thread, which must not wait; the others, and one that is alone, resolve them
/// themselves.
fn resolve_cpu(host: &SimHost, core: &dyn Upcalls, va: VirtAddr, access: Access) -> Result<VirtAddr, FaultError> {
    let may_wait = !is_scheduled() || current().is_multiple_of(2);
    let pending = host.pending(va);
    let epoch = pending.epoch();
    match core.host_fault(va, access, may_wait) {
        HostFault::Resolved => Ok(va),
        HostFault::NotOurs => Err(FaultError::NotMapped),
        HostFault::Failed(error) => Err(error),
        HostFault::Pending if may_wait => panic!("the fault at {va} is pending although it may wait"),
        HostFault::Pending => {
            pending.wait(epoch, &Wait { kind: WaitKind::BusyPage, space: None, at: va, owner: "whoever has the page, by way of the host" });
            Ok(va)
        }
    }
}

/// A program on the CPU loads.
pub fn cpu_read(host: &SimHost, core: &dyn Upcalls, va: VirtAddr, buf: &mut [u8]) -> Result<(), FaultError> {
    with_faults(va, |done| host.cpu_read(at(va, done), &mut buf[done..]), |fault| resolve_cpu(host, core, fault.va, fault.access))
}

/// A program on the CPU stores.
pub fn cpu_write(host: &SimHost, core: &dyn Upcalls, va: VirtAddr, buf: &[u8]) -> Result<(), FaultError> {
    with_faults(va, |done| host.cpu_write(at(va, done), &buf[done..]), |fault| resolve_cpu(host, core, fault.va, fault.access))
}
