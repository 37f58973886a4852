//! An hnode: one pool of device memory, its frames, their age, and its watermarks.
//!
//! Lock letters: `p` the pool lock, `c` constant after registration.

use crate::buddy::{Buddy, order_of};
use crate::frame::{Frame, FrameId, FrameTable, List};
use arrayvec::ArrayVec;
use gmem_hal::{
    ByteLen, DeviceId, Event, HnodeId, OutOfMemory, PageSize, PhysAddr, PhysRange, Platform, SpaceId, VirtAddr, Wait, WaitKind,
    lock_api::Mutex,
};

/// How many pages one eviction takes at the most: enough to make a coalesced invalidation worth while, few enough to stay on the stack.
pub(crate) const EVICT_BATCH: usize = 16;

/// A background eviction starts when less than this part of the memory is free, and ends at twice that.
const WATERMARK_DIVISOR: u64 = 32;

/// Who hands out the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Allocator {
    /// The core's buddy allocator.
    Core,
    /// The driver's own ([`gmem_hal::Frames`]).
    Driver,
    /// The peer's operating system; the core knows no frames of this hnode.
    Peer,
}

pub(crate) struct Hnode<P: Platform> {
    pub(crate) id: HnodeId,          // c
    pub(crate) device: DeviceId,     // c
    pub(crate) range: PhysRange,     // c
    pub(crate) allocator: Allocator, // c
    charged: usize,                  // c  bytes of metadata asked of the platform
    pool: Mutex<P::RawLock, Pool>,
    /// Signalled when a frame becomes free or an operation that had one isolated ends.
    pub(crate) progress: P::Event,
}

struct Pool {
    buddy: Option<Buddy>, // p
    frames: FrameTable,   // p
    used: u64,            // p  bytes
    quarantined: u64,     // p  bytes
    peak: u64,            // p  bytes
    retiring: bool,       // p  no frame is handed out any more
    calls: usize,         // p  of the driver's own allocator that are under way
    asked: u64,           // p  bytes that they ask for
    limit: u64,           // p  bytes that may be used at the most
    granule: u64,         // p  bytes of the largest page that was ever here
}

/// A frame that was released: where it was, its size, and whether a driver's own allocator is to be told.
pub(crate) type Released = (PhysAddr, PageSize, bool);

/// A frame and the page it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Victim {
    pub(crate) frame: FrameId,
    pub(crate) space: SpaceId,
    pub(crate) va: VirtAddr,
}

/// The figures of one hnode, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HnodeStats {
    /// The pool.
    pub hnode: HnodeId,
    /// Its device.
    pub device: DeviceId,
    /// Its size.
    pub capacity: ByteLen,
    /// In use.
    pub used: ByteLen,
    /// Held back because a fenced device might still reach it.
    pub quarantined: ByteLen,
    /// Free: `used + free + quarantined = capacity`.
    pub free: ByteLen,
    /// The most that was ever in use.
    pub peak: ByteLen,
    /// Metadata about it, as far as it was ever touched.
    pub metadata: ByteLen,
}

impl<P: Platform> Hnode<P> {
    pub(crate) fn new(
        id: HnodeId,
        device: DeviceId,
        range: PhysRange,
        smallest: PageSize,
        allocator: Allocator,
        platform: &P,
    ) -> Result<Self, OutOfMemory> {
        let frames = if allocator == Allocator::Peer { 0 } else { (range.len().get() >> smallest.shift()) as usize };
        let base = range.begin & !(PageSize::Size2M.bytes() - 1);
        let (first, end) = (((range.begin - base) >> 12) as usize, ((range.end - base) >> 12) as usize);
        // Two bits per base frame for the bitmaps, with their upper levels at most 1/32 more.
        let charged = frames * 28 + if allocator == Allocator::Core { end / 4 + end / 64 } else { 0 };
        platform.charge(charged)?;
        let make = || {
            Ok(Pool {
                buddy: if allocator == Allocator::Core { Some(Buddy::new(first, end)?) } else { None },
                frames: FrameTable::new(frames)?,
                used: 0,
                quarantined: 0,
                peak: 0,
                retiring: false,
                calls: 0,
                asked: 0,
                limit: range.len().get(),
                granule: smallest.bytes(),
            })
        };
        match make() {
            Ok(pool) => Ok(Self { id, device, range, allocator, charged, pool: Mutex::new(pool), progress: P::Event::default() }),
            Err(e) => {
                platform.uncharge(charged);
                Err(e)
            }
        }
    }

