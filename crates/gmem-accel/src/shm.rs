//! The memory that the host and one device process share: how it is laid out, and the only ways to touch it.
//!
//! The other side may change any byte at any time, so nothing here is ever a Rust reference to plain data: every field is an integer that is
//! reached as an atomic, and what is read is copied first and checked then. The host never reads back what it must rely on; it keeps its own copy
//! (the head of each ring, who owns which record).
//!
//! ```text
//! host -> device   config | commands: head, order, records      | launches: head, order, records
//! device -> host   ready  | tail, records' results, revoke_failed | records' status, over          | one fault slot per worker
//! bells            command and launch (device's), ready and one per record (host's), per worker: fault (host's), answer (device's)
//! ```

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{self, Long, Word};
use rustix::fd::AsFd;
use rustix::mm::{MapFlags, ProtFlags};

/// The most workers a device can have.
pub(crate) const MAX_CORES: usize = if cfg!(loom) { 2 } else { 64 };
/// Commands that can be under way at once; a power of two. A model's ring is so small that it is full at once.
pub(crate) const RING: usize = if cfg!(loom) { 2 } else { 512 };
/// Launches that can be under way at once, per context: as many have a record. A power of two.
pub(crate) const LAUNCHES: usize = if cfg!(loom) { 2 } else { 256 };
/// The most bytes of a panic's message that reach the host; a multiple of 8.
pub(crate) const MESSAGE: usize = if cfg!(loom) { 16 } else { 512 };
/// The first word of the shared memory, "gmemacc" and a version.
pub(crate) const MAGIC: u64 = 0x676d_656d_6163_6303;

/// One command to the device's MMU or peer operating system. Plain numbers; never dereferenced as a whole.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct CommandLayout {
    state: Word,
    op: Word,
    prot: Word,
    result: Word,
    va: Long,
    len: Long,
    frame: Long,
    value: Long,
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct FaultLayout {
    state: Word,
    access: Word,
    va: Long,
    answer: Long,
    host_bell: Word,
    device_bell: Word,
    _pad: [u64; 4],
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct LaunchLayout {
    status: Word,
    kernel: Word,
    nargs: Word,
    replay: Word,
    over: Word,
    _pad: u32,
    va: Long,
    code: Long,
    args: [Long; crate::kernel::MAX_ARGS],
    message: [Long; MESSAGE / 8],
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Layout {
    config: [Long; Config::WORDS],
    ready: Word,
    ready_bell: Word,
    head: Word,
    _pad0: [u32; 13],
    tail: Word,
    revoke_failed: Word,
    drainers: Word,
    _pad1: [u32; 13],
    command_bell: Word,
    exit: Word,
    launch_head: Word,
    launch_bell: Word,
    _pad2: [u32; 12],
    faults: [FaultLayout; MAX_CORES],
    // Apart from their records: the end of a device rings all of them, which shall not bring in memory that was never used.
    launch_bells: [Word; LAUNCHES],
    command_bells: [Word; RING],
    launch_order: [Word; LAUNCHES],
    launches: [LaunchLayout; LAUNCHES],
    command_order: [Word; RING],
    commands: [CommandLayout; RING],
}

/// What the device process is told when it starts. The host writes it once, before the process exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Config {
    pub(crate) window_start: u64,
    pub(crate) window_end: u64,
    pub(crate) dram_len: u64,
    pub(crate) workers: u64,
    /// Nanoseconds a worker looks for the answer to its fault before it sleeps.
    pub(crate) patience_ns: u64,
    /// `vm.max_map_count`.
    pub(crate) max_maps: u64,
    /// Whether the host's window was passed, and the offset in it of the first byte of the address space.
    pub(crate) host: bool,
    pub(crate) host_offset: u64,
    /// Whether the process runs a peer operating system.
    pub(crate) peer: bool,
}

impl Config {
    const WORDS: usize = 10;

    fn to_words(self) -> [u64; Self::WORDS] {
        [
            MAGIC,
            self.window_start,
            self.window_end,
            self.dram_len,
            self.workers,
            self.patience_ns,
            self.max_maps,
            self.host.into(),
            self.host_offset,
            self.peer.into(),
        ]
    }

    /// Decodes and checks; `None` if this is not the memory of a device.
    fn from_words(w: [u64; Self::WORDS]) -> Option<Self> {
        let config = Self {
            window_start: w[1],
            window_end: w[2],
            dram_len: w[3],
            workers: w[4],
            patience_ns: w[5],
            max_maps: w[6],
            host: w[7] != 0,
            host_offset: w[8],
            peer: w[9] != 0,
        };
        let sane = config.window_start < config.window_end && (1..=MAX_CORES as u64).contains(&config.workers);
        (w[0] == MAGIC && sane).then_some(config)
    }
}

/// A mapping of the shared memory.
pub(crate) struct Shared {
    base: *mut Layout,
}

// SAFETY: the mapping lives until drop, is valid from any thread, and is only reached through atomics.
unsafe impl Send for Shared {}
// SAFETY: as above; concurrent atomic access is what atomics are for.
unsafe impl Sync for Shared {}

/// Makes an atomic of the `u32` at a field of the layout.
macro_rules! word {
    ($self:ident . $($field:tt)+) => {
        // SAFETY: `base` is a live mapping of a whole `Layout` until `self` is dropped, the field lies inside it and is aligned by `repr(C)`,
        // and no non-atomic access to it is ever made in this process.
        unsafe { sync::word(&raw mut (*$self.base).$($field)+) }
    };
}

/// The same for `u64`.
macro_rules! long {
    ($self:ident . $($field:tt)+) => {
        // SAFETY: as for `word!`.
        unsafe { sync::long(&raw mut (*$self.base).$($field)+) }
    };
}

/// The fields of a command, as atomics.
pub(crate) struct CommandSlot<'a> {
    pub(crate) state: &'a AtomicU32,
    pub(crate) op: &'a AtomicU32,
    pub(crate) prot: &'a AtomicU32,
    pub(crate) result: &'a AtomicU32,
    pub(crate) va: &'a AtomicU64,
    pub(crate) len: &'a AtomicU64,
    pub(crate) frame: &'a AtomicU64,
    pub(crate) value: &'a AtomicU64,
    /// Rings when the device is done with it. Each record has one of its own, so that of many callers only those wake who have to.
    pub(crate) bell: &'a AtomicU32,
}

