//! Streaming responses: events, a VM's log.
//! Out of scope: the content of events and logs; changes of objects (`changes`).

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::api::event::{Event, ObjectRef};
use crate::host::fs;
use crate::reconcile::vmm::LOG_LIMIT;
use crate::store::Events;
use crate::wire::StreamMode;
use crate::wire::backend::{LogOutput, LogStart};

/// Minimum and maximum interval for polling a log that is followed; there is no notification of writes by the guest. After a write the
/// interval is short, because more output is likely (boot, or an interactive console).
const POLL_INTERVALS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// Sends events of one object, or of all.
pub(super) fn events(
    events: &Events,
    object: Option<ObjectRef>,
    span: StreamMode,
) -> BoxStream<'static, Event> {
    // Subscribed before reading: an event in between is sent twice rather than lost.
    let later = events.watch();
    let known = stream::iter(events.all());
    let all = match span {
        StreamMode::Once => known.boxed(),
        StreamMode::Follow => known.chain(stream::unfold(later, next_event)).boxed(),
    };
    let matches = move |event: &Event| object.as_ref().is_none_or(|o| *o == event.object);
    all.filter(move |event| futures::future::ready(matches(event)))
        .boxed()
}

async fn next_event(mut events: Receiver<Event>) -> Option<(Event, Receiver<Event>)> {
    loop {
        match events.recv().await {
            Ok(event) => return Some((event, events)),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Sends a log. With [`StreamMode::Follow`], continues after truncation until the client disconnects.
pub(super) async fn log(path: PathBuf, start: LogStart, span: StreamMode) -> LogOutput {
    let offset = match start {
        LogStart::Beginning => Ok(0),
        LogStart::LastLines(lines) => last_lines_offset(&path, lines).await,
        LogStart::Offset(offset) => existing_offset(&path, offset).await,
    };
    match offset {
        Ok(offset) => LogOutput {
            offset,
            bytes: log_from(path, offset, span).boxed(),
        },
        Err(error) => LogOutput {
            offset: 0,
            bytes: stream::iter([Err(error)]).boxed(),
        },
    }
}

/// The offset, or 0 if the log is shorter: the VMM was started again.
async fn existing_offset(path: &Path, offset: u64) -> io::Result<u64> {
    let file = match fs::open_regular(path) {
        Ok(file) => tokio::fs::File::from_std(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let length = file.metadata().await?.len();
    Ok(if length < offset { 0 } else { offset })
}

fn log_from(
    path: PathBuf,
    at: u64,
    span: StreamMode,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((path, at), move |(path, at)| async move {
        let mut at = at;
        let [mut interval, max] = POLL_INTERVALS;
        loop {
            let (bytes, end) = read_from(&path, at).await?;
            match (bytes.is_empty(), span) {
                (false, _) => return Ok(Some((bytes, (path, end)))),
                (true, StreamMode::Once) => return Ok(None),
                (true, StreamMode::Follow) => {
                    at = end;
                    tokio::time::sleep(interval).await;
                    interval = max.min(interval * 2);
                }
            }
        }
    })
}

/// Offset of the last `lines` lines of a log. An unterminated last line counts. At most the last [`LOG_LIMIT`] bytes are read.
async fn last_lines_offset(path: &Path, lines: usize) -> io::Result<u64> {
    // The VMM may have replaced the file, e.g. by a FIFO.
    let mut file = match fs::open_regular(path) {
        Ok(file) => tokio::fs::File::from_std(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let length = file.metadata().await?.len();
    let start = length.saturating_sub(LOG_LIMIT);
    file.seek(SeekFrom::Start(start)).await?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text).await?;
    Ok(start + last_lines_start(&text, lines) as u64)
}

fn last_lines_start(text: &[u8], lines: usize) -> usize {
    let Some(before) = lines.checked_sub(1) else {
        return text.len();
    };
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(before).unwrap_or(0)
}

async fn read_from(path: &Path, at: u64) -> io::Result<(Bytes, u64)> {
    // The VMM may have replaced the file, e.g. by a FIFO.
    let mut file = match fs::open_regular(path) {
        Ok(file) => tokio::fs::File::from_std(file),
        // The VMM has not started yet, or is being restarted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Bytes::new(), 0)),
        Err(error) => return Err(error),
    };
    let length = file.metadata().await?.len();
    // Shorter than the offset: it was truncated.
    let at = if length < at { 0 } else { at };
    file.seek(SeekFrom::Start(at)).await?;
    let mut bytes = Vec::new();
    file.take(64 * 1024).read_to_end(&mut bytes).await?;
    let end = at + bytes.len() as u64;
    Ok((bytes.into(), end))
}

#[cfg(test)]
mod tests {
    use super::{last_lines_offset, last_lines_start};

    #[tokio::test]
    async fn a_log_that_is_not_a_regular_file_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        assert_eq!(last_lines_offset(&path, 2).await.unwrap(), 0);
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(last_lines_offset(&path, 2).await.is_err(), "a pipe");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(
            last_lines_offset(&path, 2).await.is_err(),
            "a link to an endless file"
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(last_lines_offset(&path, 2).await.unwrap(), 2);
    }

    #[test]
    fn the_last_lines_begin_after_a_line_end_and_an_unterminated_line_counts() {
        for (text, lines, rest) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n\n", 1, "\n"),
        ] {
            let start = last_lines_start(text.as_bytes(), lines);
            assert_eq!(&text[start..], rest, "{lines} of {text:?}");
        }
    }
}
