//! Letting go of what was taken out of the tables.
//!
//! With fault delivery in the faulting thread the core runs inside a signal handler, whose thread may have been interrupted anywhere, in the allocator too. A fault
//! borrows the address space, contexts and memory it works with; were it the last to let one go, it would have to free it there. So what leaves the
//! tables is kept here until nobody else has it, and is freed by a call that may free.

use crate::core::Core;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use gmem_hal::Platform;

/// Anything the tables hold.
pub(crate) type Retired = Vec<Arc<dyn Any + Send + Sync>>;

impl<P: Platform> Core<P> {
    /// Frees `gone`, which no table names any more, and what was retired before it, as far as no fault still has it in hand. The rest is freed by a later call.
    pub(crate) fn retire(&self, gone: Arc<dyn Any + Send + Sync>) {
        self.retired.lock().push(gone);
        loop {
            // Nobody can get a new share of what no table names: a count of one stays one.
            let mut retired = self.retired.lock();
            let Some(at) = retired.iter().position(|gone| Arc::strong_count(gone) == 1) else { return };
            let gone = retired.swap_remove(at);
            drop(retired);
            // It may hold the last shares of others here, so look again afterwards.
            drop(gone);
        }
    }
}
