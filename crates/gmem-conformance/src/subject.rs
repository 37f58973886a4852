//! What the author of a driver supplies: how to make a device, and how it touches memory.

use gmem::hal::{Device, FaultError, LaunchError, PhysRange, PmapId};
use gmem::{Context, Error, RangeError, VirtAddr};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The device that a check wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Bytes of memory of its own. A device without memory of its own takes no notice.
    pub memory: u64,
    /// Whether it has [`gmem::hal::Capabilities::REPLAYABLE`].
    pub replay: bool,
    /// Whether it has [`gmem::hal::Capabilities::PEER`].
    pub peer: bool,
}

/// The subject has no device of this shape, and why. The checks that need one are not applicable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cannot(pub &'static str);

/// A device that stores in a loop, as a check and a subject see it.
#[derive(Debug)]
pub struct Storing {
    over: AtomicBool,
    stored: AtomicU64,
    ahead: AtomicU64,
    in_pieces: AtomicBool,
}

impl Default for Storing {
    fn default() -> Self {
        Self { over: AtomicBool::new(false), stored: AtomicU64::new(0), ahead: AtomicU64::new(u64::MAX), in_pieces: AtomicBool::new(false) }
    }
}

impl Storing {
    /// Has the device come to an end.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether the device is to come to an end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The device has stored this number.
    pub fn tell(&self, number: u64) {
        self.stored.fetch_max(number, Ordering::AcqRel);
    }

    /// The last number of which it was told that the device had stored it: there may be later ones.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Acquire)
    }

    /// When the device comes to its end, by itself or not, it has stored at most `numbers` more than it told. Without this, a check takes any later number for one
    /// that the device may have stored.
    pub fn tell_ahead(&self, numbers: u64) {
        self.ahead.store(numbers, Ordering::Release);
    }

    /// The last number that a device which has come to its end can have stored.
    pub fn most(&self) -> u64 {
        self.stored().saturating_add(self.ahead.load(Ordering::Acquire))
    }

    /// Whether the device does it in many launches, between which it is idle.
    pub(crate) fn is_in_pieces(&self) -> bool {
        self.in_pieces.load(Ordering::Acquire)
    }
}

