//! `~/.ssh/authorized_keys` of the normal user and of root: a block that the agent manages, and the keys of the image beside it.
//! Out of scope: sshd(8).
//!
//! The directories belong to users who are not trusted, and the agent is root: nothing is followed or written through a link, and a file
//! that is a link of a file elsewhere is not read.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::place::Place;
use crate::guest::agent::error::{Error, reason};
use crate::guest::agent::users::{Accounts, User};
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::draft::Attributes;
use crate::guest::archive::{self, Owner};
use crate::guest::place::make_dir;

const BEGIN: &str = "# BEGIN slice-agent: this block is managed by the host, changes are lost";
const END: &str = "# END slice-agent";

const DIRECTORY: &str = ".ssh";
const FILE: &str = ".ssh/authorized_keys";

/// The maximum size of a file that is changed, in bytes.
const LIMIT: u64 = 1 << 20;

/// Checks that each key is one line.
///
/// # Errors
/// 400.
pub fn check(keys: &[String]) -> Result<(), Error> {
    let is_line =
        |key: &String| !key.is_empty() && !key.starts_with('#') && !key.contains(char::is_control);
    match keys.iter().all(is_line) {
        true => Ok(()),
        false => Err(Error::invalid("ssh_keys")),
    }
}

/// Writes the keys. Returns what could not be done, one sentence each.
pub fn write(place: &Place, keys: &[String]) -> Vec<String> {
    let accounts = match Accounts::read_below(place.root()) {
        Ok(accounts) => accounts,
        Err(error) => return vec![format!("cannot read users: {}", reason(&error))],
    };
    let root = accounts.user(Some(0), None);
    let normal = accounts.user(None, None);
    let users = match normal.uid == root.uid {
        true => vec![root],
        false => vec![normal, root],
    };
    let failed = users.iter().filter_map(|user| {
        let error = of_user(place, user, keys).err()?;
        Some(format!(
            "cannot write the SSH keys of {}: {error}",
            user.name
        ))
    });
    failed.collect()
}

fn of_user(place: &Place, user: &User, keys: &[String]) -> Result<(), String> {
    let home = place.at(user.home.trim_start_matches('/'));
    if !home.is_dir() {
        match (keys.is_empty(), user.uid) {
            (true, _) => return Ok(()),
            // A small guest.
            (false, 0) => drop(make_dir(&home, Owner::Process).map_err(|error| text(&error))?),
            (false, _) => return Err("its home directory does not exist".to_owned()),
        }
    }
    let mut beneath = Beneath::open(&home).map_err(|error| text(&error))?;
    let before = read(&beneath, user)?;
    let after = merge(before.as_deref().unwrap_or_default(), keys);
    if before.as_deref() == Some(&*after) || (before.is_none() && after.is_empty()) {
        return Ok(());
    }
    store(&mut beneath, user, &after).map_err(|error| text(&error))
}

/// The file of the user; `None` if it does not exist.
fn read(beneath: &Beneath, user: &User) -> Result<Option<String>, String> {
    let file = match beneath.read_file(Path::new(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => return Ok(None),
        Err(error) => return Err(text(&error)),
    };
    let found = file.metadata().map_err(|error| reason(&error))?;
    let is_own = found.uid() == user.uid || found.uid() == 0;
    if !found.is_file() || found.nlink() != 1 || !is_own {
        return Err(format!("{FILE} is no regular file of the user"));
    }
    if found.len() > LIMIT {
        return Err(format!("{FILE} has more than {LIMIT} bytes"));
    }
    let mut bytes = Vec::new();
    let read = file.take(LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|error| reason(&error))?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| format!("{FILE} is not UTF-8"))
}

/// The file with these keys in its block.
fn merge(before: &str, keys: &[String]) -> String {
    let mut after = String::new();
    let mut is_managed = false;
    for line in before.lines() {
        match line {
            BEGIN => is_managed = true,
            END if is_managed => is_managed = false,
            _ if is_managed => {}
            line => after.push_str(&format!("{line}\n")),
        }
    }
    if !keys.is_empty() {
        let lines: String = keys.iter().map(|key| format!("{key}\n")).collect();
        after.push_str(&format!("{BEGIN}\n{lines}{END}\n"));
    }
    after
}

fn store(beneath: &mut Beneath, user: &User, content: &str) -> Result<(), archive::Error> {
    let (uid, gid) = (user.uid, user.gid);
    let owner = Owner::All { uid, gid };
    let path = Path::new(FILE);
    if beneath.make_dir(Path::new(DIRECTORY), owner)? {
        beneath.set_dir(Path::new(DIRECTORY), 0o700, None)?;
    }
    let mut draft = beneath.draft(path, owner)?;
    let failed = |error| archive::Error::file("write", path, error);
    draft
        .fill(&mut content.as_bytes())
        .map_err(failed)?
        .map_err(failed)?;
    let attributes = Attributes {
        mode: Some(0o600),
        mtime: None,
        owner,
    };
    beneath.commit(draft, path, attributes)
}

fn text(error: &archive::Error) -> String {
    match error {
        archive::Error::File { path, source, .. } => {
            format!("{}: {}", path.display(), reason(source))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_block_is_replaced() {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let one = merge("", &keys(&["a"]));
        assert_eq!(one, format!("{BEGIN}\na\n{END}\n"));
        let with_own = format!("own 1\n{one}own 2");
        let two = merge(&with_own, &keys(&["b", "c"]));
        assert_eq!(two, format!("own 1\nown 2\n{BEGIN}\nb\nc\n{END}\n"));
        assert_eq!(merge(&two, &keys(&["b", "c"])), two);
        assert_eq!(merge(&two, &[]), "own 1\nown 2\n");
        assert_eq!(merge(&one, &[]), "");
        // The end of the block is missing.
        assert_eq!(merge(&format!("own\n{BEGIN}\na\n"), &[]), "own\n");
    }
}
