//! Colours of the output: which status has which colour, and whether to print colours.
//! Out of scope: tables.

use std::io::IsTerminal;

use super::sanitize;
use crate::api::condition::Status;
use crate::api::event::EventType;
use crate::api::view::CheckStatus;

/// The severity of a cell, shown as its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// No severity, no colour.
    Neutral,
    /// As desired: green.
    Good,
    /// In progress, or a warning: yellow.
    Warning,
    /// An error: red.
    Error,
}

impl Severity {
    fn sgr(self) -> Option<u8> {
        match self {
            Self::Neutral => None,
            Self::Good => Some(32),
            Self::Warning => Some(33),
            Self::Error => Some(31),
        }
    }
}

impl From<Status> for Severity {
    fn from(status: Status) -> Self {
        match status {
            Status::True => Self::Good,
            Status::False => Self::Error,
            Status::Unknown => Self::Warning,
        }
    }
}

impl From<EventType> for Severity {
    fn from(kind: EventType) -> Self {
        match kind {
            EventType::Normal => Self::Neutral,
            EventType::Warning => Self::Warning,
        }
    }
}

impl From<CheckStatus> for Severity {
    fn from(verdict: CheckStatus) -> Self {
        match verdict {
            CheckStatus::Skipped => Self::Neutral,
            CheckStatus::Ok => Self::Good,
            CheckStatus::Warn => Self::Warning,
            CheckStatus::Fail => Self::Error,
        }
    }
}

/// Whether the output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    /// Standard output is a terminal that shows colours, and the user has not disabled them.
    Enabled,
    /// Plain text.
    Disabled,
}

impl Colors {
    /// The setting for standard output: coloured on a terminal that is not `dumb`, with `NO_COLOR` unset or empty (no-color.org).
    pub fn for_stdout() -> Self {
        let is_disabled = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match std::io::stdout().is_terminal() && !is_disabled && !is_dumb {
            true => Self::Enabled,
            false => Self::Disabled,
        }
    }

    /// `text` in bold.
    pub fn bold(self, text: &str) -> String {
        match self {
            Self::Enabled => format!("\u{1b}[1m{text}\u{1b}[0m"),
            Self::Disabled => text.to_owned(),
        }
    }

    /// `text` in the colour of `severity` (ECMA-48 SGR).
    pub fn paint(self, severity: Severity, text: &str) -> String {
        match (self, severity.sgr()) {
            (Self::Enabled, Some(code)) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// The width of the terminal at standard output; `None` if it is not a terminal, so that nothing is cut off.
pub fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let columns = size.map(|size| usize::from(size.ws_col));
    // A serial line does not know its width.
    columns.filter(|columns| *columns > 0)
}

/// Makes `text` safe for a terminal, on one line; see [`sanitize::line`].
pub fn one_line(text: &str) -> String {
    sanitize::line(text)
}
