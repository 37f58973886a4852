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

    /// A number.
    pub fn number(mut self, number: impl TryInto<u64>) -> Self {
        // Only a number that does not fit 64 bits unsigned fails, and that is a mistake in the program.
        self.words.push(number.try_into().unwrap_or_else(|_| panic!("an argument of a launch is an unsigned 64-bit number")));
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
}
