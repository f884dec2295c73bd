//! Green, yellow, red: what a word of status means, and whether the reader can see it.
//! Out of scope: tables.

use std::io::IsTerminal;

use comfy_table::Color;

use crate::api::condition::Status;
use crate::api::event::EventType;
use crate::api::view::CheckVerdict;

/// What a cell means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Nothing of note.
    Plain,
    /// As it should be.
    Good,
    /// On its way, or worth a look.
    Fair,
    /// Not as it should be.
    Bad,
}

impl Tone {
    /// Its colour.
    pub fn color(self) -> Option<Color> {
        match self {
            Self::Plain => None,
            Self::Good => Some(Color::Green),
            Self::Fair => Some(Color::Yellow),
            Self::Bad => Some(Color::Red),
        }
    }

    fn sgr(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Good => Some(32),
            Self::Fair => Some(33),
            Self::Bad => Some(31),
        }
    }
}

impl From<Status> for Tone {
    fn from(status: Status) -> Self {
        match status {
            Status::True => Self::Good,
            Status::False => Self::Bad,
            Status::Unknown => Self::Fair,
        }
    }
}

impl From<EventType> for Tone {
    fn from(kind: EventType) -> Self {
        match kind {
            EventType::Normal => Self::Plain,
            EventType::Warning => Self::Fair,
        }
    }
}

impl From<CheckVerdict> for Tone {
    fn from(verdict: CheckVerdict) -> Self {
        match verdict {
            CheckVerdict::Ok => Self::Good,
            CheckVerdict::Warn => Self::Fair,
            CheckVerdict::Fail => Self::Bad,
        }
    }
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// Standard output is a terminal and nobody objects.
    Seen,
    /// Bare text.
    Unseen,
}

impl Colours {
    /// For standard output: a terminal that is not `dumb`, and `NO_COLOR` unset or empty (no-color.org).
    pub fn of_stdout() -> Self {
        let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match std::io::stdout().is_terminal() && !objected && !dumb {
            true => Self::Seen,
            false => Self::Unseen,
        }
    }

    /// `text` in the colour of `tone`, by ECMA-48 SGR.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        match (self, tone.sgr()) {
            (Self::Seen, Some(code)) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// `text` on one line and without control characters: what a manifest or a kernel said must not steer a terminal.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
