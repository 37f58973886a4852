//! A device process is killed at a random moment of a launch, a migration, an eviction, a prefetch or a detach, again and again. Each time no byte may be lost,
//! whoever waited must get an error, everybody else must go on, nothing may be left behind, and the device must be usable again.
//!
//! `GMEM_CAMPAIGN=200 cargo test -p gmem --test kills --release` kills so often; without it, once in each phase for each kind of device. The table of what was
//! done comes with `-- --nocapture`.

#[path = "kills/arena.rs"]
mod arena;
mod common;
#[path = "kills/table.rs"]
mod table;

use arena::{Arena, FILL, KINDS, Span};
use common::*;
use gmem::hal::FaultError;
use gmem::{Access, Args, ByteLen, Context, Error, RangeError, VirtAddr, VirtRange};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use table::{Phase, Table};

const SEED: u64 = 0x6b69_6c6c;

/// How long after the beginning of an operation its device may be killed, in microseconds: about as long as the operation takes.
fn longest(phase: Phase) -> u64 {
    match phase {
        Phase::Launch => 10_000,
        Phase::Migration => 30_000,
        Phase::Eviction => 60_000,
        Phase::Prefetch => 40_000,
        Phase::Detach => 6_000,
    }
}

/// Starts a launch that never ends by itself, and waits for its error.
fn cut_launch(arena: &Arena, context: &Context, span: Span, started: &Barrier) -> Error {
    context.scope(|scope| {
        let args = arena.victim_args(span, u64::MAX).iter().fold(Args::new(), |args, n| args.number(*n));
        // SAFETY: the kernel takes these five numbers, and the region lives. The words it writes are its own.
        let launch = unsafe { scope.launch(&FILL, args) }.unwrap();
        started.wait();
        launch.wait().expect_err("a launch that never ends by itself")
    })
}

/// Prefetches the whole region to the device until that is refused. A peer that finds nothing to evict for a second, while others want every page, has no memory; it may have
/// again the next time.
fn cut_prefetch(arena: &Arena, started: &Barrier) -> Error {
    started.wait();
    loop {
        match arena.space.prefetch(arena.region.range(), Some(&arena.device), Access::Write) {
            Ok(_) | Err(Error::Range(RangeError::Fault(_, FaultError::NoDeviceMemory))) => {}
            Err(e) => return e,
        }
    }
}

/// One kill. Everybody else works on the same memory meanwhile, or beside it while the launch is to stay undisturbed.
fn round(arena: &mut Arena, phase: Phase, moment: Duration, case: &str, table: &mut Table) {
    let context = arena.space.attach(&arena.device, arena.mode).unwrap();
    let (all, fits, rest) = arena.spans();
    // The device, which was killed before, computes right.
    arena.next_turn();
    run(&context, &FILL, &arena.victim_args(all, 1)).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    arena.victim_done(all);
    arena.next_turn();
    let (cut, others) = match phase {
        Phase::Launch => (Some(fits), rest),
        Phase::Migration | Phase::Eviction => (Some(if phase == Phase::Migration { fits } else { all }), all),
        Phase::Prefetch | Phase::Detach => (None, all),
    };
    if phase == Phase::Launch {
        bring(arena, fits);
        // What the launch finds is nowhere but on the device: with pages that are also at home, nobody could tell a lost page from one not yet written.
        run(&context, &FILL, &arena.victim_args(fits, 1)).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        arena.victim_done(fits);
        arena.next_turn();
    }
    let pid = arena.driver.process(context.pmap().unwrap()).unwrap();
    let (stop, started) = (AtomicBool::new(false), Barrier::new(4));
    let (kept, cpu) = std::thread::scope(|threads| {
        let (arena, started, stop) = (&*arena, &started, &stop);
        let victim = threads.spawn(move || match phase {
            Phase::Prefetch => (Some(cut_prefetch(arena, started)), Some(context)),
            Phase::Detach => {
                started.wait();
                context.detach().expect("a detach needs no living device");
                (None, None)
            }
            _ => (Some(cut_launch(arena, &context, cut.expect("a launch"), started)), Some(context)),
        });
        threads.spawn(move || {
            started.wait();
            arena.bystander_runs(others);
        });
        let cpu = threads.spawn(move || {
            started.wait();
            arena.cpu_counts(others, stop)
        });
        started.wait();
        std::thread::sleep(moment);
        kill(pid);
        arena.neighbour_runs();
        let victim = victim.join();
        // First, or a failure would wait for the CPU's thread for ever.
        stop.store(true, Ordering::SeqCst);
        let (error, context) = victim.unwrap();
        if let Some(e) = &error {
            assert!(e.is_device_gone(), "{case}: {e:?}");
            table.errors += 1;
        }
        (context, cpu.join().unwrap())
    });
    arena.others_done(others, cpu);
    finish(arena, kept, cut, case, table);
    assert!(gone(pid), "{case}");
}

