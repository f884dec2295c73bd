//! Writes to standard output in the requested format.
//! Out of scope: the content of the output.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::failure::Failure;
use super::sanitize::{self, Sanitizer};
use super::yaml;

/// Output formats of commands that do not print objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Text for users
    #[default]
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Writes text and flushes it, so that the reader of a stream receives each piece immediately. A terminal receives only what cannot
/// control it.
pub fn out(text: &str) -> Result<(), Failure> {
    match io::stdout().is_terminal() {
        true => bytes(Sanitizer::default().push(text.as_bytes()).as_bytes()),
        false => bytes(text.as_bytes()),
    }
}

/// Writes bytes as they are and flushes them.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// Writes a value as JSON over several lines.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    out(&json_text(value)?)
}

/// A value as JSON over several lines.
pub fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::one(e.to_string()))?;
    Ok(format!("{}\n", sanitize::json(&text)))
}

/// Writes a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::one(e.to_string()))?;
    out(&format!("{}\n", sanitize::json(&text)))
}

/// Writes a value in `format`; `table` formats it for [`Format::Table`].
pub fn answer<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => out(&table(value)),
        Format::Json => json(value),
        Format::Yaml => out(&yaml::document(value)?),
    }
}
