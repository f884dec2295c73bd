//! Paths, owners and permissions in requests.
//! Out of scope: what is done with them.

use std::path::{Path, PathBuf};

use super::super::error::Error;
use super::super::users::{Accounts, User};
use crate::guest::archive::Owner;

/// `PATH_MAX` without the terminating NUL byte.
const PATH_LIMIT: usize = 4095;

/// The user of a request. Clients send the highest number in place of none.
pub fn user(uid: Option<u32>, gid: Option<u32>) -> Result<User, Error> {
    let accounts = Accounts::read().map_err(|error| Error::system("read the users", &error))?;
    let given = |id: Option<u32>| id.filter(|id| *id != u32::MAX);
    Ok(accounts.user(given(uid), given(gid)))
}

/// Who owns what is created.
pub fn owner(uid: Option<u32>, gid: Option<u32>, user: &User) -> Owner {
    let (new_uid, new_gid) = (user.uid, user.gid);
    let is_given = [uid, gid].into_iter().flatten().any(|id| id != u32::MAX);
    match is_given {
        true => Owner::All {
            uid: new_uid,
            gid: new_gid,
        },
        false => Owner::New {
            uid: new_uid,
            gid: new_gid,
        },
    }
}

/// An absolute path; `~` at its begin is the user's home directory. A `/` at its end is kept.
pub fn path(text: &str, user: &User) -> Result<PathBuf, Error> {
    if text.is_empty() {
        return Err(Error::bad_request("the parameter \"path\" is missing"));
    }
    if text.len() > PATH_LIMIT || text.contains('\0') {
        let text = "invalid path: it is longer than 4095 bytes, or contains a NUL byte";
        return Err(Error::bad_request(text));
    }
    match text.strip_prefix('~') {
        Some("") => Ok(PathBuf::from(&user.home)),
        Some(rest) if rest.starts_with('/') => {
            let home = user.home.trim_end_matches('/');
            Ok(PathBuf::from(format!("{home}{rest}")))
        }
        None if Path::new(text).is_absolute() => Ok(PathBuf::from(text)),
        _ => Err(Error::bad_request(format!(
            "invalid path \"{text}\": expected an absolute path, or ~"
        ))),
    }
}

/// Permissions in octal, such as `0644`.
pub fn permissions(text: &str) -> Result<u32, Error> {
    let mode = u32::from_str_radix(text, 8).ok();
    let is_octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    mode.filter(|mode| is_octal && *mode <= 0o7777)
        .map(|mode| mode & 0o777)
        .ok_or_else(|| {
            Error::bad_request(format!(
                "invalid permissions \"{text}\": expected octal digits, such as 0644"
            ))
        })
}

/// How a file or a directory is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A file, as it is.
    Binary,
    /// A directory, as an archive.
    Tar,
    /// A file, with the rules of cp(1).
    CpBinary,
    /// A directory, with the rules of cp(1).
    CpTar,
    /// Either, with the rules of cp(1).
    CpRecursive,
}

impl Mode {
    /// Parses the parameter. The error is part of the protocol: clients try another mode after it.
    pub fn parse(text: Option<&str>) -> Result<Self, Error> {
        match text {
            None | Some("" | "binary") => Ok(Self::Binary),
            Some("tar") => Ok(Self::Tar),
            Some("cp-v1-binary") => Ok(Self::CpBinary),
            Some("cp-v1-tar") => Ok(Self::CpTar),
            Some("cp-v1-recursive") => Ok(Self::CpRecursive),
            Some(mode) => Err(Error::bad_request(format!("invalid mode: {mode}"))),
        }
    }
}
