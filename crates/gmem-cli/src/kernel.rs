//! Kernels: the programs a device runs.

/// Which core of the device this call is.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// From zero.
    pub worker: usize,
    /// How many there are.
    pub workers: usize,
}

/// A kernel, as the registry knows it.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// Its code; called once per core.
    pub run: unsafe fn(Grid, &[u64]),
}

/// Defines a kernel.
macro_rules! kernel {
    ($ident:ident = $name:literal, |$grid:ident, $args:ident| $body:block) => {
        pub(crate) static $ident: $crate::kernel::Kernel = $crate::kernel::Kernel {
            name: $name,
            run: {
                unsafe fn run($grid: $crate::kernel::Grid, $args: &[u64]) {
                    $body
                }
                run
            },
        };
    };
}
pub(crate) use kernel;
