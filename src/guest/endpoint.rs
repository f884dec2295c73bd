//! The requests to an agent that the daemon forwards, and how long their responses may take.
//! Out of scope: forwarding; the content of requests and responses (`protocol`).

use std::fmt;
use std::time::Duration;

use hyper::Method;

/// How long the head of a response may take, unless the request itself takes longer.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an agent may take to store a copy after it has received it: the guest writes it to its disk.
const COPY_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest time that `wait-exit` waits, in seconds.
pub const WAIT_LIMIT: u64 = 600;

/// The maximum length of the id of a command.
const ID_LIMIT: usize = 64;

/// A request that the daemon forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /health`
    Health,
    /// `GET /stats`
    Stats,
    /// `POST /exec`
    Exec,
    /// `GET /exec`
    ExecList,
    /// `GET /exec/{id}`
    ExecInfo,
    /// `GET /exec/{id}/logs`
    Logs,
    /// `POST /exec/{id}/kill`
    Kill,
    /// `GET /exec/{id}/wait-exit`
    WaitExit,
    /// `DELETE /exec/{id}`
    Reap,
    /// `GET /cp`
    CopyFrom,
    /// `POST /cp`
    CopyTo,
    /// `GET /fs/stat`
    Stat,
    /// `GET /fs/readdir`
    ReadDir,
    /// `POST /fs/mkdir`
    Mkdir,
    /// `DELETE /fs/remove`
    Remove,
    /// `GET /fs/watch`
    Watch,
    /// `GET /userdata/logs`
    UserdataLogs,
    /// `GET /shell`
    Shell,
    /// `GET /forward`
    Forward,
    /// `GET /sftp`
    Sftp,
}

/// What a user does in a guest, for the events of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A command is started, its output read, or it is signalled.
    Exec,
    /// Files are copied in either direction.
    Copy,
    /// Files are listed, created, removed or watched.
    Files,
    /// A shell is opened.
    Shell,
    /// A connection is opened.
    Forward,
    /// An SFTP server is started.
    Sftp,
}

/// The name of the command of `slicectl`.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exec => "exec",
            Self::Copy => "cp",
            Self::Files => "fs",
            Self::Shell => "shell",
            Self::Forward => "port-forward",
            Self::Sftp => "sftp",
        })
    }
}

/// Why a request is none of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No request has this path.
    Path,
    /// The requests with this path have these methods.
    Method(Vec<Method>),
}

/// When a response is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTimeout {
    /// This time after the request was sent.
    AfterHead(Duration),
    /// This time after the agent has received the body, or has not read more of it although more was sent.
    AfterBody(Duration),
    /// Never: it is sent when a command has ended.
    Never,
}

impl Endpoint {
    /// The request with this method and path, without a slash at the begin: `exec/ex_1/logs`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(method: &Method, path: &str) -> Result<Self, Unknown> {
        let parts: Vec<&str> = path.split('/').collect();
        let known: &[(Method, Self)] = match parts.as_slice() {
            ["health"] => &[(Method::GET, Self::Health)],
            ["stats"] => &[(Method::GET, Self::Stats)],
            ["exec"] => &[(Method::POST, Self::Exec), (Method::GET, Self::ExecList)],
            ["exec", id] if is_id(id) => {
                &[(Method::GET, Self::ExecInfo), (Method::DELETE, Self::Reap)]
            }
            ["exec", id, "logs"] if is_id(id) => &[(Method::GET, Self::Logs)],
            ["exec", id, "kill"] if is_id(id) => &[(Method::POST, Self::Kill)],
            ["exec", id, "wait-exit"] if is_id(id) => &[(Method::GET, Self::WaitExit)],
            ["cp"] => &[(Method::GET, Self::CopyFrom), (Method::POST, Self::CopyTo)],
            ["fs", "stat"] => &[(Method::GET, Self::Stat)],
            ["fs", "readdir"] => &[(Method::GET, Self::ReadDir)],
            ["fs", "mkdir"] => &[(Method::POST, Self::Mkdir)],
            ["fs", "remove"] => &[(Method::DELETE, Self::Remove)],
            ["fs", "watch"] => &[(Method::GET, Self::Watch)],
            ["userdata", "logs"] => &[(Method::GET, Self::UserdataLogs)],
            ["shell"] => &[(Method::GET, Self::Shell)],
            ["forward"] => &[(Method::GET, Self::Forward)],
            ["sftp"] => &[(Method::GET, Self::Sftp)],
            _ => return Err(Unknown::Path),
        };
        let found = known.iter().find(|(known, _)| known == method);
        let methods = || known.iter().map(|(method, _)| method.clone()).collect();
        found
            .map(|(_, endpoint)| *endpoint)
            .ok_or_else(|| Unknown::Method(methods()))
    }

    /// The access that is recorded; `None`: figures of the guest, and the state of commands.
    pub fn access(self) -> Option<Access> {
        Some(match self {
            Self::Health | Self::Stats | Self::ExecList | Self::ExecInfo | Self::WaitExit => {
                return None;
            }
            Self::Exec | Self::Logs | Self::Kill | Self::Reap | Self::UserdataLogs => Access::Exec,
            Self::CopyFrom | Self::CopyTo => Access::Copy,
            Self::Stat | Self::ReadDir | Self::Mkdir | Self::Remove | Self::Watch => Access::Files,
            Self::Shell => Access::Shell,
            Self::Forward => Access::Forward,
            Self::Sftp => Access::Sftp,
        })
    }

    /// Whether the request upgrades its connection to WebSocket.
    pub fn is_upgrade(self) -> bool {
        matches!(self, Self::Shell | Self::Forward | Self::Sftp)
    }

    /// When the response to a request with this query is late.
    pub fn head_timeout(self, query: &str) -> HeadTimeout {
        let value = |key: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let mut values = pairs.filter(|(found, _)| *found == key);
            values.next().map(|(_, value)| value)
        };
        match self {
            Self::Exec if value("buffered") == Some("true") => HeadTimeout::Never,
            Self::CopyTo => HeadTimeout::AfterBody(COPY_TIMEOUT),
            Self::WaitExit => {
                let seconds = value("timeout").and_then(|text| text.parse().ok());
                let seconds: u64 = seconds.unwrap_or(WAIT_LIMIT);
                let wait = Duration::from_secs(seconds.min(WAIT_LIMIT));
                HeadTimeout::AfterHead(wait + HEAD_TIMEOUT)
            }
            _ => HeadTimeout::AfterHead(HEAD_TIMEOUT),
        }
    }
}

