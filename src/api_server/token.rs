//! The file with the token: created at the first start, read afterwards.
//! Out of scope: requests with a token ([`crate::wire::auth`]).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::host::fs::{self, Durability};
use crate::host::key_file::{self, Access};
use crate::wire::Token;

/// The maximum size of the file, in bytes.
const MAX_FILE: u64 = 4096;

/// The size of a new token, in bytes.
const SIZE: usize = 32;

/// The token in a file, which is created if it does not exist.
///
/// # Errors
/// The file has no token, is accessible to others, or cannot be read or written. The text contains nothing of the file.
pub fn load(path: &Path) -> Result<Token, String> {
    match read(path)? {
        Some(token) => Ok(token),
        None => create(path),
    }
}

fn read(path: &Path) -> Result<Option<Token>, String> {
    let fail = |why: &str| format!("cannot use the token file {}: {why}", path.display());
    let read = key_file::read(path, Access::Owner, MAX_FILE);
    let Some(bytes) = read.map_err(|error| fail(&error.to_string()))? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| fail("it is not a text"))?;
    let token = text.trim_ascii().parse::<Token>();
    token
        .map(Some)
        .map_err(|error| fail(&format!("{error}; remove it for a new token")))
}

fn create(path: &Path) -> Result<Token, String> {
    let fail = |why: String| format!("cannot create the token file {}: {why}", path.display());
    let bytes = key_file::random::<SIZE>().map_err(|error| fail(error.to_string()))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    if let Some(dir) = path.parent() {
        // Of the default path, only the last directory may be missing; an existing one keeps its mode.
        let created = DirBuilder::new().mode(0o700).create(dir);
        match created {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(fail(error.to_string()));
            }
            _ => {}
        }
    }
    let line = format!("{text}\n");
    fs::write(path, line.as_bytes(), 0o600, Durability::Disk).map_err(|error| error.to_string())?;
    text.parse()
        .map_err(|error: crate::wire::auth::InvalidToken| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_token_is_created_once_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api/token");
        let first = load(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        let parent = path.parent().unwrap();
        assert_eq!(parent.metadata().unwrap().mode() & 0o7777, 0o700);
        assert_eq!(load(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(parent).unwrap().count(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim().len(), 43, "32 bytes in base64");
        let other = load(&dir.path().join("other")).unwrap();
        assert_ne!(first, other);
    }

    #[test]
    fn a_file_without_a_token_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let long = vec![b'x'; 5000];
        for (bytes, mode, expected) in [
            (&b""[..], 0o600, "it is empty"),
            (b"\n \n", 0o600, "it is empty"),
            (b"hunter2", 0o600, "it has 7 characters"),
            (
                b"hunter2 hunter2 hunter2",
                0o600,
                "it has characters other than",
            ),
            (
                b"hunter2\0hunter2hunter2",
                0o600,
                "it has characters other than",
            ),
            (b"hunter2hunter2hunter2\xff", 0o600, "it is not a text"),
            (&long, 0o600, "it is larger than 4096 bytes"),
            (
                b"hunter2hunter2hunter2",
                0o644,
                "others may access it (mode 0644)",
            ),
            (
                b"hunter2hunter2hunter2",
                0o640,
                "others may access it (mode 0640)",
            ),
            (
                b"hunter2hunter2hunter2",
                0o602,
                "others may access it (mode 0602)",
            ),
        ] {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(load(&path).is_ok());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load(&path).unwrap_err().contains("not a file"));
        let deep = dir.path().join("a/b/c");
        assert!(load(&deep).unwrap_err().contains("cannot create"));
    }
}
