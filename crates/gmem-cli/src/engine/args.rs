//! The arguments of a launch.

use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::Range;

/// Memory a launch touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Touched {
    /// The addresses.
    pub(crate) range: Range<usize>,
    /// Whether the kernel stores to it.
    pub(crate) write: bool,
}

/// Arguments: numbers, and slices as plain addresses.
///
/// A slice stays borrowed for as long as the arguments live, which is until the launch has ended. What was borrowed is also what a device
/// without replay is told to hold.
#[derive(Debug, Default)]
pub(crate) struct Args<'a> {
    words: Vec<u64>,
    touched: Vec<Touched>,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Args<'a> {
    /// No arguments.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A number.
    pub(crate) fn number(mut self, number: usize) -> Self {
        self.words.push(number as u64);
        self
    }

    /// The address of memory the kernel reads.
    pub(crate) fn read<T: Pod>(mut self, slice: &'a [T]) -> Self {
        self.words.push(slice.as_ptr().expose_provenance() as u64);
        self.touches(slice)
    }

    /// The address of memory the kernel writes, and may read.
    pub(crate) fn write<T: Pod>(mut self, slice: &'a mut [T]) -> Self {
        let start = slice.as_mut_ptr().expose_provenance();
        self.words.push(start as u64);
        self.touched.push(Touched { range: start..start + size_of_val(slice), write: true });
        self
    }

    /// The address of memory of which the kernel touches only what [`Args::touches`] says.
    pub(crate) fn base<T: Pod>(mut self, slice: &'a [T]) -> Self {
        self.words.push(slice.as_ptr().expose_provenance() as u64);
        self
    }

    /// Memory the kernel reads by way of another argument.
    pub(crate) fn touches<T: Pod>(mut self, slice: &'a [T]) -> Self {
        let start = slice.as_ptr().expose_provenance();
        self.touched.push(Touched { range: start..start + size_of_val(slice), write: false });
        self
    }

    /// The arguments as the kernel gets them.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Everything the kernel touches.
    pub(crate) fn touched(&self) -> &[Touched] {
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
        let (from, to) = (input.as_ptr().addr(), output.as_ptr().addr());
        let args = Args::new().read(&input).number(7).write(&mut output);
        assert_eq!(args.words(), [from as u64, 7, to as u64]);
        let ranges = [Touched { range: from..from + 12, write: false }, Touched { range: to..to + 16, write: true }];
        assert_eq!(args.touched(), ranges);
    }
}
