//! Host names of the guest, from `/etc/hosts`.
//! Out of scope: DNS: its resolver is part of the C library and cannot be linked statically.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The maximum size of the file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// The addresses of a literal, of `localhost` or of a name in `/etc/hosts`; none for other names. Reads a file, which may take time.
pub fn resolve(host: &str) -> Vec<IpAddr> {
    let mut text = Vec::new();
    if let Ok(file) = File::open("/etc/hosts") {
        // What cannot be read has no names.
        let _ = file.take(FILE_LIMIT).read_to_end(&mut text);
    }
    look_up(&String::from_utf8_lossy(&text), host)
}

fn look_up(hosts: &str, host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let mut found: Vec<IpAddr> = hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|name| name.eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .collect();
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_names_of_the_file_have_addresses() {
        let hosts = "127.0.0.1 localhost # web\n10.0.0.2\tdb DB.example\n10.0.0.3 db\nbad web\n#1.1.1.1 web\n::1 six";
        for (host, expected) in [
            ("10.1.2.3", "[10.1.2.3]"),
            ("::1", "[::1]"),
            ("LOCALHOST", "[127.0.0.1]"),
            ("db", "[10.0.0.2, 10.0.0.3]"),
            ("db.EXAMPLE", "[10.0.0.2]"),
            ("six", "[::1]"),
            ("web", "[]"),
            ("", "[]"),
        ] {
            assert_eq!(format!("{:?}", look_up(hosts, host)), expected, "{host}");
        }
        assert_eq!(look_up("", "localhost").len(), 2);
    }
}
