use gmem::hal::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};

struct Toy {
    info: DeviceInfo,
    dram: Box<[std::cell::UnsafeCell<u8>]>,
    /// The page tables: context and page number -> (frame address, access). Frames may be the device's or, in REPLICATE mode, the host's.
    table: Mutex<HashMap<(PmapId, u64), (PhysAddr, Prot)>>,
    pmaps: AtomicU64,
    core: OnceLock<(DeviceId, Weak<dyn Upcalls>)>,
    me: Weak<Toy>,
    /// What the device is told to do.
    orders: OnceLock<Sender<Order>>,
}
type Order = Box<dyn FnOnce(&Toy) + Send>;
// SAFETY: the bytes of `dram` are only touched through raw pointers, by accesses that the MMU's protocol keeps apart.
unsafe impl Sync for Toy {}

impl Toy {
    fn new(memory: u64) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            info: DeviceInfo {
                name: "toy".into(),
                capabilities: Capabilities::REPLAYABLE,
                page_sizes: PageSizes::from_bitmap(4096),
                modes: Modes::COHERENT_EXCLUSIVE,
                mmu_cookie: 0x70,
            },
            dram: (0..memory).map(|_| 0.into()).collect(),
            table: Mutex::default(),
            pmaps: AtomicU64::new(1),
            core: OnceLock::new(),
            me: me.clone(),
            orders: OnceLock::new(),
        })
    }

    /// A host address is a pointer that the copy engine may use; a device address is an offset into `dram`.
    fn pointer(&self, at: PhysAddr) -> *mut u8 {
        if at.hnode == HnodeId::HOST { std::ptr::with_exposed_provenance_mut(at.addr as usize) } else { self.dram[at.addr as usize].get() }
    }

    /// The device's only instruction: translate, fault if need be, and touch what is there, all in one step as far as the MMU is concerned.
    fn touch(&self, pmap: PmapId, va: VirtAddr, access: Access, touch: impl FnOnce(*mut u8)) -> Result<(), FaultError> {
        loop {
            {
                // The "hardware" holds its table for the length of an access, so an invalidation has nothing to wait for.
                let table = self.table.lock().unwrap();
                if let Some((frame, prot)) = table.get(&(pmap, va.get() >> 12))
                    && prot.allows(access)
                {
                    touch(self.pointer(PhysAddr { addr: frame.addr + (va.get() & 0xfff), ..*frame }));
                    return Ok(());
                }
            }
            let (id, core) = self.core.get().expect("started");
            let core = core.upgrade().ok_or(FaultError::NotAttached)?;
            core.device_fault(*id, pmap, va, access, None)?;
        }
    }

    /// Has the device do something, and waits for it.
    fn run<T: Send + 'static>(&self, work: impl FnOnce(&Toy) -> T + Send + 'static) -> T {
        let (done, wait) = channel();
        let order: Order = Box::new(move |toy| done.send(work(toy)).expect("somebody waits"));
        self.orders.get().expect("started").send(order).expect("the device lives as long as its driver");
        wait.recv().expect("every order is carried out")
    }

    fn add(&self, pmap: PmapId, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        // SAFETY: the table maps the page writable, so its frame is ours while the table is held; the word lies in one page.
        let add = move |at: *mut u8| unsafe { *at.cast::<u64>() = (*at.cast::<u64>()).wrapping_add(n) };
        self.run(move |toy| toy.touch(pmap, va, Access::Write, add))
    }
}

impl Mmu for Toy {
    fn pmap_create(&self, _: &PmapRequest) -> Result<PmapId, DeviceError> {
        Ok(PmapId(self.pmaps.fetch_add(1, Ordering::Relaxed)))
    }
    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.table.lock().unwrap().retain(|(of, _), _| *of != pmap);
        Ok(())
    }
    fn pmap_enter(&self, pmap: PmapId, m: &Mapping) -> Result<(), DeviceError> {
        let mut table = self.table.lock().unwrap();
        // Its pages have 4 KiB: a larger one takes several entries.
        for offset in (0..m.len.get()).step_by(4096) {
            let frame = PhysAddr { addr: m.frame.addr + offset, ..m.frame };
            table.insert((pmap, (m.va.get() + offset) >> 12), (frame, m.prot));
        }
        Ok(())
    }
    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let inside = |of: PmapId, page: u64| of == pmap && range.contains(VirtAddr::new(page << 12));
        self.table.lock().unwrap().retain(|(of, page), _| !inside(*of, *page));
        Ok(())
    }
    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        if prot.is_empty() {
            return self.pmap_release(pmap, range);
        }
        let inside = |of: PmapId, page: u64| of == pmap && range.contains(VirtAddr::new(page << 12));
        let mut table = self.table.lock().unwrap();
        table.iter_mut().filter(|((of, page), _)| inside(*of, *page)).for_each(|(_, entry)| entry.1 = prot);
        Ok(())
    }
    fn tlb_invalidate(&self, _: PmapId, _: VirtRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl CopyEngine for Toy {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        // SAFETY: the core owns the frame and nobody can reach it now.
        unsafe { self.pointer(dst).write_bytes(0, len.get() as usize) };
        Ok(())
    }
    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        // SAFETY: as above, for both sides.
        unsafe { self.pointer(dst).copy_from_nonoverlapping(self.pointer(src), len.get() as usize) };
        Ok(())
    }
}

// The glue.
impl Device for Toy {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        self.core.set((id, upcalls)).map_err(|_| DeviceError::AlreadyStarted)?;
        let (orders, todo) = channel::<Order>();
        self.orders.set(orders).map_err(|_| DeviceError::AlreadyStarted)?;
        let me = self.me.clone();
        // The device itself: a thread that is started here has what resolving a fault takes. It ends with the driver.
        std::thread::spawn(move || todo.into_iter().for_each(|order| order(&me.upgrade().expect("whoever ordered has it"))));
        Ok(())
    }
    fn physical_memory(&self) -> Vec<PhysRange> {
        vec![PhysRange { begin: 0, end: self.dram.len() as u64 }]
    }
    fn mmu(&self) -> &dyn Mmu {
        self
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }
}
