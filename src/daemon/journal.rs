//! The log in the format of systemd's journal, with priorities and fields, when standard error is connected to the journal.
//! Out of scope: what is logged; writing it (`log`).
//!
//! The format is that of the "Native Journal Protocol" of systemd: one datagram for each entry, one line for each field.

use std::fmt::{Debug, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::log::{JOURNAL_SOCKET, Log};
use crate::api::event::{Event, EventType};
use crate::store::Events;

/// The maximum length of a field in bytes: an entry must fit into a datagram (`net.core.wmem_default`, 208 KiB).
const MAX_FIELD: usize = 16 << 10;

/// The maximum number of fields of a log call that are passed on.
const MAX_FIELDS: usize = 8;

/// The log, if it is written to the journal.
static JOURNAL: OnceLock<Log> = OnceLock::new();

/// Whether standard error is connected to the journal, and its socket can be used (systemd.exec(5), `JOURNAL_STREAM`).
pub(super) fn is_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let is_same = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stderr| format!("{}:{}", stderr.st_dev, stderr.st_ino) == stream);
    let probe = UnixDatagram::unbound();
    is_same && probe.is_ok_and(|socket| socket.connect(Path::new(JOURNAL_SOCKET)).is_ok())
}

/// Installs the log of this process.
pub(super) fn log(filter: EnvFilter, log: Log) {
    let layer = JournalLayer {
        log: JOURNAL.get_or_init(|| log).clone(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .init();
}

/// Writes events to the journal, if this process logs to it: events are kept in memory only, the journal keeps them longer.
pub(super) fn forward_events(events: &Events) -> Option<AbortOnDropHandle<()>> {
    let log = JOURNAL.get()?.clone();
    let mut new = events.watch();
    events.all().iter().for_each(|event| log.entry(of(event)));
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            match new.recv().await {
                // An event that is repeated again and again is written less and less often.
                Ok(event) if event.count.is_power_of_two() => log.entry(of(&event)),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    })))
}

fn of(event: &Event) -> Vec<u8> {
    let priority = match event.kind {
        EventType::Normal => INFO,
        EventType::Warning => WARNING,
    };
    let (object, reason) = (event.object.to_string(), event.reason.to_string());
    let mut entry = Entry::new(priority);
    entry.field("MESSAGE", &format!("{object}: {reason}: {}", event.message));
    entry.field("OBJECT", &object);
    entry.field("REASON", &reason);
    entry.field("COUNT", &event.count.to_string());
    entry.0
}

/// Priorities (syslog(3)).
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;
const DEBUG: u8 = 7;

/// An entry in the native format.
struct Entry(Vec<u8>);

impl Entry {
    fn new(priority: u8) -> Self {
        let mut entry = Self(Vec::new());
        entry.field("PRIORITY", &priority.to_string());
        entry.field("SYSLOG_IDENTIFIER", "sliced");
        entry
    }

    fn field(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(MAX_FIELD);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value[..end];
        self.0.extend(name.as_bytes());
        match value.contains('\n') {
            false => self.0.push(b'='),
            true => {
                self.0.push(b'\n');
                self.0.extend((value.len() as u64).to_le_bytes());
            }
        }
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }
}

/// Turns log calls into entries.
struct JournalLayer {
    log: Log,
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, call: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        call.record(&mut fields);
        let priority = match *call.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => WARNING,
            Level::INFO => INFO,
            Level::DEBUG | Level::TRACE => DEBUG,
        };
        let mut entry = Entry::new(priority);
        entry.field("MESSAGE", &fields.text());
        for (name, value) in fields.others.iter().take(MAX_FIELDS) {
            entry.field(&field_name(name), value);
            match *name {
                "vm" => entry.field("OBJECT", &format!("vm/{value}")),
                "group" => entry.field("OBJECT", &format!("hostgroup/{value}")),
                _ => {}
            }
        }
        self.log.entry(entry.0);
    }
}

/// `SLICE_` and the name in upper case: at most 64 of `A-Z0-9_` (systemd.journal-fields(7)).
fn field_name(name: &str) -> String {
    let upper = name.chars().take(58).map(|found| match found {
        'a'..='z' | 'A'..='Z' | '0'..='9' => found.to_ascii_uppercase(),
        _ => '_',
    });
    format!("SLICE_{}", upper.collect::<String>())
}

/// The message of a log call and its other fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    /// As the log on a terminal: `message key=value`.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.others {
            // Writing to a string does not fail.
            let _ = write!(text, " {name}={value}");
        }
        text
    }

    fn push(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_one_line_or_has_its_length() {
        let mut entry = Entry(Vec::new());
        entry.field("A", "x=y");
        entry.field("B", "two\nlines");
        entry.field("C", "");
        let expected = [&b"A=x=y\nB\n\x09\0\0\0\0\0\0\0two\nlines\n"[..], b"C=\n"].concat();
        assert_eq!(entry.0, expected);
    }

    #[test]
    fn a_long_field_is_cut_at_a_character() {
        let mut entry = Entry(Vec::new());
        entry.field("A", &"é".repeat(MAX_FIELD));
        assert_eq!(entry.0.len(), MAX_FIELD + 3);
        let mut entry = Entry(Vec::new());
        entry.field("A", &format!("x{}", "é".repeat(MAX_FIELD)));
        assert_eq!(entry.0.len(), MAX_FIELD + 2);
    }

    #[test]
    fn names_of_fields_are_valid() {
        for (name, expected) in [
            ("error", "SLICE_ERROR"),
            ("log.target", "SLICE_LOG_TARGET"),
            ("ünï", "SLICE__N_"),
        ] {
            assert_eq!(field_name(name), expected);
        }
        assert_eq!(field_name(&"x".repeat(100)).len(), 64);
    }
}
