//! The contracts of gmem.
//!
//! This crate holds what both sides of the system must agree on and nothing else: the kinds of numbers
//! ([`VirtAddr`], [`PhysAddr`], [`PageSize`], the ids), the traits a **device** driver implements ([`Device`], [`Mmu`],
//! [`CopyEngine`], [`Peer`], [`Frames`], [`Compute`]), the trait the **host** implements ([`Host`]), the calls a plug-in makes into the core
//! ([`Upcalls`]), and how the core locks and waits ([`Platform`], [`Event`]).
//!
//! A plug-in depends on this crate and never on the core; the core depends on this crate and never on a plug-in.
//!
//! # Rules that hold for every callback
//!
//! * The core calls every callback with **no lock of its own held**, except where a method says otherwise. The pages concerned are marked
//!   busy instead, so no two callbacks ever run for the same page of one page table at the same time. (When a region is unmapped or a context is detached, a whole
//!   range is released at once; nothing in it can be entered any more then.)
//! * A callback may block for a bounded time; `gmem-conformance` allows six seconds. (A launch may take as long as its kernel, and so does a wait for it, or for a place behind it: [`Compute`].) It must not call back into the core for a page it was called for, nor wait
//!   for a fault that another thread of the driver reports: it would wait for itself.
//! * A callback may itself fault on another page, or report a fault there. Such a fault waits for nobody who waits for the callback, such as a protect of what was
//!   mapped with both.
//! * A callback may be called from any thread of gmem and, with fault delivery [`Delivery::InThread`], from a signal handler: what lies on the
//!   fault path (everything except `pmap_create`, `pmap_destroy`, `va_alloc_fixed`, `va_free` and the calls on whole regions) must be
//!   async-signal-safe: no allocation, no lock that a program thread could hold, no access to managed memory.
//! * Callbacks that **grant** access or take resources (`pmap_create`, `pmap_enter`, `alloc_frame`, `zero`, `copy`, `map`) may fail; they then
//!   changed nothing, and the core undoes the steps before them.
//! * Callbacks that **revoke** (`pmap_release`, lowering `pmap_protect`, `tlb_invalidate*`, `unmap`) cannot be undone. One that fails
//!   fences its context, and the frames the device might still reach are quarantined.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod addr;
mod compute;
mod device;
mod error;
mod host;
mod id;
mod mmu;
mod peer;
mod platform;
mod region;
mod upcalls;

pub use addr::{ByteLen, PageSize, PageSizes, PhysAddr, PhysRange, VirtAddr, VirtRange};
pub use compute::{Compute, Crash, LaunchError, LaunchRequest, Ticket};
pub use device::{Capabilities, CopyEngine, Device, DeviceInfo, Frames, MAX_MEMORIES, Mode, Modes};
pub use error::{DeviceError, FaultError, HostError, OutOfMemory, PeerError};
pub use host::{Host, HostWindow, Pages};
pub use id::{DeviceId, HnodeId, PmapId, SpaceId};
pub use mmu::{Mapping, Mmu, PmapRequest};
pub use peer::{Peer, PeerMap, PeerUnmap};
pub use platform::{Event, Platform, Wait, WaitKind};
pub use region::{Access, Backing, Delivery, Prot, RegionAttrs};
pub use upcalls::{EvictOutcome, FaultHint, HostFault, Upcalls};

/// Re-exported so that a platform and the core agree on one version of the lock contract.
pub use lock_api;
