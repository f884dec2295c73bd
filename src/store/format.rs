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
pub(super) const UNSEALED: u32 = 1;

const BEFORE: &str = "slicectl state format ";

/// The content of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// There is no file.
    Nothing,
    /// The format that this program writes.
    Ours,
    /// The same, without a checksum: an earlier version wrote it.
    OursUnchecked,
    /// Another format.
    Other(u32),
    /// Not a format line.
    Nonsense,
}

/// Reads the file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read(path: &Path) -> std::io::Result<Said> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Said::Nothing),
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
            let number = line.strip_prefix(BEFORE)?;
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            Some((digits.then(|| number.parse().ok())??, checked))
        });
    Ok(match number {
        Some((FORMAT, true)) => Said::Ours,
        Some((FORMAT, false)) => Said::OursUnchecked,
        Some((other, _)) => Said::Other(other),
        None => Said::Nonsense,
    })
}

/// Writes the file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path) -> std::io::Result<()> {
    let line = checked_line::write(&format!("{BEFORE}{FORMAT}"));
    sync::replace(path, line.as_bytes()).map(drop)
}

/// The message for a layout that is not supported, with the remedy.
pub(super) fn refusal(found: impl std::fmt::Display) -> String {
    format!(
        "its format is {found}, but this sliced supports only format {FORMAT} (and converts format {UNSEALED}); nothing was changed: start the version of sliced that wrote it, or give this one another --state-dir"
    )
}

#[cfg(test)]
mod tests {
    use super::{Said, read, write};

    #[test]
    fn the_file_contains_a_format_or_is_recognised_as_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("format");
        assert_eq!(read(&path).expect("readable"), Said::Nothing);
        write(&path).expect("written");
        assert_eq!(read(&path).expect("readable"), Said::Ours);
        for (text, said) in [
            ("slicectl state format 2\n", Said::OursUnchecked),
            ("slicectl state format 3\n", Said::Other(3)),
            ("slicectl state format 99\n", Said::Other(99)),
            ("slicectl state format 2", Said::Nonsense),
            ("slicectl state format +2\n", Said::Nonsense),
            ("slicectl state format \n", Said::Nonsense),
            ("slicectl state format 99999999999\n", Said::Nonsense),
            ("slicectl\u{fffd}state format 2\n", Said::Nonsense),
            ("", Said::Nonsense),
        ] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(read(&path).expect("readable"), said, "{text:?}");
        }
    }
}
