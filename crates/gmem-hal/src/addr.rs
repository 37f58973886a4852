//! Addresses, lengths, ranges and page sizes.
//!
//! Units are types: a [`VirtAddr`] is a byte address in an address space, a [`PhysAddr`] is a byte address inside one memory pool, a
//! [`ByteLen`] is a number of bytes. Arithmetic that can overflow is checked.

use crate::HnodeId;
use core::fmt;

/// A byte address in an address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// The address `addr`.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This address plus `len`, or `None` on overflow.
    pub const fn checked_add(self, len: ByteLen) -> Option<Self> {
        match self.0.checked_add(len.0) {
            Some(a) => Some(Self(a)),
            None => None,
        }
    }

    /// The start of the page of `size` that holds this address.
    pub const fn align_down(self, size: PageSize) -> Self {
        Self(self.0 & !(size.bytes() - 1))
    }

    /// The first page boundary at or after this address, or `None` on overflow.
    pub const fn align_up(self, size: PageSize) -> Option<Self> {
        match self.0.checked_add(size.bytes() - 1) {
            Some(a) => Some(Self(a & !(size.bytes() - 1))),
            None => None,
        }
    }

    /// Whether this address is a multiple of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & (size.bytes() - 1) == 0
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteLen(pub u64);

impl ByteLen {
    /// The length as a number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

impl fmt::Display for ByteLen {
    /// Human units: the largest binary unit that divides the length, or one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (name, unit) in UNITS {
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{} {name}", self.0 / unit)
                } else {
                    write!(f, "{:.1} {name}", self.0 as f64 / unit as f64)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// The page sizes a region can have: the unit of residency, of transfer and of a logical page table entry. They are gmem's own: memory of hugetlbfs is none of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 12,
    /// 64 KiB.
    Size64K = 16,
    /// 2 MiB, the default: most costs are per operation, and a 2 MiB operation costs little more than a 4 KiB one.
    #[default]
    Size2M = 21,
}

impl PageSize {
    /// Every page size, smallest first.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size64K, PageSize::Size2M];

    /// The size in bytes, a power of two.
    pub const fn bytes(self) -> u64 {
        1 << self as u8
    }

    /// The size as a length.
    pub const fn len(self) -> ByteLen {
        ByteLen(self.bytes())
    }

    /// log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        self as u32
    }

    /// The page size of exactly `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            0x1000 => Some(Self::Size4K),
            0x1_0000 => Some(Self::Size64K),
            0x20_0000 => Some(Self::Size2M),
            _ => None,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.len().fmt(f)
    }
}

/// A set of page sizes as a bitmap: bit `n` stands for pages of 2^n bytes (the `pgsize_bitmap` of the original).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSizes(u64);

impl PageSizes {
    /// 4 KiB, 64 KiB and 2 MiB.
    pub const ALL: PageSizes = PageSizes(1 << 12 | 1 << 16 | 1 << 21);

    /// The set with the bits of `bitmap`. Bits of sizes gmem has no pages of are kept and ignored.
    pub const fn from_bitmap(bitmap: u64) -> Self {
        Self(bitmap)
    }

    /// The bitmap.
    pub const fn bitmap(self) -> u64 {
        self.0
    }

    /// Whether `size` is in the set.
    pub const fn contains(self, size: PageSize) -> bool {
        self.0 & size.bytes() != 0
    }

    /// The smallest page size in the set.
    pub fn smallest(self) -> Option<PageSize> {
        PageSize::ALL.into_iter().find(|s| self.contains(*s))
    }

    /// Whether pages of `size` can be mapped, if need be by several smaller entries.
    pub fn can_map(self, size: PageSize) -> bool {
        self.smallest().is_some_and(|s| s <= size)
    }
}

/// A half-open range of virtual addresses, never empty and never wrapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VirtRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl VirtRange {
    /// `[start, end)`, or `None` if it would be empty or reversed.
    pub const fn new(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        if start.0 < end.0 { Some(Self { start, end }) } else { None }
    }

    /// `len` bytes from `start`, or `None` if that is empty or overflows.
    pub const fn from_len(start: VirtAddr, len: ByteLen) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// The page of `size` that holds `va`, or `None` if it would end past the last address.
    pub const fn page(va: VirtAddr, size: PageSize) -> Option<Self> {
        Self::from_len(va.align_down(size), size.len())
    }

    /// The first address.
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// The address after the last.
    pub const fn end(self) -> VirtAddr {
        self.end
    }

    /// The length in bytes, never zero.
    pub const fn len(self) -> ByteLen {
        ByteLen(self.end.0 - self.start.0)
    }

    /// Whether `va` lies inside.
    pub const fn contains(self, va: VirtAddr) -> bool {
        self.start.0 <= va.0 && va.0 < self.end.0
    }

    /// Whether `other` lies wholly inside.
    pub const fn contains_range(self, other: VirtRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: VirtRange) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// What the two share.
    pub fn intersection(self, other: VirtRange) -> Option<VirtRange> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether both ends are multiples of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.start.is_aligned(size) && self.end.is_aligned(size)
    }

    /// The largest page-aligned range inside, or `None` if no whole page fits.
    pub fn align_inward(self, size: PageSize) -> Option<VirtRange> {
        Self::new(self.start.align_up(size)?, self.end.align_down(size))
    }

    /// The smallest page-aligned range around, or `None` if it would pass the last address.
    pub fn align_outward(self, size: PageSize) -> Option<VirtRange> {
        Self::new(self.start.align_down(size), self.end.align_up(size)?)
    }

    /// The pages of `size` from the start on. The range must be aligned to `size`.
    pub fn pages(self, size: PageSize) -> impl DoubleEndedIterator<Item = VirtRange> + ExactSizeIterator {
        debug_assert!(self.is_aligned(size), "{self:?} is not a range of pages of {size}");
        let start = self.start.0;
        let count = (self.len().0 >> size.shift()) as usize;
        (0..count).map(move |i| {
            let at = start + ((i as u64) << size.shift());
            VirtRange { start: VirtAddr(at), end: VirtAddr(at + size.bytes()) }
        })
    }
}

impl fmt::Debug for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

impl fmt::Display for VirtRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A byte address inside one memory pool.
///
/// For a device's hnode it is the address the device's own MMU and copy engine use, within a range the driver registered. For
/// [`HnodeId::HOST`] it is the address at which copy engines reach host memory (a DMA address): only [`crate::Host::home`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr {
    /// Which pool.
    pub hnode: HnodeId,
    /// The byte address in it.
    pub addr: u64,
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.hnode, self.addr)
    }
}

/// A half-open range of device-physical addresses `[begin, end)`, as a driver states it. Unlike [`VirtRange`] it may hold anything; registering it
/// checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PhysRange {
    /// The first byte address.
    pub begin: u64,
    /// The byte address after the last.
    pub end: u64,
}

impl PhysRange {
    /// The length in bytes; zero if the range is reversed.
    pub const fn len(self) -> ByteLen {
        ByteLen(self.end.saturating_sub(self.begin))
    }
}
