//! What is tested: a subject in one of its shapes.

use crate::subject::{Cannot, Maker, MakerOf, Shape, Specimen, Subject};
use gmem::hal::{DeviceInfo, Modes};
use gmem::{Mode, PageSize};
use std::fmt;
use std::sync::Arc;

/// A subject in one shape, such as "discrete" or "discrete, no replay".
#[derive(Clone)]
pub struct Target {
    label: String,
    replay: bool,
    peer: bool,
    maker: Arc<dyn Maker>,
    info: DeviceInfo,
}

impl Target {
    /// The subject with or without replay of faults, with or without an operating system of its own.
    ///
    /// # Errors
    /// [`Cannot`] if the subject has no such device.
    pub fn new<S: Subject>(label: impl Into<String>, subject: Arc<S>, replay: bool, peer: bool) -> Result<Self, Cannot> {
        let maker = MakerOf(subject);
        // Only looked at, in every process of the kit: so little that it costs nothing, so much that every subject has it.
        let info = maker.make(&Shape { memory: 4 << 20, replay, peer })?.device().info().clone();
        Ok(Self { label: label.into(), replay, peer, maker: Arc::new(maker), info })
    }

    /// Every shape that the subject has.
    pub fn all<S: Subject>(subject: S) -> Vec<Self> {
        let subject = Arc::new(subject);
        let shapes = [("", true, false), (", no replay", false, false), (", peer", true, true)];
        let name = subject.name();
        shapes
            .into_iter()
            .filter_map(|(what, replay, peer)| Self::new(format!("{name}{what}"), subject.clone(), replay, peer).ok())
            .collect()
    }

    /// What reports call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The driver's facts.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The modes its contexts can have.
    pub fn modes(&self) -> impl Iterator<Item = Mode> {
        let modes = self.info.modes;
        MODES.into_iter().filter(move |mode| modes.contains(mode.as_set()))
    }

    /// The page sizes of regions that it can take part in, smallest first.
    pub fn page_sizes(&self) -> impl Iterator<Item = PageSize> {
        let sizes = self.info.page_sizes;
        PageSize::ALL.into_iter().filter(move |size| sizes.can_map(*size))
    }

    pub(crate) fn make(&self, memory: u64) -> Result<Arc<dyn Specimen>, Cannot> {
        self.maker.make(&Shape { memory, replay: self.replay, peer: self.peer })
    }
}

const MODES: [Mode; 3] = [Mode::Share, Mode::CoherentExclusive, Mode::Replicate];

/// The name of a mode in arguments and reports.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Share => "share",
        Mode::CoherentExclusive => "exclusive",
        Mode::Replicate => "replicate",
    }
}

/// The names of a set of modes.
pub(crate) fn mode_names(modes: Modes) -> String {
    let names: Vec<_> = MODES.into_iter().filter(|mode| modes.contains(mode.as_set())).map(mode_name).collect();
    names.join(", ")
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("label", &self.label).field("subject", &self.maker.name()).finish_non_exhaustive()
    }
}
