//! Defects that reviews found, each as the smallest scenario that shows it: a test states what must hold.
use gmem_core::{Core, MapRequest};
use gmem_hal::*;
use gmem_sim::random::{cpu_read, cpu_write, device_read, device_write};
use gmem_sim::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const BASE: u64 = 0x1000_0000_0000;
const P4: u64 = 4096;
type C = Arc<Core<SimPlatform>>;
fn va(p: u64) -> VirtAddr {
    VirtAddr::new(BASE + p * P4)
}
fn pages(first: u64, n: u64) -> VirtRange {
    VirtRange::new(va(first), va(first + n)).unwrap()
}

struct W {
    sim: Arc<Sim>,
    core: C,
    host: SimHost,
    s: SpaceId,
}
fn world(seed: u64) -> W {
    let sim = Sim::new(seed);
    let core = Core::new(SimPlatform::new(&sim));
    let s = core.space_create(VirtRange::new(VirtAddr::new(BASE), VirtAddr::new(BASE + (64 << 20))).unwrap(), true).unwrap();
    W { host: SimHost::new(&sim), sim, core, s }
}
fn map(w: &W, first: u64, n: u64, size: PageSize) {
    let attrs = RegionAttrs { page_size: size, ..RegionAttrs::default() };
    w.core.map(w.s, &MapRequest { len: ByteLen(n * P4), at: Some(va(first)), attrs }).unwrap();
}
fn add(w: &W, b: DeviceBuilder) -> (Arc<SimDevice>, DeviceId, HnodeId) {
    let d = b.build();
    let id = w.core.device_create(d.clone()).unwrap();
    let h = w.core.device_register_memory(id, d.memory()).unwrap();
    (d, id, h)
}
fn dev(w: &W, name: &str, bytes: u64) -> DeviceBuilder {
    SimDevice::builder(&w.sim, name).memory(ByteLen(bytes))
}

#[test]
fn refused_replica_enter_leaves_two_writers() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (a, ida, _) = add(&w, dev(&w, "a", 64 << 10));
    let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
    w.core.attach(w.s, ida, Mode::CoherentExclusive, false).unwrap();
    w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
    let (pa, pr) = (a.pmap_for(w.s).unwrap(), r.pmap_for(w.s).unwrap());
    cpu_write(&w.host, &*w.core, va(0), &[1]).unwrap(); // the home is populated
    device_write(&a, ida, &*w.core, pa, va(0), &[2]).unwrap(); // Device, home stale
    w.sim.fail_chance_on(r.number(), Callback::PmapEnter, 1000, Injected::Device(DeviceError::NoMemory));
    assert!(device_read(&r, idr, &*w.core, pr, va(0), &mut [0]).is_err());
    w.sim.clear_failures();
    cpu_write(&w.host, &*w.core, va(0), &[3]).unwrap();
    let mut b = [0];
    device_read(&a, ida, &*w.core, pa, va(0), &mut b).unwrap();
    assert_eq!(b[0], 3, "the CPU's write is lost");
}

#[test]
fn a_refused_change_of_two_regions_changes_neither_while_memory_stays_short() {
    let w = world(1);
    map(&w, 0, 1, PageSize::Size4K);
    map(&w, 1, 1, PageSize::Size4K);
    w.core.protect(w.s, pages(0, 1), Prot::READ).unwrap();
    w.sim.begin_shortage(None);
    // The first goes back to what it was before, which needs nothing; the second needs memory; and the first has to go back again.
    assert!(w.core.protect(w.s, pages(0, 2), Prot::RW).is_err());
    w.sim.end_shortage();
    assert!(cpu_write(&w.host, &*w.core, va(0), &[1]).is_err(), "the refused call gave access");
    cpu_write(&w.host, &*w.core, va(1), &[1]).unwrap();
}

#[test]
fn refused_replica_enter_on_a_fresh_page() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
    w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
    let pr = r.pmap_for(w.s).unwrap();
    w.sim.fail_chance_on(r.number(), Callback::PmapEnter, 1000, Injected::Device(DeviceError::NoMemory));
    assert!(device_read(&r, idr, &*w.core, pr, va(0), &mut [0]).is_err());
    assert!(w.host.cpu_prot(va(0)).is_empty(), "the page is Unmapped and CPU-mapped");
}