    /// Gives the metadata back to the platform's account. The hnode is not used afterwards.
    pub(crate) fn uncharge(&self, platform: &P) {
        platform.uncharge(self.charged);
    }

    pub(crate) fn base(&self) -> u64 {
        self.range.begin & !(PageSize::Size2M.bytes() - 1)
    }

    /// The device-physical address of a frame.
    pub(crate) fn phys(&self, frame: FrameId) -> PhysAddr {
        let number = self.pool.lock().frames.get(frame).number;
        PhysAddr { hnode: self.id, addr: self.base() + (u64::from(number) << 12) }
    }

    /// A free frame from the buddy allocator, isolated.
    pub(crate) fn take(&self, size: PageSize, space: SpaceId, va: VirtAddr) -> Option<(FrameId, PhysAddr)> {
        let mut pool = self.pool.lock();
        if pool.retiring || pool.used + pool.quarantined + size.bytes() > pool.limit {
            return None;
        }
        let number = pool.buddy.as_mut()?.alloc(order_of(size))? as u32;
        Some(self.adopt_locked(&mut pool, number, size, space, va))
    }

    /// Adopts a frame that the driver's own allocator handed out.
    pub(crate) fn adopt(&self, frame: PhysAddr, size: PageSize, space: SpaceId, va: VirtAddr) -> Option<(FrameId, PhysAddr)> {
        let mut pool = self.pool.lock();
        let end = frame.addr.checked_add(size.bytes());
        let inside = frame.hnode == self.id && frame.addr >= self.range.begin && end.is_some_and(|end| end <= self.range.end);
        // There was room when the call began, and it is kept until it ends.
        if pool.frames.is_full() || !inside || !frame.addr.is_multiple_of(size.bytes()) {
            return None;
        }
        let number = ((frame.addr - self.base()) >> 12) as u32;
        Some(self.adopt_locked(&mut pool, number, size, space, va))
    }

    fn adopt_locked(&self, pool: &mut Pool, number: u32, size: PageSize, space: SpaceId, va: VirtAddr) -> (FrameId, PhysAddr) {
        let id = pool.frames.take(number, size, space, va);
        pool.used += size.bytes();
        pool.peak = pool.peak.max(pool.used);
        pool.granule = pool.granule.max(size.bytes());
        (id, PhysAddr { hnode: self.id, addr: self.base() + (u64::from(number) << 12) })
    }

    /// Frees a frame whose shootdown was waited for. Returns where it was, and whether a driver's own allocator is to be told, with a call that has begun: not if the
    /// driver is about to be stopped.
    pub(crate) fn release(&self, frame: FrameId) -> Released {
        let mut pool = self.pool.lock();
        pool.frames.move_to(frame, List::Isolated);
        let Frame { number, size, .. } = pool.frames.get(frame);
        pool.frames.put(frame);
        pool.used -= size.bytes();
        if let Some(buddy) = &mut pool.buddy {
            buddy.free(number as usize, order_of(size));
        }
        let tell = self.allocator == Allocator::Driver && !pool.retiring;
        pool.calls += usize::from(tell);
        drop(pool);
        self.progress.signal();
        (PhysAddr { hnode: self.id, addr: self.base() + (u64::from(number) << 12) }, size, tell)
    }

    /// Holds a frame back that a fenced device might still reach.
    pub(crate) fn quarantine(&self, frame: FrameId) {
        let mut pool = self.pool.lock();
        pool.frames.move_to(frame, List::Quarantined);
        let bytes = pool.frames.get(frame).size.bytes();
        pool.used -= bytes;
        pool.quarantined += bytes;
        drop(pool);
        self.progress.signal();
    }

