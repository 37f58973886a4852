//! Address spaces: create and destroy.

use crate::core::Core;
use crate::error::{DetachError, SpaceError};
use crate::sorted::lock_with_room;
use crate::space::Space;
use alloc::sync::Arc;
use gmem_hal::{Host, PageSize, Platform, SpaceId, VirtRange};

impl<P: Platform> Core<P> {
    /// Makes an address space over `range` (`gm_as_create`). Address spaces that the CPU sees must be disjoint; those for devices alone may overlap. May block.
    ///
    /// # Errors
    /// [`SpaceError::Clash`], or [`gmem_hal::HostError::AddressInUse`] if the process uses the addresses otherwise.
    pub fn space_create(&self, range: VirtRange, cpu_visible: bool) -> Result<SpaceId, SpaceError> {
        self.check_enabled().map_err(|_| SpaceError::Disabled)?;
        if !range.is_aligned(PageSize::Size2M) {
            return Err(SpaceError::Misaligned);
        }
        let id = SpaceId(self.tables.lock().fresh_space());
        if cpu_visible {
            self.check_clash(range)?;
        }
        let host = self.platform.host().space_create(range, cpu_visible)?;
        let space = Arc::new(Space::new(id, range, cpu_visible, host));
        self.list(&space).inspect_err(|_| self.platform.host().space_destroy(&space.host))?;
        Ok(id)
    }

    /// Enters a new address space into the tables.
    fn list(&self, space: &Arc<Space<P>>) -> Result<(), SpaceError> {
        loop {
            drop(lock_with_room(&self.tables, 1, |tables| &mut tables.visible)?);
            let mut tables = lock_with_room(&self.tables, 1, |tables| &mut tables.spaces)?;
            if !tables.visible.has_room(1) {
                // Somebody else took the room meanwhile.
                continue;
            }
            if space.cpu_visible {
                // Somebody may have been faster; the host reserves addresses once, so this only happens on hosts that reserve nothing.
                if let Some(other) = tables.visible.values().find(|s| s.range.overlaps(space.range)) {
                    return Err(SpaceError::Clash(other.id));
                }
                tables.visible.insert(space.range.start(), space.clone());
            }
            tables.spaces.insert(space.id, space.clone());
            return Ok(());
        }
    }

    fn check_clash(&self, range: VirtRange) -> Result<(), SpaceError> {
        let tables = self.tables.lock();
        match tables.visible.values().find(|s| s.range.overlaps(range)) {
            Some(other) => Err(SpaceError::Clash(other.id)),
            None => Ok(()),
        }
    }

    /// The range of an address space.
    pub fn space_range(&self, id: SpaceId) -> Option<VirtRange> {
        Some(self.space(id)?.range)
    }

    /// Destroys an address space (`gm_as_destroy`): unmaps its regions, detaches its contexts, releases its addresses. Waits for launches that hold pages. May
    /// block.
    ///
    /// # Errors
    /// [`SpaceError::NoSuchSpace`], also if somebody else is destroying it.
    pub fn space_destroy(&self, id: SpaceId) -> Result<(), SpaceError> {
        let space = self.space(id).ok_or(SpaceError::NoSuchSpace(id))?;
        let gate = space.enter_gate("destroy").ok_or(SpaceError::NoSuchSpace(id))?;
        self.unmap_all(&space);
        // Contexts that share another's table go first. Nothing is mapped, so no data can be stranded.
        loop {
            let contexts = space.contexts();
            if contexts.is_empty() {
                break;
            }
            for device in contexts.iter().map(|c| c.device.id) {
                match self.detach_in(&space, device) {
                    Ok(()) | Err(DetachError::Shared(_) | DetachError::NotAttached(_)) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        space.lock().dying = true;
        {
            let mut tables = self.tables.lock();
            tables.spaces.remove(id);
            if space.cpu_visible {
                tables.visible.remove(space.range.start());
            }
        }
        drop(gate);
        self.platform.host().space_destroy(&space.host);
        self.retire(space);
        Ok(())
    }
}
