//! The serial console of a VM.
//! Out of scope: its output before, except for the last lines.
//!
//! The terminal of the client executes all escape sequences of the guest, as it does with `slicectl console`.

use bytes::Bytes;
use futures::StreamExt;

use super::agent::sentence;
use super::channel::{Gone, Parts};
use super::visitor::FAILED;
use crate::api::meta::Name;
use crate::wire::backend::{LogOutput, LogStart};
use crate::wire::{Backend, StreamMode};

/// The number of lines of earlier output.
const LINES: usize = 10;

/// The key that leaves: Ctrl-].
const LEAVE: u8 = 0x1d;

/// The maximum number of keys that are written at once, below `PIPE_BUF` (pipe(7)).
const KEYS: usize = 1024;

/// The maximum size of a packet with output, in bytes.
const CHUNK: usize = 32 << 10;

/// Connects the channel to the console, and ends the channel.
pub async fn run<B: Backend>(backend: &B, vm: &Name, mut parts: Parts) {
    match connect(backend, vm, &mut parts).await {
        Ok(Ok(())) => parts.output.exit(0).await,
        Ok(Err(text)) => {
            let _ = parts.output.message(&text).await;
            parts.output.exit(FAILED).await;
        }
        Err(Gone) => {}
    }
}

/// Connects the channel to the console until the client leaves. The inner error is one sentence.
pub async fn connect<B: Backend>(
    backend: &B,
    vm: &Name,
    parts: &mut Parts,
) -> Result<Result<(), String>, Gone> {
    // Reports errors before anything is shown.
    if let Err(refusal) = backend.write_console(vm.clone(), Bytes::new()).await {
        return Ok(Err(sentence(refusal)));
    }
    let lines = LogStart::LastLines(LINES);
    let output = match backend.logs(vm.clone(), lines, StreamMode::Follow).await {
        Ok(LogOutput { bytes, .. }) => bytes,
        Err(refusal) => return Ok(Err(sentence(refusal))),
    };
    tokio::pin!(output);
    if parts.terminal.is_some() {
        let text = format!("connected to {vm}; Ctrl-] leaves\r\n");
        parts.output.data(text.into()).await?;
    }
    loop {
        tokio::select! {
            chunk = output.next() => match chunk {
                Some(Ok(mut bytes)) => while !bytes.is_empty() {
                    let part = bytes.split_to(bytes.len().min(CHUNK));
                    parts.output.data(part).await?;
                },
                Some(Err(error)) => return Ok(Err(format!("cannot read the console of vm/{vm}: {error}"))),
                None => return Ok(Ok(())),
            },
            keys = parts.input.next() => {
                let Some(keys) = keys else { return Ok(Ok(())) };
                let end = keys.iter().position(|&key| key == LEAVE);
                for part in keys[..end.unwrap_or(keys.len())].chunks(KEYS) {
                    let part = Bytes::copy_from_slice(part);
                    if let Err(refusal) = backend.write_console(vm.clone(), part).await {
                        return Ok(Err(sentence(refusal)));
                    }
                }
                if end.is_some() {
                    return Ok(Ok(()));
                }
            }
        }
    }
}
