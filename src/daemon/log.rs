//! Non-blocking log writer to standard error or the journal.
//! Out of scope: what is logged.
//!
//! # Why
//! Standard error may be a file on a full disk, or a pipe that no process reads, and the journal may not read its socket: a write then
//! fails or never returns. Neither may delay
//! the enforcement of a policy. So a separate thread writes the lines; lines that it cannot write are counted and dropped.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

/// Capacity of the queue of unwritten lines.
const QUEUE: usize = 4096;

/// The socket of systemd's journal.
pub(super) const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// How long the daemon waits at its end for unwritten lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Sends lines to the writer thread. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log {
    lines: SyncSender<Line>,
}

/// What the thread writes.
enum Line {
    /// A line of text, to standard error.
    Text(Vec<u8>),
    /// An entry in the journal's native format, to its socket.
    Entry(Vec<u8>),
}

static QUEUED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static WRITER: Mutex<Option<Log>> = Mutex::new(None);

impl Log {
    /// The log of this process. Its thread is started once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn to_stderr() -> io::Result<Self> {
        let mut thread = lock();
        if let Some(log) = &*thread {
            return Ok(log.clone());
        }
        let (lines, queued) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&queued))?;
        let log = Self { lines };
        *thread = Some(log.clone());
        Ok(log)
    }
}

impl Log {
    /// Queues an entry for the journal; drops it if the queue is full.
    pub(super) fn entry(&self, entry: Vec<u8>) {
        self.queue(Line::Entry(entry));
    }

    fn queue(&self, line: Line) {
        QUEUED.fetch_add(1, Ordering::AcqRel);
        match self.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                QUEUED.fetch_sub(1, Ordering::AcqRel);
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Write for Log {
    /// Queues one complete line; drops it if the queue is full.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue(Line::Text(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line that is not subject to the log filter: the result of a command.
pub(super) fn line(text: impl AsRef<str>) {
    let log = lock().clone();
    if let Some(mut log) = log {
        // Never fails: the line is queued, or counted as lost.
        let _ = log.write(format!("{}\n", text.as_ref()).as_bytes());
    }
}

/// Waits up to [`FLUSH_TIMEOUT`] for queued lines, at the end of the process.
pub(super) fn end() {
    let steps = FLUSH_TIMEOUT.as_millis() / POLL_INTERVAL.as_millis();
    for _ in 0..steps {
        if QUEUED.load(Ordering::Acquire) == 0 {
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn write_all(lines: &Receiver<Line>) {
    let mut stderr = io::stderr();
    let journal = UnixDatagram::unbound();
    for line in lines {
        let lost = DROPPED.swap(0, Ordering::Relaxed);
        let mut write = |text: &[u8]| stderr.write_all(text).is_ok();
        let noted =
            lost == 0 || write(format!("{lost} log lines could not be written\n").as_bytes());
        let written = match &line {
            Line::Text(text) => write(text),
            Line::Entry(entry) => journal
                .as_ref()
                .is_ok_and(|socket| socket.send_to(entry, JOURNAL_SOCKET).is_ok()),
        };
        if !noted || !written {
            DROPPED.fetch_add(if noted { 1 } else { lost + 1 }, Ordering::Relaxed);
        }
        QUEUED.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock() -> MutexGuard<'static, Option<Log>> {
    WRITER.lock()
}
