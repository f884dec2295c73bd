//! A public key of OpenSSH, as a line of `authorized_keys` without options (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
//! Out of scope: private keys; who may use a key, and for what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

/// The maximum length of a line, in bytes. An RSA key of 16,384 bits has about 2,800.
pub const MAX_LINE: usize = 8 << 10;

/// The maximum number of keys in a list.
pub const MAX_KEYS: usize = 256;

/// The minimum size of an RSA key in bits (NIST SP 800-131A).
const MIN_RSA_BITS: u32 = 2048;

/// The types of keys.
pub const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Whether a line, or its type, is that of a key in a device (FIDO).
pub fn is_of_security_key(line: &str) -> bool {
    line.starts_with("sk-")
}

/// What is expected instead of an invalid line.
pub const EXPECTED: &str = "a public key such as \"ssh-ed25519 AAAA... user@host\"";

/// A public key. Two keys are equal if their lines are, with their comments; see [`SshKey::is_same_key`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshKey {
    line: String,
    key: KeyData,
    /// The length of `line` without the comment.
    data_end: usize,
}

impl SshKey {
    /// The comment; empty if there is none. It has no control characters.
    pub fn comment(&self) -> &str {
        self.line[self.data_end..].trim_start()
    }

    /// The fingerprint as `ssh-keygen -l` shows it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The type and the comment, or the fingerprint if it has none: enough for a person to recognize it.
    pub fn short(&self) -> String {
        let kind = self.line.split(' ').next().unwrap_or_default();
        match self.comment() {
            "" => format!("{kind} {}", self.fingerprint()),
            comment => format!("{kind} {comment}"),
        }
    }

    /// The line: type, base64 and comment, separated by one blank each.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The key itself.
    pub fn key(&self) -> &KeyData {
        &self.key
    }

    /// Whether the private key is in a device (FIDO), which can require a touch.
    pub fn is_of_security_key(&self) -> bool {
        is_of_security_key(&self.line)
    }

    /// Whether two keys are the same, whatever their comments are.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// The line.
impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl From<SshKey> for String {
    fn from(key: SshKey) -> Self {
        key.line
    }
}

impl TryFrom<String> for SshKey {
    type Error = String;

    fn try_from(line: String) -> Result<Self, String> {
        line.parse()
    }
}

/// The error names what was found and what is expected. It never contains the data of a key, which may be a private one by mistake.
impl FromStr for SshKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > MAX_LINE {
            let found = text.len();
            return Err(format!(
                "found {found} bytes, expected at most {MAX_LINE}: {EXPECTED}"
            ));
        }
        if text.contains("PRIVATE KEY") {
            return Err(format!("found a private key, expected {EXPECTED}"));
        }
        if text.contains(|c: char| c.is_control() && c != '\t') {
            return Err(format!(
                "found several lines or a control character, expected {EXPECTED}"
            ));
        }
        let (kind, rest) = split(text);
        let (data, comment) = split(rest);
        if !TYPES.contains(&kind) {
            return Err(unknown_type(text, kind));
        }
        if data.is_empty() {
            return Err(format!("found a type without a key, expected {EXPECTED}"));
        }
        let parsed = PublicKey::from_openssh(&format!("{kind} {data}"));
        let parsed = parsed.map_err(|_| {
            format!("found a damaged {kind} key, expected {EXPECTED}: is the line complete?")
        })?;
        let key = parsed.key_data().clone();
        if let Some(bits) = key.rsa().map(|rsa| rsa.key_size())
            && bits < MIN_RSA_BITS
        {
            return Err(format!(
                "found an RSA key of {bits} bits, expected at least {MIN_RSA_BITS}"
            ));
        }
        let mut line = format!("{kind} {data}");
        let data_end = line.len();
        if !comment.is_empty() {
            line.push(' ');
            line.push_str(&comment.replace('\t', " "));
        }
        Ok(Self {
            line,
            key,
            data_end,
        })
    }
}

