//! The user who sent the request that the current task handles, for events.
//! Out of scope: permission (`socket`, `admission`).

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;

tokio::task_local! {
    static CALLER: Caller;
}

/// The maximum size of `/etc/passwd` that is searched for a name.
const MAX_PASSWD: u64 = 1 << 20;

/// The maximum length of a user name (useradd(8)).
const MAX_NAME: usize = 32;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The user with this id, as the kernel recorded it at connect(2) (unix(7), `SO_PEERCRED`).
    User(u32),
    /// A key that has logged in to the SSH server: its comment and its fingerprint.
    SshKey(Arc<str>),
    /// Whoever has the token of the API, at this address.
    Token(IpAddr),
    /// A user of another node, which has forwarded the request.
    Forwarded(Arc<str>),
}

impl Caller {
    /// The user whose request the current task handles. `None` outside of requests.
    pub fn current() -> Option<Self> {
        CALLER.try_with(Clone::clone).ok()
    }

    /// Runs the handler of a request of this user.
    pub async fn scope<T>(self, handler: impl Future<Output = T>) -> T {
        CALLER.scope(self, handler).await
    }
}

/// `root (uid 0)`, or `uid 1000` for a user without a name in `/etc/passwd`; `SSH key alice@host (SHA256:...)`; `API token (192.0.2.1)`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uid = match self {
            Self::User(uid) => *uid,
            Self::SshKey(key) => return write!(f, "SSH key {key}"),
            Self::Forwarded(user) => return f.write_str(user),
            Self::Token(address) => return write!(f, "API token ({address})"),
        };
        match passwd().and_then(|text| name(&text, uid)) {
            Some(name) => write!(f, "{name} (uid {uid})"),
            None => write!(f, "uid {uid}"),
        }
    }
}

fn passwd() -> Option<String> {
    let (mut text, file) = (String::new(), File::open("/etc/passwd").ok()?);
    file.take(MAX_PASSWD).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The first name of this user in a file in the format of passwd(5).
fn name(passwd: &str, uid: u32) -> Option<String> {
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        let is_printable = name.bytes().all(|byte| byte.is_ascii_graphic());
        let is_valid = (1..=MAX_NAME).contains(&name.len()) && is_printable;
        (found == uid && is_valid).then(|| name.to_owned())
    };
    passwd.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_first_valid_name_of_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n# comment\nbad name:x:7:7:::\nalice:x:1000:1000:::\n:x:8:8:::\nshort:x\n";
        for (uid, expected) in [
            (0, Some("root")),
            (1000, Some("alice")),
            (7, None),
            (8, None),
            (9, None),
        ] {
            assert_eq!(name(passwd, uid).as_deref(), expected, "{uid}");
        }
    }

    #[test]
    fn a_token_is_named_by_the_address_of_its_user() {
        for (address, expected) in [
            ("192.0.2.1", "API token (192.0.2.1)"),
            ("2001:db8::1", "API token (2001:db8::1)"),
        ] {
            let caller = Caller::Token(address.parse().unwrap());
            assert_eq!(caller.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_task_has_a_caller_only_while_it_handles_a_request() {
        assert_eq!(Caller::current(), None);
        let caller = Caller::User(7);
        assert_eq!(
            caller.clone().scope(async { Caller::current() }).await,
            Some(caller)
        );
        assert_eq!(Caller::current(), None);
    }
}
