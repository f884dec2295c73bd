//! Public keys of OpenSSH, as in `authorized_keys` (sshd(8)): `TYPE BASE64 [COMMENT]`.
//! Out of scope: who may use them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The maximum length of a key with its comment, in bytes: an RSA key of 16,384 bits has 2,800.
pub const MAX_LEN: usize = 8 << 10;

/// The minimum size of an RSA modulus that OpenSSH accepts, in bits (`RequiredRSASize` of sshd_config(5)).
const MIN_RSA_BITS: usize = 1024;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuthorizedKey(String);

/// Why a text is not a valid [`AuthorizedKey`]; it contains nothing of the text but its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAuthorizedKey(String);

/// The types, with the number of fields of their blobs after the name.
const TYPES: [(&str, usize); 7] = [
    ("ssh-ed25519", 1),
    ("ssh-rsa", 2),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
];

impl AuthorizedKey {
    /// The line of `authorized_keys`, without a line end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key without its comment: two keys with the same one are the same key.
    pub fn material(&self) -> &str {
        let blanks = self.0.match_indices(' ').map(|(at, _)| at);
        let end = blanks.clone().nth(1).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// The type and the comment, or the end of the key if it has none: enough for a person to recognize it.
    pub fn short(&self) -> String {
        let mut words = self.0.splitn(3, ' ');
        let kind = words.next().unwrap_or_default();
        let blob = words.next().unwrap_or_default();
        match words.next() {
            Some(comment) => format!("{kind} {comment}"),
            None => format!("{kind} …{}", &blob[blob.len().saturating_sub(12)..]),
        }
    }
}

impl fmt::Display for AuthorizedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<AuthorizedKey> for String {
    fn from(key: AuthorizedKey) -> Self {
        key.0
    }
}

impl TryFrom<String> for AuthorizedKey {
    type Error = InvalidAuthorizedKey;
    fn try_from(text: String) -> Result<Self, InvalidAuthorizedKey> {
        text.parse()
    }
}

impl FromStr for AuthorizedKey {
    type Err = InvalidAuthorizedKey;

    fn from_str(text: &str) -> Result<Self, InvalidAuthorizedKey> {
        let fail = |why: &str| Err(InvalidAuthorizedKey(why.to_owned()));
        let text = text.trim();
        if text.contains("PRIVATE KEY") {
            return fail("it is a private key, expected a public one: the file with .pub");
        }
        if text.len() > MAX_LEN {
            return fail("it is too long");
        }
        if text.contains(char::is_control) {
            return fail("it has more than one line, or control characters");
        }
        let mut words = text.splitn(3, ' ');
        let (kind, blob) = (words.next().unwrap_or_default(), words.next());
        let comment = words.next().map(str::trim).filter(|text| !text.is_empty());
        let Some((_, fields)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let names = TYPES.map(|(name, _)| name).join(", ");
            return fail(&match kind {
                "ssh-dss" => "OpenSSH does not accept keys of type ssh-dss any more".to_owned(),
                _ => format!("it begins with no type of key ({names}); options are not supported"),
            });
        };
        let Some(blob) = blob.filter(|blob| !blob.is_empty()) else {
            return fail("nothing follows the type");
        };
        let Ok(decoded) = STANDARD.decode(blob) else {
            return fail("the key is no valid base64: is it complete?");
        };
        if !is_blob_of(kind, *fields, &decoded) {
            return fail(&format!(
                "the key is not one of type {kind}: is it complete?"
            ));
        }
        Ok(Self(match comment {
            Some(comment) => format!("{kind} {blob} {comment}"),
            None => format!("{kind} {blob}"),
        }))
    }
}

/// Whether a blob has the name of its type and the fields that follow (RFC 4253, section 6.6; RFC 5656; RFC 8709; OpenSSH, PROTOCOL.u2f).
fn is_blob_of(kind: &str, count: usize, blob: &[u8]) -> bool {
    let mut rest = blob;
    let mut fields = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((field, after)) = after.split_at_checked(length) else {
            return false;
        };
        fields.push(field);
        rest = after;
    }
    if !rest.is_empty() || fields.len() != count + 1 || fields[0] != kind.as_bytes() {
        return false;
    }
    let curve = |name: &str, length: usize| {
        fields[1] == name.as_bytes() && fields[2].len() == length && fields[2][0] == 4
    };
    match kind {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => fields[1].len() == 32,
        "ssh-rsa" => {
            let modulus = fields[2].iter().skip_while(|byte| **byte == 0).count();
            !fields[1].is_empty() && modulus * 8 >= MIN_RSA_BITS
        }
        "ecdsa-sha2-nistp256" | "sk-ecdsa-sha2-nistp256@openssh.com" => curve("nistp256", 65),
        "ecdsa-sha2-nistp384" => curve("nistp384", 97),
        "ecdsa-sha2-nistp521" => curve("nistp521", 133),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn blob(fields: &[&[u8]]) -> String {
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend((field.len() as u32).to_be_bytes());
            bytes.extend(*field);
        }
        STANDARD.encode(bytes)
    }

