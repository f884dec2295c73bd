//! A channel: what the client sends on it, and what is sent to the client.
//! Out of scope: the content.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelWriteHalf, Sig};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::flow::{Flow, Input, Sender, queue};
use crate::api::plain_text;

/// The number of changes of a terminal and of signals that wait; further ones are dropped.
const CONTROLS: usize = 16;

/// The code of standard error (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// The terminal of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its type, such as `xterm-256color`.
    pub term: String,
    /// Columns.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// What a client sends beside data.
#[derive(Clone, Debug)]
pub enum Control {
    /// The size of its terminal has changed.
    Window {
        /// Columns.
        columns: u32,
        /// Rows.
        rows: u32,
    },
    /// A signal for the process.
    Signal(Sig),
}

/// What the task of a channel works with.
pub struct Parts {
    /// What the client sends.
    pub input: Input,
    /// Beside data.
    pub controls: mpsc::Receiver<Control>,
    /// What is sent to the client.
    pub output: Output,
    /// The terminal, if the client has requested one.
    pub terminal: Option<Terminal>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
}

/// The connection's side of a channel. Dropping it ends the task.
pub struct Entry {
    sender: Option<Sender>,
    controls: mpsc::Sender<Control>,
    idle: Option<Idle>,
    task: Option<AbortOnDropHandle<()>>,
}

/// A channel before its request.
struct Idle {
    input: Input,
    controls: mpsc::Receiver<Control>,
    write: ChannelWriteHalf<Msg>,
    terminal: Option<Terminal>,
    env: Vec<String>,
}

impl Entry {
    /// A channel that was opened.
    pub fn new(channel: Channel<Msg>, flow: &Arc<Flow>) -> Self {
        let (sender, input) = queue(flow);
        let (control, controls) = mpsc::channel(CONTROLS);
        // Its own queue is bounded and blocks the connection: what nobody receives is not put into it.
        let (_, write) = channel.split();
        Self {
            sender: Some(sender),
            controls: control,
            idle: Some(Idle {
                input,
                controls,
                write,
                terminal: None,
                env: Vec::new(),
            }),
            task: None,
        }
    }

    /// What the task of the channel needs, once.
    pub fn take(&mut self, handle: Handle) -> Option<Parts> {
        let idle = self.idle.take()?;
        Some(Parts {
            input: idle.input,
            controls: idle.controls,
            output: Output {
                id: idle.write.id(),
                write: idle.write,
                handle,
                is_terminal: idle.terminal.is_some(),
            },
            terminal: idle.terminal,
            env: idle.env,
        })
    }

    /// Starts the task of the channel.
    pub fn set_task(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Whether the task has ended.
    pub fn is_ended(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.is_finished())
    }

    /// False after the request.
    pub fn set_terminal(&mut self, terminal: Terminal) -> bool {
        let Some(idle) = &mut self.idle else {
            return false;
        };
        idle.terminal = Some(terminal);
        true
    }

    /// False after the request, or if there are too many.
    pub fn add_env(&mut self, pair: String, limit: usize) -> bool {
        let idle = self.idle.as_mut();
        let Some(idle) = idle.filter(|idle| idle.env.len() < limit) else {
            return false;
        };
        idle.env.push(pair);
        true
    }

    /// Received data; false if the client has ignored its windows.
    pub fn put(&self, data: &[u8]) -> bool {
        self.sender.as_ref().is_none_or(|sender| sender.put(data))
    }

    /// The client sends no more data.
    pub fn end_input(&mut self) {
        self.sender = None;
    }

    /// A change of the terminal or a signal.
    pub fn control(&mut self, control: Control) {
        if let (Some(idle), Control::Window { columns, rows }) = (&mut self.idle, &control) {
            if let Some(terminal) = &mut idle.terminal {
                (terminal.columns, terminal.rows) = (*columns, *rows);
            }
            return;
        }
        let _ = self.controls.try_send(control);
    }
}

/// The client has closed the channel or the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What is sent to the client. Data waits until the client's window is large enough.
pub struct Output {
    id: ChannelId,
    write: ChannelWriteHalf<Msg>,
    handle: Handle,
    is_terminal: bool,
}

impl Output {
    /// Standard output.
    pub async fn data(&self, data: Bytes) -> Result<(), Gone> {
        self.write.data_bytes(data).await.map_err(|_| Gone)
    }

    /// Standard error, which a terminal does not have.
    pub async fn error(&self, data: Bytes) -> Result<(), Gone> {
        match self.is_terminal {
            true => self.data(data).await,
            false => {
                let sent = self.write.extended_data_bytes(STDERR, data).await;
                sent.map_err(|_| Gone)
            }
        }
    }

    /// A message of the server, in a line of its own.
    pub async fn message(&self, text: &str) -> Result<(), Gone> {
        let text = plain_text::line(text, super::TEXT_LIMIT);
        let line = match self.is_terminal {
            true => format!("\r\n{text}\r\n"),
            false => format!("{text}\n"),
        };
        self.error(line.into()).await
    }

    /// No more data follows.
    pub async fn end(&self) {
        let _ = self.write.eof().await;
    }

    /// The exit status, then the end of the channel.
    pub async fn exit(self, status: u32) {
        let _ = self.write.exit_status(status).await;
        self.close().await;
    }

    /// The signal that has ended the command, such as `SIGKILL`, then the end of the channel.
    pub async fn exit_signal(self, signal: &str) {
        let name = signal.strip_prefix("SIG").unwrap_or(signal);
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let (empty, signal) = (String::new(), Sig::Custom(name));
        let sent = self
            .handle
            .exit_signal_request(self.id, signal, false, empty.clone(), empty);
        let _ = sent.await;
        self.close().await;
    }

    /// The end of the channel.
    pub async fn close(self) {
        self.end().await;
        let _ = self.write.close().await;
    }
}
