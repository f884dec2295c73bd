//! Where in a manifest something is, and what is wrong there.
//! Out of scope: finding it out.

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

    /// The line of `text` that is meant, with a caret under the column, for a terminal: two lines, the first numbered.
    /// Past the end of `text` (something is missing there) the last line is shown. `None` when `text` has no line.
    pub fn excerpt(&self, text: &str) -> Option<String> {
        let line = text.lines().nth(self.at.line.saturating_sub(1));
        let (line, number, column) = match line {
            Some(line) => (line, self.at.line, self.at.column),
            None => {
                let last = text.lines().last()?;
                (last, text.lines().count(), last.chars().count() + 1)
            }
        };
        let number = number.to_string();
        // Tabs stay tabs, so that the caret stands under its character at any tab width.
        let lead: String = line
            .chars()
            .take(column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let gutter = " ".repeat(number.len());
        Some(format!(" {number} | {line}\n {gutter} | {lead}^"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, column: usize) -> Problem {
        Problem {
            at: Location::new("a.yaml", Place { line, column }),
            field: "config".into(),
            message: "is odd".into(),
        }
    }

    #[test]
    fn the_caret_stands_under_the_column_whatever_stands_before_it() {
        let text = "config:\n\té: x\n";
        assert_eq!(
            problem(2, 5).excerpt(text).unwrap(),
            " 2 | \té: x\n   | \t   ^"
        );
        assert_eq!(
            problem(3, 1).excerpt(text).unwrap(),
            " 2 | \té: x\n   | \t    ^"
        );
        assert_eq!(problem(1, 1).excerpt(""), None);
    }

    #[test]
    fn a_problem_is_one_line_and_a_whole_file_has_no_field() {
        assert_eq!(problem(3, 4).to_string(), "a.yaml:3:4: config: is odd");
        let whole = Problem::of_file("a.yaml", "cannot be read");
        assert_eq!(whole.to_string(), "a.yaml:1:1: cannot be read");
    }
}