    /// The death of the context of `space` is confirmed: one of the frames held back for it becomes an ordinary used frame again, to be released.
    pub(crate) fn end_quarantine(&self, space: SpaceId) -> Option<FrameId> {
        let mut pool = self.pool.lock();
        let mut at = pool.frames.oldest(List::Quarantined);
        while let Some(id) = at {
            let frame = pool.frames.get(id);
            if frame.space == space {
                pool.frames.move_to(id, List::Isolated);
                pool.quarantined -= frame.size.bytes();
                pool.used += frame.size.bytes();
                return Some(id);
            }
            at = pool.frames.younger(id);
        }
        None
    }

    /// The death of the context of `space` will never be confirmed: its frames stay quarantined for as long as the device exists, in the name of an address space
    /// that does not.
    pub(crate) fn orphan_quarantine(&self, space: SpaceId) {
        const NOBODY: SpaceId = SpaceId(0);
        let mut pool = self.pool.lock();
        let mut at = pool.frames.oldest(List::Quarantined);
        while let Some(id) = at {
            if pool.frames.get(id).space == space {
                pool.frames.set_space(id, NOBODY);
            }
            at = pool.frames.younger(id);
        }
    }

    /// An operation is done with a frame: it becomes the youngest of `list`, and a candidate for eviction unless that is the pinned list.
    ///
    /// Called under the lock of the frame's address space, so that the entry and the list cannot disagree about who owns the frame.
    pub(crate) fn settle(&self, frame: FrameId, list: List) {
        let mut pool = self.pool.lock();
        pool.frames.set_sampled(frame, false);
        pool.frames.move_to(frame, list);
        drop(pool);
        self.progress.signal();
    }

    /// Like [`Hnode::settle`], for an operation that is no use of the page: a frame that is on a list stays where it is, unless it must change lists.
    pub(crate) fn resettle(&self, frame: FrameId, list: List) {
        let mut pool = self.pool.lock();
        if pool.frames.get(frame).list != list {
            pool.frames.move_to(frame, list);
        }
        drop(pool);
        self.progress.signal();
    }

    /// Chooses up to `most` victims, oldest first, and isolates them.
    ///
    /// A clean page costs no copy, so the oldest clean one goes before any dirty one, unless it was in use just now: among the youngest eighth, or
    /// the youngest sixteen of a small memory. Streams then keep their results on the device, and the pages being worked on stay.
    pub(crate) fn pick_victims(&self, most: usize) -> ArrayVec<Victim, EVICT_BATCH> {
        let mut pool = self.pool.lock();
        let mut victims = ArrayVec::new();
        while victims.len() < most.min(EVICT_BATCH) {
            let frames = &pool.frames;
            let resident = frames.count(List::Clean) + frames.count(List::Dirty);
            let young = (resident / 8).max(16.min(resident / 2));
            let id = match (frames.oldest(List::Clean), frames.oldest(List::Dirty)) {
                (Some(clean), Some(dirty)) if frames.age(clean) < young && frames.age(clean) < frames.age(dirty) => dirty,
                (Some(clean), _) => clean,
                (None, Some(dirty)) => dirty,
                (None, None) => break,
            };
            pool.frames.move_to(id, List::Isolated);
            let frame = pool.frames.get(id);
            victims.push(Victim { frame: id, space: frame.space, va: frame.va });
        }
        victims
    }

    /// The oldest frames of both lists that were not yet asked whether they are used, marked as asked. They stay where they are.
    pub(crate) fn sample(&self, most: usize) -> ArrayVec<Victim, EVICT_BATCH> {
        let mut pool = self.pool.lock();
        let mut chosen = ArrayVec::new();
        for list in [List::Clean, List::Dirty] {
            let mut at = pool.frames.oldest(list);
            for _ in 0..most / 2 {
                let Some(id) = at else { break };
                let frame = pool.frames.get(id);
                at = pool.frames.younger(id);
                if !frame.sampled && !chosen.is_full() {
                    pool.frames.set_sampled(id, true);
                    chosen.push(Victim { frame: id, space: frame.space, va: frame.va });
                }
            }
        }
        chosen
    }

