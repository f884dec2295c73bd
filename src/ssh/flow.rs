//! Received data that waits for its guest, and the windows that limit it.
//! Out of scope: where it goes.
//!
//! A window is enlarged when a packet has used up more than half of it ([`Flow::window`]). While too much data waits, the next window is
//! [`CLOSED`]: a client that has more data sends packets of two bytes, each of which lets russh ask for the window again. A pause between
//! them keeps that cheap. It ends when data was taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

/// The maximum number of channels of a connection.
pub const CHANNELS: usize = 32;

/// The window of a channel, in bytes.
pub const WINDOW: u32 = 512 << 10;

/// The smallest window that is ever enlarged: russh compares with a half of it.
const CLOSED: u32 = 2;

/// How much data of a connection may wait before windows are no longer enlarged, in bytes.
const LIMIT: usize = 2 << 20;

/// How much data of a connection waits if a client ignores its windows, in bytes: two for each channel, and the limit.
const VIOLATION: usize = LIMIT + 2 * CHANNELS * WINDOW as usize;

/// The pause after a packet of a closed window.
pub const PAUSE: Duration = Duration::from_millis(20);

/// The data of a connection that waits.
#[derive(Debug, Default)]
pub struct Flow {
    waiting: AtomicUsize,
    pause: AtomicBool,
}

impl Flow {
    /// The size to which windows are enlarged next.
    pub fn window(&self) -> u32 {
        match self.waiting.load(Ordering::Relaxed) > LIMIT {
            true => CLOSED,
            false => WINDOW,
        }
    }

    /// Whether the connection should not be read for [`PAUSE`]; asked once.
    pub fn takes_pause(&self) -> bool {
        self.pause.swap(false, Ordering::Relaxed)
    }

    fn add(&self, count: usize) -> bool {
        let waiting = self.waiting.fetch_add(count, Ordering::Relaxed) + count;
        if waiting > LIMIT && count <= CLOSED as usize {
            self.pause.store(true, Ordering::Relaxed);
        }
        waiting <= VIOLATION
    }

    fn remove(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}

/// A channel's queue, on the side of the connection. Dropping it ends the data.
#[derive(Debug)]
pub struct Sender {
    queue: mpsc::UnboundedSender<Bytes>,
    flow: Arc<Flow>,
}

/// A channel's queue, on the side of the guest.
#[derive(Debug)]
pub struct Input {
    /// What was put back.
    front: Bytes,
    queue: mpsc::UnboundedReceiver<Bytes>,
    flow: Arc<Flow>,
}

/// The queue of a channel.
pub fn queue(flow: &Arc<Flow>) -> (Sender, Input) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let sender = Sender {
        queue: sender,
        flow: Arc::clone(flow),
    };
    let input = Input {
        front: Bytes::new(),
        queue: receiver,
        flow: Arc::clone(flow),
    };
    (sender, input)
}

impl Sender {
    /// Puts data into the queue; data that nobody takes is dropped. False if the client has ignored its windows.
    pub fn put(&self, data: &[u8]) -> bool {
        if data.is_empty() || self.queue.is_closed() {
            return true;
        }
        let is_valid = self.flow.add(data.len());
        if self.queue.send(Bytes::copy_from_slice(data)).is_err() {
            self.flow.remove(data.len());
        }
        is_valid
    }
}

impl Input {
    /// The next data; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !self.front.is_empty() {
            return Some(std::mem::take(&mut self.front));
        }
        let data = self.queue.recv().await?;
        self.flow.remove(data.len());
        Some(data)
    }
}

impl Input {
    /// Puts back the rest of the last data.
    pub fn put_back(&mut self, rest: Bytes) {
        self.front = rest;
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.queue.close();
        while let Ok(data) = self.queue.try_recv() {
            self.flow.remove(data.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn windows_are_closed_while_too_much_data_waits() {
        let flow = Arc::new(Flow::default());
        let (sender, mut input) = queue(&flow);
        let packet = vec![0; LIMIT / 2];
        assert!(sender.put(&packet) && sender.put(&packet));
        assert_eq!(flow.window(), WINDOW);
        assert!(sender.put(b"xy"));
        assert_eq!(flow.window(), CLOSED);
        assert!(flow.takes_pause() && !flow.takes_pause());
        assert_eq!(input.next().await.unwrap().len(), packet.len());
        assert_eq!(flow.window(), WINDOW);
        drop(sender);
        assert_eq!(input.next().await.unwrap().len(), packet.len());
        assert_eq!(input.next().await.unwrap().as_ref(), b"xy");
        assert_eq!(input.next().await, None);
        assert_eq!(flow.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_nobody_takes_does_not_wait_and_a_client_that_ignores_its_windows_is_noticed() {
        let flow = Arc::new(Flow::default());
        let (sender, input) = queue(&flow);
        assert!(sender.put(&vec![0; VIOLATION]));
        assert!(!sender.put(b"x"));
        drop(input);
        assert_eq!(flow.waiting.load(Ordering::Relaxed), 0);
        assert!(sender.put(&[0; 100]));
        assert_eq!(flow.waiting.load(Ordering::Relaxed), 0);
    }
}
