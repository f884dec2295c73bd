//! Comes back when a VMM has ended; keeps its log short meanwhile.
//! Out of scope: what happens then.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::{CONSOLE, CONSOLE_OLD, LOG_LIMIT};
use crate::host::process::{self, Identity, Life};
use crate::host::{Error, fs};

/// How often a log's length is looked at.
const LOG_STEP: Duration = Duration::from_secs(30);

/// Comes back when this process has ended (at once, if it has already). Meanwhile the log in `dir` is rotated when it is half full.
/// Safe to drop at any moment.
pub async fn watch(identity: &Identity, dir: &Path) -> Result<(), Error> {
    let Life::Alive(process) = process::look(identity)? else {
        return Ok(());
    };
    let ended = process.ended();
    tokio::pin!(ended);
    loop {
        match tokio::time::timeout(LOG_STEP, &mut ended).await {
            Ok(result) => return result,
            Err(_) => {
                // One from before VMMs had directories of their own has its log in the one above.
                for dir in [Some(dir), dir.parent()].into_iter().flatten() {
                    if let Err(error) = rotate(dir) {
                        tracing::debug!(%error, "a VMM's log cannot be rotated");
                    }
                }
            }
        }
    }
}

/// Moves a log that is more than half full aside: the end of its text to `console.log.1`, then it is emptied. Its writers append, so they
/// go on at its start. What is written between copy and truncation is lost: the price of a log without a pump.
pub fn rotate(dir: &Path) -> Result<(), Error> {
    let path = dir.join(CONSOLE);
    let wrap = |error| Error::io("rotate", path.display().to_string(), error);
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() > LOG_LIMIT / 2 => {}
        _ => return Ok(()),
    }
    let text = end_of(&path).map_err(wrap)?;
    let old = dir.join(CONSOLE_OLD);
    let keep = || fs::write(&old, &text, 0o640, fs::Durability::Process);
    let kept = keep();
    empty(&path).map_err(wrap)?;
    // It may have filled its directory: now there is room.
    kept.or_else(|_| keep())
}

/// A log can be longer than its limit where the VMM may make longer files, its disks.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::open_plain(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

fn empty(path: &Path) -> std::io::Result<()> {
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
    fn of_a_log_that_is_too_long_the_end_is_kept() {
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
