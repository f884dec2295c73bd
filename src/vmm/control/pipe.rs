//! The pipe that Firecracker writes its metrics into, one line per report.
//! Out of scope: requesting a report.
//!
//! # Why
//! A file would grow without bound, and cannot be rotated because Firecracker keeps it open. A pipe holds 64 KiB. It is read only on
//! request; Firecracker drops what does not fit and continues.
//!
//! The VMM may replace the pipe by any file, and may write any amount of any data into it: only a pipe is opened, no operation here blocks,
//! and at most the capacity of a pipe is read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use serde_json::Value;
use tokio::net::unix::pipe::Receiver;

/// Maximum capacity of a pipe of an unprivileged process in bytes (`/proc/sys/fs/pipe-max-size`).
const PIPE_CAPACITY: usize = 1 << 20;
/// Start of a line (`FirecrackerMetrics`). If the pipe was full, an incomplete line without a line break precedes the next one.
const LINE_START: &[u8] = b"{\"utc_timestamp_ms\":";

pub(super) struct Lines {
    pipe: Receiver,
}

impl Lines {
    /// Opens the pipe and discards its contents. Any other kind of file is an error.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                error.kind(),
                "the VMM was started without a metrics pipe: restart the VM",
            ),
            _ => error,
        })?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("the metrics file is not a pipe"));
        }
        drain(&file)?;
        Ok(Self {
            pipe: Receiver::from_file(file)?,
        })
    }

    /// Waits for the next line. Use a timeout.
    pub(super) async fn next(&self) -> io::Result<Value> {
        let (mut buffer, mut line) = ([0; 4096], Vec::new());
        while line.len() <= PIPE_CAPACITY {
            self.pipe.readable().await?;
            match self.pipe.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                return read(&line[..end]);
            }
        }
        Err(too_long())
    }
}

fn drain(mut file: &File) -> io::Result<()> {
    let (mut buffer, mut read) = ([0; 4096], 0);
    while read <= PIPE_CAPACITY {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(too_long())
}

fn read(line: &[u8]) -> io::Result<Value> {
    let begin = line
        .windows(LINE_START.len())
        .rposition(|found| found == LINE_START);
    Ok(serde_json::from_slice(&line[begin.unwrap_or(0)..])?)
}

fn too_long() -> io::Error {
    io::Error::other("the metrics exceed the capacity of a pipe")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::host::fs::create_fifo;

    /// A pipe with the VMM's end, into which this was written, and the reading end.
    fn pipe(dir: &tempfile::TempDir, content: &[u8]) -> (File, Lines) {
        let path = dir.path().join("metrics");
        let mut vmm_end = create_fifo(&path).unwrap();
        vmm_end.write_all(content).unwrap();
        (vmm_end, Lines::open(&path).unwrap())
    }

    #[tokio::test]
    async fn a_line_is_read_even_after_an_incomplete_line() {
        let dir = tempfile::tempdir().unwrap();
        let old = b"{\"utc_timestamp_ms\":1,\"old\":1}\n{\"utc_time";
        let (mut vmm_end, reader) = pipe(&dir, old);
        vmm_end
            .write_all(b"\"half\":1}{\"utc_timestamp_ms\":2,")
            .unwrap();
        let (answer, ()) = tokio::join!(reader.next(), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            vmm_end.write_all(b"\"new\":1}\n").unwrap();
        });
        assert_eq!(
            answer.unwrap(),
            serde_json::json!({"utc_timestamp_ms": 2, "new": 1})
        );
        vmm_end.write_all(b"no JSON at all\n").unwrap();
        assert!(reader.next().await.is_err());
    }

    #[tokio::test]
    async fn endless_output_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut vmm_end, reader) = pipe(&dir, b"");
        let writer = std::thread::spawn(move || while vmm_end.write_all(&[b'x'; 4096]).is_ok() {});
        let result = tokio::time::timeout(Duration::from_secs(20), reader.next());
        assert!(
            result
                .await
                .unwrap()
                .unwrap_err()
                .to_string()
                .contains("exceed the capacity")
        );
        // The thread may block; it ends with the test process.
        drop(writer);
    }

    #[tokio::test]
    async fn only_a_pipe_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "{}\n").unwrap();
        drop(create_fifo(&path("pipe")).unwrap());
        std::os::unix::fs::symlink(path("pipe"), path("link")).unwrap();
        for name in ["file", "link", "none", ".", "/dev/zero"] {
            assert!(Lines::open(&path(name)).is_err(), "{name}");
        }
        assert!(Lines::open(&path("pipe")).is_ok());
    }
}
