//! Launches on a discrete accelerator.

use crate::context::Context;
use crate::kernel;
use crate::machine::Machine;
use gmem_hal::{Compute, LaunchError, LaunchRequest, PmapId, Ticket};

impl Compute for Machine {
    fn start(&self, request: &LaunchRequest<'_>) -> Result<Ticket, LaunchError> {
        let kernel = kernel::find(request.kernel).ok_or(LaunchError::UnknownKernel)?;
        let pmap = request.pmap.ok_or(LaunchError::BadRequest)?;
        let replay = request.replay && self.spec.replay;
        let index =
            self.table.with(pmap, |c| told(c, c.launches.start(c, kernel, request.args, replay))).ok_or(LaunchError::BadRequest)??;
        // A pmap's id has 32 bits: see `Table::reserve`.
        Ok(Ticket(pmap.0 << 32 | u64::from(index)))
    }

    fn wait(&self, ticket: Ticket) -> Result<(), LaunchError> {
        let pmap = PmapId(ticket.0 >> 32);
        self.table.with(pmap, |c| told(c, c.launches.wait(c, ticket.0 as u32))).ok_or(LaunchError::BadRequest)?
    }
}

/// Passes the result of a call on; if it failed and the device is gone, when the core knows that: who learns of it by a launch finds the context fenced.
fn told<T>(context: &Context, result: Result<T, LaunchError>) -> Result<T, LaunchError> {
    if result.is_err() && context.is_dead() {
        context.wait_told();
    }
    result
}
