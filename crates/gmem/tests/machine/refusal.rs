//! The errors of the facade, by what they say about the operation.

use gmem::Error;
use gmem::hal::{FaultError, LaunchError};
use gmem_core::{AttachError, DetachError, RangeError};
use gmem_sim::random::{Outcome, Refusal};

/// How an operation ended that loads nothing.
pub(crate) fn outcome<T>(result: Result<T, Error>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => refused(&error),
    }
}

/// How an operation ended that failed.
pub(crate) fn refused(error: &Error) -> Outcome {
    Outcome::Refused(match error {
        Error::Attach(AttachError::OutOfMemory(_) | AttachError::Device(_)) => Refusal::Failed,
        Error::Attach(AttachError::AddressConflict(_)) => Refusal::NoRoom,
        Error::Detach(DetachError::DataStranded(_, error)) | Error::Range(RangeError::Fault(_, error)) => of_fault(error),
        Error::Launch(LaunchError::Fault { error, .. }) => of_fault(error),
        Error::Range(RangeError::AddressConflict | RangeError::DoesNotFit { .. }) => Refusal::NoRoom,
        Error::Range(RangeError::OutOfMemory(_) | RangeError::Peer(_) | RangeError::Host(_)) => Refusal::Failed,
        Error::Attach(_) | Error::Detach(_) | Error::Range(_) => Refusal::Invalid,
        _ => Refusal::Failed,
    })
}

fn of_fault(error: &FaultError) -> Refusal {
    match error {
        FaultError::NotMapped | FaultError::NotNamed | FaultError::Protection | FaultError::NotAttached => Refusal::Invalid,
        FaultError::NoDeviceMemory | FaultError::PageTooLarge | FaultError::TooManyHolds => Refusal::NoRoom,
        FaultError::Fenced | FaultError::Device(_) | FaultError::Host(_) => Refusal::Failed,
    }
}