    /// Whether enough is free for a frame of `len`, though perhaps not in one piece.
    pub(crate) fn has_room(&self, len: ByteLen) -> bool {
        let pool = self.pool.lock();
        !pool.retiring && pool.used + pool.quarantined + len.get() <= pool.limit
    }

    /// How many bytes pages of this size can have of it at once. A peer keeps its own books, and no limit of ours.
    pub(crate) fn usable(&self, size: PageSize) -> ByteLen {
        let bytes = size.bytes();
        let frames = (self.range.end / bytes).saturating_sub(self.range.begin.div_ceil(bytes));
        let most = if self.allocator == Allocator::Peer { u64::MAX } else { self.pool.lock().limit / bytes };
        ByteLen(frames.min(most) * bytes)
    }

    /// Victims that stand in the way of one frame of `size`, isolated: up to a batch of the frames in `block`, a range of that size, or in the block of the
    /// oldest frame that has only movable neighbours. Returns the block too. Looks at every frame, which is rare enough.
    pub(crate) fn pick_block(&self, size: PageSize, block: Option<u32>) -> Option<(u32, ArrayVec<Victim, EVICT_BATCH>)> {
        const CANDIDATES: usize = 8;
        let mut pool = self.pool.lock();
        let shift = order_of(size);
        let movable = |pool: &Pool, block: u32| {
            pool.frames.iter().all(|(_, f)| f.number >> shift != block || matches!(f.list, List::Clean | List::Dirty | List::Isolated))
        };
        let block = match block {
            Some(block) => block,
            None => {
                let mut at = pool.frames.oldest(List::Clean).or_else(|| pool.frames.oldest(List::Dirty));
                let mut found = None;
                for _ in 0..CANDIDATES {
                    let Some(id) = at else { break };
                    let candidate = pool.frames.get(id).number >> shift;
                    if movable(&pool, candidate) {
                        found = Some(candidate);
                        break;
                    }
                    at = pool.frames.younger(id);
                }
                found?
            }
        };
        let inside = |f: &Frame| f.number >> shift == block && matches!(f.list, List::Clean | List::Dirty);
        let chosen: ArrayVec<FrameId, EVICT_BATCH> =
            pool.frames.iter().filter(|(_, f)| inside(f)).map(|(id, _)| id).take(EVICT_BATCH).collect();
        let mut victims = ArrayVec::new();
        for id in chosen {
            pool.frames.move_to(id, List::Isolated);
            let frame = pool.frames.get(id);
            victims.push(Victim { frame: id, space: frame.space, va: frame.va });
        }
        Some((block, victims))
    }

    /// Bytes to evict so that the background eviction can stop: nothing while more than the low watermark is free.
    pub(crate) fn shortage(&self, started: bool) -> u64 {
        let pool = self.pool.lock();
        // Of what may be used, in whole pages: a pool of a few pages has no watermark, or it could never be used fully.
        let low = (pool.limit / WATERMARK_DIVISOR) & !(pool.granule - 1);
        let free = pool.limit.saturating_sub(pool.used + pool.quarantined);
        let target = if started { 2 * low } else { low };
        if free < target { 2 * low - free } else { 0 }
    }

    /// Frames that some operation has in hand: when it ends, there is progress.
    pub(crate) fn in_transit(&self) -> usize {
        let pool = self.pool.lock();
        let listed = [List::Clean, List::Dirty, List::Quarantined, List::Pinned].iter().map(|l| pool.frames.count(*l)).sum::<usize>();
        pool.frames.used() - listed
    }

    /// Caps what may be used (`max_memsize` of the original): at least what is used now. Answers what it was before. The caller keeps to the capacity.
    pub(crate) fn set_limit(&self, bytes: u64) -> Result<ByteLen, ByteLen> {
        let mut pool = self.pool.lock();
        if bytes < pool.used + pool.quarantined + pool.asked {
            return Err(ByteLen(pool.used + pool.quarantined));
        }
        Ok(ByteLen(core::mem::replace(&mut pool.limit, bytes)))
    }

