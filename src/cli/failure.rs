//! What went wrong, one cause a line on standard error, and the exit status that says so.
//! Out of scope: deciding that something went wrong.

use std::io::{self, Write};
use std::process::ExitCode;

use super::paint::one_line;
use crate::wire::client::ClientError;

/// Why a verb did not end well.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage, exit status 2.
    Usage(String),
    /// It did not work or took too long, exit status 1. One cause each.
    Failed(Vec<String>),
    /// It has said itself what is wrong, exit status 1.
    Told,
    /// The reader of our output has left (`| head`): it has what it wanted, so exit status 0.
    PipeClosed,
}

impl Failure {
    /// A failure with one cause.
    pub fn one(cause: impl Into<String>) -> Self {
        Self::Failed(vec![cause.into()])
    }

    /// Says it and gives the exit status.
    pub fn report(self) -> ExitCode {
        let (causes, code) = match self {
            Self::Usage(cause) => (
                vec![cause, "try 'slicectl --help'".to_owned()],
                ExitCode::from(2),
            ),
            Self::Failed(causes) => (causes, ExitCode::from(1)),
            Self::Told => (Vec::new(), ExitCode::from(1)),
            Self::PipeClosed => (Vec::new(), ExitCode::SUCCESS),
        };
        for cause in causes {
            say("error", &cause);
        }
        code
    }
}

/// A warning, on standard error.
pub fn warn(text: &str) {
    say("warning", text);
}

/// What is no answer and no fault, on standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Nobody is left to be told when standard error itself is closed.
fn say(weight: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{weight}: {}", one_line(text.trim_end()));
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
            _ => Self::one(format!("cannot write the answer: {error}")),
        }
    }
}
