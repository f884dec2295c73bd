//! Waits for the end of a VMM; meanwhile rotates its log.
//! Out of scope: evaluating the exit.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::{CONSOLE, CONSOLE_OLD, LOG_LIMIT};
use crate::host::process::{self, Identity, ProcessState};
use crate::host::{Error, fs};

/// Interval between checks of a log's length.
const LOG_STEP: Duration = Duration::from_secs(30);

/// Returns when this process has ended. Meanwhile the log in `dir` is rotated when it is half full. Cancel safe.
pub async fn watch(identity: &Identity, dir: &Path) -> Result<(), Error> {
    let ProcessState::Alive(process) = process::open(identity)? else {
        return Ok(());
    };
    let ended = process.ended();
    tokio::pin!(ended);
    loop {
        match tokio::time::timeout(LOG_STEP, &mut ended).await {
            Ok(result) => return result,
            Err(_) => {
                // A VMM that was started by an earlier version has its log in the parent directory.
                for dir in [Some(dir), dir.parent()].into_iter().flatten() {
                    if let Err(error) = rotate(dir) {
                        tracing::debug!(%error, "a VMM's log cannot be rotated");
                    }
                }
            }
        }
    }
}

/// Rotates a log that is more than half full: the end of its text is copied to `console.log.1`, then the log is truncated. Its writers
/// append, so they continue at its start. Output between copy and truncation is lost; no process copies the output.
pub fn rotate(dir: &Path) -> Result<(), Error> {
    let path = dir.join(CONSOLE);
    let wrap = |error| Error::io("rotate", path.display().to_string(), error);
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() > LOG_LIMIT / 2 => {}
        _ => return Ok(()),
    }
    let text = end_of(&path).map_err(wrap)?;
    let old = dir.join(CONSOLE_OLD);
    let write_old = || fs::write(&old, &text, 0o640, fs::Durability::Process);
    let written = write_old();
    truncate(&path).map_err(wrap)?;
    // The log may have filled the directory, which has free space now.
    written.or_else(|_| write_old())
}

/// The last [`LOG_LIMIT`] bytes. A log can be longer than its limit if the VMM has disks, which may be larger.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::open_regular(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

fn truncate(path: &Path) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?
        .set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_a_log_that_is_too_long_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(CONSOLE);
        let mut text = vec![b'a'; 3 << 20];
        text.extend(b"the end");
        std::fs::write(&log, &text).unwrap();
        rotate(dir.path()).unwrap();
        let kept = std::fs::read(dir.path().join(CONSOLE_OLD)).unwrap();
        assert_eq!(kept.len() as u64, LOG_LIMIT);
        assert!(kept.ends_with(b"the end"));
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    }
}