#[test]
fn replica_enter_once() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
    w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
    let pr = r.pmap_for(w.s).unwrap();
    device_read(&r, idr, &*w.core, pr, va(0), &mut [0]).unwrap();
    assert_eq!(w.core.stats().replica_enters, 1);
}

#[test]
fn peer_in_share_mode_unmap() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (_, ida, _) = add(&w, dev(&w, "a", 64 << 10));
    let (_, idp, _) = add(&w, dev(&w, "p", 64 << 10).capabilities(Capabilities::REPLAYABLE | Capabilities::PEER));
    w.core.attach(w.s, ida, Mode::CoherentExclusive, false).unwrap();
    w.core.attach(w.s, idp, Mode::Share, false).unwrap();
    w.core.unmap(w.s, pages(0, 4)).unwrap();
}

#[test]
fn second_pool_is_never_evicted() {
    let w = world(1);
    map(&w, 0, 16, PageSize::Size4K);
    let d = dev(&w, "d", 8 * P4).build();
    let id = w.core.device_create(d.clone()).unwrap();
    let m = d.memory();
    w.core.device_register_memory(id, PhysRange { begin: m.begin, end: m.begin + 4 * P4 }).unwrap();
    w.core.device_register_memory(id, PhysRange { begin: m.begin + 4 * P4, end: m.end }).unwrap();
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    let p = d.pmap_for(w.s).unwrap();
    for i in 0..8 {
        device_write(&d, id, &*w.core, p, va(i), &[1]).unwrap();
    }
    w.core.pin(w.s, pages(0, 4)).unwrap();
    device_write(&d, id, &*w.core, p, va(8), &[1]).expect("four unpinned pages could be evicted");
}

#[test]
fn large_page_after_small_ones() {
    let w = world(1);
    map(&w, 0, 2048, PageSize::Size4K);
    map(&w, 4096, 512, PageSize::Size2M);
    let (d, id, _) = add(&w, dev(&w, "d", 8 << 20));
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    let p = d.pmap_for(w.s).unwrap();
    for i in 0..2048 {
        device_write(&d, id, &*w.core, p, va(i), &[1]).unwrap();
    }
    for i in (1..2048).step_by(2) {
        w.core.prefetch(w.s, pages(i, 1), Some(id), Access::Write).unwrap();
    }
    device_write(&d, id, &*w.core, p, va(4096), &[1]).expect("nothing is pinned: 2 MiB can be evicted");
}

#[test]
fn peer_memory_unregistered_while_attached() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (d, id, h) = add(&w, dev(&w, "p", 64 << 10).capabilities(Capabilities::REPLAYABLE | Capabilities::PEER));
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    let p = d.pmap_for(w.s).unwrap();
    assert_eq!(w.core.device_unregister_memory(id, h), Err(gmem_core::DeviceCallError::InUse { contexts: 1 }));
    let _ = device_write(&d, id, &*w.core, p, va(0), &[1]);
}

#[test]
fn quarantine_ends_with_another_context() {
    let w = world(1);
    map(&w, 0, 4, PageSize::Size4K);
    let (d, id, h) = add(&w, dev(&w, "d", 64 << 10).without_fence());
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    let p = d.pmap_for(w.s).unwrap();
    device_write(&d, id, &*w.core, p, va(0), &[7]).unwrap();
    w.sim.fail_nth(Callback::TlbInvalidate, 1, Injected::Device(DeviceError::NoAnswer));
    cpu_read(&w.host, &*w.core, va(0), &mut [0]).unwrap();
    assert_eq!(w.core.hnode_stats(h).unwrap().quarantined.get(), P4);
    w.sim.fail_nth(Callback::PmapDestroy, 1, Injected::Device(DeviceError::NoAnswer));
    w.core.detach(w.s, id).unwrap();
    assert_eq!(w.core.hnode_stats(h).unwrap().quarantined.get(), P4, "its death is not confirmed");
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    w.core.detach(w.s, id).unwrap();
    assert_eq!(w.core.hnode_stats(h).unwrap().quarantined.get(), P4, "the first context's death is still not confirmed");
}

