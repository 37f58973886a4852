//! What a discrete accelerator is made of, from its start to its end.

use crate::builder::Builder;
use crate::context::Context;
use crate::copy;
use crate::dram::Dram;
use crate::keeper::{Hooks, Keeper};
use crate::memories::Memories;
use crate::spawn;
use crate::table::Table;
use gmem_hal::{ByteLen, Capabilities, DeviceError, DeviceInfo, HnodeId, PhysAddr, PhysRange, PmapId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The machine inside a [`crate::Discrete`]: its MMU, copy engine, cores and peer are implemented on it.
pub(crate) struct Machine {
    pub(crate) info: DeviceInfo,
    pub(crate) spec: Builder,
    pub(crate) table: Table,
    on: OnceLock<On>,
    pub(crate) memories: Memories,
}

/// What exists once the core has started the device.
pub(crate) struct On {
    core_key: usize,
    dram: Dram,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) max_maps: u64,
    pub(crate) peer: crate::peer::Pool,
}

/// Every device has a cookie of its own: its tables live in its own processes, so it can share them with no other device.
static NEXT_COOKIE: AtomicU64 = AtomicU64::new(1);

impl Machine {
    pub(crate) fn new(spec: Builder) -> Self {
        let mut capabilities = Capabilities::empty();
        capabilities.set(Capabilities::REPLAYABLE, spec.replay);
        capabilities.set(Capabilities::PEER, spec.peer);
        let info = DeviceInfo {
            name: spec.name.clone(),
            capabilities,
            page_sizes: spec.page_sizes,
            modes: spec.modes,
            mmu_cookie: 0x6763_0000_0000_0000 | NEXT_COOKIE.fetch_add(1, Ordering::Relaxed),
        };
        Self { info, spec, table: Table::new(), on: OnceLock::new(), memories: Memories::new() }
    }

    /// The device's memory, to be registered with the core.
    pub(crate) fn memory(&self) -> PhysRange {
        PhysRange { begin: 0, end: self.spec.memory }
    }

    /// The process of a context, for tools that show or test it. `None` if there is no such context.
    pub(crate) fn process(&self, pmap: PmapId) -> Option<u32> {
        self.table.with(pmap, |c| c.facts.pid as u32)
    }

    /// The memory that the process of a context has resident, device memory included; a frame counts once. Reads `/proc`, so not for fault paths.
    pub(crate) fn resident(&self, pmap: PmapId) -> Result<ByteLen, DeviceError> {
        let pid = self.process(pmap).ok_or(DeviceError::BadRequest)?;
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).map_err(|_| DeviceError::Dead)?;
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or(DeviceError::Dead)?;
        Ok(ByteLen(pages * rustix::param::page_size() as u64))
    }

    /// Takes memory and starts the keeper. `core_key` is the same for all devices of one core.
    pub(crate) fn power_on(&self, core_key: usize, hooks: Hooks) -> Result<(), DeviceError> {
        if self.on.get().is_some() {
            return Err(DeviceError::AlreadyStarted);
        }
        let (dram, fd) = Dram::create(self.spec.memory as usize).map_err(spawn::refusal)?;
        let max_maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|s| s.trim().parse().ok()).unwrap_or(65_530);
        let keeper = Keeper::start(hooks, fd)?;
        let peer = crate::peer::Pool::new(self.spec.memory);
        let refused = self.on.set(On { core_key, dram, keeper, max_maps, peer });
        if let Err(on) = refused {
            on.keeper.stop(self.spec.limit);
            return Err(DeviceError::AlreadyStarted);
        }
        Ok(())
    }

    /// Ends every process and thread of the device. Its memory stays until the device itself is dropped.
    pub(crate) fn power_off(&self) {
        let Some(on) = self.on.get() else { return };
        on.keeper.stop(self.spec.limit);
    }

    /// What exists since the start; `BadRequest` before it.
    pub(crate) fn on(&self) -> Result<&On, DeviceError> {
        self.on.get().ok_or(DeviceError::BadRequest)
    }

    /// A part of the memory becomes `hnode`.
    pub(crate) fn add_memory(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        let on = self.on()?;
        if range.end > on.dram.len() as u64 {
            return Err(DeviceError::BadRequest);
        }
        if !self.memories.add(hnode, range) {
            return Err(DeviceError::NoMemory);
        }
        copy::publish(on.core_key, hnode, on.dram.base(), on.dram.len());
        Ok(())
    }

    /// The core took it back, and may give its number to another device's.
    pub(crate) fn remove_memory(&self, hnode: HnodeId) {
        if let Some(on) = self.on.get()
            && self.memories.remove(hnode)
        {
            copy::withdraw(on.core_key, hnode);
        }
    }

    /// The base and length in bytes of the device's memory, if `hnode` is of it.
    pub(crate) fn own_memory(&self, hnode: HnodeId) -> Option<(usize, usize)> {
        let on = self.on.get().filter(|_| self.memories.have(hnode))?;
        Some((on.dram.base(), on.dram.len()))
    }

    /// The address by which the core knows an offset in the device's memory; `BadRequest` if the core has not that part of it.
    pub(crate) fn own_address(&self, offset: u64) -> Result<PhysAddr, DeviceError> {
        let hnode = self.memories.at(offset).ok_or(DeviceError::BadRequest)?;
        Ok(PhysAddr { hnode, addr: offset })
    }

    /// Which core the device belongs to; 0 before its start.
    pub(crate) fn core_key(&self) -> usize {
        self.on.get().map_or(0, |on| on.core_key)
    }

    /// Stops the process of a context by force. `Ok` confirms that it is gone. Async-signal-safe.
    pub(crate) fn stop_context(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let on = self.on()?;
        let killed = self.table.with(pmap, |context| {
            // The caller is told by the result; should it time out, the watcher tells.
            context.expected.store(true, Ordering::SeqCst);
            on.keeper.kill(context);
            let gone = context.wait_dead(self.spec.limit);
            if !gone {
                context.expected.store(false, Ordering::SeqCst);
            }
            // It may have ended just now: the watcher has told, unless it saw that the caller would be.
            gone || context.is_dead()
        });
        match killed {
            Some(true) => Ok(()),
            Some(false) => Err(DeviceError::NoAnswer),
            None => Err(DeviceError::BadRequest),
        }
    }

    /// Calls `f` with the context `pmap`; `BadRequest` if there is none. A command that broke off asks for the process to be killed.
    pub(crate) fn with<T, E: From<DeviceError>>(&self, pmap: PmapId, f: impl FnOnce(&Context) -> Result<T, E>) -> Result<T, E> {
        let call = |context: &Context| {
            let result = f(context);
            if result.is_err()
                && context.kill.load(Ordering::SeqCst)
                && let Ok(on) = self.on()
            {
                on.keeper.ring();
            }
            result
        };
        self.table.with(pmap, call).unwrap_or(Err(DeviceError::BadRequest.into()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
        // A core that ends with the device in it takes nothing back, and other devices must not find what is unmapped next. The hooks keep the core's address from
        // being another core's until then.
        while let Some(hnode) = self.memories.any() {
            self.remove_memory(hnode);
        }
    }
}
