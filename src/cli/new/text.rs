//! Lines of YAML with comments behind them.
//! Out of scope: their content.

use std::fmt::Write;

/// YAML in the making.
#[derive(Default)]
pub struct Text(pub String);

impl Text {
    /// A line, two spaces a level.
    pub fn line(&mut self, level: usize, text: &str) {
        let indent = level * 2;
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:indent$}{text}", "");
    }

    /// A line with a comment behind it, the comments under each other.
    pub fn note(&mut self, level: usize, text: &str, comment: &str) {
        let width = 42usize.saturating_sub(level * 2);
        self.line(level, &format!("{text:<width$} # {comment}"));
    }

    /// A section at a level, with its lines; one of comments alone is a comment itself, as an empty section means nothing.
    pub fn section(&mut self, level: usize, key: &str, lines: &Self) {
        let has_values = lines
            .0
            .lines()
            .any(|line| !line.trim_start().starts_with('#'));
        match has_values {
            true => self.line(level, &format!("{key}:")),
            false => self.line(level, &format!("# {key}:")),
        }
        self.0.push_str(&lines.0);
    }
}
