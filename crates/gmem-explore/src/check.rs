//! Invariants across layers, which the core alone cannot see: what all page tables together allow.

use crate::CoreWorld;
use gmem_hal::{HnodeId, PhysAddr, Prot};

impl CoreWorld {
    /// Nobody may write a page while another can touch other bytes for it.
    pub fn check_tables(&self) -> Result<(), String> {
        for (i, space) in self.spaces.iter().enumerate() {
            let tables = self.members.iter().filter_map(|m| m.device.pmap_for(*space).map(|pmap| (m, pmap)));
            let tables: Vec<_> = tables.filter(|(m, pmap)| !m.device.is_given_up(*pmap)).collect();
            for page in self.shape.space_range(i).pages(self.shape.page_size) {
                let va = page.start();
                let mut seen: Vec<(String, PhysAddr, Prot)> = Vec::new();
                if self.shape.spaces[i].cpu_visible && !self.host.cpu_prot(va).is_empty() {
                    // Which home it is does not matter: a page has one.
                    seen.push(("the CPU".into(), PhysAddr { hnode: HnodeId::HOST, addr: 0 }, self.host.cpu_prot(va)));
                }
                for (member, pmap) in &tables {
                    if let Some((frame, prot)) = member.device.table_entry(*pmap, va).filter(|(_, prot)| !prot.is_empty()) {
                        let frame = if frame.hnode == HnodeId::HOST { PhysAddr { addr: 0, ..frame } } else { frame };
                        seen.push((format!("{}", member.id), frame, prot));
                    }
                }
                let writer = seen.iter().find(|(_, _, prot)| prot.contains(Prot::WRITE));
                if let Some((who, frame, _)) = writer
                    && let Some((other, elsewhere, prot)) = seen.iter().find(|(_, other, _)| other != frame)
                {
                    return Err(format!(
                        "{space}:{va} can be written by {who} in {frame:?} and touched by {other} in {elsewhere:?} ({prot:?})"
                    ));
                }
            }
        }
        Ok(())
    }
}
