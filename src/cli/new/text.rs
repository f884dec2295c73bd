//! Formats lines of YAML with trailing comments.
//! Out of scope: their content.

use std::fmt::Write;

/// A YAML text under construction.
#[derive(Default)]
pub struct YamlText(pub String);

impl YamlText {
    /// Adds a line, indented by two spaces per level.
    pub fn line(&mut self, level: usize, text: &str) {
        let indent = level * 2;
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:indent$}{text}", "");
    }

    /// Adds a line with a trailing comment; the comments are aligned.
    pub fn note(&mut self, level: usize, text: &str, comment: &str) {
        let width = 42usize.saturating_sub(level * 2);
        self.line(level, &format!("{text:<width$} # {comment}"));
    }

    /// Adds a section with its lines. If these are only comments, the key is commented out as well, since the section would be null.
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
