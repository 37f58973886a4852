//! Stacks and signal handlers: faults in handlers on alternate stacks, handlers inside handlers, and stacks that are unified memory themselves.

mod common;

use common::*;
use gmem::{Backing, Delivery, Mode, PageSize, accel};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Words that the handlers add to.
static TARGETS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// Where the last handler ran.
static RAN_AT: AtomicUsize = AtomicUsize::new(0);

fn add_to(target: usize) {
    let here = 0u8;
    RAN_AT.store(&raw const here as usize, Ordering::SeqCst);
    let word = TARGETS[target].load(Ordering::SeqCst);
    if word != 0 {
        // SAFETY: a word of a region that lives while the test stores it in TARGETS, added to atomically.
        unsafe { AtomicU64::from_ptr(word as *mut u64) }.fetch_add(1, Ordering::SeqCst);
    }
}

extern "C" fn plain(_: i32) {
    add_to(0);
}

/// Faults, and is interrupted by a handler that faults, and faults again.
extern "C" fn nesting(_: i32) {
    add_to(1);
    // SAFETY: async-signal-safe.
    unsafe { libc::raise(libc::SIGUSR1) };
    add_to(1);
}

fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: installs a handler that only touches atomics and unified memory.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// The alternate stack of this thread, as the standard library or a test has set it.
fn alternate_stack() -> libc::stack_t {
    // SAFETY: asks only.
    unsafe {
        let mut stack = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(std::ptr::null(), &raw mut stack), 0);
        stack
    }
}

/// Runs this test once per kind of region, each in a process of its own.
fn per_kind(name: &str, body: impl FnOnce((Backing, Delivery))) {
    if is_child(name) {
        watched(|| body(kinds()[param().parse::<usize>().unwrap()]));
        return;
    }
    watched(|| {
        for n in 0..kinds().len() {
            let output = child(name, &n.to_string());
            assert!(output.status.success(), "{:?}: {} {}", kinds()[n], output.status, String::from_utf8_lossy(&output.stderr));
        }
    });
}

#[test]
fn a_handler_on_the_alternate_stack_may_fault() {
    per_kind("a_handler_on_the_alternate_stack_may_fault", |kind| {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            let world = World::new(accel::Discrete::builder().memory(4 * size.bytes()).cores(1), Mode::CoherentExclusive);
            let region = region_of(&world, size, kind, 2);
            // The standard library gave this thread one, of some eight KiB.
            let stack = alternate_stack();
            assert!(stack.ss_flags & libc::SS_DISABLE == 0 && stack.ss_size > 0, "no alternate stack");
            handle(libc::SIGUSR1, plain, libc::SA_ONSTACK);
            TARGETS[0].store(at(&region, 0), Ordering::SeqCst);
            for round in 1..=50 {
                world.run(&ADD, &[at(&region, 8), 1]).unwrap();
                // SAFETY: the handler faults in this thread.
                unsafe { libc::raise(libc::SIGUSR1) };
                assert_eq!((get(at(&region, 0)), get(at(&region, 8))), (round, round), "{kind:?} {size}");
                let ran = RAN_AT.load(Ordering::SeqCst);
                assert!((stack.ss_sp as usize..stack.ss_sp as usize + stack.ss_size).contains(&ran), "not on the alternate stack");
            }
            TARGETS[0].store(0, Ordering::SeqCst);
            verify(&world.gmem);
        }
    });
}

#[test]
fn handlers_inside_handlers_may_fault() {
    per_kind("handlers_inside_handlers_may_fault", |kind| {
        // The kernel puts some three KiB there for each, and for the fault.
        let memory = vec![0u128; 4 << 10].leak();
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: size_of_val(memory) };
        // SAFETY: memory that nobody else uses, for ever.
        assert_eq!(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) }, 0);
        for flags in [0, libc::SA_ONSTACK] {
            let world = World::new(accel::Discrete::builder().memory(4 << 12).cores(1), Mode::CoherentExclusive);
            let region = region_of(&world, PageSize::Size4K, kind, 4);
            handle(libc::SIGUSR1, plain, flags);
            handle(libc::SIGUSR2, nesting, flags);
            TARGETS[0].store(at(&region, 0), Ordering::SeqCst);
            TARGETS[1].store(at(&region, 4096), Ordering::SeqCst);
            for round in 1..=50 {
                world.run(&STRIDE, &[at(&region, 8), round, 4096, 4]).unwrap();
                // SAFETY: the handlers fault in this thread.
                unsafe { libc::raise(libc::SIGUSR2) };
                assert_eq!((get(at(&region, 0)), get(at(&region, 4096))), (round, 2 * round), "{kind:?}");
                assert_eq!((get(at(&region, 8)), get(at(&region, 4104))), (round, round + 1));
            }
            TARGETS.iter().for_each(|t| t.store(0, Ordering::SeqCst));
            verify(&world.gmem);
        }
    });
}

