//! The output of the userdata: `/var/log/slice-userdata.log`, of which the last part is kept.
//! Out of scope: the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use futures::stream::{self, Stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::place::Place;
use crate::guest::place::make_dirs;
use crate::guest::protocol::{CHUNK, UserdataLogsQuery};

/// The second one, if the first cannot be written.
const FILES: [&str; 2] = ["var/log/slice-userdata.log", "run/slice/userdata.log"];

/// The maximum size, and what is kept when it is reached, in bytes.
const LIMIT: u64 = 1 << 20;
const KEPT: u64 = LIMIT / 2;

/// The log.
#[derive(Debug)]
pub struct Log {
    paths: [PathBuf; 2],
    content: Mutex<Content>,
    /// Whether it is complete; each addition is a change of it.
    complete: watch::Sender<bool>,
}

/// The file contains the output from `start` to `end`.
#[derive(Debug, Default)]
struct Content {
    file: Option<File>,
    start: u64,
    end: u64,
}

impl Content {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.end - self.start + bytes.len() as u64 > LIMIT {
            let kept = KEPT.min(self.end - self.start);
            let mut rest = vec![0; usize::try_from(kept).unwrap_or(0)];
            file.read_exact_at(&mut rest, self.end - self.start - kept)?;
            file.set_len(0)?;
            file.write_all_at(&rest, 0)?;
            self.start = self.end - kept;
        }
        file.write_all_at(bytes, self.end - self.start)?;
        file.flush()?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// What follows a position, and the position after it.
    fn read(&self, from: u64) -> io::Result<(u64, Bytes)> {
        let from = from.max(self.start);
        let length = self.end.saturating_sub(from).min(CHUNK as u64);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut bytes, from - self.start)?;
        }
        Ok((from + length, bytes.into()))
    }

    /// The position of the last lines.
    fn last_lines(&self, lines: usize) -> io::Result<u64> {
        if lines == 0 {
            return Ok(self.end);
        }
        let Some(file) = &self.file else {
            return Ok(self.start);
        };
        let mut bytes = vec![0; usize::try_from(self.end - self.start).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let before_last = bytes.len().saturating_sub(1);
        let mut ends = bytes[..before_last].iter().enumerate().rev();
        let line_end = ends
            .by_ref()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(lines - 1);
        Ok(self.start + line_end.map_or(0, |(at, _)| at as u64 + 1))
    }
}

impl Log {
    /// The log of an earlier run, if there is one.
    pub fn open(place: &Place) -> Arc<Self> {
        let paths = FILES.map(|path| place.at(path));
        let opened = paths.iter().find_map(|path| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = options.open(path).ok()?;
            let found = file.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((file, found.len().min(LIMIT)))
        });
        let (file, end) = opened.map_or((None, 0), |(file, end)| (Some(file), end));
        Arc::new(Self {
            paths,
            content: Mutex::new(Content {
                file,
                start: 0,
                end,
            }),
            complete: watch::Sender::new(true),
        })
    }

    /// Begins an empty log. Without a file, the output is lost and the userdata runs.
    pub fn begin(&self) {
        let created = self.paths.iter().find_map(|path| {
            let parent = path.parent()?;
            make_dirs(parent, Default::default()).ok()?;
            // A file or link of another program is replaced, not written to.
            let _ = fs::remove_file(path);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            options.open(path).ok()
        });
        *self.content.lock() = Content {
            file: created,
            start: 0,
            end: 0,
        };
        self.complete.send_replace(false);
    }

    /// Adds output. What cannot be written, because the disk is full, is lost.
    pub fn append(&self, bytes: &[u8]) {
        let _ = self.content.lock().append(bytes);
        self.complete.send_replace(false);
    }

    /// Readers end.
    pub fn end(&self) {
        self.complete.send_replace(true);
    }

    /// The content, and what is added if the reader follows it.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(
        self: Arc<Self>,
        query: UserdataLogsQuery,
    ) -> io::Result<impl Stream<Item = Bytes> + Send + 'static> {
        let changes = self.complete.subscribe();
        let position = match query.lines {
            None => 0,
            Some(lines) => {
                let this = Arc::clone(&self);
                let task = move || this.content.lock().last_lines(lines);
                tokio::task::spawn_blocking(task).await??
            }
        };
        let reader = Reader {
            log: self,
            changes,
            position,
            follow: query.follow,
        };
        Ok(stream::unfold(reader, |mut reader| async move {
            let bytes = reader.next().await?;
            Some((bytes, reader))
        }))
    }
}

