//! Whether the userdata has run in this guest, on its disk: it is run at most once, also if the guest loses power while it runs.
//! Out of scope: running it.
//!
//! The record is written before the userdata starts, and again when it has ended. Other products read and write `/etc/slicer/userdata-ran`,
//! which contains the exit status, so it counts too. A guest with a disk that cannot be written has its record in `/run`: it runs the userdata
//! at each boot, as one without a disk does.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{read_small, write_durable};
use super::place::Place;
use crate::guest::agent::error::reason;
use crate::guest::protocol::{UserdataState, UserdataStatus};

const RECORDS: [&str; 2] = [
    "var/lib/slice-agent/userdata.json",
    "run/slice/userdata.json",
];
const MARKER: &str = "etc/slicer/userdata-ran";

const LIMIT: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// `false` while it runs.
    ended: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
}

fn failed(exit_code: Option<i32>) -> UserdataStatus {
    UserdataStatus {
        state: UserdataState::Failed,
        exit_code,
        signal: None,
    }
}

/// The state of an earlier run. What cannot be read was a run: it is not repeated.
pub fn load(place: &Place) -> UserdataStatus {
    for path in RECORDS {
        match read_small(&place.at(path), LIMIT) {
            Ok(None) => {}
            Ok(Some(bytes)) => return of_record(&bytes),
            Err(_) => return failed(None),
        }
    }
    match read_small(&place.at(MARKER), LIMIT) {
        Ok(None) => UserdataStatus::default(),
        Ok(Some(bytes)) => of_marker(&bytes),
        Err(_) => failed(None),
    }
}

fn of_record(bytes: &[u8]) -> UserdataStatus {
    match serde_json::from_slice(bytes) {
        Ok(Record {
            ended: true,
            exit_code,
            signal,
        }) => UserdataStatus {
            state: match exit_code {
                Some(0) => UserdataState::Succeeded,
                _ => UserdataState::Failed,
            },
            exit_code,
            signal,
        },
        // It was interrupted.
        Ok(Record { ended: false, .. }) | Err(_) => failed(None),
    }
}

fn of_marker(bytes: &[u8]) -> UserdataStatus {
    let text = String::from_utf8_lossy(bytes);
    match text.trim().parse() {
        Ok(code) if code != 0 => failed(Some(code)),
        // Earlier versions of the other product write no status.
        parsed => UserdataStatus {
            state: UserdataState::Succeeded,
            exit_code: parsed.ok(),
            signal: None,
        },
    }
}

/// Records the start. Returns the path of the record.
///
/// # Errors
/// It cannot be recorded anywhere, as a sentence.
pub fn begin(place: &Place) -> Result<PathBuf, String> {
    let record = Record {
        ended: false,
        exit_code: None,
        signal: None,
    };
    let mut failed = None;
    for path in RECORDS.map(|path| place.at(path)) {
        match write(&path, &record) {
            Ok(()) => return Ok(path),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let why = failed.map(|error| reason(&error)).unwrap_or_default();
    Err(format!("cannot record the start of the userdata: {why}"))
}

/// Records the end. The marker of other products is written where the file system permits it.
///
/// # Errors
/// The record cannot be written.
pub fn end(place: &Place, path: &std::path::Path, status: &UserdataStatus) -> io::Result<()> {
    let record = Record {
        ended: true,
        exit_code: status.exit_code,
        signal: status.signal.clone(),
    };
    write(path, &record)?;
    let code = status.exit_code.unwrap_or(255);
    let _ = write_durable(&place.at(MARKER), format!("{code}\n").as_bytes(), 0o644);
    Ok(())
}

fn write(path: &std::path::Path, record: &Record) -> io::Result<()> {
    write_durable(path, &serde_json::to_vec(record)?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_begun_counts_as_run() {
        use UserdataState::{Failed, None as Never, Succeeded};
        let record = RECORDS[0];
        for (path, content, state, code) in [
            (record, "", Failed, None),
            (record, "{\"ended\":false}", Failed, None),
            (
                record,
                "{\"ended\":true,\"exit_code\":0}",
                Succeeded,
                Some(0),
            ),
            (record, "{\"ended\":true,\"exit_code\":3}", Failed, Some(3)),
            (record, "garbage", Failed, None),
            (RECORDS[1], "{\"ended\":false}", Failed, None),
            (MARKER, "", Succeeded, None),
            (MARKER, "0\n", Succeeded, Some(0)),
            (MARKER, "3\n", Failed, Some(3)),
            (MARKER, "ran", Succeeded, None),
            ("etc/unrelated", "", Never, None),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            let place = Place::directory(root.path().to_owned());
            let file = place.at(path);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("created");
            std::fs::write(&file, content).expect("written");
            let found = load(&place);
            assert_eq!(
                (found.state, found.exit_code),
                (state, code),
                "{path}: {content}"
            );
        }
    }

    #[test]
    fn a_link_in_place_of_the_record_is_no_permission_to_run_again() {
        let root = tempfile::tempdir().expect("a directory");
        let place = Place::directory(root.path().to_owned());
        std::fs::create_dir_all(place.at("etc/slicer")).expect("created");
        std::os::unix::fs::symlink("/nowhere", place.at(MARKER)).expect("a link");
        assert_eq!(load(&place).state, UserdataState::Failed);
    }
}
