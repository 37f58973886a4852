//! How a command ends when it does not succeed.

use crate::output;
use gmem::Error;
use gmem::hal::HostError;
use gmem_conformance::no_place;
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

/// Why a command ended early. Every message says what was asked, what was found, and what would work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be: status 2, as for an unknown flag.
    Usage(String),
    /// The command line was fine and the work failed: status 1.
    Failed(String),
    /// The work was done and its result printed, which says itself that not all is well: status 1.
    Printed(String),
    /// Whoever reads our output went away, so that the result was not written: status 1. Not worth a message, and nobody is left to read one.
    OutputClosed,
}

/// A failure as JSON. The names of the fields are the interface of `--json`.
#[derive(Serialize)]
struct Object<'a> {
    error: &'a str,
    exit_status: u8,
}

impl Failure {
    /// Says what happened on standard error and, with `json`, on standard output. Returns the exit status.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        match self {
            Self::Usage(message) | Self::Failed(message) => {
                output::note(message);
                self.print(message, json);
            }
            // One object is what was promised, and it is there.
            Self::Printed(message) => output::note(message),
            Self::OutputClosed => {}
        }
        ExitCode::from(self.status())
    }

    /// Says what happened on standard output, with `json`: for those who read nothing else.
    pub(crate) fn print(&self, message: &str, json: bool) {
        if json {
            // Standard error has said it already.
            let _ = output::json(&Object { error: message, exit_status: self.status() });
        }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) | Self::Printed(_) | Self::OutputClosed => 1,
        }
    }

    /// The same failure, said to be about `what`.
    pub(crate) fn in_context(self, what: impl fmt::Display) -> Self {
        match self {
            Self::Usage(message) => Self::Usage(format!("{what}: {message}")),
            Self::Failed(message) => Self::Failed(format!("{what}: {message}")),
            Self::Printed(message) => Self::Printed(format!("{what}: {message}")),
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
            Self::Usage(message) | Self::Failed(message) | Self::Printed(message) => f.write_str(message),
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
            | Error::PrivateInThread
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
            // What would help a program that asked for the address space does not help whoever started this one.
            Error::NoPlace { len, .. } => Self::Failed(no_place(len)),
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
