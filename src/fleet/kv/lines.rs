//! Splits a stream into lines of a bounded length.
//! Out of scope: their content.

use bytes::{Bytes, BytesMut};

/// Bytes that were received and not yet returned. At most one line and one chunk are in memory.
#[derive(Debug)]
pub(super) struct Lines {
    rest: BytesMut,
    /// The bytes of `rest` that are known to have no line feed.
    searched: usize,
    limit: usize,
}

/// A line is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            rest: BytesMut::new(),
            searched: 0,
            limit,
        }
    }

    /// Appends what was received.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.rest.extend_from_slice(chunk);
    }

    /// The next line that has ended, without its line feed. Empty lines are skipped: the gateway of etcd 3.4 sends one after each message.
    ///
    /// # Errors
    /// [`TooLong`]
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let found = self.rest[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n');
            let Some(at) = found else {
                self.searched = self.rest.len();
                return match self.searched > self.limit {
                    true => Err(TooLong),
                    false => Ok(None),
                };
            };
            let length = self.searched + at;
            let mut line = self.rest.split_to(length + 1);
            self.searched = 0;
            line.truncate(length);
            if length > self.limit {
                return Err(TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line.freeze()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(String::from_utf8(line.to_vec()).unwrap());
        }
        found
    }

    #[test]
    fn lines_are_found_wherever_chunks_end() {
        let text = b"one\n\n{\"two\":2}\n\r\nthree";
        for size in 1..text.len() {
            let mut lines = Lines::new(9);
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                lines.push(chunk);
                found.extend(all(&mut lines));
            }
            assert_eq!(found, ["one", "{\"two\":2}"], "chunks of {size}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_before_it_has_ended() {
        for text in [&b"0123456789"[..], b"0123456789\n"] {
            let mut lines = Lines::new(9);
            lines.push(text);
            assert_eq!(lines.next(), Err(TooLong));
        }
        let mut lines = Lines::new(9);
        lines.push(b"012345678\n");
        assert_eq!(lines.next().unwrap().unwrap(), &b"012345678"[..]);
    }
}