/// The fields of a worker's fault slot, as atomics.
pub(crate) struct FaultSlot<'a> {
    pub(crate) state: &'a AtomicU32,
    pub(crate) access: &'a AtomicU32,
    pub(crate) va: &'a AtomicU64,
    pub(crate) answer: &'a AtomicU64,
    pub(crate) host_bell: &'a AtomicU32,
    pub(crate) device_bell: &'a AtomicU32,
}

/// The fields of a launch record, as atomics.
pub(crate) struct LaunchSlot<'a> {
    pub(crate) status: &'a AtomicU32,
    pub(crate) kernel: &'a AtomicU32,
    pub(crate) nargs: &'a AtomicU32,
    pub(crate) replay: &'a AtomicU32,
    /// Every worker has done its part: nonzero. The device touches nothing of the record after that but its bell.
    pub(crate) over: &'a AtomicU32,
    /// Rings when it is over, and perhaps again when the record is another launch's.
    pub(crate) bell: &'a AtomicU32,
    pub(crate) va: &'a AtomicU64,
    pub(crate) code: &'a AtomicU64,
}

impl Shared {
    /// The size of the shared memory in bytes.
    pub(crate) const LEN: usize = size_of::<Layout>().next_multiple_of(4096);

    /// Maps `fd`, which holds at least [`Shared::LEN`] bytes and cannot shrink.
    pub(crate) fn map(fd: impl AsFd) -> rustix::io::Result<Self> {
        if cfg!(loom) {
            return Err(rustix::io::Errno::NOSYS); // a model's memory is no mapping, see `modelled`
        }
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), Self::LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)? };
        Ok(Self { base: base.cast() })
    }

    /// Memory that the threads of a model share as if they were host and device.
    #[cfg(all(test, loom))]
    pub(crate) fn modelled() -> Self {
        Self { base: Box::into_raw(Box::default()) }
    }

    /// Writes the configuration. Before the device process exists.
    pub(crate) fn set_config(&self, config: &Config) {
        for (i, value) in config.to_words().into_iter().enumerate() {
            long!(self.config[i]).store(value, Ordering::SeqCst);
        }
    }

    /// Reads the configuration, in the device process; `None` if there is none.
    pub(crate) fn config(&self) -> Option<Config> {
        Config::from_words(std::array::from_fn(|i| long!(self.config[i]).load(Ordering::SeqCst)))
    }

    /// The record of a command.
    pub(crate) fn command(&self, record: u32) -> CommandSlot<'_> {
        let i = record as usize % RING;
        CommandSlot {
            state: word!(self.commands[i].state),
            op: word!(self.commands[i].op),
            prot: word!(self.commands[i].prot),
            result: word!(self.commands[i].result),
            va: long!(self.commands[i].va),
            len: long!(self.commands[i].len),
            frame: long!(self.commands[i].frame),
            value: long!(self.commands[i].value),
            bell: word!(self.command_bells[i]),
        }
    }

    pub(crate) fn fault(&self, worker: usize) -> FaultSlot<'_> {
        let i = worker % MAX_CORES;
        FaultSlot {
            state: word!(self.faults[i].state),
            access: word!(self.faults[i].access),
            va: long!(self.faults[i].va),
            answer: long!(self.faults[i].answer),
            host_bell: word!(self.faults[i].host_bell),
            device_bell: word!(self.faults[i].device_bell),
        }
    }

    /// The record of a launch.
    pub(crate) fn launch(&self, record: u32) -> LaunchSlot<'_> {
        let i = record as usize % LAUNCHES;
        LaunchSlot {
            status: word!(self.launches[i].status),
            kernel: word!(self.launches[i].kernel),
            nargs: word!(self.launches[i].nargs),
            replay: word!(self.launches[i].replay),
            over: word!(self.launches[i].over),
            bell: word!(self.launch_bells[i]),
            va: long!(self.launches[i].va),
            code: long!(self.launches[i].code),
        }
    }

    /// The record of the command that is the `turn`th to be carried out, wrapping. Records are used again in any order, so that one whose result is read late is in
    /// nobody's way.
    pub(crate) fn command_record(&self, turn: u32) -> &AtomicU32 {
        word!(self.command_order[turn as usize % RING])
    }

    /// The same of the launch that is the `turn`th to run.
    pub(crate) fn launch_record(&self, turn: u32) -> &AtomicU32 {
        word!(self.launch_order[turn as usize % LAUNCHES])
    }

    pub(crate) fn launch_arg(&self, record: u32, arg: usize) -> &AtomicU64 {
        long!(self.launches[record as usize % LAUNCHES].args[arg])
    }

    /// Eight bytes of what the kernel of a launch said when it panicked.
    pub(crate) fn launch_message(&self, record: u32, word: usize) -> &AtomicU64 {
        long!(self.launches[record as usize % LAUNCHES].message[word])
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident)*) => {
        impl Shared {
            $($(#[$doc])* pub(crate) fn $name(&self) -> &AtomicU32 { word!(self.$name) })*
        }
    };
}

words! {
    /// Written by the device: one of [`ready`].
    ready
    ready_bell
    /// Commands posted, wrapping. The host writes it from a copy of its own.
    head
    /// Commands done, wrapping.
    tail
    /// The device could not take access away: nonzero.
    revoke_failed
    /// Device threads that look at the ring right now and will look once more when they stop.
    drainers
    command_bell
    /// The host asks the process to exit: nonzero.
    exit
    /// Launches posted, wrapping.
    launch_head
    launch_bell
}

impl Drop for Shared {
    #[cfg(loom)]
    fn drop(&mut self) {
        // SAFETY: only `modelled` made it, from a box, and every reference into it borrowed `self`.
        drop(unsafe { Box::from_raw(self.base) });
    }

    #[cfg(not(loom))]
    fn drop(&mut self) {
        // SAFETY: `base` came from `mmap` with this length, and every reference into it borrowed `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), Self::LEN) };
    }
}

/// Values of [`Shared::ready`].
pub(crate) mod ready {
    pub(crate) const STARTING: u32 = 0;
    pub(crate) const READY: u32 = 1;
    /// The window's addresses are in use in this process: another one may have better luck.
    pub(crate) const RANGE_TAKEN: u32 = 2;
    pub(crate) const FAILED: u32 = 3;
}

/// Values of [`CommandSlot::state`].
pub(crate) mod command {
    pub(crate) const PENDING: u32 = 1;
    pub(crate) const TAKEN: u32 = 2;
    pub(crate) const DONE: u32 = 3;
    /// The host gave up waiting before the device began.
    pub(crate) const CANCELLED: u32 = 4;
}

/// Values of [`FaultSlot::state`].
pub(crate) mod fault {
    pub(crate) const IDLE: u32 = 0;
    pub(crate) const POSTED: u32 = 1;
    pub(crate) const ANSWERED: u32 = 2;
}

/// Values of [`LaunchSlot::status`].
pub(crate) mod launch {
    pub(crate) const RUNNING: u32 = 0;
    pub(crate) const OK: u32 = 1;
    /// `va` could not be resolved, `code` says why.
    pub(crate) const FAULT: u32 = 2;
    /// The kernel crashed: `code` says how, at `va` if that means anything.
    pub(crate) const CRASHED: u32 = 3;
    /// The kernel panicked: `code` is the length of the message in bytes.
    pub(crate) const PANICKED: u32 = 4;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_the_shared_memory_and_garbage_is_refused() {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, Shared::LEN as u64).unwrap();
        let (ours, theirs) = (Shared::map(&fd).unwrap(), Shared::map(&fd).unwrap());
        assert_eq!(theirs.config(), None, "zeros are no configuration");
        let config = Config {
            window_start: 0x1000,
            window_end: 0x3000,
            dram_len: 4096,
            workers: 2,
            patience_ns: 5,
            max_maps: 6,
            host: true,
            host_offset: 8,
            peer: false,
        };
        ours.set_config(&config);
        assert_eq!(theirs.config(), Some(config));
        ours.set_config(&Config { workers: 1 + MAX_CORES as u64, ..config });
        assert_eq!(theirs.config(), None, "more workers than fault slots");
    }
}
