//! Splits what a guest sends into lines of limited length.
//! Out of scope: receiving it; what the lines mean.

use bytes::BytesMut;

/// Received bytes that are not yet read as lines.
#[derive(Debug)]
pub struct Lines {
    rest: BytesMut,
    /// No line feed is before this offset.
    searched: usize,
    limit: usize,
}

/// A line is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line has more than {0} bytes")]
pub struct TooLong(usize);

impl Lines {
    /// Lines of up to `limit` bytes, without their line feeds.
    pub fn new(limit: usize) -> Self {
        Self {
            rest: BytesMut::new(),
            searched: 0,
            limit,
        }
    }

    /// Adds received bytes. All lines are to be read before: what is kept is less than a line.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next line without its line feed; `None`: more bytes are needed.
    ///
    /// # Errors
    /// It is too long. Nothing can be read afterwards.
    pub fn next_line(&mut self) -> Result<Option<BytesMut>, TooLong> {
        let mut unsearched = self.rest[self.searched..].iter();
        let end = unsearched.position(|byte| *byte == b'\n');
        let length = end.map_or(self.rest.len(), |at| self.searched + at);
        if length > self.limit {
            return Err(TooLong(self.limit));
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        let mut line = self.rest.split_to(length + 1);
        line.truncate(length);
        self.searched = 0;
        Ok(Some(line))
    }

    /// Whether all received bytes were lines. Otherwise, at the end, a line was cut off.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(parts: &[&[u8]], limit: usize) -> Result<(Vec<Vec<u8>>, bool), TooLong> {
        let (mut lines, mut found) = (Lines::new(limit), Vec::new());
        for part in parts {
            lines.push(part);
            while let Some(line) = lines.next_line()? {
                found.push(line.to_vec());
            }
        }
        Ok((found, lines.is_empty()))
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_not_longer() {
        for (parts, expected) in [
            (&[&b"01234567\n"[..]][..], Ok(1)),
            (&[b"0123", b"4567", b"\n"], Ok(1)),
            (&[b"\n\n"], Ok(2)),
            (&[b"012345678\n"], Err(TooLong(8))),
            (&[b"01234567", b"8"], Err(TooLong(8))),
            (&[b"a\n012345678"], Err(TooLong(8))),
        ] {
            let found = read(parts, 8).map(|(lines, _)| lines.len());
            assert_eq!(found, expected, "{parts:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_the_same_lines_however_they_arrive(
            bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..200),
            cuts in prop::collection::vec(0..200_usize, 0..10),
            limit in 0..60_usize,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            let is_too_long = expected.iter().any(|line| line.len() > limit);
            let last = expected.pop().unwrap_or_default();
            match read(&parts, limit) {
                Ok((found, is_empty)) => {
                    prop_assert!(!is_too_long);
                    prop_assert_eq!(found, expected);
                    prop_assert_eq!(is_empty, last.is_empty());
                }
                Err(TooLong(_)) => prop_assert!(is_too_long),
            }
        }
    }
}
