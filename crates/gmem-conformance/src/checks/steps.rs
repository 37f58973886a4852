//! Steps that several checks take.

use crate::check::{Outcome, Stop};
use crate::world::{World, at, eventually, get_bytes, same_bytes};
use crate::{Case, ensure_eq};
use gmem::hal::{FaultError, PhysRange};
use gmem::{Mode, Region, State};
use std::io::Write;
use std::os::fd::AsRawFd;

/// The device's access is refused with `expected`. Where the device uses the CPU's page table it is refused as the CPU's own would be, which ends the process.
pub(super) fn refused(
    case: &Case<'_>,
    step: &str,
    expected: FaultError,
    access: impl FnOnce() -> Result<(), FaultError>,
) -> Result<(), Stop> {
    if case.mode() == Mode::Share {
        let ending = case.doomed(step, |brink| {
            brink.reached();
            // If it comes back at all it was not refused.
            let _ = access();
        })?;
        return ending.by_signal(libc::SIGSEGV);
    }
    ensure_eq!(step, access(), Err(expected));
    Ok(())
}

/// The state of a page that the device wrote last.
pub(super) fn written_by_device(case: &Case<'_>) -> State {
    if case.mode() == Mode::CoherentExclusive { State::Device } else { State::Host }
}

/// The states of the pages of a region, one each; holes are left out.
pub(super) fn states(world: &World, region: &Region) -> Result<Vec<State>, gmem::Error> {
    let runs = world.residency(region)?;
    Ok(runs.iter().flat_map(|run| std::iter::repeat_n(run.state, (run.range.len().get() / world.page()) as usize)).collect())
}

/// The pages of a region are in these states, now or in a moment: a fault that let a thread go on is committed just after.
pub(super) fn settle(what: &str, world: &World, region: &Region, expected: &[State]) -> Outcome {
    eventually(|| {
        ensure_eq!(what, states(world, region)?, expected);
        Ok(())
    })
}

/// The device and the CPU, in this order, read `expected` from byte `offset` on.
pub(super) fn both_read(world: &World, region: &Region, offset: u64, expected: &[u8]) -> Outcome {
    let mut seen = vec![0; expected.len()];
    world.unit.read(at(region, offset), &mut seen)?;
    same_bytes("what the device reads", &seen, expected)?;
    same_bytes("what the CPU reads", &get_bytes(at(region, offset), expected.len()), expected)
}

/// The device's own memory, if it is in one piece: each piece is a pool with lists of its own.
pub(super) fn only_memory(world: &World) -> Result<PhysRange, Stop> {
    match world.unit.observed.registered_memory()[..] {
        [whole] => Ok(whole),
        _ => Err(Stop::NotApplicable("the device's memory is not in one piece".into())),
    }
}

/// Bytes in use in the device's own memory.
pub(super) fn used(world: &World) -> u64 {
    world.unit.device.memory().iter().map(|memory| memory.used.get()).sum()
}

/// Forks, has the child make `access` and exit, and says by which signal it ended, if by one.
pub(super) fn fork(access: impl FnOnce()) -> Result<Option<i32>, Stop> {
    Forked::new(access)?.wait()
}

/// A child that waits to be let go.
pub(super) struct Forked {
    pid: i32,
    go: std::io::PipeWriter,
}

impl Forked {
    /// A child that makes `access` once [`Forked::wait`] lets it, and exits.
    pub(super) fn new(access: impl FnOnce()) -> Result<Self, Stop> {
        let (waiting, go) = std::io::pipe()?;
        let parent = std::process::id();
        // SAFETY: the child reads a descriptor, makes one access and exits: nothing in it allocates or takes a lock that another thread of this process
        // may have held.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                // Not even if the check is killed before it lets the child go.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent as i32 {
                    libc::_exit(0);
                }
                let mut byte = 0u8;
                libc::read(waiting.as_raw_fd(), (&raw mut byte).cast(), 1);
                access();
                libc::_exit(0);
            }
            pid
        };
        if pid < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(Self { pid, go }) }
    }

    /// Lets the child go, and says by which signal it ended, if by one.
    pub(super) fn wait(mut self) -> Result<Option<i32>, Stop> {
        // A byte, since closing would not be seen: children that were made later have the descriptor too.
        self.go.write_all(&[1])?;
        let mut status = 0;
        let pid = loop {
            // SAFETY: waits for a child of this process.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            // A driver's timers may interrupt it.
            if pid >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                break pid;
            }
        };
        ensure_eq!("the child that ended", pid, self.pid);
        Ok(libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)))
    }
}
