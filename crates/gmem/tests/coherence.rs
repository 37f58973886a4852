//! No write is lost, whoever makes it and wherever the page is: CPU threads and devices add to the same words at the same time.

mod common;

use common::{HAMMER, hammer, verify, watched};
use gmem::{AddressSpace, Args, Backing, Context, Delivery, Gmem, Mode, PageSize, Region, accel};

const ROUNDS: usize = 300;
const CPU_THREADS: usize = 2;

fn discrete(gmem: &Gmem, memory: u64) -> gmem::Device {
    gmem.add_device(accel::Discrete::builder().memory(memory).cores(2).build().unwrap()).unwrap()
}

/// Lets every context and two CPU threads add to the words of `region`, with evictions under way, and checks the sum.
fn fight(gmem: &Gmem, contexts: &[Context], region: &Region, rounds: usize) {
    let (base, words) = (region.as_ptr() as usize, region.range().len().get() as usize / 8);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (n, context) in contexts.iter().enumerate() {
            workers.push(scope.spawn(move || {
                let args = Args::new().number(base as u64).number(words as u64).number(rounds as u64).number(1000 * n as u64);
                // SAFETY: the kernel adds atomically to the words of the region, which outlives the scope, as everybody does here.
                unsafe { context.run(&HAMMER, args) }.unwrap();
            }));
        }
        for n in 0..CPU_THREADS {
            // SAFETY: as above.
            workers.push(scope.spawn(move || unsafe { hammer(base as *mut u64, words, rounds, 77 + n as u64) }));
        }
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for context in contexts {
                    context.device().evict(1);
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ends.iter().all(Result::is_ok), "somebody failed; {:#?}", gmem.stats());
    });
    // SAFETY: nobody writes any more, and the region lives.
    let all = unsafe { std::slice::from_raw_parts(base as *const u64, words) };
    let cores: usize = contexts.iter().map(|_| 2).sum();
    assert_eq!(all.iter().sum::<u64>(), (rounds * (cores + CPU_THREADS)) as u64, "a write was lost; {:#?}", gmem.stats());
    verify(gmem);
}

fn space_with(gmem: &Gmem, memory: &[u64], mode: Mode) -> (AddressSpace, Vec<Context>) {
    let space = gmem.address_space().create().unwrap();
    let contexts = memory.iter().map(|m| space.attach(&discrete(gmem, *m), mode).unwrap()).collect();
    (space, contexts)
}

fn run(memory: &[u64], mode: Mode, size: PageSize, backing: Backing, delivery: Delivery, bytes: u64) {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let (space, contexts) = space_with(&gmem, memory, mode);
        let region = space.region().page_size(size).backing(backing).delivery(delivery).map(bytes).unwrap();
        fight(&gmem, &contexts, &region, ROUNDS);
        let stats = gmem.stats();
        if mode == Mode::CoherentExclusive {
            assert!(stats.evictions > 0 && stats.cpu_faults > 0 && stats.device_faults > 0, "the test fought about nothing: {stats:#?}");
        } else {
            assert_eq!(stats.h2d_fault_bytes + stats.d2h_fault_bytes, 0, "REPLICATE moves no byte: {stats:#?}");
        }
    });
}

#[test]
fn large_pages_service() {
    run(&[4 << 20], Mode::CoherentExclusive, PageSize::Size2M, Backing::Shared, Delivery::Service, 16 << 20);
}

#[test]
fn small_pages_service() {
    run(&[64 << 10], Mode::CoherentExclusive, PageSize::Size4K, Backing::Shared, Delivery::Service, 256 << 10);
}

#[test]
fn middle_pages_service() {
    run(&[256 << 10], Mode::CoherentExclusive, PageSize::Size64K, Backing::Shared, Delivery::Service, 1 << 20);
}

#[test]
fn large_pages_in_thread() {
    run(&[4 << 20], Mode::CoherentExclusive, PageSize::Size2M, Backing::Shared, Delivery::InThread, 16 << 20);
}

#[test]
fn small_pages_in_thread() {
    run(&[64 << 10], Mode::CoherentExclusive, PageSize::Size4K, Backing::Shared, Delivery::InThread, 256 << 10);
}

#[test]
fn large_pages_private() {
    run(&[4 << 20], Mode::CoherentExclusive, PageSize::Size2M, Backing::Private, Delivery::Service, 16 << 20);
}

#[test]
fn small_pages_private() {
    run(&[64 << 10], Mode::CoherentExclusive, PageSize::Size4K, Backing::Private, Delivery::Service, 256 << 10);
}

#[test]
fn two_devices() {
    run(&[128 << 10, 64 << 10], Mode::CoherentExclusive, PageSize::Size4K, Backing::Shared, Delivery::Service, 256 << 10);
}

#[test]
fn three_devices_large_pages() {
    run(&[4 << 20, 4 << 20, 2 << 20], Mode::CoherentExclusive, PageSize::Size2M, Backing::Shared, Delivery::Service, 16 << 20);
}

#[test]
fn replicas() {
    run(&[2 << 20, 2 << 20], Mode::Replicate, PageSize::Size2M, Backing::Shared, Delivery::Service, 16 << 20);
}

#[test]
fn a_replica_and_an_exclusive_device() {
    watched(|| {
        let gmem = Gmem::new().unwrap();
        let space = gmem.address_space().create().unwrap();
        let contexts = [
            space.attach(&discrete(&gmem, 1 << 20), Mode::Replicate).unwrap(),
            space.attach(&discrete(&gmem, 64 << 10), Mode::CoherentExclusive).unwrap(),
        ];
        let region = space.region().page_size(PageSize::Size4K).map(256 << 10).unwrap();
        fight(&gmem, &contexts, &region, ROUNDS);
    });
}
