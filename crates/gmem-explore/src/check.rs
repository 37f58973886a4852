//! Invariants across layers, which the core alone cannot see: what all page tables together allow.

use crate::CoreWorld;
use gmem_hal::{HnodeId, PhysAddr, Prot, VirtAddr};

/// One way to touch a page: by the CPU or by a device of this index.
#[derive(Clone, Copy)]
struct Way {
    device: Option<usize>,
    /// Which home it is does not matter, a page has one: all have the address zero.
    memory: PhysAddr,
    prot: Prot,
}

impl CoreWorld {
    /// Nobody may write a page while another can touch other bytes for it: of every page.
    pub fn check_tables(&self) -> Result<(), String> {
        for space in 0..self.spaces.len() {
            for page in 0..self.shape.spaces[space].pages {
                self.check_page(space, self.shape.start(space, page), Prot::RW)?;
            }
        }
        Ok(())
    }

    /// The same of the page at `va`, and that nobody can do more there than is `allowed`.
    pub(crate) fn check_page(&self, space: usize, va: VirtAddr, allowed: Prot) -> Result<(), String> {
        let mut excess: Option<Way> = None;
        let mut first: Option<Way> = None;
        let mut writer: Option<Way> = None;
        let mut apart: Option<Way> = None;
        let mut see = |way: Way| {
            if way.prot.is_empty() {
                return;
            }
            if !allowed.contains(way.prot) {
                excess = Some(way);
            }
            let one = *first.get_or_insert(way);
            if one.memory != way.memory {
                apart = Some(way);
            }
            if way.prot.contains(Prot::WRITE) {
                writer = Some(way);
            }
        };
        if self.shape.spaces[space].cpu_visible {
            see(Way { device: None, memory: HOME, prot: self.host.cpu_prot(va) });
        }
        for (n, member) in self.members.iter().enumerate() {
            let device = member.device();
            let Some(pmap) = device.pmap_for(self.spaces[space]).filter(|pmap| !device.is_given_up(*pmap)) else { continue };
            if let Some((memory, prot)) = device.table_entry(pmap, va) {
                see(Way { device: Some(n), memory: if memory.hnode == HnodeId::HOST { HOME } else { memory }, prot });
            }
        }
        if let Some(way) = excess {
            return Err(format!("{}:{va} allows {allowed:?}, and more to {}", self.spaces[space], self.way(&way)));
        }
        match (first, writer, apart) {
            (Some(one), Some(writer), Some(apart)) => {
                let other = if writer.memory == apart.memory { one } else { apart };
                Err(format!("{}:{va} can be written by {} and touched by {}", self.spaces[space], self.way(&writer), self.way(&other)))
            }
            _ => Ok(()),
        }
    }

    fn way(&self, way: &Way) -> String {
        let who = way.device.map_or("the CPU".to_owned(), |device| self.members[device].id().to_string());
        format!("{who} in {:?} ({:?})", way.memory, way.prot)
    }
}

const HOME: PhysAddr = PhysAddr { hnode: HnodeId::HOST, addr: 0 };
