//! The few words of QEMU's machine protocol that we speak (docs/interop/qmp-spec.txt).
//! Not here: connecting, deadlines, when to say them.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{GuestState, Order};

/// Bytes of one line. The greeting and our answers are far shorter; whoever says more is no QEMU.
const LONGEST_LINE: u64 = 64 << 10;

/// What QEMU says its machine is doing. It greets before the machine is made, from a thread of its own, but obeys only after.
pub(super) async fn state(stream: UnixStream) -> io::Result<GuestState> {
    let mut monitor = Monitor::open(stream).await?;
    let answer = monitor.order("query-status").await?;
    let status = answer.get("status").and_then(Value::as_str);
    Ok(match status.unwrap_or_default() {
        "prelaunch" | "inmigrate" => GuestState::Starting,
        "paused" | "suspended" | "debug" | "io-error" => GuestState::Paused,
        "shutdown" | "guest-panicked" | "internal-error" => GuestState::Ended,
        _ => GuestState::Running,
    })
}

pub(super) async fn order(stream: UnixStream, order: Order) -> io::Result<()> {
    let command = match order {
        Order::PowerDown => "system_powerdown",
        Order::Pause => "stop",
        Order::Resume => "cont",
    };
    Monitor::open(stream).await?.order(command).await.map(drop)
}

struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Hears the greeting and is let in.
    async fn open(stream: UnixStream) -> io::Result<Self> {
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.hear().await?;
        monitor.order("qmp_capabilities").await?;
        Ok(monitor)
    }

    /// Says one command and waits for its answer; events in between are passed over.
    async fn order(&mut self, command: &str) -> io::Result<Value> {
        let text = format!("{{\"execute\":\"{command}\"}}\n");
        self.stream.get_mut().write_all(text.as_bytes()).await?;
        loop {
            let mut answer = self.hear().await?;
            if let Some(told) = answer.get_mut("return") {
                return Ok(told.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }

    async fn hear(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        let mut bounded = (&mut self.stream).take(LONGEST_LINE);
        match bounded.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