/// Tells the thread on a managed stack to stop.
const ENOUGH: u64 = u64::MAX;

/// What the thread on a managed stack does: recurses over many pages, and says on the way down and up where it is.
fn deep(level: u64, visited: &AtomicU64) -> u64 {
    let frame = std::hint::black_box([level; 512]);
    // Told to stop is told to stop.
    let _ = visited.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n != ENOUGH).then(|| n + 1));
    let below = if level == 0 { 0 } else { deep(level - 1, visited) };
    below + std::hint::black_box(&frame).iter().sum::<u64>() / 512
}

/// A thread whose stack is a region.
struct Stacked {
    thread: libc::pthread_t,
}

extern "C" fn on_the_stack(visited: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the test keeps the counter until it has joined.
    let visited = unsafe { &*visited.cast::<AtomicU64>() };
    let mut rounds = 0usize;
    while visited.load(Ordering::SeqCst) != ENOUGH {
        assert_eq!(deep(100, visited), (0..=100).sum::<u64>());
        // SAFETY: the handler touches unified memory; the kernel builds its frame on this stack, whether it is there or not.
        unsafe { libc::raise(libc::SIGUSR1) };
        rounds += 1;
    }
    rounds as *mut libc::c_void
}

impl Stacked {
    fn start(region: &gmem::Region, visited: &AtomicU64) -> Self {
        let mut thread = 0;
        // SAFETY: the attributes are initialized before use and destroyed after; the region and the counter live until the thread was joined.
        unsafe {
            let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
            assert_eq!(libc::pthread_attr_init(&raw mut attributes), 0);
            let len = region.range().len().get() as usize;
            assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, region.as_ptr().cast(), len), 0);
            let started =
                libc::pthread_create(&raw mut thread, &raw const attributes, on_the_stack, (&raw const *visited).cast_mut().cast());
            assert_eq!(started, 0);
            libc::pthread_attr_destroy(&raw mut attributes);
        }
        Self { thread }
    }

    fn join(self) -> u64 {
        let mut result = std::ptr::null_mut();
        // SAFETY: the thread was created joinable and is joined once.
        assert_eq!(unsafe { libc::pthread_join(self.thread, &raw mut result) }, 0);
        result as u64
    }
}

#[test]
fn a_stack_in_unified_memory_survives_its_pages_being_taken() {
    const NAME: &str = "a_stack_in_unified_memory_survives_its_pages_being_taken";
    per_kind(NAME, |kind| {
        if kind.1 == Delivery::InThread {
            // Documented: the handler's frame would have to go where the fault is.
            return;
        }
        let world = World::new(accel::Discrete::builder().memory(64 << 12).cores(1), Mode::CoherentExclusive);
        let stack = region_of(&world, PageSize::Size4K, kind, 256);
        let target = region_of(&world, PageSize::Size4K, kind, 1);
        handle(libc::SIGUSR1, plain, 0);
        TARGETS[0].store(at(&target, 0), Ordering::SeqCst);
        let visited = AtomicU64::new(0);
        let thread = Stacked::start(&stack, &visited);
        for _ in 0..30 {
            let before = visited.load(Ordering::SeqCst);
            // Everything goes to the device, a piece at a time, and comes back by the faults of whoever stands on it.
            for page in (0..256).step_by(16) {
                let _ = world.space.prefetch(part(&stack, page << 12, 16 << 12), Some(&world.device), gmem::Access::Write);
            }
            eventually("the thread goes on", || visited.load(Ordering::SeqCst) > before + 101);
        }
        visited.store(ENOUGH, Ordering::SeqCst);
        assert_eq!(thread.join(), get(at(&target, 0)), "one handler per round, {kind:?}");
        assert!(world.gmem.stats().cpu_faults > 100, "{kind:?}");
        TARGETS[0].store(0, Ordering::SeqCst);
        verify(&world.gmem);
    });
}
