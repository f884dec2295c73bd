//! The commands of QEMU's machine protocol that the daemon uses (docs/interop/qmp-spec.txt).
//! Out of scope: connecting, deadlines, when to send them.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Command, GuestState};
use crate::api::metrics::{self, Counters};

/// Maximum length of a line in bytes. The greeting and most responses are much shorter, those with counters are the longest.
const MAX_LINE: u64 = 256 << 10;

/// The state of the machine. QEMU sends the greeting before the machine is created, from another thread, but executes commands only after.
pub(super) async fn state(stream: UnixStream) -> io::Result<GuestState> {
    let mut monitor = Monitor::open(stream).await?;
    let answer = monitor.execute("query-status").await?;
    let status = answer.get("status").and_then(Value::as_str);
    Ok(match status.unwrap_or_default() {
        "prelaunch" | "inmigrate" => GuestState::Starting,
        "paused" | "suspended" | "debug" | "io-error" => GuestState::Paused,
        "shutdown" | "guest-panicked" | "internal-error" => GuestState::Ended,
        _ => GuestState::Running,
    })
}

pub(super) async fn send(stream: UnixStream, order: Command) -> io::Result<()> {
    let command = match order {
        Command::PowerDown => "system_powerdown",
        Command::Pause => "stop",
        Command::Resume => "cont",
    };
    Monitor::open(stream)
        .await?
        .execute(command)
        .await
        .map(drop)
}

/// Counters of each block device and of KVM; QEMU has no others. Those of KVM depend on the kernel of the host.
pub(super) async fn metrics(stream: UnixStream) -> io::Result<Counters> {
    let mut monitor = Monitor::open(stream).await?;
    let mut counters = Counters::new();
    let result = monitor.execute("query-blockstats").await?;
    for (place, device) in list(&result).iter().enumerate() {
        let name =
            ["device", "node-name", "qdev"].map(|key| device.get(key).and_then(Value::as_str));
        let name = name.into_iter().flatten().find(|name| !name.is_empty());
        let name = name.map_or_else(|| place.to_string(), str::to_owned);
        if let Some(stats) = device.get("stats") {
            metrics::collect(&mut counters, &format!("block.{name}"), stats);
        }
    }
    for target in ["vm", "vcpu"] {
        let arguments = json!({ "target": target });
        let response = monitor.execute_with("query-stats", Some(arguments)).await?;
        for (place, provided) in list(&response).iter().enumerate() {
            let source = match target {
                "vcpu" => format!("vcpu{place}"),
                _ => "vm".to_owned(),
            };
            for stat in list(provided.get("stats").unwrap_or(&Value::Null)) {
                if let (Some(name), Some(value)) =
                    (stat.get("name").and_then(Value::as_str), stat.get("value"))
                {
                    metrics::collect(&mut counters, &format!("{source}.{name}"), value);
                }
            }
        }
    }
    Ok(counters)
}

fn list(result: &Value) -> &[Value] {
    result.as_array().map_or(&[], Vec::as_slice)
}

struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Reads the greeting and leaves the negotiation mode.
    async fn open(stream: UnixStream) -> io::Result<Self> {
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.read_message().await?;
        monitor.execute("qmp_capabilities").await?;
        Ok(monitor)
    }

    /// Sends a command and waits for its response; events are ignored.
    async fn execute(&mut self, command: &str) -> io::Result<Value> {
        self.execute_with(command, None).await
    }

    async fn execute_with(&mut self, command: &str, arguments: Option<Value>) -> io::Result<Value> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let text = format!("{request}\n");
        self.stream.get_mut().write_all(text.as_bytes()).await?;
        loop {
            let mut answer = self.read_message().await?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }

    async fn read_message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        let mut bounded = (&mut self.stream).take(MAX_LINE);
        match bounded.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
