//! Lines of YAML with comments behind them.
//! Not here: what they say.

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
}
