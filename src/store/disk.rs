//! sled: opening a database, reading its content, and classifying errors as damage or as failures of the system.
//! Out of scope: the meaning of keys; writing ([`super::database`]).

use std::any::Any;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// How long to wait for a database that another process is closing.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(50);
const LOCK_ATTEMPTS: u128 = LOCK_PATIENCE.as_millis() / LOCK_POLL.as_millis();

/// Bytes of a segment of the log, in new databases.
///
/// sled reuses a segment once its content was copied elsewhere, at least two segment lengths of log earlier. Acknowledged data must
/// not be overwritten before its copy is synced, so a batch must be much smaller than two segments.
const SEGMENT: usize = 2 << 20;

/// The database.
pub(super) type Raw = sled::Db;

/// A key with its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Another process has it open.
    #[error("another sliced is using it; give each daemon its own --state-dir")]
    InUse,
    /// It may be undamaged: the system could not read it, or this program does not support its format.
    #[error("{0}")]
    Refused(String),
    /// Its content is not what was written.
    #[error("{0}")]
    Damaged(String),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Opens or creates a database. If the lock is held, sled returns an I/O error with a message of its own, not `WouldBlock`.
pub(super) fn open(path: &Path) -> Result<Raw, OpenError> {
    let segment = segment_size(path)?;
    for _ in 0..LOCK_ATTEMPTS {
        let opened = catch_unwind(|| {
            sled::Config::new()
                .path(path)
                .segment_size(segment)
                .cache_capacity(8 << 20)
                .flush_every_ms(None)
                .open()
        });
        match opened {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_POLL);
            }
            Ok(Err(error)) => return Err(classify(&error)),
            Err(panic) => return Err(classify_panic(&*panic)),
        }
    }
    Err(OpenError::InUse)
}

/// All keys and values.
pub(super) fn content(db: &Raw) -> Result<Vec<Pair>, OpenError> {
    let read = AssertUnwindSafe(|| {
        db.iter()
            .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<Result<Vec<Pair>, sled::Error>>()
    });
    match catch_unwind(read) {
        Ok(Ok(pairs)) => Ok(pairs),
        Ok(Err(error)) => Err(classify(&error)),
        Err(panic) => Err(classify_panic(&*panic)),
    }
}

/// Locks the database against other processes while its files are read without sled.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let file = File::open(path.join("db"))?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Err(OpenError::InUse)
}

/// The segment size of an existing database: sled refuses to open it with another one.
fn segment_size(path: &Path) -> Result<usize, OpenError> {
    let text = match std::fs::read(path.join("conf")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SEGMENT),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&text);
    let size = text
        .lines()
        .find_map(|line| line.strip_prefix("segment_size: ")?.parse().ok());
    // sled panics if the size is out of range.
    let is_valid = |size: &usize| size.is_power_of_two() && (64 << 10..=16 << 20).contains(size);
    Ok(size.filter(is_valid).unwrap_or(SEGMENT))
}

fn classify(error: &sled::Error) -> OpenError {
    match error {
        sled::Error::Io(io) if is_system_error(io.raw_os_error(), &io.to_string()) => {
            OpenError::Refused(io.to_string())
        }
        error => OpenError::Damaged(error.to_string()),
    }
}

/// Classifies a panic: sled 0.34 panics on some damaged files and on some I/O errors.
fn classify_panic(panic: &(dyn Any + Send)) -> OpenError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    match is_system_error(None, text) {
        true => OpenError::Refused(text.to_owned()),
        false => OpenError::Damaged("its files are damaged".into()),
    }
}

/// Whether an error comes from the system and is not a consequence of damage. sled returns some errors only as text:
/// `Os { code: 5, ... }`.
fn is_system_error(code: Option<i32>, text: &str) -> bool {
    let code_in_text = || {
        let (_, after) = text.split_once("code: ")?;
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    match code.or_else(code_in_text) {
        None => false,
        // An invalid pointer in the log: to a missing file of a large value, or beyond the maximum file size.
        Some(libc::ENOENT | libc::EINVAL | libc::EFBIG | libc::EOVERFLOW) => false,
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{OpenError, classify, classify_panic};

    #[test]
    fn an_io_error_is_not_damage_in_whatever_form_sled_returns_it() {
        let errors = [
            libc::EIO,
            libc::EACCES,
            libc::EPERM,
            libc::ENOSPC,
            libc::EDQUOT,
            libc::EMFILE,
            libc::ENFILE,
            libc::EROFS,
            libc::ENOMEM,
            libc::EISDIR,
            libc::ENOTDIR,
            libc::ELOOP,
            libc::ESTALE,
        ];
        for code in errors {
            let direct = || io::Error::from_raw_os_error(code);
            let passed_on = io::Error::new(direct().kind(), format!("{:?}", direct()));
            for error in [direct(), passed_on] {
                let classified = classify(&sled::Error::Io(error));
                assert!(matches!(classified, OpenError::Refused(_)), "{classified}");
            }
            let text = format!(
                "called `Result::unwrap()` on an `Err` value: Io({:?})",
                direct()
            );
            let classified = classify_panic(&text);
            assert!(matches!(classified, OpenError::Refused(_)), "{classified}");
        }
    }

    #[test]
    fn errors_caused_by_damaged_pointers_and_lengths_are_damage() {
        for code in [libc::ENOENT, libc::EINVAL, libc::EFBIG] {
            let classified = classify(&sled::Error::Io(io::Error::from_raw_os_error(code)));
            assert!(matches!(classified, OpenError::Damaged(_)), "{classified}");
        }
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, "failed to fill whole buffer");
        assert!(matches!(
            classify(&sled::Error::Io(short)),
            OpenError::Damaged(_)
        ));
        assert!(matches!(
            classify_panic(&"assertion failed: lsn % 2"),
            OpenError::Damaged(_)
        ));
    }
}
