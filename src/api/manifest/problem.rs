//! Where in a manifest something is, and what is wrong there.
//! Not here: finding it out.

use std::fmt;

/// A place in a text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Place {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A place in a manifest, written `groups.yaml:14:9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// [`super::Source::name`].
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Location {
    /// `place` in `file`.
    pub fn new(file: &str, place: Place) -> Self {
        Self {
            file: file.to_owned(),
            line: place.line,
            column: place.column,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One thing wrong with a manifest. Its `Display` is one line:
/// `groups.yaml:14:9: config.host_groups[0].network.allow[1]: found "1.2.3", expected IP or CIDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: Location,
    /// `config.host_groups[0].network.allow[1]`; empty when the whole file is meant.
    pub field: String,
    /// What, without a final full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => write!(f, "{}: {}", self.at, self.message),
            false => write!(f, "{}: {}: {}", self.at, self.field, self.message),
        }
    }
}

impl std::error::Error for Problem {}

impl Problem {
    /// Something wrong with a file as a whole.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            at: Location::new(file, Place::START),
            field: String::new(),
            message: message.into(),
        }
    }

    /// The line of `text` that is meant, with a caret under the column, for a terminal:
    /// two lines, the first numbered. `None` when `text` has no such line.
    pub fn excerpt(&self, text: &str) -> Option<String> {
        let line = text.lines().nth(self.at.line.checked_sub(1)?)?;
        let number = self.at.line.to_string();
        // Tabs stay tabs, so that the caret stands under its character at any tab width.
        let lead: String = line
            .chars()
            .take(self.at.column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let gutter = " ".repeat(number.len());
        Some(format!(" {number} | {line}\n {gutter} | {lead}^"))
    }
}