/// The first field, and the rest without the blanks before it.
fn split(text: &str) -> (&str, &str) {
    let (field, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    (field, rest.trim_start_matches([' ', '\t']))
}

/// Why the first field is not a type.
fn unknown_type(text: &str, kind: &str) -> String {
    let has_type = text
        .split([' ', '\t'])
        .skip(1)
        .any(|field| TYPES.contains(&field));
    let types = TYPES.join(", ");
    match kind {
        "" => format!("found an empty string, expected {EXPECTED}"),
        _ if text.starts_with('#') => format!("found a comment, expected {EXPECTED}"),
        _ if has_type => format!("found options before the key, expected {EXPECTED}"),
        _ if kind.ends_with("-cert-v01@openssh.com") => {
            format!("found a certificate, expected {EXPECTED}")
        }
        // The first field may be anything, such as a password.
        "ssh-dss" => format!("found a key of type ssh-dss, expected one of {types}"),
        _ => format!("found an unknown type, expected one of {types}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn parse(text: &str) -> Result<SshKey, String> {
        text.parse()
    }

    #[test]
    fn a_line_has_a_type_a_key_and_a_comment() {
        for (text, comment) in [
            (format!("ssh-ed25519 {ED25519}"), ""),
            (format!("ssh-ed25519 {ED25519} alice@host"), "alice@host"),
            (
                format!("\tssh-ed25519 \t {ED25519}\talice  and\tbob \n"),
                "alice  and bob",
            ),
        ] {
            let key = parse(&text).unwrap();
            assert_eq!(key.comment(), comment, "{text}");
            let short = match comment {
                "" => key.fingerprint(),
                comment => comment.to_owned(),
            };
            assert_eq!(key.short(), format!("ssh-ed25519 {short}"));
            let line = format!("ssh-ed25519 {ED25519} {comment}");
            assert_eq!(key.line(), line.trim_end());
            assert_eq!(
                key.fingerprint(),
                "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ"
            );
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<SshKey>(&json).unwrap(), key);
        }
        let (one, other) = (
            parse(&format!("ssh-ed25519 {ED25519} a")).unwrap(),
            parse(&format!("ssh-ed25519 {ED25519} b")).unwrap(),
        );
        assert!(one != other && one.is_same_key(&other));
    }

    #[test]
    fn all_types_of_openssh_are_read() {
        // ssh-keygen(1) of OpenSSH 9.2; the sk- keys are those of the tests of ssh-key.
        for line in include_str!("../../tests/fixtures/ssh/keys.pub").lines() {
            let key = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(!key.comment().is_empty());
        }
    }

    #[test]
    fn errors_name_what_was_found_and_never_the_key() {
        let long = format!("ssh-ed25519 {}", "A".repeat(MAX_LINE));
        let wrong_type = format!("ssh-rsa {ED25519} x");
        let cut = format!("ssh-ed25519 {} x", &ED25519[..40]);
        let two = format!("ssh-ed25519 {ED25519} a\nssh-ed25519 {ED25519} b");
        let options = format!("command=\"x\",no-pty ssh-ed25519 {ED25519} a");
        let small = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDS8MAgQJdaDqv9p42z8knzegw11qASzkzzfTuvuMlj6SLabLm/HtAP5LxgeDWfGAe8AilMWgM2qvg5A+UJS3xVGSUTBsHbfFAdL7Ox3u56VLA0oho8JbScbZ/SB5pGO1G+5/g3EiTgi17RZE7+WpRMYPm7icuk2mM/j3dePYWGaw== root@vm";
        for (text, expected) in [
            ("", "an empty string"),
            ("# key", "a comment"),
            ("hunter2", "an unknown type"),
            ("ssh-dss AAAA x", "ssh-dss"),
            ("ssh-ed25519", "a type without a key"),
            ("ssh-ed25519 %%% x", "a damaged ssh-ed25519 key"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r",
                "a private key",
            ),
            (
                "ssh-ed25519-cert-v01@openssh.com AAAA x",
                "found a certificate",
            ),
            (small, "an RSA key of 1024 bits"),
            (&options, "found options"),
            (&wrong_type, "a damaged ssh-rsa key"),
            (&cut, "a damaged ssh-ed25519 key"),
            (&two, "several lines"),
            (
                &format!("ssh-ed25519 {ED25519} \u{1b}[2J"),
                "control character",
            ),
            (&long, "bytes, expected at most"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hunter2") && !error.contains(&ED25519[..20]));
        }
    }
}
