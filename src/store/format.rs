//! The layout of the state directory, in a plain file that is read before the database is opened.
//! Out of scope: the layouts.
//!
//! # Why
//! Opening a database with sled rewrites files. A daemon that does not know the layout must not change a single byte.

use std::io::ErrorKind;
use std::path::Path;

use super::checked_line::{self, Line};
use super::sync;

/// The layout that this program writes.
pub(super) const FORMAT: u32 = 2;
/// The previous layout, without an integrity record and without this file. It is converted once.
pub(super) const FORMAT_WITHOUT_RECORD: u32 = 1;

const PREFIX: &str = "slicectl state format ";

/// The content of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FormatFile {
    /// There is no file.
    Missing,
    /// The format that this program writes.
    Current,
    /// The same, without a checksum: an earlier version wrote it.
    CurrentUnchecked,
    /// Another format.
    Other(u32),
    /// Not a format line.
    Invalid,
}

/// Reads the file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read(path: &Path) -> std::io::Result<FormatFile> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FormatFile::Missing),
        Err(error) => return Err(error),
    };
    let number = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| match checked_line::read(text) {
            Line::Checked(line) => Some((line, true)),
            Line::Unchecked(line) => Some((line, false)),
            Line::Damaged => None,
        })
        .and_then(|(line, checked)| {
            let number = line.strip_prefix(PREFIX)?;
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            Some((digits.then(|| number.parse().ok())??, checked))
        });
    Ok(match number {
        Some((FORMAT, true)) => FormatFile::Current,
        Some((FORMAT, false)) => FormatFile::CurrentUnchecked,
        Some((other, _)) => FormatFile::Other(other),
        None => FormatFile::Invalid,
    })
}

/// Writes the file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path) -> std::io::Result<()> {
    let line = checked_line::write(&format!("{PREFIX}{FORMAT}"));
    sync::replace(path, line.as_bytes()).map(drop)
}

/// The message for a layout that is not supported, with the remedy.
pub(super) fn unsupported_message(found: impl std::fmt::Display) -> String {
    format!(
        "its format is {found}, but this sliced supports only format {FORMAT} (and converts format {FORMAT_WITHOUT_RECORD}); nothing was changed: start the version of sliced that wrote it, or give this one another --state-dir"
    )
}

#[cfg(test)]
mod tests {
    use super::{FormatFile, read, write};

    #[test]
    fn the_file_contains_a_format_or_is_recognised_as_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("format");
        assert_eq!(read(&path).expect("readable"), FormatFile::Missing);
        write(&path).expect("written");
        assert_eq!(read(&path).expect("readable"), FormatFile::Current);
        for (text, expected) in [
            ("slicectl state format 2\n", FormatFile::CurrentUnchecked),
            ("slicectl state format 3\n", FormatFile::Other(3)),
            ("slicectl state format 99\n", FormatFile::Other(99)),
            ("slicectl state format 2", FormatFile::Invalid),
            ("slicectl state format +2\n", FormatFile::Invalid),
            ("slicectl state format \n", FormatFile::Invalid),
            ("slicectl state format 99999999999\n", FormatFile::Invalid),
            ("slicectl\u{fffd}state format 2\n", FormatFile::Invalid),
            ("", FormatFile::Invalid),
        ] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(read(&path).expect("readable"), expected, "{text:?}");
        }
    }
}
