//! A file of one line with a checksum: a changed bit does not produce another valid line.
//! Out of scope: the meaning of the line.
//!
//! # Why
//! Without a checksum, a flipped bit turns an instance id or a format number into another valid one.

/// The number of hexadecimal digits of the digest in the file.
const DIGITS: usize = 16;

/// The content of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'t> {
    /// The checksum matches.
    Checked(&'t str),
    /// There is no checksum: an earlier version or a user wrote the line.
    Unchecked(&'t str),
    /// Anything else.
    Damaged,
}

/// Returns `text`, which must not contain a line feed, with its checksum and a line feed.
pub fn write(text: &str) -> String {
    format!("{text} {}\n", digest(text))
}

/// Reads the content of such a file.
pub fn read(content: &str) -> Line<'_> {
    let Some(line) = content.strip_suffix('\n') else {
        return Line::Damaged;
    };
    let hex = |text: &str| {
        text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    match line.rsplit_once(' ') {
        Some((text, sum)) if hex(sum) => match sum == digest(text) {
            true => Line::Checked(text),
            false => Line::Damaged,
        },
        Some(_) | None => Line::Unchecked(line),
    }
}

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Line, read, write};

    #[test]
    fn a_written_line_is_read_back_and_a_line_of_an_earlier_version_is_recognised() {
        let written = write("slicectl instance abcde");
        assert_eq!(read(&written), Line::Checked("slicectl instance abcde"));
        let before = read("slicectl instance abcde\n");
        assert_eq!(before, Line::Unchecked("slicectl instance abcde"));
        assert_eq!(read(""), Line::Damaged);
        assert_eq!(read("slicectl instance abcde"), Line::Damaged);
    }

    #[test]
    fn no_changed_bit_no_truncation_and_no_zeroed_byte_gives_another_checked_line() {
        let written = write("slicectl state format 2");
        let mut damaged: Vec<Vec<u8>> = (0..written.len() * 8)
            .map(|bit| {
                let mut bytes = written.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            })
            .collect();
        damaged.extend((0..written.len()).map(|end| written.as_bytes()[..end].to_vec()));
        damaged.extend((0..written.len()).map(|at| {
            let mut bytes = written.clone().into_bytes();
            bytes[at] = 0;
            bytes
        }));
        for bytes in damaged {
            let Ok(text) = std::str::from_utf8(&bytes) else {
                continue;
            };
            assert!(!matches!(read(text), Line::Checked(_)), "{text:?}");
        }
    }
}
