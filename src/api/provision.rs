//! What a guest gets from the host when its agent answers: SSH keys, secrets, and userdata, a script that runs once.
//! Out of scope: the values of secrets ([`super::secret`]); sending them to the guest.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::secret::SecretName;
use super::ssh_key::SshKey;

/// The maximum size of a script in a manifest or a request, in bytes. It is stored with each VM; a file has a higher limit.
pub const MAX_SCRIPT: usize = 64 << 10;

/// The maximum size of the file of `userdata_file`, in bytes.
pub const MAX_FILE: u64 = 256 << 10;

/// The maximum number of SSH keys of a VM.
pub const MAX_KEYS: usize = 64;

/// The maximum number of secrets of a VM.
pub const MAX_SECRETS: usize = 64;

/// What a guest gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provision {
    /// The script that runs once, when the guest boots for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata: Option<Userdata>,
    /// The keys with which its users may log in. Changes live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
    /// The secrets that it may have. Changes live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
}

/// Where userdata is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Userdata {
    /// The manifest or the request.
    Script(Script),
    /// A file of the host, which is read when a guest that has not run it is provisioned.
    File(PathBuf),
}

/// A script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Script(String);

/// Why a text is not a valid [`Script`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScript {
    /// It is too large.
    #[error("found {0} bytes, expected at most {MAX_SCRIPT}: use userdata_file for a larger one")]
    TooLarge(usize),
    /// It contains a NUL character.
    #[error("found a NUL character, expected a script")]
    Nul,
    /// It is a document of cloud-init.
    #[error("found {0}, expected a script: userdata is executed, cloud-init is not involved")]
    CloudInit(&'static str),
}

impl Script {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How the formats of cloud-init other than scripts begin.
const CLOUD_INIT: [&str; 4] = [
    "#cloud-config",
    "#include",
    "#cloud-boothook",
    "#part-handler",
];

/// Checks that this can be executed.
///
/// # Errors
/// It is a document of cloud-init.
pub fn check_format(script: &[u8]) -> Result<(), InvalidScript> {
    let found = CLOUD_INIT
        .iter()
        .find(|word| script.starts_with(word.as_bytes()));
    found.map_or(Ok(()), |word| Err(InvalidScript::CloudInit(word)))
}

impl FromStr for Script {
    type Err = InvalidScript;
    fn from_str(text: &str) -> Result<Self, InvalidScript> {
        if text.len() > MAX_SCRIPT {
            return Err(InvalidScript::TooLarge(text.len()));
        }
        if text.contains('\0') {
            return Err(InvalidScript::Nul);
        }
        check_format(text.as_bytes())?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Script {
    type Error = InvalidScript;
    fn try_from(text: String) -> Result<Self, InvalidScript> {
        text.parse()
    }
}

impl From<Script> for String {
    fn from(script: Script) -> Self {
        script.0
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Provision {
    /// Whether the guest gets nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The file of its userdata.
    pub fn userdata_file(&self) -> Option<PathBuf> {
        match &self.userdata {
            Some(Userdata::File(path)) => Some(path.clone()),
            Some(Userdata::Script(_)) | None => None,
        }
    }

    /// Copies the settings from `other` that can change while a guest runs. A script that has run cannot be undone.
    pub fn apply_live_changes(&mut self, other: &Self) {
        self.ssh_keys.clone_from(&other.ssh_keys);
        self.secrets.clone_from(&other.secrets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_limited_and_is_one() {
        let large = "x".repeat(MAX_SCRIPT + 1);
        for (text, why) in [
            (large.as_str(), "at most 65536"),
            ("a\0b", "NUL"),
            ("#cloud-config\npackages: []\n", "cloud-config"),
            ("#include\nhttp://x", "include"),
        ] {
            let error = text.parse::<Script>().expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        for text in [
            "",
            "echo",
            "#!/bin/bash\necho",
            "# cloud-config\n",
            &large[1..],
        ] {
            assert!(text.parse::<Script>().is_ok(), "{text}");
        }
    }
}
