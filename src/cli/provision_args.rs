//! The options of `vm add` for what the guest gets: userdata, SSH keys, secrets.
//! Out of scope: their meaning ([`crate::api::provision`]).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::failure::Failure;
use crate::api::provision::{MAX_SCRIPT, Script};
use crate::api::secret::SecretName;
use crate::api::ssh_key::SshKey;

/// The maximum size of a file with SSH keys, in bytes.
const MAX_KEY_FILE: usize = 512 << 10;

/// The options.
#[derive(Debug, clap::Args)]
pub struct ProvisionArgs {
    /// A script that the guest runs once, as root, instead of the group's userdata; - for stdin, /dev/null for none
    #[arg(long, value_name = "FILE")]
    pub userdata_file: Option<PathBuf>,
    /// A file with public keys that may log in to the guest, or such a key, in addition to those of the group; may be repeated
    #[arg(long = "ssh-key", value_name = "FILE")]
    pub ssh_keys: Vec<String>,
    /// Replaces the group's list of secrets that the guest gets; may be repeated; '' is an empty list
    #[arg(long = "secret", value_name = "NAME", value_delimiter = ',', value_parser = secret, add = ArgValueCompleter::new(complete::secrets))]
    pub secrets: Option<Vec<Option<SecretName>>>,
}

/// Parses a name; an empty text is none, so that `--secret ''` is a list that is present and empty.
fn secret(text: &str) -> Result<Option<SecretName>, String> {
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().map(Some).map_err(|error| format!("{error}")),
    }
}

impl ProvisionArgs {
    /// The script.
    pub fn userdata(&self) -> Result<Option<Script>, Failure> {
        let Some(path) = &self.userdata_file else {
            return Ok(None);
        };
        let fail = |why: String| Failure::one(format!("{}: {why}", path.display()));
        let bytes = read(path, MAX_SCRIPT)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| fail("found bytes that are not UTF-8, expected a script".to_owned()))?;
        text.parse()
            .map(Some)
            .map_err(|error: crate::api::provision::InvalidScript| fail(error.to_string()))
    }

    /// The keys of all files.
    pub fn ssh_keys(&self) -> Result<Vec<SshKey>, Failure> {
        let mut keys = Vec::new();
        for value in &self.ssh_keys {
            match value.parse() {
                Ok(key) => keys.push(key),
                Err(_) => keys.extend(of_file(Path::new(value))?),
            }
        }
        Ok(keys)
    }

    /// The names.
    pub fn secrets(&self) -> Option<Vec<SecretName>> {
        let names = self.secrets.as_ref()?;
        Some(names.iter().flatten().cloned().collect())
    }
}

/// The keys of a file, one in a line, without comments and empty lines.
fn of_file(path: &Path) -> Result<Vec<SshKey>, Failure> {
    let text = String::from_utf8_lossy(&read(path, MAX_KEY_FILE)?).into_owned();
    if text.contains("PRIVATE KEY") {
        let message = "it is a private key, expected a public one: the file with .pub";
        return Err(Failure::one(format!("{}: {message}", path.display())));
    }
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.parse().map_err(|error| {
            let number = at + 1;
            Failure::one(format!(
                "{}:{number}: invalid SSH key: {error}",
                path.display()
            ))
        })?;
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err(Failure::one(format!("{}: found no key", path.display()))),
        false => Ok(keys),
    }
}

/// A whole file of limited size, or standard input.
pub fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    let fail = |why: String| Failure::one(format!("cannot read {}: {why}", path.display()));
    let mut bytes = Vec::new();
    let limit = most as u64 + 1;
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(limit).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    read.map_err(|error| fail(error.to_string()))?;
    match bytes.len() > most {
        true => Err(fail(format!("it has more than {most} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn args(keys: &[&str]) -> ProvisionArgs {
        ProvisionArgs {
            userdata_file: None,
            ssh_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            secrets: None,
        }
    }

    fn error(failure: Failure) -> String {
        format!("{failure:?}")
    }

    #[test]
    fn keys_are_read_from_files_with_the_line_of_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let two = file("two", &format!("# comment\n{KEY} a\n\n{KEY} b\n"));
        let found = args(&[KEY, &two]).ssh_keys().expect("keys");
        assert_eq!(found.len(), 3);
        for (path, why) in [
            (file("bad", &format!("{KEY}\nx\n")), ":2: invalid SSH key"),
            (file("empty", "\n"), "found no key"),
            (
                file("id", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n"),
                "private key",
            ),
            ("/nowhere/key".to_owned(), "cannot read"),
        ] {
            let why_not = error(args(&[&path]).ssh_keys().expect_err(why));
            assert!(why_not.contains(why), "{why_not}");
        }
    }

    #[test]
    fn userdata_is_limited_text() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("script");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).expect("written");
            let args = ProvisionArgs {
                userdata_file: Some(path.clone()),
                ..args(&[])
            };
            args.userdata()
        };
        assert!(read(b"#!/bin/sh\n").expect("a script").is_some());
        for (content, why) in [
            (vec![b'x'; MAX_SCRIPT + 1], "more than"),
            (vec![0xff], "UTF-8"),
            (b"#cloud-config\n".to_vec(), "cloud-config"),
        ] {
            let why_not = error(read(&content).expect_err(why));
            assert!(why_not.contains(why), "{why_not}");
        }
    }
}
