//! Secrets: files that the host stores, and that guests get which may have them. Their values are in requests only.
//! Out of scope: storing them ([`crate::secrets`]), what a guest does with them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::meta::Timestamp;

/// The maximum size of a value, in bytes, as that of a Secret of Kubernetes.
pub const MAX_SIZE: usize = 1 << 20;

/// The maximum length of a name.
pub const MAX_NAME_LEN: usize = 128;

/// The default permissions.
pub const DEFAULT_PERMISSIONS: u32 = 0o600;

/// The name of a secret, which is also the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// The error for a text that is not a valid [`SecretName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid name {0:?}: expected a letter or digit, then letters, digits, `.`, `_` and `-`, at most {MAX_NAME_LEN} characters"
)]
pub struct InvalidSecretName(String);

impl SecretName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = InvalidSecretName;
    fn from_str(text: &str) -> Result<Self, InvalidSecretName> {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins && text.len() <= MAX_NAME_LEN && text.bytes().all(is_valid) {
            true => Ok(Self(text.to_owned())),
            // A text that is no name may be the value.
            false => Err(InvalidSecretName(text.chars().take(16).collect())),
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = InvalidSecretName;
    fn try_from(text: String) -> Result<Self, InvalidSecretName> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The value of a secret. Its debug output is its size.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(pub Vec<u8>);

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A secret without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// The size of its value, in bytes.
    pub size: u64,
    /// The permissions of its file in guests, in octal.
    pub permissions: String,
    /// The owner of its file in guests.
    pub uid: u32,
    /// The group of its file in guests.
    pub gid: u32,
    /// When it was last changed.
    pub mod_time: Timestamp,
    /// The same, by the name that other clients read.
    pub modified_at: Timestamp,
}

/// The body of a request to create or change a secret. Its debug output has no value.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SecretRequest {
    /// The name; of a request to create one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The value in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The permissions in octal, such as `0600`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl fmt::Debug for SecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretRequest")
    }
}

/// What a request changes; `None`: it stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretChange {
    /// The value.
    pub value: Option<SecretValue>,
    /// The permissions.
    pub permissions: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

impl SecretRequest {
    /// The request to set these.
    pub fn of(name: Option<&SecretName>, change: SecretChange) -> Self {
        Self {
            name: name.map(ToString::to_string),
            data: change.value.map(|value| STANDARD.encode(value.0)),
            permissions: change.permissions.map(|mode| format!("{mode:04o}")),
            uid: change.uid,
            gid: change.gid,
        }
    }

    /// What it changes.
    ///
    /// # Errors
    /// A field is invalid: one sentence without its value.
    pub fn change(&self) -> Result<SecretChange, String> {
        let value = match &self.data {
            None => None,
            Some(data) => Some(decode(data)?),
        };
        let permissions = match &self.permissions {
            None => None,
            Some(text) => Some(parse_permissions(text)?),
        };
        Ok(SecretChange {
            value,
            permissions,
            uid: self.uid,
            gid: self.gid,
        })
    }
}

fn decode(data: &str) -> Result<SecretValue, String> {
    let value = STANDARD.decode(data);
    let value = value.map_err(|_| "invalid data: it is no valid base64".to_owned())?;
    check_size(value.len())?;
    Ok(SecretValue(value))
}

/// Checks the size of a value.
///
/// # Errors
/// It is too large.
pub fn check_size(size: usize) -> Result<(), String> {
    match size <= MAX_SIZE {
        true => Ok(()),
        false => Err(format!(
            "the value has {size} bytes, expected at most {MAX_SIZE}"
        )),
    }
}

/// Reads permissions in octal; an empty text is the default.
///
/// # Errors
/// They are no permissions.
pub fn parse_permissions(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(DEFAULT_PERMISSIONS);
    }
    let is_octal = text.len() <= 5 && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok();
    let mode = mode.filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or_else(|| "invalid permissions: expected octal digits such as 0600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_name_of_a_plain_file() {
        let long = "x".repeat(MAX_NAME_LEN);
        for name in ["a", "A1", "tls.key", "a_b-c", "0", &long] {
            assert!(name.parse::<SecretName>().is_ok(), "{name}");
        }
        let too_long = "x".repeat(MAX_NAME_LEN + 1);
        for name in [
            "", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a b", "a\n", "a\0", "ä", &too_long,
        ] {
            let error = name.parse::<SecretName>().expect_err(name).to_string();
            assert!(error.len() < 250, "{error}");
        }
    }

    #[test]
    fn a_request_is_checked_and_never_printed() {
        let request = |data: &str, permissions: &str| SecretRequest {
            data: Some(data.to_owned()),
            permissions: Some(permissions.to_owned()),
            ..SecretRequest::default()
        };
        let change = request("c2VjcmV0", "0640").change().expect("valid");
        assert_eq!(change.value, Some(SecretValue(b"secret".to_vec())));
        assert_eq!(change.permissions, Some(0o640));
        assert_eq!(
            request("", "").change().expect("valid").permissions,
            Some(0o600)
        );
        for text in ["8", "rw", "01777", "-1", "+600", "000600"] {
            let error = request("", text).change().expect_err(text);
            assert!(error.contains("permissions"), "{error}");
        }
        let large = STANDARD.encode(vec![0; MAX_SIZE + 1]);
        for (data, why) in [("c2VjcmV0=", "base64"), ("%%", "base64"), (&large, "bytes")] {
            let error = request(data, "").change().expect_err(why);
            assert!(error.contains(why) && error.len() < 100, "{error}");
        }
        let printed = format!("{:?} {change:?}", request("c2VjcmV0", ""));
        assert!(
            !printed.contains("c2VjcmV0") && !printed.contains("115"),
            "{printed}"
        );
    }
}