fn hunt(what: &str, n: u64, one: impl Fn(u64)) {
    let mut fails = 0;
    let mut first = None;
    for seed in 0..n {
        if let Err(e) = catch_unwind(AssertUnwindSafe(|| one(seed))) {
            let m = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
            fails += 1;
            first.get_or_insert((seed, m));
        }
    }
    if let Some((seed, m)) = first {
        panic!("{what}: {fails} of {n} seeds fail, first {seed}: {m}");
    }
}

#[test]
fn pin_races_unmap() {
    hunt("pin/unmap", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 8, PageSize::Size4K);
        let mut s = Scheduler::new(seed);
        let a = w.clone();
        s.spawn("pin", move || {
            for _ in 0..4 {
                let _ = a.core.pin(a.s, pages(0, 8));
                let _ = a.core.residency(a.s, pages(0, 8));
            }
        });
        let b = w.clone();
        s.spawn("unmap", move || {
            for _ in 0..4 {
                let _ = b.core.unmap(b.s, pages(0, 8));
                let attrs = RegionAttrs { page_size: PageSize::Size4K, ..RegionAttrs::default() };
                let _ = b.core.map(b.s, &MapRequest { len: ByteLen(8 * P4), at: Some(va(0)), attrs });
            }
        });
        s.run();
    });
}

#[test]
fn pin_of_one_region_marks_another() {
    hunt("pin of A lands on B", 400, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 8, PageSize::Size4K);
        let mut s = Scheduler::new(seed);
        let a = w.clone();
        s.spawn("pin", move || {
            let _ = a.core.pin(a.s, pages(0, 8));
        });
        let b = w.clone();
        s.spawn("unmap", move || {
            b.core.unmap(b.s, pages(0, 8)).unwrap();
            map(&b, 64, 8, PageSize::Size4K);
        });
        s.run();
        let res = w.core.residency(w.s, pages(64, 8)).unwrap();
        assert!(res.iter().all(|r| !r.pinned), "nobody pinned that region: {res:?}");
    });
}

#[test]
fn discard_races_unmap() {
    hunt("discard/unmap", 400, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 8, PageSize::Size4K);
        let (d, id, _) = add(&w, dev(&w, "d", 64 << 10));
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        let p = d.pmap_for(w.s).unwrap();
        for i in 0..8 {
            device_write(&d, id, &*w.core, p, va(i), &[1]).unwrap();
        }
        let mut s = Scheduler::new(seed);
        let a = w.clone();
        s.spawn("discard", move || {
            let _ = a.core.discard(a.s, pages(0, 8));
        });
        let b = w.clone();
        let d2 = d.clone();
        s.spawn("unmap", move || {
            b.core.unmap(b.s, pages(0, 8)).unwrap();
            map(&b, 64, 8, PageSize::Size4K);
            for i in 64..72 {
                device_write(&d2, id, &*b.core, p, va(i), &[9]).unwrap();
            }
        });
        s.run();
        for i in 64..72 {
            let mut x = [0];
            cpu_read(&w.host, &*w.core, va(i), &mut x).unwrap();
            assert_eq!(x[0], 9, "data of another region is gone");
        }
        w.core.verify().unwrap();
    });
}

#[test]
fn hnode_ids() {
    hunt("hnode ids", 200, |seed| {
        let w = Arc::new(world(seed));
        let mut s = Scheduler::new(seed);
        let got = Arc::new(std::sync::Mutex::new(Vec::new()));
        for n in 0..2 {
            let (a, g) = (w.clone(), got.clone());
            s.spawn(format!("add{n}"), move || {
                let (_, _, h) = add(&a, dev(&a, "d", 64 << 10));
                g.lock().unwrap().push(h);
            });
        }
        s.run();
        let g = got.lock().unwrap();
        assert_ne!(g[0], g[1], "two pools under one id");
    });
}

