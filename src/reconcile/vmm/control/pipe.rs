//! The pipe that Firecracker writes its metrics into, a line at a time.
//! Out of scope: asking it to.
//!
//! # Why
//! A file would grow without bound, and Firecracker writes to it from its start to its end: it cannot be rotated. A pipe holds
//! 64 KiB. Nobody reads it until somebody asks; what does not fit Firecracker drops, and goes on.
//!
//! The pipe lies where the VMM may put anything, and the VMM may write anything into it, without end: it is opened as a pipe or not
//! at all, nothing here blocks, and of what comes no more is read than a pipe can hold.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use serde_json::Value;
use tokio::net::unix::pipe::Receiver;

/// Bytes: the most that a pipe of a process without rights holds (`/proc/sys/fs/pipe-max-size`).
const MOST: usize = 1 << 20;
/// With what a line begins (`FirecrackerMetrics`). When the pipe has been full, the rest of a line that was cut off stands before
/// the next.
const BEGINNING: &[u8] = b"{\"utc_timestamp_ms\":";

pub(super) struct Lines {
    pipe: Receiver,
}

impl Lines {
    /// What stands there must be a pipe. What has been written into it so far is thrown away.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                error.kind(),
                "it was started without a pipe for its metrics: restart the VM",
            ),
            _ => error,
        })?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("where its metrics should be is no pipe"));
        }
        drain(&file)?;
        Ok(Self {
            pipe: Receiver::from_file(file)?,
        })
    }

    /// The next line. Waits for it: bound it.
    pub(super) async fn next(&self) -> io::Result<Value> {
        let (mut buffer, mut line) = ([0; 4096], Vec::new());
        while line.len() <= MOST {
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
        Err(endless())
    }
}

fn drain(mut file: &File) -> io::Result<()> {
    let (mut buffer, mut read) = ([0; 4096], 0);
    while read <= MOST {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(endless())
}

fn read(line: &[u8]) -> io::Result<Value> {
    let begin = line
        .windows(BEGINNING.len())
        .rposition(|found| found == BEGINNING);
    Ok(serde_json::from_slice(&line[begin.unwrap_or(0)..])?)
}

fn endless() -> io::Error {
    io::Error::other("it writes metrics without end")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::host::fs::make_pipe;

    /// A pipe that a VMM holds and has written this into, read from here.
    fn pipe(dir: &tempfile::TempDir, said: &[u8]) -> (File, Lines) {
        let path = dir.path().join("metrics");
        let mut theirs = make_pipe(&path).unwrap();
        theirs.write_all(said).unwrap();
        (theirs, Lines::open(&path).unwrap())
    }

    #[tokio::test]
    async fn what_comes_after_the_question_is_the_answer_even_behind_a_line_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let old = b"{\"utc_timestamp_ms\":1,\"old\":1}\n{\"utc_time";
        let (mut theirs, ours) = pipe(&dir, old);
        theirs
            .write_all(b"\"half\":1}{\"utc_timestamp_ms\":2,")
            .unwrap();
        let (answer, ()) = tokio::join!(ours.next(), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            theirs.write_all(b"\"new\":1}\n").unwrap();
        });
        assert_eq!(
            answer.unwrap(),
            serde_json::json!({"utc_timestamp_ms": 2, "new": 1})
        );
        theirs.write_all(b"no JSON at all\n").unwrap();
        assert!(ours.next().await.is_err());
    }

    #[tokio::test]
    async fn whoever_writes_without_end_is_not_listened_to_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut theirs, ours) = pipe(&dir, b"");
        let writer = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        let heard = tokio::time::timeout(Duration::from_secs(20), ours.next());
        assert!(
            heard
                .await
                .unwrap()
                .unwrap_err()
                .to_string()
                .contains("without end")
        );
        // It blocks now, or holds both ends: it ends with the process.
        drop(writer);
    }

    #[tokio::test]
    async fn nothing_but_a_pipe_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "{}\n").unwrap();
        drop(make_pipe(&path("pipe")).unwrap());
        std::os::unix::fs::symlink(path("pipe"), path("link")).unwrap();
        for name in ["file", "link", "none", ".", "/dev/zero"] {
            assert!(Lines::open(&path(name)).is_err(), "{name}");
        }
        assert!(Lines::open(&path("pipe")).is_ok());
    }
}
