//! Comes back when a VMM has ended; keeps its log short meanwhile.
//! Not here: what happens then.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::{CONSOLE, CONSOLE_OLD, LOG_LIMIT};
use crate::host::Error;
use crate::host::fs;
use crate::host::process::{self, Identity, Life};

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
                if let Err(error) = rotate(dir) {
                    tracing::debug!(%error, "a VMM's log cannot be rotated");
                }
            }
        }
    }
}

/// Moves a log that is more than half full aside: its text to `console.log.1`, then it is emptied. Its writers append, so they
/// go on at its start. What is written between copy and truncation is lost: the price of a log without a pump.
pub fn rotate(dir: &Path) -> Result<(), Error> {
    let path = dir.join(CONSOLE);
    let wrap = |error| Error::io("rotate", path.display().to_string(), error);
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() > LOG_LIMIT / 2 => {}
        _ => return Ok(()),
    }
    let mut text = Vec::new();
    fs::open_plain(&path)
        .and_then(|file| file.take(LOG_LIMIT).read_to_end(&mut text))
        .map_err(wrap)?;
    fs::write(
        &dir.join(CONSOLE_OLD),
        &text,
        0o640,
        fs::Durability::Process,
    )?;
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .and_then(|file| file.set_len(0))
        .map_err(wrap)
}