struct Reader {
    log: Arc<Log>,
    changes: watch::Receiver<bool>,
    position: u64,
    follow: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let is_complete = *self.changes.borrow_and_update();
            let (log, position) = (Arc::clone(&self.log), self.position);
            let read = tokio::task::spawn_blocking(move || log.content.lock().read(position));
            let (position, bytes) = read.await.ok()?.ok()?;
            self.position = position;
            if !bytes.is_empty() {
                return Some(bytes);
            }
            if is_complete || !self.follow {
                return None;
            }
            self.changes.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn text(log: &Arc<Log>, lines: Option<usize>) -> Vec<u8> {
        let query = UserdataLogsQuery {
            follow: false,
            lines,
        };
        let stream = Arc::clone(log).read(query).await.expect("a stream");
        stream.collect::<Vec<_>>().await.concat()
    }

    #[tokio::test]
    async fn the_last_part_of_much_output_is_kept() {
        let root = tempfile::tempdir().expect("a directory");
        let place = Place::directory(root.path().to_owned());
        let log = Log::open(&place);
        assert!(text(&log, None).await.is_empty());
        log.begin();
        let mut all = Vec::new();
        for number in 0..40_000 {
            let line = format!("line {number:>40}\n");
            log.append(line.as_bytes());
            all.extend(line.into_bytes());
        }
        log.end();
        let size = fs::metadata(place.at(FILES[0])).expect("a file").len();
        assert!((KEPT..=LIMIT).contains(&size), "{size}");
        let kept = text(&log, None).await;
        assert_eq!(kept.len() as u64, size);
        assert!(all.ends_with(&kept));
        // Another agent reads the same.
        assert_eq!(text(&Log::open(&place), None).await, kept);
        let two = text(&log, Some(2)).await;
        assert_eq!(two, all[all.len() - 2 * 46..]);
        assert!(text(&log, Some(0)).await.is_empty());
        assert_eq!(text(&log, Some(1 << 20)).await, kept);
    }

    #[tokio::test]
    async fn a_follower_gets_everything_until_the_end() {
        let root = tempfile::tempdir().expect("a directory");
        let log = Log::open(&Place::directory(root.path().to_owned()));
        log.begin();
        log.append(b"a\nb");
        let query = UserdataLogsQuery {
            follow: true,
            lines: Some(1),
        };
        let stream = Arc::clone(&log).read(query).await.expect("a stream");
        let reader = tokio::spawn(async move { stream.collect::<Vec<_>>().await.concat() });
        tokio::task::yield_now().await;
        log.append(b"c\n");
        log.append(b"d\n");
        log.end();
        assert_eq!(reader.await.expect("read"), b"bc\nd\n");
    }

    #[tokio::test]
    async fn a_link_in_place_of_the_log_is_replaced() {
        let root = tempfile::tempdir().expect("a directory");
        let place = Place::directory(root.path().to_owned());
        let target = place.at("target");
        fs::write(&target, "precious").expect("written");
        fs::create_dir_all(place.at("var/log")).expect("created");
        std::os::unix::fs::symlink(&target, place.at(FILES[0])).expect("a link");
        let log = Log::open(&place);
        assert!(text(&log, None).await.is_empty(), "it is not followed");
        log.begin();
        log.append(b"output");
        assert_eq!(fs::read(&target).expect("read"), b"precious");
        assert_eq!(text(&log, None).await, b"output");
    }
}