#[test]
fn switch_races() {
    hunt("switch", 300, |seed| {
        let w = Arc::new(world(seed));
        let s2 =
            w.core.space_create(VirtRange::new(VirtAddr::new(0x2000_0000_0000), VirtAddr::new(0x2000_0020_0000)).unwrap(), true).unwrap();
        let (d, id, _) = add(&w, dev(&w, "d", 64 << 10));
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        w.core.attach(s2, id, Mode::CoherentExclusive, false).unwrap();
        let mut s = Scheduler::new(seed);
        for sp in [w.s, s2] {
            let a = w.clone();
            s.spawn("switch", move || {
                a.core.switch(id, Some(sp)).unwrap();
            });
        }
        s.run();
        let believed = w.core.current(id).unwrap();
        assert_eq!(d.current(), d.pmap_for(believed), "the core believes {believed} is current");
    });
}

#[test]
fn destroy_races_detach() {
    hunt("detach/destroy", 300, |seed| {
        let w = Arc::new(world(seed));
        let (_, id, _) = add(&w, dev(&w, "d", 64 << 10));
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        let mut s = Scheduler::new(seed);
        let a = w.clone();
        s.spawn("detach", move || {
            a.core.detach(a.s, id).unwrap();
        });
        let b = w.clone();
        s.spawn("destroy", move || {
            while b.core.device_destroy(id).is_err() {
                yield_point(Reason::Step);
            }
        });
        s.run();
    });
}

#[test]
fn detach_replica_while_it_writes() {
    hunt("detach replica", 600, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 2, PageSize::Size4K);
        let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
        let (b, idb, _) = add(&w, dev(&w, "b", 64 << 10));
        w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
        w.core.attach(w.s, idb, Mode::CoherentExclusive, false).unwrap();
        let (pr, pb) = (r.pmap_for(w.s).unwrap(), b.pmap_for(w.s).unwrap());
        device_write(&r, idr, &*w.core, pr, va(0), &[0]).unwrap();
        let done = Arc::new(std::sync::atomic::AtomicU8::new(0));
        let mut s = Scheduler::new(seed);
        let x = w.clone();
        s.spawn("detach", move || {
            x.core.detach(x.s, idr).unwrap();
        });
        let (x, dn) = (w.clone(), done.clone());
        s.spawn("kernel on r", move || {
            let _ = &x;
            for n in 1..20u8 {
                if catch_unwind(AssertUnwindSafe(|| r.write(pr, va(0), &[n]))).is_ok_and(|x| x.is_ok()) {
                    dn.store(n, std::sync::atomic::Ordering::SeqCst);
                } else {
                    break;
                }
                yield_point(Reason::Step);
            }
        });
        let x = w.clone();
        s.spawn("b", move || {
            device_write(&b, idb, &*x.core, pb, va(0).checked_add(ByteLen(100)).unwrap(), &[1]).unwrap();
        });
        s.run();
        let mut g = [0];
        cpu_read(&w.host, &*w.core, va(0), &mut g).unwrap();
        assert_eq!(g[0], done.load(std::sync::atomic::Ordering::SeqCst), "the last store of r that succeeded");
    });
}

#[test]
fn refused_protect_leaves_a_writable_mapping() {
    let refused = std::sync::atomic::AtomicU32::new(0);
    hunt("protect", 600, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 4, PageSize::Size4K);
        let (d, id, _) = add(&w, dev(&w, "d", 64 << 10));
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        let p = d.pmap_for(w.s).unwrap();
        w.core.protect(w.s, pages(0, 4), Prot::READ).unwrap();
        w.sim.fail_chance(Callback::RegionProtect, 1000, Injected::Host(HostError::NoMemory));
        let r = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut s = Scheduler::new(seed);
        let (a, r2) = (w.clone(), r.clone());
        s.spawn("protect", move || {
            r2.store(a.core.protect(a.s, pages(1, 1), Prot::RW).is_err(), std::sync::atomic::Ordering::SeqCst);
        });
        let (b, d2) = (w.clone(), d.clone());
        s.spawn("kernel", move || {
            let _ = device_write(&d2, id, &*b.core, p, va(1), &[1]);
        });
        s.run();
        if r.load(std::sync::atomic::Ordering::SeqCst) {
            refused.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            assert!(!d.table_prot(p, va(1)).contains(Prot::WRITE), "read-only region, refused protect, writable mapping");
        }
    });
    assert!(refused.load(std::sync::atomic::Ordering::SeqCst) > 0, "never refused");
}

