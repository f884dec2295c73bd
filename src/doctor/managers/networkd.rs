//! What systemd-networkd's files say of a link.
//! Not here: whether it runs.

use std::path::Path;

use super::{Fate, NETWORKD_RUN, example, files, glob, settings};
use crate::host::{Error, fs};

/// In the order of systemd.network(5), the strongest first.
const DIRS: [&str; 5] = [
    "/etc/systemd/network",
    NETWORKD_RUN,
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
];

/// What a file that matches says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// `Unmanaged=yes`.
    LeaveAlone,
    /// Anything else.
    SetUp,
}

/// The first file that matches, by name, decides (systemd.network(5)).
pub(super) fn fate(link_prefix: &str) -> Result<Fate, Error> {
    let link = example(link_prefix);
    for path in files(&DIRS, ".network")?.into_values() {
        match verdict(&read(&path)?, &link) {
            None => {}
            Some(Says::LeaveAlone) => return Ok(Fate::LeftAlone(Some(path))),
            Some(Says::SetUp) => return Ok(Fate::Captured(Some(path))),
        }
    }
    Ok(Fate::LeftAlone(None))
}

/// A file that is gone, or was masked by a link to /dev/null, says nothing.
fn read(path: &Path) -> Result<String, Error> {
    match path.canonicalize() {
        Ok(target) if target != Path::new("/dev/null") => {
            Ok(fs::read_text(&target)?.unwrap_or_default())
        }
        Ok(_) | Err(_) => Ok(String::new()),
    }
}

/// What the file says of a veth of this name; `None` if it does not match.
pub(super) fn verdict(text: &str, link: &str) -> Option<Says> {
    let mut conditions = settings(text)
        .filter(|(section, _, _)| *section == "Match")
        .peekable();
    // A file without conditions matches nothing (it was everything before version 243).
    conditions.peek()?;
    let matches = conditions.all(|(_, key, value)| match key {
        "Name" => one_of(value, &[link]),
        // Both names of the sort: udev's type and the kernel's kind.
        "Type" => one_of(value, &["ether"]),
        "Kind" | "Driver" => one_of(value, &["veth"]),
        // Hardware, host, architecture…: nothing that a veth of ours has.
        _ => false,
    });
    let unmanaged = || {
        settings(text).any(|(section, key, value)| {
            section == "Link" && key == "Unmanaged" && matches!(value, "yes" | "true" | "1" | "on")
        })
    };
    matches.then(|| {
        if unmanaged() {
            Says::LeaveAlone
        } else {
            Says::SetUp
        }
    })
}

/// Patterns parted by blanks; a `!` before the first turns them all round.
fn one_of(patterns: &str, names: &[&str]) -> bool {
    let (patterns, wanted) = match patterns.strip_prefix('!') {
        Some(rest) => (rest, false),
        None => (patterns, true),
    };
    let hit = patterns.split_whitespace().any(|pattern| {
        names
            .iter()
            .any(|name| glob(pattern.as_bytes(), name.as_bytes()))
    });
    hit == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> Option<Says> {
        verdict(text, "slabcdeaaaaaaaa")
    }

    #[test]
    fn a_file_for_everything_takes_our_links() {
        assert_eq!(
            says("[Match]\nName=*\n[Network]\nDHCP=yes\n"),
            Some(Says::SetUp)
        );
        assert_eq!(
            says("[Match]\nType=ether\n[Network]\nDHCP=yes\n"),
            Some(Says::SetUp)
        );
        assert_eq!(
            says("[Match]\nKind=veth\n[Network]\nDHCP=yes\n"),
            Some(Says::SetUp)
        );
        assert_eq!(
            says("[Match]\nName=!eth* en*\n[Network]\nDHCP=yes\n"),
            Some(Says::SetUp)
        );
    }

    #[test]
    fn files_for_other_links_do_not() {
        for other in [
            "[Match]\nName=eth0\n",
            "[Match]\nName=ve-*\nKind=veth\n",
            "[Match]\nMACAddress=02:00:00:00:00:01\n",
            "[Match]\nType=!ether\n",
            "[Network]\nDHCP=yes\n",
            "",
        ] {
            assert_eq!(says(other), None, "{other}");
        }
    }

    #[test]
    fn unmanaged_counts_in_its_section_only() {
        assert_eq!(
            says("[Match]\nName=sl*\n[Link]\nUnmanaged=yes\n"),
            Some(Says::LeaveAlone)
        );
        assert_eq!(
            says("[Match]\nName=sl*\n[Network]\nUnmanaged=yes\n"),
            Some(Says::SetUp)
        );
    }
}
