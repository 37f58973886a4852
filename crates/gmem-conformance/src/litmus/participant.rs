//! A participant: a thread of the program, or a core of a device. All run this.
//!
//! A kernel may be ended at any access to unified memory, so a core maps the block, and nothing else that would have to be given back, only for the length of a launch.

use super::block::{Block, phase};
use super::program::{OPS, Op, PARTICIPANTS, PLACES, REGISTERS};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

/// How often a participant looks for the others, some 50 ns each, before it lets another thread run.
const LOOKS: u32 = 400;
/// How often it looks whether the others are awake, at one meeting and in a round: a busy machine may take its time, but not for every iteration.
const LONGEST_WAIT: u32 = 40_000;
const WAITS: u32 = 1_000_000;
/// The longest sleep, after which it looks again whether it is to stop.
static NAP: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The most cores of a device that take part.
pub(crate) const CORES: usize = 2;

/// What a thread or a core is to do in a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// Nothing.
    Idle,
    /// Give every place its first value.
    Clear,
    /// Be this participant.
    Take(usize),
    /// Say what every place holds.
    Collect,
}

impl Task {
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::Clear => 1,
            Self::Collect => 2,
            Self::Take(participant) => 3 + participant as u64,
        }
    }

    fn decode(code: u64) -> Self {
        match code {
            1 => Self::Clear,
            2 => Self::Collect,
            3.. if code - 3 < PARTICIPANTS as u64 => Self::Take((code - 3) as usize),
            _ => Self::Idle,
        }
    }

    /// Does it.
    ///
    /// # Safety
    /// The addresses in the block are those of aligned words that live meanwhile and that only atomics touch.
    pub(crate) unsafe fn run(self, block: &Block) {
        // SAFETY: forwarded to the caller.
        unsafe {
            match self {
                Self::Idle => {}
                Self::Clear => each_place(block, |i, place, word| word.store(block.tag(i, place), Relaxed)),
                Self::Collect => each_place(block, |i, place, word| block.ends[i][place].store(word.load(Relaxed), Relaxed)),
                Self::Take(participant) => take_part(block, participant),
            }
        }
    }
}

// args: the block's two words, then a task for each core.
gmem::kernel!(pub(crate) LITMUS = "litmus", |grid, args| {
    let task = args.get(2 + grid.worker).map_or(Task::Idle, |code| Task::decode(*code));
    if task != Task::Idle {
        let block = Block::open([args[0], args[1]]).expect("the round's block is there while the launch runs");
        task.run(&block);
    }
});

/// Calls `touch` for every place of every iteration.
///
/// # Safety
/// As for [`Task::run`].
unsafe fn each_place(block: &Block, touch: impl Fn(usize, usize, &AtomicU64)) {
    for i in 0..block.iterations() {
        for place in 0..block.places() {
            // SAFETY: by contract the address is that of such a word.
            touch(i, place, unsafe { AtomicU64::from_ptr(block.addresses[i][place].load(Relaxed) as *mut u64) });
        }
        if block.stopped() {
            return;
        }
    }
}

/// Goes through the iterations.
///
/// # Safety
/// As for [`Task::run`].
unsafe fn take_part(block: &Block, me: usize) {
    let mut program = [Op::Fence; OPS];
    let mut len = 0;
    for (at, op) in program.iter_mut().zip(block.program(me)) {
        *at = op;
        len += 1;
    }
    let (line, first) = (&block.lines[me], block.tag.load(Relaxed));
    let (pause, gap) = (block.pause.load(Relaxed), block.gap.load(Relaxed));
    let stride = block.stride.load(Relaxed).max(1) as usize;
    let mut waits = WAITS;
    let mut random = u64::from(first) << 8 | me as u64 | 1 << 40;
    for i in 0..block.iterations() {
        line.iteration.store(i as u32, Relaxed);
        if i.is_multiple_of(stride) {
            line.phase.store(phase::MEETS, Relaxed);
            if !meet(block, &mut waits) {
                break;
            }
            line.phase.store(phase::WORKS, Relaxed);
        }
        idle(&mut random, pause);
        let places = std::array::from_fn(|place| Word { address: block.addresses[i][place].load(Relaxed), tag: block.tag(i, place) });
        // SAFETY: forwarded to the caller.
        let Some(kept) = (unsafe { perform(block, &program[..len], &places, || idle(&mut random, gap)) }) else { break };
        for (at, value) in block.registers[me][i].iter().zip(kept) {
            at.store(value, Relaxed);
        }
    }
    line.phase.store(phase::ENDED, Relaxed);
}

/// The word of a place in one iteration.
struct Word {
    address: u64,
    tag: u64,
}