#[test]
fn unregister_twice() {
    hunt("unregister", 200, |seed| {
        let w = Arc::new(world(seed));
        let (_, id, h) = add(&w, dev(&w, "d", 64 << 10));
        let mut s = Scheduler::new(seed);
        for _ in 0..2 {
            let a = w.clone();
            s.spawn("unregister", move || {
                let _ = a.core.device_unregister_memory(id, h);
            });
        }
        s.run();
    });
}

#[test]
fn stranger_cancels_eviction() {
    hunt("willneed by a stranger", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 2, PageSize::Size4K);
        let (a, ida, ha) = add(&w, dev(&w, "a", 64 << 10));
        let (b, idb, _) = add(&w, dev(&w, "b", 64 << 10));
        w.core.attach(w.s, ida, Mode::CoherentExclusive, false).unwrap();
        w.core.attach(w.s, idb, Mode::CoherentExclusive, false).unwrap();
        let (pa, pb) = (a.pmap_for(w.s).unwrap(), b.pmap_for(w.s).unwrap());
        device_write(&a, ida, &*w.core, pa, va(0), &[1]).unwrap();
        let mut s = Scheduler::new(seed);
        let x = w.clone();
        s.spawn("evict", move || {
            x.core.evict(ha, 1);
        });
        let x = w.clone();
        s.spawn("b", move || {
            device_write(&b, idb, &*x.core, pb, va(0), &[2]).unwrap();
        });
        s.run();
        assert_eq!(w.core.stats().evictions_cancelled, 0, "cancelled for a device that does not own the page");
    });
}

#[test]
fn detach_replica_one_thread() {
    let w = world(1);
    map(&w, 0, 2, PageSize::Size4K);
    let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
    w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
    let pr = r.pmap_for(w.s).unwrap();
    device_write(&r, idr, &*w.core, pr, va(0), &[1]).unwrap();
    w.core.detach(w.s, idr).unwrap();
}

#[test]
fn limit_on_own_frames() {
    let w = world(1);
    map(&w, 0, 16, PageSize::Size4K);
    let (d, id, h) = add(&w, dev(&w, "a", 8 * P4).own_frames());
    w.core.hnode_set_limit(h, ByteLen(2 * P4)).unwrap();
    w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    let p = d.pmap_for(w.s).unwrap();
    for i in 0..4 {
        device_write(&d, id, &*w.core, p, va(i), &[1]).unwrap();
    }
    assert!(
        w.core.hnode_stats(h).unwrap().used.get() <= 2 * P4,
        "the limit is {} and {} are used",
        2 * P4,
        w.core.hnode_stats(h).unwrap().used.get()
    );
}

#[test]
fn attach_races_register() {
    hunt("attach/register", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 16, PageSize::Size4K);
        let d = dev(&w, "d", 8 * P4).build();
        let id = w.core.device_create(d.clone()).unwrap();
        let m = d.memory();
        w.core.device_register_memory(id, PhysRange { begin: m.begin, end: m.begin + 4 * P4 }).unwrap();
        let mut s = Scheduler::new(seed);
        let a = w.clone();
        s.spawn("attach", move || {
            a.core.attach(a.s, id, Mode::CoherentExclusive, false).unwrap();
        });
        let a = w.clone();
        s.spawn("register", move || {
            a.core.device_register_memory(id, PhysRange { begin: m.begin + 4 * P4, end: m.end }).unwrap();
        });
        s.run();
        let p = d.pmap_for(w.s).unwrap();
        for i in 0..8 {
            device_write(&d, id, &*w.core, p, va(i), &[1]).unwrap();
        }
        let used: u64 = w.core.hnodes_of(id).into_iter().map(|h| w.core.hnode_stats(h).unwrap().used.get()).sum();
        assert_eq!(used, 8 * P4, "half of the memory is never used");
    });
}

