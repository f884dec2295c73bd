//! The log in the journal: entries with priorities and fields at the journal's socket, if standard error is connected to the journal.
//! Out of scope: the log on standard error (`service`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use test_support::harness::{Harness, empty, slots};

const SOCKET: &str = "/run/systemd/journal/socket";

/// A socket in place of the journal's, in the private `/run`.
fn journal() -> UnixDatagram {
    fs::create_dir_all("/run/systemd/journal").expect("a directory");
    let socket = UnixDatagram::bind(SOCKET).expect("a socket");
    let pause = Some(Duration::from_millis(300));
    socket.set_read_timeout(pause).expect("a timeout");
    socket
}

/// `JOURNAL_STREAM` of a daemon whose standard error is the log of this harness.
fn stream(harness: &Harness) -> String {
    let log = File::create(harness.dir.path().join("log")).expect("a log");
    let meta = log.metadata().expect("its inode");
    format!("{}:{}", meta.dev(), meta.ino())
}

/// The entries that arrive until none does for a while.
fn entries(socket: &UnixDatagram) -> Vec<BTreeMap<String, String>> {
    let mut datagram = vec![0; 1 << 20];
    let mut found = Vec::new();
    while let Ok(length) = socket.recv(&mut datagram) {
        let text = String::from_utf8(datagram[..length].to_vec()).expect("UTF-8");
        let fields = text.lines().map(|line| {
            let (name, value) = line.split_once('=').expect("a field");
            (name.to_owned(), value.to_owned())
        });
        found.push(fields.collect());
    }
    found
}

#[test]
fn entries_have_priorities_and_those_of_events_have_object_and_reason() {
    empty(|mut harness| {
        let socket = journal();
        harness.env.push(("JOURNAL_STREAM", stream(&harness)));
        harness.start();
        harness.save("bad.yaml", "config: {host_groups: 7}\n");
        harness.save("sandbox.yaml", &slots(1, ""));
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        harness.until("the event", || {
            harness
                .messages("manifest/bad.yaml", "ManifestInvalid")
                .pop()
        });
        let entries = entries(&socket);
        let of = |pairs: &[(&str, &str)]| {
            let all = |entry: &&BTreeMap<String, String>| {
                let mut pairs = pairs.iter();
                pairs.all(|(name, value)| entry.get(*name).is_some_and(|found| found == value))
            };
            entries.iter().filter(all).count()
        };
        for (fields, count) in [
            (
                &[
                    ("OBJECT", "hostgroup/sandbox"),
                    ("REASON", "Created"),
                    ("PRIORITY", "6"),
                ][..],
                1,
            ),
            (
                &[
                    ("OBJECT", "vm/sandbox-1"),
                    ("REASON", "Ready"),
                    ("PRIORITY", "6"),
                    ("COUNT", "1"),
                ],
                1,
            ),
            (
                &[
                    ("OBJECT", "manifest/bad.yaml"),
                    ("REASON", "ManifestInvalid"),
                    ("PRIORITY", "4"),
                ],
                1,
            ),
            (
                &[
                    ("OBJECT", "hostgroup/sandbox"),
                    ("SLICE_GROUP", "sandbox"),
                    ("PRIORITY", "6"),
                ],
                1,
            ),
            (&[("SYSLOG_IDENTIFIER", "sliced")], entries.len()),
        ] {
            assert_eq!(of(fields), count, "{fields:?}: {entries:#?}");
        }
        let ready = entries
            .iter()
            .filter(|entry| entry["MESSAGE"].starts_with("ready socket="));
        assert_eq!(ready.count(), 1, "{entries:#?}");
        assert_eq!(harness.log(), "", "nothing is logged twice");
    });
}

/// The value of `JOURNAL_STREAM`.
type Stream = fn(&Harness) -> String;

#[test]
fn a_standard_error_that_is_not_the_journal_gets_the_log_as_text() {
    let other = |harness: &Harness| stream(harness).replace(':', ":1");
    let cases: [(&str, Stream, bool); 4] = [
        ("another inode", other, true),
        ("no number", |_| "journal".to_owned(), true),
        ("empty", |_| String::new(), true),
        ("no socket", stream, false),
    ];
    for (name, stream, has_socket) in cases {
        empty(|mut harness| {
            let socket = has_socket.then(journal);
            harness.env.push(("JOURNAL_STREAM", stream(&harness)));
            harness.start();
            assert!(
                harness.log().contains("starting"),
                "{name}: {}",
                harness.log()
            );
            if let Some(socket) = socket {
                assert!(entries(&socket).is_empty(), "{name}");
            }
        });
    }
}

/// The socket's queue in the kernel holds a few entries; only the thread of the log waits when it is full.
#[test]
fn a_journal_that_does_not_read_delays_nothing() {
    empty(|mut harness| {
        let _socket = journal();
        harness.env.push(("JOURNAL_STREAM", stream(&harness)));
        harness.start();
        for count in [20, 5, 30] {
            harness.apply(&slots(count, ""));
        }
        assert_eq!(harness.vms().len(), 30);
        let (status, took) = harness.stop();
        assert!(status.success());
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}
