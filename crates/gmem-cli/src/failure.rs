//! How a command ends when it does not succeed.

use gmem::Error;
use gmem::hal::HostError;
use std::fmt;
use std::process::ExitCode;

/// Why a command ended early. Every message says what was asked, what was found, and what would work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be: status 2, as for an unknown flag.
    Usage(String),
    /// The command line was fine and the work failed: status 1.
    Failed(String),
    /// Whoever reads our output went away. Not worth a message, and nobody is left to read one.
    OutputClosed,
}

impl Failure {
    /// The exit status.
    pub(crate) fn status(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::from(1),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }

    /// The same failure, said to be about `what`.
    pub(crate) fn in_context(self, what: impl fmt::Display) -> Self {
        match self {
            Self::Usage(message) => Self::Usage(format!("{what}: {message}")),
            Self::Failed(message) => Self::Failed(format!("{what}: {message}")),
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    /// A failure of the work while doing `what`.
    pub(crate) fn while_doing(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Failed(message) => f.write_str(message),
            Self::OutputClosed => f.write_str("the output was closed"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        use gmem::{AttachError as Attach, RangeError as Range};
        let what = e.to_string();
        match e {
            // What was asked for is something the device or the host does not do.
            Error::Build(_)
            | Error::Attach(
                Attach::ModeUnsupported(_)
                | Attach::PageSizeUnsupported(..)
                | Attach::PrivateBacking(_)
                | Attach::NoHostWindow
                | Attach::NothingToShare
                | Attach::NoDeviceMemory,
            )
            | Error::Range(Range::PageSizeUnsupported(..) | Range::PrivateBacking | Range::Host(HostError::Unsupported)) => {
                Self::Usage(what)
            }
            Error::Range(Range::Host(HostError::NotPermitted)) => {
                Self::Usage(format!("{what}\n{}", gmem::probe().consequences().join("\n")))
            }
            _ => Self::Failed(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_or_host_cannot_do_is_wrong_usage_and_the_rest_is_failure() {
        let usage = [
            Error::Build(gmem::accel::BuildError::Cores),
            Error::Attach(gmem::AttachError::NothingToShare),
            Error::Range(gmem::RangeError::Host(HostError::NotPermitted)),
            Error::Range(gmem::RangeError::PrivateBacking),
        ];
        assert!(usage.into_iter().all(|e| matches!(Failure::from(e), Failure::Usage(_))));
        let failed = [Error::Disabled, Error::Fenced, Error::Range(gmem::RangeError::Host(HostError::NoMemory)), Error::Length];
        assert!(failed.into_iter().all(|e| matches!(Failure::from(e), Failure::Failed(_))));
    }
}
