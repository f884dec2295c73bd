//! The events of a `text/event-stream`, as the agent sends them.
//! Out of scope: reconnecting; what the events mean.

use std::io;

use bytes::BytesMut;
use futures::StreamExt;

use super::archive::stream::ByteStream;
use super::lines::Lines;
use super::protocol::LINE_LIMIT;

/// Reads events.
pub struct Events {
    body: ByteStream,
    lines: Lines,
}

impl Events {
    /// Reads the events of a response.
    pub fn new(body: ByteStream) -> Self {
        Self {
            body,
            lines: Lines::new(LINE_LIMIT),
        }
    }

    /// The data of the next event; `None` at the end. Comments, and events without data, are skipped.
    ///
    /// # Errors
    /// The connection is closed, or a line is longer than [`LINE_LIMIT`].
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        while let Some(line) = self.line().await? {
            // The agent sends each event's data as one line.
            if let Some(data) = line.strip_prefix(b"data:") {
                let data = data.strip_prefix(b" ").unwrap_or(data);
                return Ok(Some(data.to_vec()));
            }
        }
        Ok(None)
    }

    /// The next line; a last one without a line feed was cut off.
    async fn line(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => return Ok(Some(line)),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            match self.body.next().await {
                Some(bytes) => self.lines.push(&bytes?),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    async fn read(parts: &[&'static str]) -> io::Result<Vec<String>> {
        let parts: Vec<io::Result<bytes::Bytes>> =
            parts.iter().map(|part| Ok((*part).into())).collect();
        let mut events = Events::new(stream::iter(parts).boxed());
        let mut found = Vec::new();
        while let Some(data) = events.next().await? {
            found.push(String::from_utf8_lossy(&data).into_owned());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn data_is_read_across_parts_and_nothing_else_is() {
        let parts = [
            ":\n\nid: 1\nevent: w",
            "atch\ndata: {\"a\"",
            ":1}\n\ndata:2\n\n",
            "data: cut",
        ];
        assert_eq!(read(&parts).await.unwrap(), ["{\"a\":1}", "2"]);
        assert_eq!(read(&[]).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_an_error_and_not_all_memory() {
        let part = "x".repeat(LINE_LIMIT / 2 + 1).leak();
        assert!(read(&[part, part, part]).await.is_err());
    }
}