    #[test]
    fn keys_of_each_type_are_accepted_with_and_without_a_comment() {
        let point = |length: usize| [&[4][..], &vec![7; length - 1]].concat();
        let rsa = [&[0][..], &[0xc1; 256]].concat();
        let keys = [
            ED25519.to_owned(),
            format!("  {ED25519}\n"),
            format!("{ED25519} user@host with blanks"),
            format!("ssh-rsa {}", blob(&[b"ssh-rsa", &[1, 0, 1], &rsa])),
            format!(
                "ecdsa-sha2-nistp256 {}",
                blob(&[b"ecdsa-sha2-nistp256", b"nistp256", &point(65)])
            ),
            format!(
                "ecdsa-sha2-nistp521 {}",
                blob(&[b"ecdsa-sha2-nistp521", b"nistp521", &point(133)])
            ),
            format!(
                "sk-ssh-ed25519@openssh.com {}",
                blob(&[b"sk-ssh-ed25519@openssh.com", &[1; 32], b"ssh:"])
            ),
        ];
        for text in keys {
            let key: AuthorizedKey = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(key.as_str(), text.trim());
        }
        let key: AuthorizedKey = format!("{ED25519} me").parse().expect("a key");
        assert_eq!(key.material(), ED25519);
        assert_eq!(key.short(), "ssh-ed25519 me");
        let key: AuthorizedKey = ED25519.parse().expect("a key");
        let end = &ED25519[ED25519.len() - 12..];
        assert_eq!(key.short(), format!("ssh-ed25519 …{end}"));
        assert_eq!(key.material(), ED25519);
    }

    #[test]
    fn what_sshd_would_ignore_is_refused_without_repeating_it() {
        let small = [0xc1; 64];
        for (text, why) in [
            (String::new(), "no type of key"),
            ("hello".to_owned(), "no type of key"),
            ("ssh-ed25519".to_owned(), "nothing follows"),
            ("ssh-ed25519 ".to_owned(), "nothing follows"),
            ("ssh-ed25519 AAAA!".to_owned(), "base64"),
            (ED25519[..60].to_owned(), "is it complete?"),
            (ED25519.replace("ssh-ed25519", "ssh-rsa"), "not one of type"),
            (format!("{ED25519}\n{ED25519}"), "more than one line"),
            (format!("{ED25519} \u{1b}[31m"), "control characters"),
            (format!("no-pty {ED25519}"), "options"),
            (format!("from=\"10.0.0.1\" {ED25519}"), "options"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(),
                "private key",
            ),
            (format!("{ED25519} {}", "x".repeat(MAX_LEN)), "too long"),
            ("ssh-dss AAAA".to_owned(), "ssh-dss"),
            (
                format!("ssh-rsa {}", blob(&[b"ssh-rsa", &[1, 0, 1], &small])),
                "not one of type",
            ),
            (
                format!("ssh-ed25519 {}", blob(&[b"ssh-ed25519", &[1; 31]])),
                "not one of type",
            ),
        ] {
            let error = text.parse::<AuthorizedKey>().expect_err(&text).to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("AAAA"), "{error}");
        }
    }
}
