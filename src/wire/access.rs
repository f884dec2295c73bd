//! Why a user cannot connect to the socket, and what to do.
//! Out of scope: connecting (`client`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The error of `connect(2)`, without the number.
pub(super) fn connect_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

/// Who may connect to a socket, and how to become one of them.
pub(super) fn socket_access(socket: &Path) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let gid = fs::metadata(socket).map(|meta| meta.gid());
    let path = socket.display();
    match gid.ok().map(|gid| (gid, group_name(&groups, gid))) {
        // Root's own group: the configured group does not exist.
        Some((0, _)) => format!("{path} is accessible to root only; use sudo"),
        Some((gid, name)) => {
            let name = name.map_or_else(|| gid.to_string(), str::to_owned);
            format!(
                "{path} is accessible to root and members of group {name}; use sudo, or join the group with `sudo usermod -aG {name} $USER` \
                 and log in again"
            )
        }
        None => format!("{path} is accessible to root and members of its group; use sudo"),
    }
}

/// The name of a group in the text of group(5).
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id: u32 = fields.nth(1)?.parse().ok()?;
        (id == gid).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_id() {
        let groups = "root:x:0:\n# a comment\nslice:x:987:alice,bob\nbroken\n";
        assert_eq!(group_name(groups, 987), Some("slice"));
        assert_eq!(group_name(groups, 0), Some("root"));
        assert_eq!(group_name(groups, 1), None);
    }

    #[test]
    fn errors_of_connect_have_no_numbers() {
        let text = |errno| connect_error(&io::Error::from_raw_os_error(errno));
        assert_eq!(text(libc::ENOENT), "no such file");
        assert_eq!(text(libc::ECONNREFUSED), "connection refused");
        assert!(text(libc::ENOTSOCK).contains("socket"));
    }
}
