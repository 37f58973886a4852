//! CRC-32 (IEEE 802.3) on the device: table-driven, eight bytes at a time.
//!
//! Written here on purpose, and not taken from the crate the CPU checks with: two programs that agree say more than one that agrees with
//! itself.

use bytemuck::{Pod, Zeroable};
use gmem::{Grid, kernel};

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// `TABLES[n][b]` is what byte `b` contributes when `n` more bytes follow it in the group of eight.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// A piece of the data whose CRC is wanted.
#[derive(Clone, Copy, Pod, Zeroable, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Block {
    /// From the start of the data.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u64,
}

kernel!(pub(crate) CRC = "crc32-blocks", |grid, args| {
    // SAFETY: only `super::checksums` launches this, with the arguments in this order.
    unsafe { blocks(grid, args[0], args[1], args[2], args[3] as usize) }
});

/// Core `w` of `n` takes every `n`th block.
///
/// # Safety
/// `table` is the address of `count` blocks, each inside the readable data at `data`; `sums` is the address of `count` writable numbers.
unsafe fn blocks(grid: Grid, data: u64, table: u64, sums: u64, count: usize) {
    let data = std::ptr::with_exposed_provenance::<u8>(data as usize);
    let table = std::ptr::with_exposed_provenance::<Block>(table as usize);
    let sums = std::ptr::with_exposed_provenance_mut::<u32>(sums as usize);
    for i in (grid.worker..count).step_by(grid.workers) {
        // SAFETY: `i < count`, the block lies inside the data, and each sum is written by one core.
        unsafe {
            let block = table.add(i).read();
            sums.add(i).write(crc32(data.add(block.offset as usize), block.len as usize));
        }
    }
}

/// # Safety
/// `data` points to `len` readable bytes.
unsafe fn crc32(data: *const u8, len: usize) -> u32 {
    let mut crc = !0u32;
    let groups = len / 8;
    for group in 0..groups {
        // SAFETY: eight bytes from `8 * group` on are inside `len`; the read does not ask for alignment.
        let word = unsafe { data.add(group * 8).cast::<u64>().read_unaligned() }.to_le() ^ u64::from(crc);
        let byte = |n: u32| (word >> (8 * n) & 0xff) as usize;
        crc = TABLES[7][byte(0)]
            ^ TABLES[6][byte(1)]
            ^ TABLES[5][byte(2)]
            ^ TABLES[4][byte(3)]
            ^ TABLES[3][byte(4)]
            ^ TABLES[2][byte(5)]
            ^ TABLES[1][byte(6)]
            ^ TABLES[0][byte(7)];
    }
    for i in groups * 8..len {
        // SAFETY: `i < len`.
        let byte = unsafe { data.add(i).read() };
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u32::from(byte)) & 0xff) as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> u32 {
        // SAFETY: the slice is `len` readable bytes.
        unsafe { crc32(bytes.as_ptr(), bytes.len()) }
    }

    #[test]
    fn agrees_with_the_standard_check_value() {
        assert_eq!(of(b"123456789"), 0xcbf4_3926);
        assert_eq!(of(b""), 0);
    }

    #[test]
    fn agrees_with_crc32fast_at_every_length_and_alignment() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for start in 0..9 {
            for end in start..bytes.len() {
                assert_eq!(of(&bytes[start..end]), crc32fast::hash(&bytes[start..end]), "{start}..{end}");
            }
        }
    }
}
