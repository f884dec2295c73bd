//! Locations in a manifest and problems at them.
//! Out of scope: finding problems.

use std::fmt;

/// A position in a text; line and column start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Position {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A position in a manifest, displayed as `groups.yaml:14:9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// [`super::Source::name`].
    pub file: String,
    /// Line; the first is 1.
    pub line: usize,
    /// Column in characters; the first is 1.
    pub column: usize,
}

impl Location {
    /// `place` in `file`.
    pub fn new(file: &str, position: Position) -> Self {
        Self {
            file: file.to_owned(),
            line: position.line,
            column: position.column,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A problem of a manifest. Its `Display` is one line:
/// `groups.yaml:14:9: config.host_groups[0].network.allow[1]: found "1.2.3", expected IP or CIDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The location.
    pub at: Location,
    /// The path of the field, such as `config.host_groups[0].network.allow[1]`; empty for a problem of the whole file.
    pub field: String,
    /// The message, without a final full stop.
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
    /// A problem of a whole file.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            at: Location::new(file, Position::START),
            field: String::new(),
            message: message.into(),
        }
    }

    /// The line of the problem in `text`, with a caret under the column, for a terminal: two lines, the first with its number.
    /// If the location is past the end of `text`, it is the last line. `None` if `text` has no lines.
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
        // Tabs are kept, so that the caret is below its character at any tab width.
        let indent: String = line
            .chars()
            .take(column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let gutter = " ".repeat(number.len());
        Some(format!(" {number} | {line}\n {gutter} | {indent}^"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, column: usize) -> Problem {
        Problem {
            at: Location::new("a.yaml", Position { line, column }),
            field: "config".into(),
            message: "is odd".into(),
        }
    }

    #[test]
    fn the_caret_is_below_the_column_for_any_preceding_characters() {
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
    fn a_problem_is_one_line_and_a_problem_of_a_file_has_no_field() {
        assert_eq!(problem(3, 4).to_string(), "a.yaml:3:4: config: is odd");
        let problem = Problem::of_file("a.yaml", "cannot be read");
        assert_eq!(problem.to_string(), "a.yaml:1:1: cannot be read");
    }
}
