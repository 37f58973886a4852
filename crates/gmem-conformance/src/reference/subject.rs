//! The reference driver as a subject of the kit.

use super::{Reference, ReferenceBuilder};
use crate::subject::{Cannot, Shape, Storing, Subject};
use gmem::Context;
use gmem::hal::{FaultError, PhysRange, PmapId, VirtAddr};
use std::sync::Arc;

/// The reference driver, as its builder describes it but for the memory, which each check chooses.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceSubject(pub ReferenceBuilder);

fn table(context: &Context) -> Result<PmapId, FaultError> {
    context.pmap().ok_or(FaultError::NotAttached)
}

impl Subject for ReferenceSubject {
    type Driver = Reference;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn device(&self, shape: &Shape) -> Result<Arc<Reference>, Cannot> {
        if !shape.replay {
            return Err(Cannot("the reference driver always reports its faults"));
        }
        let builder = self.0.memory(shape.memory);
        Ok(if shape.peer { builder.peer() } else { builder }.build())
    }

    fn memory(&self, driver: &Reference) -> Vec<PhysRange> {
        let end = driver.is.memory;
        let half = (end / 2).next_multiple_of(4096);
        vec![PhysRange { begin: 0, end: half }, PhysRange { begin: half, end }]
    }

    fn read(&self, driver: &Reference, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        let read = driver.read(table(context)?, va, bytes.len()).map_err(|fault| fault.error)?;
        bytes.copy_from_slice(&read);
        Ok(())
    }

    fn write(&self, driver: &Reference, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        driver.write(table(context)?, va, bytes).map_err(|fault| fault.error)
    }

    fn add(&self, driver: &Reference, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        driver.fetch_add(table(context)?, va, n).map(drop).map_err(|fault| fault.error)
    }

    fn store_on(&self, driver: &Reference, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError> {
        driver.store_on(table(context)?, va, storing).map_err(|fault| fault.error)
    }

    fn complaints(&self, driver: &Reference) -> Vec<String> {
        driver.protocol_errors()
    }

    fn read_by(&self, driver: &Reference, pmap: PmapId, va: VirtAddr, bytes: &mut [u8]) -> Option<Result<(), FaultError>> {
        let read = driver.read(pmap, va, bytes.len()).map_err(|fault| fault.error);
        Some(read.map(|read| bytes.copy_from_slice(&read)))
    }
}
