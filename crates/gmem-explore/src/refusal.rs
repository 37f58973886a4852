//! The errors of the core, by what they say about the operation.

use gmem_core::{AttachError, DetachError, DeviceCallError, RangeError};
use gmem_hal::FaultError;
use gmem_sim::random::{Outcome, Refusal};

/// An error of the core as a [`Refusal`].
pub trait Refuse {
    /// What it says about the operation.
    fn refuse(&self) -> Refusal;
}

/// How an operation ended that loads nothing.
pub fn outcome<T, E: Refuse>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::Refused(error.refuse()),
    }
}

impl Refuse for FaultError {
    fn refuse(&self) -> Refusal {
        match self {
            Self::NotMapped | Self::NotNamed | Self::Protection | Self::NotAttached => Refusal::Invalid,
            Self::NoDeviceMemory | Self::PageTooLarge | Self::TooManyHolds => Refusal::NoRoom,
            Self::Fenced | Self::Device(_) | Self::Host(_) => Refusal::Failed,
        }
    }
}

impl Refuse for RangeError {
    fn refuse(&self) -> Refusal {
        match self {
            Self::Fault(_, error) => error.refuse(),
            Self::AddressConflict | Self::DoesNotFit { .. } => Refusal::NoRoom,
            Self::OutOfMemory(_) | Self::Peer(_) | Self::Host(_) => Refusal::Failed,
            _ => Refusal::Invalid,
        }
    }
}

impl Refuse for AttachError {
    fn refuse(&self) -> Refusal {
        match self {
            Self::AddressConflict(_) | Self::TooManyContexts => Refusal::NoRoom,
            Self::OutOfMemory(_) | Self::Device(_) => Refusal::Failed,
            _ => Refusal::Invalid,
        }
    }
}

impl Refuse for DetachError {
    fn refuse(&self) -> Refusal {
        match self {
            Self::DataStranded(_, error) => error.refuse(),
            _ => Refusal::Invalid,
        }
    }
}

impl Refuse for DeviceCallError {
    fn refuse(&self) -> Refusal {
        match self {
            Self::OutOfMemory(_) | Self::Device(_) => Refusal::Failed,
            _ => Refusal::Invalid,
        }
    }
}
