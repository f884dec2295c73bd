//! `[[ADDRESS:]LOCAL:]REMOTE`: what is forwarded.
//! Out of scope: forwarding.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address that is listened on and connected to unless another is given.
const LOOPBACK: &str = "127.0.0.1";

/// A forwarded address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where connections are accepted.
    pub listen: Listen,
    /// Where the guest connects to: `HOST:PORT`, or `unix:PATH`.
    pub upstream: String,
}

/// Where connections are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp {
        /// An address or a name; IPv6 without brackets.
        address: String,
        /// The port; 0 for any free one.
        port: u16,
    },
    /// A Unix socket, which is created.
    Unix(PathBuf),
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            self.upstream
                .strip_prefix("unix:")
                .unwrap_or(&self.upstream),
        )
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{why}: expected [[ADDRESS:]LOCAL:]REMOTE, such as 8080:80");
        let parts = parts(text).map_err(|why| wrong(&why))?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (listen, remote) = match parts.as_slice() {
            [first, rest @ ..] if is_path(first) => (Listen::Unix(first.into()), rest),
            [first, rest @ ..] if is_number(first) => (tcp(LOOPBACK, first)?, rest),
            [address, first, rest @ ..] if is_number(first) && !rest.is_empty() => {
                (tcp(address, first)?, rest)
            }
            _ => return Err(wrong("no local port or path")),
        };
        let upstream = match (remote, &listen) {
            ([], Listen::Tcp { port, .. }) => upstream(LOOPBACK, *port)?,
            ([path], _) if path.starts_with('/') => format!("unix:{path}"),
            ([port], _) => upstream(LOOPBACK, number(port)?)?,
            ([host, port], _) if is_host(host) => upstream(host, number(port)?)?,
            _ => return Err(wrong("invalid REMOTE")),
        };
        Ok(Self { listen, upstream })
    }
}

/// The parts between colons. Brackets enclose an IPv6 address; a path in the guest is the last part.
fn parts(text: &str) -> Result<Vec<String>, String> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        if let Some(inner) = rest.strip_prefix('[') {
            let (address, after) = inner.split_once(']').ok_or("no closing ]")?;
            parts.push(address.to_owned());
            match after.strip_prefix(':') {
                Some(next) => rest = next,
                None if after.is_empty() => return Ok(parts),
                None => return Err("no colon after ]".to_owned()),
            }
            continue;
        }
        if rest.starts_with('/') && !parts.is_empty() {
            parts.push(rest.to_owned());
            return Ok(parts);
        }
        match rest.split_once(':') {
            Some((part, next)) => {
                parts.push(part.to_owned());
                rest = next;
            }
            None => {
                parts.push(rest.to_owned());
                return Ok(parts);
            }
        }
    }
}

fn is_path(part: &str) -> bool {
    part.starts_with('/') || part.starts_with("./") || part.starts_with("../")
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Characters of names and addresses.
fn is_host(part: &str) -> bool {
    let is_permitted = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
    !part.is_empty() && part.bytes().all(is_permitted)
}

fn number(part: &str) -> Result<u16, String> {
    let number = part.parse();
    number.map_err(|_| format!("invalid port \"{part}\": expected a number up to 65535"))
}

fn tcp(address: &str, port: &str) -> Result<Listen, String> {
    if !is_host(address) {
        return Err(format!("invalid address \"{address}\""));
    }
    Ok(Listen::Tcp {
        address: address.to_owned(),
        port: number(port)?,
    })
}

fn upstream(host: &str, port: u16) -> Result<String, String> {
    match (port, host.contains(':')) {
        (0, _) => Err("invalid port \"0\" in the guest".to_owned()),
        (_, true) => Ok(format!("[{host}]:{port}")),
        (_, false) => Ok(format!("{host}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(forward: &Forward) -> String {
        match &forward.listen {
            Listen::Tcp { address, port } => format!("{address} {port} {}", forward.upstream),
            Listen::Unix(path) => format!("{} {}", path.display(), forward.upstream),
        }
    }

    #[test]
    fn all_documented_forms_are_parsed() {
        for (given, expected) in [
            ("8080", "127.0.0.1 8080 127.0.0.1:8080"),
            ("8080:80", "127.0.0.1 8080 127.0.0.1:80"),
            ("0:80", "127.0.0.1 0 127.0.0.1:80"),
            ("2222:127.0.0.1:22", "127.0.0.1 2222 127.0.0.1:22"),
            ("5432:db.internal:5432", "127.0.0.1 5432 db.internal:5432"),
            ("127.0.0.1:0:80", "127.0.0.1 0 127.0.0.1:80"),
            ("0.0.0.0:8080:80", "0.0.0.0 8080 127.0.0.1:80"),
            ("localhost:8080:10.0.0.1:80", "localhost 8080 10.0.0.1:80"),
            ("[::1]:8080:80", "::1 8080 127.0.0.1:80"),
            ("8080:[::1]:80", "127.0.0.1 8080 [::1]:80"),
            ("[::]:8080:[fe80::1%eth0]:80", ":: 8080 [fe80::1%eth0]:80"),
            ("/tmp/a:80", "/tmp/a 127.0.0.1:80"),
            ("./a:db:80", "./a db:80"),
            ("../a:/b", "../a unix:/b"),
            (
                "/tmp/docker.sock:/var/run/docker.sock",
                "/tmp/docker.sock unix:/var/run/docker.sock",
            ),
            (
                "2375:/var/run/docker.sock",
                "127.0.0.1 2375 unix:/var/run/docker.sock",
            ),
            ("0.0.0.0:2375:/a:b:c", "0.0.0.0 2375 unix:/a:b:c"),
        ] {
            let forward: Forward = given.parse().unwrap_or_else(|why| panic!("{given}: {why}"));
            assert_eq!(text(&forward), expected, "{given}");
        }
    }

    #[test]
    fn other_forms_are_errors() {
        for given in [
            "",
            ":",
            "80:",
            ":80",
            "0",
            "80:0",
            "65536",
            "80:65536",
            "a",
            "a:80",
            "127.0.0.1:80",
            "/a",
            "/a:",
            "80:a",
            "80:a:b",
            "80:80:80:80",
            "a:b:c:d",
            "1:2:3:4:5",
            "[::1:80:80",
            "[::1]80:80",
            "80:a b:80",
            "80:relative/path",
            "-1:80",
            "a\nb:1:2",
            "80:a\r\nx: y:80",
        ] {
            assert!(given.parse::<Forward>().is_err(), "{given}");
        }
    }
}
