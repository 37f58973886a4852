//! What a check is given: a device to make, a mode and a page size.

use crate::check::Stop;
use crate::observe::{Breach, Observed};
use crate::report::UNEXPECTED;
use crate::runner::doomed::{self, Brink, Ending};
use crate::subject::Specimen;
use crate::target::Target;
use crate::world::{Unit, World};
use gmem::hal::DeviceError;
use gmem::{AddressSpace, AttachError, Context, Device, Gmem, Mode, PageSize};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

/// One check on one target, in one mode, with one page size.
#[derive(Debug)]
pub struct Case<'a> {
    pub(crate) target: &'a Target,
    pub(crate) mode: Mode,
    pub(crate) size: PageSize,
    /// The number of the job, by which a process of its own finds it again.
    pub(crate) job: usize,
    /// The step that this process was started for and will not survive.
    pub(crate) doom: Option<String>,
    /// How long the check may take.
    pub(crate) limit: Duration,
    /// The observers of the devices it made.
    pub(crate) observers: RefCell<Vec<Arc<Observed>>>,
    /// The drivers that it made.
    pub(crate) specimens: RefCell<Vec<Arc<dyn Specimen>>>,
}

impl Case<'_> {
    /// The mode in which contexts are to be attached.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The page size that regions are to have.
    pub fn size(&self) -> PageSize {
        self.size
    }

    /// What is tested.
    pub fn target(&self) -> &Target {
        self.target
    }

    /// gmem with an address space and a device attached to it whose memory, if it has its own, holds so many pages.
    ///
    /// # Errors
    /// [`Stop`] if any of it cannot be made.
    pub fn world(&self, pages: u64) -> Result<World, Stop> {
        let gmem = Gmem::new()?;
        let space = gmem.address_space().create()?;
        let unit = self.unit(&gmem, &space, pages)?;
        Ok(World { unit, space, gmem, size: self.size })
    }

    /// A driver whose device, if it has memory of its own, holds so many pages; not yet added.
    ///
    /// # Errors
    /// [`Stop::NotApplicable`] if the subject cannot make it.
    pub fn make(&self, pages: u64) -> Result<Arc<dyn gmem::hal::Device>, Stop> {
        Ok(self.specimen(pages)?.device())
    }

    fn specimen(&self, pages: u64) -> Result<Arc<dyn Specimen>, Stop> {
        let specimen = self.target.make(pages * self.size.bytes()).map_err(|cannot| Stop::NotApplicable(cannot.0.to_owned()))?;
        self.specimens.borrow_mut().push(specimen.clone());
        Ok(specimen)
    }

    /// Another device, attached to `space`.
    ///
    /// # Errors
    /// [`Stop`] if it cannot be made or attached.
    pub fn unit(&self, gmem: &Gmem, space: &AddressSpace, pages: u64) -> Result<Unit, Stop> {
        self.unit_watched(gmem, space, pages, |_| {})
    }

    /// The same, whose observer is prepared before gmem calls the driver for the first time.
    pub(crate) fn unit_watched(
        &self,
        gmem: &Gmem,
        space: &AddressSpace,
        pages: u64,
        prepare: impl FnOnce(&Arc<Observed>),
    ) -> Result<Unit, Stop> {
        let (device, observed, specimen) = self.add_watched(gmem, pages, prepare)?;
        let context = space.attach(&device, self.mode).map_err(|error| match error {
            gmem::Error::Attach(AttachError::NoDeviceMemory) => {
                Stop::Failed(format!("{UNEXPECTED}{error} (in the kit: Subject::memory names it)"))
            }
            error => error.into(),
        })?;
        Ok(Unit { context, device, observed, specimen })
    }

    /// Another device whose memory, if it has its own, holds so many pages; attached to nothing.
    ///
    /// # Errors
    /// [`Stop`] if it cannot be made or added.
    pub fn add(&self, gmem: &Gmem, pages: u64) -> Result<Device, Stop> {
        Ok(self.add_watched(gmem, pages, |_| {})?.0)
    }

    fn add_watched(
        &self,
        gmem: &Gmem,
        pages: u64,
        prepare: impl FnOnce(&Arc<Observed>),
    ) -> Result<(Device, Arc<Observed>, Arc<dyn Specimen>), Stop> {
        let specimen = self.specimen(pages)?;
        let observed = self.observe(specimen.device());
        prepare(&observed);
        let device = gmem.add_device(observed.clone())?;
        if specimen.device().physical_memory().is_empty() {
            // As a program does whose driver leaves it to it.
            for range in specimen.memory() {
                device.register_memory(range)?;
            }
        }
        Ok((device, observed, specimen))
    }

    /// An observer of `driver`, to be added in its place: a promise that either side breaks fails the check.
    pub fn observe(&self, driver: Arc<dyn gmem::hal::Device>) -> Arc<Observed> {
        let observed = Observed::new(driver);
        self.observers.borrow_mut().push(observed.clone());
        observed
    }

    /// What the observers saw.
    pub(crate) fn breaches(&self) -> Vec<Breach> {
        self.observers.borrow().iter().flat_map(|observed| observed.breaches()).collect()
    }

    /// The callbacks that the drivers answered with an error.
    pub(crate) fn failed(&self) -> Vec<(&'static str, DeviceError)> {
        self.observers.borrow().iter().flat_map(|observed| observed.failed()).collect()
    }

    /// What the drivers say that the core asked against the contracts.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.specimens.borrow().iter().flat_map(|specimen| specimen.complaints()).collect()
    }

    /// The same device, attached to another address space as well.
    ///
    /// # Errors
    /// [`gmem::Error::Attach`].
    pub fn attach(&self, space: &AddressSpace, device: &Device) -> Result<Context, gmem::Error> {
        space.attach(device, self.mode)
    }

    /// How long the check may take, preparations and all. What is repeated until it has met something gives up well before.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs a step that is to end its process: the check is begun anew in a process of its own, which comes to the step of this name, takes it, and ends with status 0 if it
    /// survives. Steps of other names are passed over there. What is to end it follows [`Brink::reached`]: an end before that is another's.
    ///
    /// # Errors
    /// [`Stop`] if the process cannot be started, or does not end in time.
    pub fn doomed(&self, step: &str, work: impl FnOnce(&Brink)) -> Result<Ending, Stop> {
        match &self.doom {
            Some(doom) if doom == step => {
                work(&Brink::new());
                std::process::exit(0)
            }
            Some(_) => Ok(Ending::passed_over()),
            None => doomed::run(self.job, step, self.limit),
        }
    }
}
