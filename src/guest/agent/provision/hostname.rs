//! The host name: of the kernel, in `/etc/hostname`, and in `/etc/hosts`, without which sudo(8) complains.
//! Out of scope: names of other hosts.

use std::io;
use std::path::Path;

use rustix::system::{sethostname, uname};

use super::files::read_small;
use super::place::Place;
use crate::guest::agent::error::{Error, reason};
use crate::guest::archive::draft::Attributes;
use crate::guest::place::put_file;

/// The end of the line that the agent manages in `/etc/hosts`.
const MANAGED: &str = "# slice-agent";

/// The maximum size of `/etc/hosts` that is changed, in bytes.
const LIMIT: u64 = 1 << 20;

/// Checks that this is an RFC 1123 label.
///
/// # Errors
/// 400.
pub fn check(name: &str) -> Result<(), Error> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let valid = (1..=63).contains(&name.len()) && name.bytes().all(is_valid);
    match valid && !name.starts_with('-') {
        true => Ok(()),
        false => Err(Error::invalid("hostname")),
    }
}

/// Sets the name where it differs. A file system that is read-only keeps its files.
///
/// # Errors
/// What could not be done, as a sentence.
pub fn set(place: &Place, name: &str) -> Result<(), String> {
    let fail = |what: &str, error: &io::Error| format!("cannot {what}: {}", reason(error));
    if place.is_own && uname().nodename().to_bytes() != name.as_bytes() {
        sethostname(name.as_bytes()).map_err(|error| fail("set the host name", &error.into()))?;
    }
    let hostname = place.at("etc/hostname");
    let known = read_small(&hostname, LIMIT).ok().flatten();
    if known.is_some_and(|known| known.trim_ascii() == name.as_bytes()) {
        return Ok(());
    }
    // A small guest may have no such directory.
    let created = match place.at("etc").exists() {
        true => Ok(()),
        false => std::fs::create_dir(place.at("etc")),
    };
    let written = created
        .and_then(|()| replace(&hostname, &format!("{name}\n")))
        .and_then(|()| set_in_hosts(&place.at("etc/hosts"), name));
    match written {
        Err(error) if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
            Err(fail("write the host name", &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn set_in_hosts(path: &Path, name: &str) -> io::Result<()> {
    let before = read_small(path, LIMIT)?.unwrap_or_default();
    if before.len() as u64 == LIMIT {
        return Ok(());
    }
    let before = String::from_utf8_lossy(&before);
    let others = before.lines().filter(|line| !line.ends_with(MANAGED));
    let others: Vec<&str> = others.collect();
    let names = |line: &&str| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_ascii_whitespace()
            .skip(1)
            .any(|word| word == name)
    };
    let mut lines: Vec<String> = others.iter().map(|line| format!("{line}\n")).collect();
    if !others.iter().any(names) {
        lines.push(format!("127.0.1.1\t{name} {MANAGED}\n"));
    }
    let after = lines.concat();
    match after == before {
        true => Ok(()),
        false => replace(path, &after),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let attributes = Attributes {
        mode: Some(0o644),
        ..Attributes::default()
    };
    let put = put_file(path, &mut text.as_bytes(), attributes, None);
    put.map(drop).map_err(|error| match error {
        crate::guest::archive::Error::File { source, .. } => source,
        other => io::Error::other(other),
    })
}