/// After the kill: the context is refused, half of the bytes are checked before it goes and half after.
fn finish(arena: &mut Arena, context: Option<Context>, cut: Option<Span>, case: &str, table: &mut Table) {
    let ((start, len), ..) = arena.spans();
    let halves = [(start, len / 2), (start + len / 2, len - len / 2)];
    let mut check = |arena: &mut Arena, half| {
        let (old, new) = arena.check(half, cut, case);
        (table.old, table.new, table.bytes) = (table.old + old, table.new + new, table.bytes + half.1);
    };
    if let Some(context) = context {
        eventually("the context is fenced", || context.is_fenced());
        let refused = run(&context, &NOTHING, &[]).expect_err("a fenced context");
        assert!(refused.is_device_gone(), "{case}: {refused:?}");
        check(arena, halves[0]);
        context.detach().unwrap();
    } else {
        check(arena, halves[0]);
    }
    check(arena, halves[1]);
}

/// Brings a part of the region to the device.
fn bring(arena: &Arena, span: Span) {
    let range = VirtRange::from_len(VirtAddr::new(span.0), ByteLen(span.1)).unwrap();
    arena.space.prefetch(range, Some(&arena.device), Access::Write).unwrap();
}

/// Kills a process, which may have ended in order just now.
fn kill(pid: u32) {
    // SAFETY: `kill` takes any numbers; the process is a device of this test, whose number is not used again so soon.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

/// So many kills of one kind of device, in one world.
fn series(kind: usize, rounds: u64, seed: &mut u64, table: &mut Table) {
    let mut arena = Arena::new(KINDS[kind]);
    // Everything is at home at the end of each round; how many mappings that takes depends on where it was before.
    let before = census();
    for round_number in 0..rounds {
        let phase = Phase::ALL[(round_number as usize + kind) % Phase::ALL.len()];
        let moment = Duration::from_micros(next(seed) % longest(phase));
        let case = format!("{}, {phase:?}, round {round_number}, killed after {moment:?}", KINDS[kind]);
        watched(|| {
            round(&mut arena, phase, moment, &case, table);
            assert_nothing_left(&before);
            verify(&arena.gmem);
        });
        assert_eq!(arena.device.memory()[0].quarantined, ByteLen(0), "{case}");
        table.kill(kind, phase);
    }
}

#[test]
fn a_device_killed_at_any_moment_loses_no_byte() {
    const NAME: &str = "a_device_killed_at_any_moment_loses_no_byte";
    if !is_child(NAME) {
        let output = child(NAME, "");
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        return;
    }
    let wanted = std::env::var("GMEM_CAMPAIGN").map_or(KINDS.len() * Phase::ALL.len(), |n| n.parse().expect("a number of kills")) as u64;
    let (mut table, mut seed) = (Table::default(), SEED);
    let before = census();
    for kind in 0..KINDS.len() {
        let rest = wanted - table.all();
        series(kind, rest / (KINDS.len() - kind) as u64, &mut seed, &mut table);
        assert_nothing_left(&before);
    }
    assert_eq!(table.all(), wanted);
    println!("seed {SEED:#x}\n{table}");
}
