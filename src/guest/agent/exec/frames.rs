//! Frames of commands, and how output is encoded in them.
//! Out of scope: their order.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;

use crate::guest::agent::process::{Ending, Process};
use crate::guest::protocol::{Encoding, Frame, FrameKind};

/// Output as it is written in JSON.
pub fn encode(data: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Text => String::from_utf8_lossy(data).into_owned(),
        Encoding::Base64 => STANDARD.encode(data),
    }
}

/// The value of `encoding`, which is absent for text.
pub fn encoding_field(encoding: Encoding) -> Option<Encoding> {
    (encoding != Encoding::Text).then_some(encoding)
}

/// The first frame.
pub fn started(id: &str, process: &Process) -> Frame {
    let mut frame = Frame::new(FrameKind::Started, process.started_at);
    frame.exec_id = Some(id.to_owned());
    frame.pid = Some(process.pid());
    frame.started_at = Some(process.started_at);
    frame
}

/// Output. `kind` is [`FrameKind::Stdout`] or [`FrameKind::Stderr`].
pub fn output(kind: FrameKind, data: &[u8], encoding: Encoding, at: Timestamp) -> Frame {
    let mut frame = Frame::new(kind, at);
    frame.encoding = encoding_field(encoding);
    let text = Some(encode(data, encoding));
    match kind {
        FrameKind::Stderr => frame.stderr = text,
        _ => frame.stdout = text,
    }
    frame
}

/// The last frame.
pub fn exit(ending: &Ending) -> Frame {
    let mut frame = Frame::new(FrameKind::Exit, ending.ended_at);
    frame.exit_code = Some(ending.exit_code);
    frame.signal = ending.signal.clone();
    frame.ended_at = Some(ending.ended_at);
    frame
}

/// The frame as a line.
pub fn line(frame: &Frame) -> Bytes {
    // Strings and numbers are always JSON.
    let mut line = serde_json::to_vec(frame).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