#[test]
fn replica_detach_window() {
    // As k, but the replica is revoked by nobody: is a store really lost?
    hunt("store lost in detach", 1500, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 2, PageSize::Size4K);
        let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
        let (b, idb, _) = add(&w, dev(&w, "b", 64 << 10));
        w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
        w.core.attach(w.s, idb, Mode::CoherentExclusive, false).unwrap();
        let (pr, pb) = (r.pmap_for(w.s).unwrap(), b.pmap_for(w.s).unwrap());
        device_write(&r, idr, &*w.core, pr, va(0), &[0]).unwrap();
        let mut s = Scheduler::new(seed);
        let x = w.clone();
        s.spawn("detach", move || {
            let _ = catch_unwind(AssertUnwindSafe(|| x.core.detach(x.s, idr).unwrap()));
        });
        let x = w.clone();
        s.spawn("b", move || {
            device_write(&b, idb, &*x.core, pb, va(0), &[1]).unwrap();
        });
        s.run();
    });
}

/// A frame goes back to the driver's own allocator after its page has left, and one is asked for before a page comes: the memory stays registered meanwhile.
#[test]
fn memory_is_not_taken_back_from_under_the_drivers_allocator() {
    hunt("fault/unregister", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 4, PageSize::Size4K);
        let (d, id, first) = add(&w, dev(&w, "d", 2 * P4).own_frames());
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        let p = d.pmap_for(w.s).unwrap();
        let mut s = Scheduler::new(seed);
        let (a, driver) = (w.clone(), d.clone());
        s.spawn("faults", move || {
            for _ in 0..6 {
                let _ = device_write(&driver, id, &*a.core, p, va(0), &[1]);
                cpu_write(&a.host, &*a.core, va(0), &[2]).unwrap();
            }
        });
        let b = w.clone();
        s.spawn("takes back", move || {
            let mut hnode = Some(first);
            for _ in 0..40 {
                hnode = match hnode {
                    Some(taken) if b.core.device_unregister_memory(id, taken).is_ok() => None,
                    None => b.core.device_register_memory(id, d.memory()).ok(),
                    kept => kept,
                };
                yield_point(Reason::Step);
            }
        });
        s.run();
    });
}

/// The last free frame of a driver's own allocator is wanted twice: the second waits for an eviction, and is no error of the driver.
#[test]
fn two_faults_for_the_last_frame_of_the_drivers_allocator() {
    hunt("fault/fault", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 8, PageSize::Size4K);
        let (d, id, hnode) = add(&w, dev(&w, "d", 8 * P4).own_frames());
        w.core.hnode_set_limit(hnode, ByteLen(2 * P4)).unwrap();
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
        let p = d.pmap_for(w.s).unwrap();
        let mut s = Scheduler::new(seed);
        for me in 0..2 {
            let (a, d) = (w.clone(), d.clone());
            s.spawn("faults", move || {
                for n in 0..4 {
                    let result = device_write(&d, id, &*a.core, p, va(2 * n + me), &[1]);
                    assert!(!matches!(result, Err(FaultError::Device(_))), "{result:?}");
                }
            });
        }
        s.run();
    });
}