/// A driver under test.
///
/// `read`, `write` and `add` are accesses **by the device**, through its own MMU: by its cores, its copy queue, whatever it touches unified memory with. They return when the
/// access is done, and are called from several threads at once. A device that can replay faults reports one by [`gmem::hal::Upcalls::device_fault`] and tries again; one that
/// cannot first has gmem hold the bytes, as [`Context::run`] does for what [`gmem::Args`] names. The error is the fault that ended the access; what was touched
/// before it stays touched.
pub trait Subject: Send + Sync + 'static {
    /// The driver.
    type Driver: Device + 'static;

    /// What reports call it.
    fn name(&self) -> String;

    /// A fresh device, not yet started.
    ///
    /// # Errors
    /// [`Cannot`] if there is none of this shape.
    fn device(&self, shape: &Shape) -> Result<Arc<Self::Driver>, Cannot>;

    /// The memory that a program registers by [`gmem::Device::register_memory`] when it has added the device. Only asked of a driver whose
    /// [`Device::physical_memory`] is empty; none, as provided, if its device has none of its own.
    fn memory(&self, driver: &Self::Driver) -> Vec<PhysRange> {
        let _ = driver;
        Vec::new()
    }

    /// The device loads the bytes at `va`.
    ///
    /// # Errors
    /// The fault that ended it.
    fn read(&self, driver: &Self::Driver, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError>;

    /// The device stores the bytes at `va`.
    ///
    /// # Errors
    /// The fault that ended it.
    fn write(&self, driver: &Self::Driver, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError>;

    /// The device adds `n` to the 64-bit word at `va`, which is aligned, in one atomic step.
    ///
    /// # Errors
    /// The fault that ended it.
    fn add(&self, driver: &Self::Driver, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError>;

    /// The device stores 1, 2, 3 and so on to the aligned 64-bit word at `va`, which holds zero, until `storing` is over, and tells it now and then how far it is, and at the
    /// end how far it came. A subject whose device runs kernels has one kernel do it, so that something is under way whatever happens meanwhile; as provided it is one
    /// addition after another, and checks that want a launch which lasts are not applicable.
    ///
    /// # Errors
    /// The fault that ended it.
    fn store_on(&self, driver: &Self::Driver, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError> {
        storing.in_pieces.store(true, Ordering::Release);
        storing.tell_ahead(1);
        for number in 1.. {
            if storing.is_over() {
                break;
            }
            self.add(driver, context, va, 1)?;
            storing.tell(number);
        }
        Ok(())
    }

    /// Has the device die in this context, as hardware or a process does: the driver learns of it by itself, and tells the core by
    /// [`gmem::hal::Upcalls::device_lost`]. `false`, as provided, if it cannot be made to; then the kit has the driver stop it by force, and says so in its place.
    fn kill(&self, driver: &Self::Driver, context: &Context) -> bool {
        let _ = (driver, context);
        false
    }

    /// What the core asked of the driver that breaks the contracts, in words, if the driver keeps count: a check during which anything was has failed.
    fn complaints(&self, driver: &Self::Driver) -> Vec<String> {
        let _ = driver;
        Vec::new()
    }

    /// The device loads the bytes at `va` through the page table `pmap`, which may be destroyed, as a program that was not told so would. `None`, as provided, if
    /// the device cannot be made to.
    ///
    /// # Errors
    /// The fault that ended it.
    fn read_by(&self, driver: &Self::Driver, pmap: PmapId, va: VirtAddr, bytes: &mut [u8]) -> Option<Result<(), FaultError>> {
        let _ = (driver, pmap, va, bytes);
        None
    }
}

/// The fault that ended a launch, for subjects whose device runs kernels by [`Context::run`].
pub fn fault_of(error: Error) -> FaultError {
    match error {
        // A launch without replay that names an address finds out by itself whether anything is there.
        Error::Launch(LaunchError::Fault { error: FaultError::NotNamed, .. }) => FaultError::NotMapped,
        Error::Launch(LaunchError::Fault { error, .. }) | Error::Range(RangeError::Fault(_, error)) => error,
        Error::Range(RangeError::DoesNotFit { .. }) => FaultError::NoDeviceMemory,
        Error::Launch(LaunchError::Device(error)) => FaultError::Device(error),
        // An address outside the context's address space is nobody's fault to resolve.
        Error::Range(RangeError::NotMapped(_)) | Error::Launch(LaunchError::Crashed(_)) => FaultError::NotMapped,
        Error::Fenced => FaultError::Fenced,
        other => panic!("the launch failed in a way that is no fault: {other}"),
    }
}

/// A device that was made, with its subject.
pub(crate) trait Specimen: Send + Sync {
    fn device(&self) -> Arc<dyn Device>;
    fn memory(&self) -> Vec<PhysRange>;
    fn read(&self, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError>;
    fn write(&self, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError>;
    fn add(&self, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError>;
    fn store_on(&self, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError>;
    fn kill(&self, context: &Context) -> bool;
    fn complaints(&self) -> Vec<String>;
    fn read_by(&self, pmap: PmapId, va: VirtAddr, bytes: &mut [u8]) -> Option<Result<(), FaultError>>;
}

impl fmt::Debug for dyn Specimen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Specimen").finish_non_exhaustive()
    }
}

/// A subject whose driver's type is forgotten, so that checks are plain functions.
pub(crate) trait Maker: Send + Sync {
    fn name(&self) -> String;
    fn make(&self, shape: &Shape) -> Result<Arc<dyn Specimen>, Cannot>;
}

pub(crate) struct MakerOf<S>(pub(crate) Arc<S>);

struct Made<S: Subject> {
    subject: Arc<S>,
    driver: Arc<S::Driver>,
}

impl<S: Subject> Maker for MakerOf<S> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn make(&self, shape: &Shape) -> Result<Arc<dyn Specimen>, Cannot> {
        Ok(Arc::new(Made { subject: self.0.clone(), driver: self.0.device(shape)? }))
    }
}

impl<S: Subject> Specimen for Made<S> {
    fn device(&self) -> Arc<dyn Device> {
        self.driver.clone()
    }

    fn memory(&self) -> Vec<PhysRange> {
        self.subject.memory(&self.driver)
    }

    fn read(&self, context: &Context, va: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.subject.read(&self.driver, context, va, bytes)
    }

    fn write(&self, context: &Context, va: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        self.subject.write(&self.driver, context, va, bytes)
    }

    fn add(&self, context: &Context, va: VirtAddr, n: u64) -> Result<(), FaultError> {
        self.subject.add(&self.driver, context, va, n)
    }

    fn store_on(&self, context: &Context, va: VirtAddr, storing: &Arc<Storing>) -> Result<(), FaultError> {
        self.subject.store_on(&self.driver, context, va, storing)
    }

    fn complaints(&self) -> Vec<String> {
        self.subject.complaints(&self.driver)
    }

    fn kill(&self, context: &Context) -> bool {
        self.subject.kill(&self.driver, context)
    }

    fn read_by(&self, pmap: PmapId, va: VirtAddr, bytes: &mut [u8]) -> Option<Result<(), FaultError>> {
        self.subject.read_by(&self.driver, pmap, va, bytes)
    }
}