/// Performs a program on these words, with a call of `between` between any two operations, and returns what it keeps; `None` if everybody is to end.
///
/// # Safety
/// As for [`Task::run`], for those words that the program names.
unsafe fn perform(block: &Block, program: &[Op], words: &[Word; PLACES], mut between: impl FnMut()) -> Option<[u64; REGISTERS]> {
    let mut kept = [0u64; REGISTERS];
    let (mut next, mut last) = (0, 0);
    for (i, op) in program.iter().enumerate() {
        if i > 0 {
            between();
        }
        let Some(place) = op.place() else {
            fence(SeqCst);
            continue;
        };
        let Word { address, tag } = words[usize::from(place)];
        // SAFETY: by contract the address is that of a live word that only atomics touch.
        let word = unsafe { AtomicU64::from_ptr(address as *mut u64) };
        match *op {
            Op::Load(_) => last = word.load(Relaxed),
            Op::LoadAcquire(_) => last = word.load(Acquire),
            Op::Store(_, value) => word.store(tag | u64::from(value), Relaxed),
            Op::StoreRelease(_, value) => word.store(tag | u64::from(value), Release),
            Op::Add(_) => last = word.fetch_add(1, SeqCst),
            Op::Lock(_) => {
                let mut looks = 0;
                while word.compare_exchange(tag, tag | 1, AcqRel, Relaxed).is_err() {
                    if !patience(block, &mut looks) {
                        return None;
                    }
                }
            }
            Op::Unlock(_) => word.store(tag, Release),
            // What was loaded keeps its upper half, so that a foreign word stays one.
            Op::StoreNext(_) => word.store(last + 1, Relaxed),
            Op::Fence => {}
        }
        if op.keeps() && next < REGISTERS {
            kept[next] = last;
            next += 1;
        }
    }
    Some(kept)
}

/// Waits until every participant has come, and then, as long as the scheduler and `waits` permit, until all of them run. Says whether they go on.
fn meet(block: &Block, waits: &mut u32) -> bool {
    let everybody = block.participants.load(Relaxed);
    let meeting = block.meetings.load(Acquire);
    if block.arrived.fetch_add(1, AcqRel) + 1 == everybody {
        block.arrived.store(0, Relaxed);
        block.meetings.store(meeting.wrapping_add(1), Release);
        wake(&block.meetings);
    }
    let mut looks = 0;
    while block.meetings.load(Acquire) == meeting && !block.stopped() {
        looks += 1;
        // Sleep rather than let others run: on a busy machine a thread that is woken runs at once, one that made room comes last.
        if looks > LOOKS { sleep(&block.meetings, meeting) } else { std::hint::spin_loop() }
    }
    // Who noticed first would be done before the last one is awake, and the two would take turns for ever. Once all run they stay together.
    let all = meeting.wrapping_add(1).wrapping_mul(everybody);
    block.noticed.fetch_add(1, AcqRel);
    for _ in 0..LONGEST_WAIT.min(*waits) {
        if block.noticed.load(Acquire).wrapping_sub(all) as i32 >= 0 || block.stopped() {
            break;
        }
        *waits -= 1;
        std::hint::spin_loop();
    }
    !block.stopped()
}

/// Sleeps while `word` has this value, or for a while.
fn sleep(word: &AtomicU32, value: u32) {
    // SAFETY: the word and the time are valid for the length of the call; the futex is shared, because the others may be of another process.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const NAP) };
}

/// Wakes everybody who sleeps on `word`.
fn wake(word: &AtomicU32) {
    // SAFETY: as in `sleep`.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits a moment, and lets others run now and then. Says whether to go on.
fn patience(block: &Block, looks: &mut u32) -> bool {
    *looks += 1;
    if looks.is_multiple_of(LOOKS) {
        std::thread::yield_now();
    }
    std::hint::spin_loop();
    !block.stopped()
}

/// A longest pause that stands for letting others run: where participants outnumber the processors, nobody else comes between two operations.
pub(crate) const YIELD: u32 = u32::MAX;
/// After so many turns others may run: who waits for a fault needs whoever resolves it.
const TURNS: u64 = 64;

/// Idles for fewer than `longest` turns, half of the time for none.
fn idle(random: &mut u64, longest: u32) {
    // Marsaglia's xorshift: any sequence does.
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    if *random & 1 == 0 {
        return;
    }
    match longest {
        0 => {}
        YIELD => std::thread::yield_now(),
        _ => (1..(*random >> 1) % u64::from(longest) + 1).for_each(|turn| {
            std::hint::spin_loop();
            if turn.is_multiple_of(TURNS) {
                std::thread::yield_now();
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_decoded_as_encoded() {
        for task in [Task::Idle, Task::Clear, Task::Collect, Task::Take(0), Task::Take(PARTICIPANTS - 1)] {
            assert_eq!(Task::decode(task.encode()), task);
        }
        assert_eq!(Task::decode(u64::MAX), Task::Idle);
    }
}