/// An attach whose activation is refused leaves no context, even if a page came to the device at once and cannot leave it.
#[test]
fn an_attach_that_is_not_activated_is_none() {
    hunt("attach/fault", 300, |seed| {
        let w = Arc::new(world(seed));
        map(&w, 0, 2, PageSize::Size4K);
        let (d, id, _) = add(&w, dev(&w, "d", 4 * P4));
        w.sim.fail_nth(Callback::SwitchContext, 1, Injected::Device(DeviceError::NoMemory));
        let mut s = Scheduler::new(seed);
        let (a, driver) = (w.clone(), d.clone());
        s.spawn("attaches", move || {
            assert!(a.core.attach(a.s, id, Mode::CoherentExclusive, true).is_err());
            assert_eq!(a.core.context(a.s, id), None, "the attach was refused, and there is a context");
            a.sim.clear_failures();
            let _ = driver;
        });
        let b = w.clone();
        s.spawn("faults", move || {
            for _ in 0..20 {
                let pmap = b.core.context(b.s, id).and_then(|context| context.pmap);
                if let Some(pmap) = pmap
                    && device_write(&d, id, &*b.core, pmap, va(0), &[1]).is_ok()
                {
                    b.sim.fail_chance(Callback::Copy, 1000, Injected::Device(DeviceError::CopyFailed));
                }
            }
        });
        s.run();
    });
}

/// A peer that is gone, or that does not answer, could not give up its page; and whoever asked for the page was taken for gone itself, though it still used its table.
#[test]
fn who_asks_for_the_page_of_a_peer_that_fails_does_not_fail_with_it() {
    for dies in [true, false] {
        let w = world(1);
        map(&w, 0, 4, PageSize::Size4K);
        let (p, idp, _) = add(&w, dev(&w, "p", 64 << 10).capabilities(Capabilities::REPLAYABLE | Capabilities::PEER));
        let (r, idr, _) = add(&w, dev(&w, "r", 64 << 10));
        w.core.attach(w.s, idp, Mode::CoherentExclusive, false).unwrap();
        w.core.attach(w.s, idr, Mode::Replicate, false).unwrap();
        let (pp, pr) = (p.pmap_for(w.s).unwrap(), r.pmap_for(w.s).unwrap());
        device_write(&p, idp, &*w.core, pp, va(0), &[1]).unwrap();
        if dies {
            p.kill();
        } else {
            w.sim.fail_chance_on(p.number(), Callback::PeerUnmap, 1000, Injected::Device(DeviceError::NoAnswer));
        }
        assert!(device_read(&r, idr, &*w.core, pr, va(0), &mut [0]).is_err(), "the peer gave its page up");
        assert!(!w.core.context(w.s, idr).unwrap().fenced, "the replica was fenced");
        device_write(&r, idr, &*w.core, pr, va(1), &[2]).unwrap();
        let mut b = [0];
        cpu_read(&w.host, &*w.core, va(1), &mut b).unwrap();
        assert_eq!(b[0], 2);
        w.core.detach(w.s, idr).unwrap();
    }
}

/// The owner of a page did not answer when it was to copy it home and could not be stopped, and a frame of whoever asked for the page was held back for that, at every fault.
#[test]
fn an_owner_that_does_not_answer_costs_who_asks_for_its_page_no_frame() {
    let w = world(1);
    map(&w, 0, 8, PageSize::Size4K);
    let (a, ida, ha) = add(&w, dev(&w, "a", 64 << 10).without_fence());
    let (b, idb, hb) = add(&w, dev(&w, "b", 4 * P4));
    for id in [ida, idb] {
        w.core.attach(w.s, id, Mode::CoherentExclusive, false).unwrap();
    }
    let (pa, pb) = (a.pmap_for(w.s).unwrap(), b.pmap_for(w.s).unwrap());
    device_write(&a, ida, &*w.core, pa, va(0), &[1]).unwrap();
    w.sim.fail_chance_on(a.number(), Callback::Copy, 1000, Injected::Device(DeviceError::NoAnswer));
    for _ in 0..6 {
        assert!(device_read(&b, idb, &*w.core, pb, va(0), &mut [0]).is_err(), "its owner gave the page up");
    }
    assert_eq!(w.core.hnode_stats(hb).unwrap().quarantined.get(), 0, "frames are held back for a device that never had them");
    assert_eq!(w.core.hnode_stats(ha).unwrap().used.get(), P4, "the page is where it was");
    assert!(!w.core.context(w.s, idb).unwrap().fenced);
    for page in 1..5 {
        device_write(&b, idb, &*w.core, pb, va(page), &[2]).unwrap();
    }
}
