//! The arguments of a launch.

use bytemuck::Pod;
use gmem_core::HoldRange;
use gmem_hal::{Access, ByteLen, VirtAddr, VirtRange};
use std::marker::PhantomData;

/// Arguments: numbers, and slices of unified memory as plain addresses.
///
/// A slice stays borrowed for as long as the arguments live, which is until the launch has ended. What is borrowed is also what a device that cannot replay
/// faults is given to hold: exactly that, and nothing else.
#[derive(Debug, Default)]
pub struct Args<'a> {
    words: Vec<u64>,
    touched: Vec<HoldRange>,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Args<'a> {
    /// No arguments.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number, as [`Number`] says: of any integer type, `bool`, or floating-point.
    pub fn number(mut self, number: impl Number) -> Self {
        self.words.push(number.word());
        self
    }

    /// The address of memory that the kernel reads.
    pub fn read<T: Pod>(self, slice: &'a [T]) -> Self {
        self.base(slice).touches(slice)
    }

    /// The address of memory that the kernel writes, and may read.
    pub fn write<T: Pod>(mut self, slice: &'a mut [T]) -> Self {
        let start = slice.as_mut_ptr().expose_provenance() as u64;
        self.words.push(start);
        self.touch(start, size_of_val(slice), Access::Write);
        self
    }

    /// The address of memory of which the kernel touches only what [`Args::touches`] and [`Args::writes`] say.
    pub fn base<T: Pod>(mut self, slice: &'a [T]) -> Self {
        self.words.push(slice.as_ptr().expose_provenance() as u64);
        self
    }

    /// Memory that the kernel reads by way of another argument.
    pub fn touches<T: Pod>(mut self, slice: &'a [T]) -> Self {
        self.touch(slice.as_ptr().expose_provenance() as u64, size_of_val(slice), Access::Read);
        self
    }

    /// Memory that the kernel writes by way of another argument.
    pub fn writes<T: Pod>(mut self, slice: &'a mut [T]) -> Self {
        self.touch(slice.as_mut_ptr().expose_provenance() as u64, size_of_val(slice), Access::Write);
        self
    }

    /// Memory that the kernel touches by way of another argument, by its addresses: for a [`crate::Region`], of which nobody has a slice. No bytes touch nothing.
    pub fn range(mut self, start: VirtAddr, len: ByteLen, access: Access) -> Self {
        if let Some(range) = VirtRange::from_len(start, len) {
            self.touched.push(HoldRange { range, access });
        }
        self
    }

    fn touch(&mut self, start: u64, len: usize, access: Access) {
        // An empty slice touches nothing.
        if let Some(range) = VirtRange::from_len(VirtAddr::new(start), ByteLen(len as u64)) {
            self.touched.push(HoldRange { range, access });
        }
    }

    /// The arguments as the kernel gets them.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Everything the kernel said it touches.
    pub(crate) fn touched(&self) -> &[HoldRange] {
        &self.touched
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What [`Args::number`] takes: every integer type up to 64 bits, `bool` and the two floating-point types.
///
/// The kernel gets a `u64` and casts it back:
///
/// | passed | the kernel's `u64` | cast back |
/// |---|---|---|
/// | `u8` to `u64`, `usize` | the number | `args[0] as u32` |
/// | `i8` to `i64`, `isize` | two's complement, with the sign in all upper bits | `args[0] as i32` |
/// | `bool` | 0 or 1 | `args[0] != 0` |
/// | `f32` | its bits, in the lower half | `f32::from_bits(args[0] as u32)` |
/// | `f64` | its bits | `f64::from_bits(args[0])` |
///
/// A number of 128 bits is refused by the compiler; pass it as two, or in a buffer.
///
/// ```compile_fail
/// let args = gmem::Args::new().number(1u128);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no argument of a launch",
    note = "integers up to 64 bits, `bool`, `f32` and `f64` are"
)]
pub trait Number: sealed::Sealed + Copy {
    /// The number as the kernel gets it.
    fn word(self) -> u64;
}

macro_rules! numbers {
    ($number:ident => $word:expr; $($type:ty)+) => {$(
        impl sealed::Sealed for $type {}
        impl Number for $type {
            fn word(self) -> u64 {
                let $number = self;
                $word
            }
        }
    )+};
}

// A cast from a signed type extends the sign; no machine that gmem runs on has addresses of more than 64 bits.
numbers!(n => n as u64; bool u8 u16 u32 usize i8 i16 i32 i64 isize);
numbers!(n => n; u64);
numbers!(n => u64::from(n.to_bits()); f32);
numbers!(n => n.to_bits(); f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_addresses_and_ranges() {
        let input = [1u32, 2, 3];
        let mut output = [0u64; 2];
        let (from, to) = (input.as_ptr().addr() as u64, output.as_ptr().addr() as u64);
        let args = Args::new().read(&input).number(7usize).write(&mut output);
        assert_eq!(args.words(), [from, 7, to]);
        let touched: Vec<_> = args.touched().iter().map(|t| (t.range.start().get(), t.range.len().get(), t.access)).collect();
        assert_eq!(touched, [(from, 12, Access::Read), (to, 16, Access::Write)]);
    }

    #[test]
    fn an_empty_slice_touches_nothing() {
        assert!(Args::new().read::<u8>(&[]).touched().is_empty());
    }

    #[test]
    fn every_number_comes_back_from_its_word() {
        let word = |args: Args<'_>| args.words()[0];
        for n in [i64::MIN, -1, 0, 1, i64::MAX] {
            assert_eq!(word(Args::new().number(n)) as i64, n);
            assert_eq!(word(Args::new().number(n as isize)) as isize, n as isize);
        }
        for n in [i8::MIN, -1, 0, i8::MAX] {
            assert_eq!(word(Args::new().number(n)) as i64, i64::from(n), "the sign reaches all bits");
            assert_eq!(word(Args::new().number(i16::from(n) * 200)) as i16, i16::from(n) * 200);
            assert_eq!(word(Args::new().number(i32::from(n) << 24)) as i64, i64::from(n) << 24);
        }
        assert_eq!(word(Args::new().number(-1)), u64::MAX);
        assert_eq!(Args::new().number(u8::MAX).number(u16::MAX).number(u32::MAX).words(), [0xff, 0xffff, 0xffff_ffff]);
        assert_eq!(Args::new().number(u64::MAX).number(usize::MAX).words(), [u64::MAX; 2]);
        assert_eq!(Args::new().number(false).number(true).words(), [0, 1]);
        for x in [-0.0, 1.5, f64::INFINITY, f64::NAN, f64::MIN_POSITIVE] {
            assert_eq!(f64::from_bits(word(Args::new().number(x))).to_bits(), x.to_bits());
            let x = x as f32;
            assert_eq!(word(Args::new().number(x)), u64::from(x.to_bits()));
        }
    }
}
