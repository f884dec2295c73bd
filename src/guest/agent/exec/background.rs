//! A command in the background: its output in a buffer, its logs for any number of readers.
//! Out of scope: ids and limits of all commands (`commands`).

use std::sync::Arc;

use axum::body::Body;
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::budget::Reservation;
use super::frames;
use super::ring::Ring;
use crate::clock;
use crate::guest::agent::output::Chunk;
use crate::guest::agent::process::{Ending, Process};
use crate::guest::protocol::{ExecInfo, ExecQuery, Frame};

/// A command.
#[derive(Debug)]
pub struct Background {
    /// Its id.
    pub id: String,
    /// Its process.
    pub process: Arc<Process>,
    query: ExecQuery,
    ring_bytes: u64,
    content: Mutex<Content>,
    /// Whether all output has been read; each change of the content is a change of it.
    complete: watch::Sender<bool>,
}

#[derive(Debug)]
struct Content {
    ring: Ring,
    reservation: Reservation,
    /// After the last output.
    ending: Option<Ending>,
}

impl Background {
    /// A command with output into a buffer of the reserved size.
    pub fn new(
        id: String,
        process: Arc<Process>,
        query: ExecQuery,
        ring_bytes: usize,
        reservation: Reservation,
        output: mpsc::Receiver<Chunk>,
    ) -> Arc<Self> {
        let command = Arc::new(Self {
            id,
            process,
            ring_bytes: ring_bytes as u64,
            content: Mutex::new(Content {
                ring: Ring::new(ring_bytes, query.stdio),
                reservation,
                ending: None,
            }),
            query,
            complete: watch::Sender::new(false),
        });
        tokio::spawn(Arc::clone(&command).collect(output));
        command
    }

    async fn collect(self: Arc<Self>, mut output: mpsc::Receiver<Chunk>) {
        while let Some(chunk) = output.recv().await {
            self.content.lock().ring.push(&chunk, clock::now());
            self.complete.send_replace(false);
        }
        let ending = self.process.ended().await;
        let mut content = self.content.lock();
        content.ending = Some(ending);
        let used = content.ring.used();
        content.reservation.shrink(used);
        drop(content);
        self.complete.send_replace(true);
    }

    /// Waits until the process has ended and all of its output is in the buffer.
    pub async fn complete(&self) -> Ending {
        let ending = self.process.ended().await;
        // The sender is part of `self`.
        let _ = self
            .complete
            .subscribe()
            .wait_for(|complete| *complete)
            .await;
        ending
    }

    /// Its state.
    pub fn info(&self) -> ExecInfo {
        let ending = self.process.ending();
        let content = self.content.lock();
        ExecInfo {
            exec_id: self.id.clone(),
            pid: self.process.pid(),
            command: self.query.cmd.clone(),
            args: self.query.args.clone(),
            cwd: self.query.cwd.clone(),
            uid: self.query.uid,
            started_at: self.process.started_at,
            running: ending.is_none(),
            exit_code: ending.as_ref().map(|ending| ending.exit_code),
            signal: ending.as_ref().and_then(|ending| ending.signal.clone()),
            ended_at: ending.map(|ending| ending.ended_at),
            bytes_written: content.ring.written,
            bytes_dropped: content.ring.dropped,
            next_id: content.ring.next_id() + u64::from(content.ending.is_some()),
            ring_bytes: self.ring_bytes,
        }
    }

    /// Lines of frames from an id on; with `follow` until the command has ended.
    pub fn logs(self: Arc<Self>, from: u64, follow: bool) -> Body {
        let reader = Reader {
            changes: self.complete.subscribe(),
            command: self,
            next: from.max(1),
            offset: None,
            follow,
            done: false,
        };
        let lines = stream::unfold(reader, |mut reader| async move {
            let frames = reader.next().await?;
            let lines: Vec<u8> = frames.iter().flat_map(frames::line).collect();
            Some((Ok::<_, std::convert::Infallible>(lines), reader))
        });
        Body::from_stream(lines)
    }
}

struct Reader {
    command: Arc<Background>,
    changes: watch::Receiver<bool>,
    next: u64,
    offset: Option<u64>,
    follow: bool,
    done: bool,
}

impl Reader {
    /// The next frames; `None` at the end.
    async fn next(&mut self) -> Option<Vec<Frame>> {
        loop {
            if self.done {
                return None;
            }
            self.changes.borrow_and_update();
            let frames = self.read();
            if !frames.is_empty() {
                return Some(frames);
            }
            // Output of a command that has just ended may still be in its pipes.
            let more = self.follow || self.command.process.ending().is_some();
            if !more || self.done || self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    fn read(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.next == 1 {
            let mut started = frames::started(&self.command.id, &self.command.process);
            started.id = Some(1);
            frames.push(started);
            self.next = 2;
        }
        let content = self.command.content.lock();
        let batch = content.ring.read(self.next, self.offset);
        frames.extend(batch.frames);
        self.next = batch.next;
        self.offset = batch.offset;
        if let Some(ending) = &content.ending
            && self.next >= content.ring.next_id()
        {
            self.done = true;
            if self.next == content.ring.next_id() {
                let mut exit = frames::exit(ending);
                exit.id = Some(self.next);
                frames.push(exit);
            }
        }
        frames
    }
}
