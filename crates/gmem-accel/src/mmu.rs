//! The MMU functions of a discrete accelerator.

use crate::context::{Command, Context, Facts};
use crate::device::{MARK, op};
use crate::machine::Machine;
use crate::shm::{Config, ready};
use crate::wait::{Bell, Patience, in_naps};
use gmem_hal::{DeviceError, HnodeId, Mapping, Mmu, Mode, PageSize, PmapId, PmapRequest, Prot, VirtRange};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often to start another process when the window's addresses are taken in one: the loader places things at random.
const ATTEMPTS: usize = 4;

/// How long a process may take to exit by itself before it is killed. Its kernels have nothing to lose.
const GRACE: Duration = Duration::from_millis(200);

impl Mmu for Machine {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        let fits = request.range.is_aligned(PageSize::Size4K) && request.host.is_none_or(|h| h.offset.is_multiple_of(4096));
        if !fits || (request.mode == Mode::Replicate) != request.host.is_some() {
            return Err(DeviceError::BadRequest);
        }
        if !self.info.modes.contains(request.mode.as_set()) || request.mode == Mode::Share {
            return Err(DeviceError::Unsupported);
        }
        let pmap = self.table.reserve()?;
        let mut result = Err(DeviceError::BadRequest);
        for _ in 0..ATTEMPTS {
            result = self.new_process(pmap, request);
            if result.as_ref().err() != Some(&DeviceError::BadRequest) {
                break;
            }
        }
        match result {
            Ok(context) => {
                self.table.insert(pmap, context);
                Ok(pmap)
            }
            Err(e) => {
                self.table.cancel(pmap);
                Err(e)
            }
        }
    }

    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let on = self.on()?;
        let gone = self.table.with(pmap, |context| {
            context.ask_to_exit();
            context.wait_dead(GRACE) || {
                on.keeper.kill(context);
                context.wait_dead(self.spec.limit)
            }
        });
        match gone {
            Some(true) => {
                self.table.remove(pmap);
                on.peer.take_back(pmap);
                Ok(())
            }
            Some(false) => Err(DeviceError::NoAnswer),
            None => Err(DeviceError::BadRequest),
        }
    }

    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        if self.spec.peer {
            return Err(DeviceError::Unsupported); // the peer enters its pages itself
        }
        self.with(pmap, |context| context.enter(&self.entry(context, mapping)?))
    }

    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        if self.spec.peer {
            return Err(DeviceError::Unsupported);
        }
        self.with(pmap, |context| {
            check(context, range)?;
            context.queue(&Command::release(range))
        })
    }

    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        self.with(pmap, |context| {
            check(context, range)?;
            context.queue(&Command { prot: prot.bits().into(), ..Command::on(op::PROTECT, range) })
        })
    }

    fn tlb_invalidate(&self, pmap: PmapId, _range: VirtRange) -> Result<(), DeviceError> {
        // Commands are carried out in order, and each is its own shootdown when it is: all of them are, or this range's may not be.
        self.with(pmap, Context::flush)
    }

    fn tlb_invalidate_coalesced(&self, pmap: PmapId, _ranges: &[VirtRange]) -> Result<(), DeviceError> {
        self.with(pmap, Context::flush)
    }
}

/// A range the core may name: page aligned and inside the window.
fn check(context: &Context, range: VirtRange) -> Result<(), DeviceError> {
    let good = range.is_aligned(PageSize::Size4K) && context.facts.window.contains_range(range);
    if good { Ok(()) } else { Err(DeviceError::BadRequest) }
}

impl Machine {
    /// The command that enters `mapping`, checked: what it names must be memory this context can reach.
    fn entry(&self, context: &Context, mapping: &Mapping) -> Result<Command, DeviceError> {
        let range = VirtRange::from_len(mapping.va, mapping.len).ok_or(DeviceError::BadRequest)?;
        check(context, range)?;
        let prot = mapping.prot.bits().into();
        let at = mapping.frame;
        let end = at.addr.checked_add(mapping.len.get()).ok_or(DeviceError::BadRequest)?;
        if !at.addr.is_multiple_of(4096) {
            return Err(DeviceError::BadRequest);
        }
        if let (HnodeId::HOST, Some(host)) = (at.hnode, context.facts.host) {
            let offset = at.addr.checked_sub(host.base.addr).ok_or(DeviceError::BadRequest)?;
            if end - host.base.addr > context.facts.window.len().get() {
                return Err(DeviceError::BadRequest);
            }
            return Ok(Command { frame: host.offset + offset, prot, ..Command::on(op::ENTER_HOST, range) });
        }
        match self.own_memory(at.hnode) {
            Some((_, len)) if end <= len as u64 => Ok(Command { frame: at.addr, prot, ..Command::on(op::ENTER, range) }),
            _ => Err(DeviceError::BadRequest),
        }
    }

    /// Tells a peer which addresses its own operating system uses, as the builder said.
    fn occupy(&self, context: &Context) -> Result<(), DeviceError> {
        let ranges = self.spec.occupied.iter().filter(|_| self.spec.peer);
        ranges.map(|range| Command { prot: MARK, ..Command::on(op::VA_ALLOC, *range) }).try_for_each(|c| context.enter(&c))
    }

    /// Starts one process and waits until it is ready. `BadRequest` if the window's addresses are in use in it.
    fn new_process(&self, pmap: PmapId, request: &PmapRequest) -> Result<Arc<Context>, DeviceError> {
        let on = self.on()?;
        let spec = &self.spec;
        let config = Config {
            window_start: request.range.start().get(),
            window_end: request.range.end().get(),
            dram_len: spec.memory,
            workers: spec.cores as u64,
            patience_ns: spec.patience.as_nanos() as u64,
            max_maps: on.max_maps,
            host: request.host.is_some(),
            host_offset: request.host.map_or(0, |h| h.offset),
            peer: spec.peer,
        };
        let facts = Facts { pmap, window: request.range, host: request.host, workers: spec.cores, limit: spec.limit, pid: 0 };
        let context = on.keeper.create(facts, config)?;
        match self.settle(&context) {
            Ok(()) => Ok(context),
            Err(e) => {
                context.expected.store(true, Ordering::SeqCst);
                on.keeper.kill(&context);
                context.wait_dead(spec.limit);
                Err(e)
            }
        }
    }

    /// Waits until a process says that it is ready, and tells it what it must know. `BadRequest` if the window's addresses are in use in it.
    pub(crate) fn settle(&self, context: &Context) -> Result<(), DeviceError> {
        let state = || context.shm.ready().load(Ordering::SeqCst);
        let decided = || state() != ready::STARTING || context.is_dead();
        in_naps(self.spec.limit, |nap| Bell(context.shm.ready_bell()).wait(&mut Patience::new(Duration::ZERO), nap, decided));
        match state() {
            ready::READY if !context.is_dead() => self.occupy(context),
            ready::RANGE_TAKEN => Err(DeviceError::BadRequest),
            ready::STARTING if !context.is_dead() => Err(DeviceError::NoAnswer),
            _ => Err(DeviceError::NoMemory),
        }
    }
}
