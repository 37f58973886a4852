//! How a command ends when it does not succeed.

use gmem::Error;
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
        Self::Failed(e.to_string())
    }
}
