//! Errors of commands: one line per cause on standard error, and the exit status.
//! Out of scope: detecting errors.

use std::io::{self, Write};
use std::process::ExitCode;

use super::paint::one_line;
use crate::wire::client::ClientError;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Usage error, exit status 2.
    Usage(String),
    /// Failure or timeout, exit status 1. One entry per cause.
    Failed(Vec<String>),
    /// This exit status. One entry per cause.
    WithStatus(u8, Vec<String>),
    /// The command has already printed the error, exit status 1.
    Reported,
    /// The reader of standard output has closed the pipe (`| head`), exit status 0.
    PipeClosed,
}

impl Failure {
    /// A failure with one cause.
    pub fn one(cause: impl Into<String>) -> Self {
        Self::Failed(vec![cause.into()])
    }

    /// Prints the causes and returns the exit status. `command` is the command with its subcommands, such as `slicectl vm add`.
    pub fn report(self, command: &str) -> ExitCode {
        let (causes, exit_code) = match self {
            Self::Usage(cause) => {
                print("error", &cause);
                note(&format!("See '{command} --help'."));
                (Vec::new(), ExitCode::from(2))
            }
            Self::Failed(causes) => (causes, ExitCode::from(1)),
            Self::WithStatus(status, causes) => (causes, ExitCode::from(status)),
            Self::Reported => (Vec::new(), ExitCode::from(1)),
            Self::PipeClosed => (Vec::new(), ExitCode::SUCCESS),
        };
        for cause in causes {
            print("error", &cause);
        }
        exit_code
    }
}

/// Prints an error to standard error, for a command that continues or that prints more about it.
pub fn error(text: &str) {
    print("error", text);
}

/// Prints a warning to standard error.
pub fn warn(text: &str) {
    print("warning", text);
}

/// Prints a note to standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", one_line(text));
}

/// Write errors are ignored: there is no other output for them.
fn print(severity: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{severity}: {}", one_line(text.trim_end()));
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.causes())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::one(format!("cannot write the output: {error}")),
        }
    }
}