    /// Stops handing frames out, unless some are in use, or the driver's own allocator is being asked for one or given one back.
    pub(crate) fn retire(&self) -> Result<(), ByteLen> {
        let mut pool = self.pool.lock();
        if pool.used != 0 || pool.quarantined != 0 || pool.calls != 0 {
            return Err(ByteLen(pool.used + pool.quarantined));
        }
        pool.retiring = true;
        Ok(())
    }

    /// Stops handing frames out, and waits until no call of the driver's own allocator is under way: none begins afterwards.
    pub(crate) fn close(&self) {
        self.pool.lock().retiring = true;
        loop {
            let epoch = self.progress.epoch();
            if self.pool.lock().calls == 0 {
                return;
            }
            let at = VirtAddr::new(u64::from(self.id.0));
            self.progress.wait(epoch, &Wait { kind: WaitKind::Frame, space: None, at, owner: "free" });
        }
    }

    /// Begins a call of the driver's own allocator for a frame of `len`, unless not enough is free. Until it ends the room is kept and the memory stays registered.
    pub(crate) fn begin_call(&self, len: ByteLen) -> bool {
        let mut pool = self.pool.lock();
        let room = !pool.retiring && pool.used + pool.quarantined + pool.asked + len.get() <= pool.limit;
        if room {
            pool.calls += 1;
            pool.asked += len.get();
        }
        room
    }

    /// Ends such a call, which asked for `len`: nothing if it gave a frame back.
    pub(crate) fn end_call(&self, len: ByteLen) {
        {
            let mut pool = self.pool.lock();
            pool.calls -= 1;
            pool.asked -= len.get();
        }
        self.progress.signal();
    }

    /// Pages of a peer are counted, though their frames are its own. The count lags behind the peer: a page it gave up counts until its operation ends, while
    /// another may already be in its frame. The peak is of memory, of which there is never more in use than there is.
    pub(crate) fn count_peer_page(&self, size: PageSize, mapped: bool) {
        let mut pool = self.pool.lock();
        pool.used = if mapped { pool.used + size.bytes() } else { pool.used - size.bytes() };
        pool.peak = pool.peak.max(pool.used.min(self.range.len().get()));
    }

    pub(crate) fn stats(&self) -> HnodeStats {
        let pool = self.pool.lock();
        let capacity = self.range.len();
        HnodeStats {
            hnode: self.id,
            device: self.device,
            capacity,
            used: ByteLen(pool.used),
            quarantined: ByteLen(pool.quarantined),
            free: ByteLen(capacity.get().saturating_sub(pool.used + pool.quarantined)),
            peak: ByteLen(pool.peak),
            metadata: ByteLen((pool.frames.metadata_bytes() + pool.buddy.as_ref().map_or(0, Buddy::metadata_bytes)) as u64),
        }
    }

    /// What the descriptor of a frame says, if it is in use.
    pub(crate) fn frame(&self, frame: FrameId) -> Option<Frame> {
        let pool = self.pool.lock();
        pool.frames.is_used(frame).then(|| pool.frames.get(frame))
    }

    /// How many frames hold a page, or are about to: those in use that are not quarantined.
    pub(crate) fn holding(&self) -> usize {
        let pool = self.pool.lock();
        pool.frames.used() - pool.frames.count(List::Quarantined)
    }

    /// Calls `check` for every frame in use, and returns the bytes that the buddy allocator, the used and the quarantined frames add up to.
    pub(crate) fn audit(&self, mut check: impl FnMut(FrameId, &Frame)) -> Option<u64> {
        let pool = self.pool.lock();
        let mut in_use = 0;
        for (id, frame) in pool.frames.iter() {
            in_use += frame.size.bytes();
            if let Some(buddy) = &pool.buddy {
                assert!(!buddy.is_free(frame.number as usize), "{}: frame {:#x} is in use and free", self.id, frame.number);
            }
            check(id, &frame);
        }
        let buddy = pool.buddy.as_ref()?;
        assert_eq!(in_use, pool.used + pool.quarantined, "{}: bytes in use", self.id);
        Some(in_use + ((buddy.free_frames() as u64) << 12))
    }
}
