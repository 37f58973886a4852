//! What every run uses again: the machines, the homes, the memory of somebody else.

use crate::builder::Builder;
use crate::device::Board;
use crate::keeper::Hooks;
use crate::machine::Machine;
use crate::shm::Config;
use gmem_hal::{ByteLen, EvictOutcome, FaultError, HnodeId, PhysAddr, PmapId, VirtAddr, VirtRange};
use rustix::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

pub(super) const PAGE: u64 = 4096;
/// Where the address space begins.
pub(super) const START: u64 = 0x2000_0000_0000;
/// Bytes of the address space.
pub(super) const WINDOW: u64 = 4 << 20;
/// Bytes at the start of the device's memory that belong to another context.
pub(super) const FOREIGN: u64 = 2 << 20;
/// Bytes of the device's memory.
pub(super) const MEMORY: u64 = FOREIGN + (2 << 20) + (64 << 10);
/// What the other context's memory is full of.
pub(super) const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec3;
pub(super) const HNODE: HnodeId = HnodeId(1);
pub(super) const WORKERS: usize = 4;
/// How long the host waits for an answer.
pub(super) const LIMIT: Duration = Duration::from_micros(100);

/// Two machines, one a PEER, and the home of every page of the address space.
pub(super) struct Rig {
    machines: [Machine; 2],
    homes: usize,
    /// Stands for the device's memory where the device maps it.
    memory: OwnedFd,
}

/// The whole address space.
pub(super) fn window() -> VirtRange {
    VirtRange::from_len(VirtAddr::new(START), ByteLen(WINDOW)).expect("it does not wrap")
}

/// What a device is told.
pub(super) fn config(peer: bool, host: bool) -> Config {
    Config {
        window_start: START,
        window_end: START + WINDOW,
        dram_len: MEMORY,
        workers: WORKERS as u64,
        patience_ns: 0,
        max_maps: 60_000,
        host,
        host_offset: 0,
        peer,
    }
}

/// The one of this process.
pub(super) fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(Rig::new)
}

impl Rig {
    fn new() -> Self {
        assert!(Board::reserve(&config(false, false)), "the addresses of the window are in use");
        [START - PAGE, START + WINDOW].into_iter().for_each(guard);
        let homes = vec![0u64; (WINDOW / 8) as usize].leak().as_mut_ptr() as usize;
        let machines = [false, true].map(|peer| {
            let spec = Builder { memory: MEMORY, cores: WORKERS, limit: LIMIT, peer, ..Builder::new() };
            let machine = Machine::new(spec);
            // No process is started, so nobody calls these.
            let hooks = Hooks {
                resolve: Box::new(|_, _, _| Err(FaultError::NotAttached)),
                lost: Box::new(|_| {}),
                evict: Box::new(|_, _| EvictOutcome::Refused),
            };
            machine.power_on(1 + usize::from(peer), hooks).expect("a machine can be made");
            machine.add_memory(HNODE, machine.memory()).expect("it has that memory");
            // Nobody has this id: the table gives none without a count.
            machine.on().expect("it was started").peer.take(PmapId(u64::MAX), &machine.memories).expect("all memory is free");
            machine
        });
        let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file can be made");
        rustix::fs::ftruncate(&memory, MEMORY.max(WINDOW)).expect("it can grow");
        let rig = Self { machines, homes, memory };
        for machine in &rig.machines {
            // SAFETY: as in `is_untouched`.
            (0..FOREIGN as usize / 8).for_each(|i| unsafe { foreign(machine).add(i).write(SECRET) });
        }
        rig
    }

    pub(super) fn machine(&self, peer: bool) -> &Machine {
        &self.machines[usize::from(peer)]
    }

    /// A file as large as the device's memory and the address space.
    pub(super) fn file(&self) -> OwnedFd {
        rustix::io::fcntl_dupfd_cloexec(&self.memory, 0).expect("descriptors are left")
    }

    /// Where the home of `va` is.
    pub(super) fn home(&self, va: u64) -> PhysAddr {
        PhysAddr { hnode: HnodeId::HOST, addr: self.homes as u64 + (va - START) }
    }

    /// The first word of the page at `va`, at home.
    pub(super) fn word(&self, va: u64) -> u64 {
        // SAFETY: inside the homes, which live for ever and are only reached by the thread that plays a scene.
        unsafe { self.at(va).read() }
    }

    /// Sets it.
    pub(super) fn set_word(&self, va: u64, word: u64) {
        // SAFETY: as in `word`.
        unsafe { self.at(va).write(word) }
    }

    /// Whether a byte of the other context's came to be in the home of `len` bytes at `va`.
    pub(super) fn knows_a_secret(&self, va: u64, len: u64) -> bool {
        // SAFETY: as in `word`; nothing is copied while the slice lives.
        let words = unsafe { std::slice::from_raw_parts(self.at(va), (len / 8) as usize) };
        words.contains(&SECRET)
    }

    fn at(&self, va: u64) -> *mut u64 {
        assert!(window().contains(VirtAddr::new(va)));
        (self.homes as u64 + (va - START)) as *mut u64
    }

    /// Whether what lies around the window in this process, which stands for the device's, is as it was.
    pub(super) fn is_confined(&self) -> bool {
        // SAFETY: `guard` mapped both pages, for ever.
        [START - PAGE, START + WINDOW].into_iter().all(|va| unsafe { (va as *const u64).read_volatile() == SECRET })
    }

    /// Whether the other context's memory is as it was.
    pub(super) fn is_untouched(&self, peer: bool) -> bool {
        // SAFETY: the memory is mapped as long as the machine lives, which is for ever; only the thread that plays a scene reaches it.
        let words = unsafe { std::slice::from_raw_parts(foreign(self.machine(peer)), FOREIGN as usize / 8) };
        words.chunks_exact(512).all(|page| *page == [SECRET; 512])
    }
}

/// The memory of the other context.
fn foreign(machine: &Machine) -> *mut u64 {
    let (base, len) = machine.own_memory(HNODE).expect("it is registered");
    assert!(len as u64 == MEMORY);
    base as *mut u64
}

/// Maps a page beside the window, which nothing may touch.
fn guard(va: u64) {
    let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping, so no memory in use changes.
    let at = unsafe { libc::mmap(va as *mut libc::c_void, PAGE as usize, access, flags, -1, 0) };
    assert!(at as u64 == va, "the addresses beside the window are in use");
    // SAFETY: this is the mapping made above, and nothing else uses it.
    unsafe { (va as *mut u64).write(SECRET) };
}