/// Whether this is an id of a command: it is a segment of a path, so nothing that has a meaning there is permitted.
fn is_id(text: &str) -> bool {
    let is_permitted = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=ID_LIMIT).contains(&text.len()) && text.bytes().all(is_permitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_of_the_protocol_is_known_by_its_method_and_path() {
        let protocol = include_str!("protocol.rs");
        let rows = protocol
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `"));
        let requests = rows.filter_map(|row| row.split(['`', '?']).next());
        let mut count = 0;
        for request in requests.filter(|request| request.contains(" /")) {
            let (method, path) = request.split_once(" /").expect("a path");
            let path = path.replace("{id}", "ex_1a-B");
            let method: Method = method.parse().expect("a method");
            assert!(Endpoint::of(&method, &path).is_ok(), "{request}");
            count += 1;
        }
        assert!(count >= 18, "{count}");
    }

    #[test]
    fn other_requests_are_not_known() {
        let long = "x".repeat(65);
        for path in [
            "",
            "/",
            "exec/",
            "/exec",
            "exec/..",
            "exec/.",
            "exec/a%2fb",
            "exec/a/b",
            "health/",
            "fs",
            "fs/../exec",
            "v1/exec",
            "metrics",
            "provision",
            "userdata/wait-exit",
            "exec/a?b/kill",
            "exec//kill",
            &format!("exec/{long}"),
        ] {
            assert_eq!(
                Endpoint::of(&Method::GET, path),
                Err(Unknown::Path),
                "{path}"
            );
        }
        for (method, path) in [
            (Method::PUT, "exec"),
            (Method::POST, "health"),
            (Method::GET, "fs/remove"),
            (Method::DELETE, "exec"),
            (Method::CONNECT, "forward"),
            (Method::HEAD, "stats"),
        ] {
            let found = Endpoint::of(&method, path);
            assert!(
                matches!(found, Err(Unknown::Method(_))),
                "{path}: {found:?}"
            );
        }
    }

    #[test]
    fn a_response_is_late_when_its_request_cannot_be_the_reason() {
        let after = |seconds| HeadTimeout::AfterHead(Duration::from_secs(seconds));
        for (endpoint, query, expected) in [
            (Endpoint::Health, "", after(30)),
            (Endpoint::Exec, "cmd=a&stdin=true", after(30)),
            (Endpoint::Exec, "cmd=a&buffered=true", HeadTimeout::Never),
            (Endpoint::WaitExit, "timeout=60", after(90)),
            (Endpoint::WaitExit, "timeout=99999999999", after(630)),
            (Endpoint::WaitExit, "timeout=x", after(630)),
            (
                Endpoint::CopyTo,
                "path=/a",
                HeadTimeout::AfterBody(COPY_TIMEOUT),
            ),
        ] {
            assert_eq!(
                endpoint.head_timeout(query),
                expected,
                "{endpoint:?} {query}"
            );
        }
    }
}
