//! The private key of the server: created at the first start, read afterwards.
//! Out of scope: keys of users.
//!
//! Clients remember the key, so a key that cannot be read is an error and never replaced by a new one.

use std::path::Path;

use russh::keys::ssh_key::{LineEnding, private::Ed25519Keypair};
use russh::keys::{Algorithm, HashAlg, PrivateKey};

use crate::host::fs::{self, Durability};
use crate::host::key_file::{self, Access};

/// The maximum size of the file, in bytes. A key of RSA with 16,384 bits has about 13,000.
const MAX_FILE: u64 = 64 << 10;

/// The key in a file, which is created if it does not exist.
///
/// # Errors
/// The file is no key, is accessible to others, or cannot be read or written. The text contains nothing of the file.
pub fn load(path: &Path) -> Result<PrivateKey, String> {
    match read(path)? {
        Some(key) => Ok(key),
        None => create(path),
    }
}

/// The fingerprint as `ssh-keygen -l` shows it.
pub fn fingerprint(key: &PrivateKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn read(path: &Path) -> Result<Option<PrivateKey>, String> {
    let fail = |why: &str| format!("cannot use the host key {}: {why}", path.display());
    let read = key_file::read(path, Access::Owner, MAX_FILE);
    let Some(text) = read.map_err(|error| fail(&error.to_string()))? else {
        return Ok(None);
    };
    let key = PrivateKey::from_openssh(&text);
    let key = key.map_err(|_| fail("it is not a private key in the format of OpenSSH"))?;
    match key.algorithm() {
        _ if key.is_encrypted() => Err(fail("it has a passphrase")),
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(Some(key)),
        // The crate for RSA has no constant time (RUSTSEC-2023-0071); keys of users are only verified.
        other => Err(fail(&format!(
            "it is a key of type {other}, expected Ed25519 or ECDSA"
        ))),
    }
}

fn create(path: &Path) -> Result<PrivateKey, String> {
    let fail = |why: String| format!("cannot create the host key {}: {why}", path.display());
    let seed = key_file::random::<32>().map_err(|error| fail(error.to_string()))?;
    let pair = Ed25519Keypair::from_seed(&seed);
    let key = PrivateKey::new(pair.into(), "sliced").map_err(|error| fail(error.to_string()))?;
    let text = key.to_openssh(LineEnding::LF);
    let text = text.map_err(|error| fail(error.to_string()))?;
    fs::write(path, text.as_bytes(), 0o600, Durability::Disk).map_err(|error| error.to_string())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_key_is_created_once_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = fingerprint(&load(&path).unwrap());
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fingerprint(&load(&path).unwrap()), first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        load(&path).unwrap();
        let valid = std::fs::read(&path).unwrap();
        for (bytes, mode, expected) in [
            (&valid[..valid.len() / 2], 0o600, "not a private key"),
            (&b""[..], 0o600, "not a private key"),
            (&b"secret\xff"[..], 0o600, "not a private key"),
            (&valid[..], 0o644, "others may access it (mode 0644)"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&path.display().to_string()) && !error.contains("secret"));
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load(&path).unwrap_err().contains("not a file"));
        assert!(
            load(&dir.path().join("a/b"))
                .unwrap_err()
                .contains("cannot")
        );
    }
}
