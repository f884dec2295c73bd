//! Evaluates the configuration files of systemd-networkd for a link.
//! Out of scope: whether systemd-networkd is running.

use std::path::Path;

use super::{Effect, Example, Kind, files, glob, settings};
use crate::host::{Error, fs};

/// In the order of precedence of systemd.network(5), highest first.
const DIRS: [&str; 5] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
];

/// The effect of a file that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// `Unmanaged=yes`.
    Unmanaged,
    /// Anything else.
    Managed,
}

/// The first file that matches, by name, decides (systemd.network(5)).
pub(super) fn fate(link: &Example) -> Result<Effect, Error> {
    for path in files(&DIRS, ".network")?.into_values() {
        match setting_for(&read(&path)?, link) {
            None => {}
            Some(Setting::Unmanaged) => return Ok(Effect::Unmanaged(Some(path))),
            Some(Setting::Managed) => return Ok(Effect::Managed(Some(path))),
        }
    }
    Ok(Effect::Unmanaged(None))
}

/// A file that was removed, or is masked by a link to /dev/null, is empty.
fn read(path: &Path) -> Result<String, Error> {
    match path.canonicalize() {
        Ok(target) if target != Path::new("/dev/null") => {
            Ok(fs::read_text(&target)?.unwrap_or_default())
        }
        Ok(_) | Err(_) => Ok(String::new()),
    }
}

/// The effect of a file on a link; `None` if it does not match.
pub(super) fn setting_for(text: &str, link: &Example) -> Option<Setting> {
    let conditions = settings(text).filter(|(section, _, _)| *section == "Match");
    // Several assignments of a key form one list; an empty assignment resets it.
    let mut lists: Vec<(&str, String)> = Vec::new();
    for (_, key, value) in conditions {
        match lists.iter_mut().find(|(known, _)| *known == key) {
            Some((_, list)) if value.is_empty() => list.clear(),
            Some((_, list)) => list.extend([" ", value]),
            None => lists.push((key, value.to_owned())),
        }
    }
    // A file without conditions matches nothing (before version 243, everything).
    if lists.is_empty() {
        return None;
    }
    // udev's type and the kernel's kind.
    let (udev_type, kind) = match link.kind {
        Kind::Veth => ("ether", "veth"),
        Kind::Bridge => ("bridge", "bridge"),
        Kind::Tap => ("ether", "tun"),
    };
    let matches = lists.iter().all(|(key, value)| match *key {
        "Name" => one_of(value, &[&link.name]),
        "Type" => one_of(value, &[udev_type]),
        "Kind" | "Driver" => one_of(value, &[kind]),
        // Other conditions (hardware, host, architecture…) do not match links of ours.
        _ => false,
    });
    let unmanaged = || {
        settings(text).any(|(section, key, value)| {
            section == "Link" && key == "Unmanaged" && matches!(value, "yes" | "true" | "1" | "on")
        })
    };
    matches.then(|| {
        if unmanaged() {
            Setting::Unmanaged
        } else {
            Setting::Managed
        }
    })
}

/// Patterns separated by blanks; a `!` before the first inverts the result.
fn one_of(patterns: &str, names: &[&str]) -> bool {
    let (patterns, expected) = match patterns.strip_prefix('!') {
        Some(rest) => (rest, false),
        None => (patterns, true),
    };
    let hit = patterns.split_whitespace().any(|pattern| {
        names
            .iter()
            .any(|name| glob(pattern.as_bytes(), name.as_bytes()))
    });
    hit == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting_of(text: &str) -> Option<Setting> {
        let name = "slabcdeaaaaaaaa".to_owned();
        let kind = Kind::Veth;
        setting_for(text, &Example { name, kind })
    }

    #[test]
    fn bridges_and_taps_are_matched_by_their_kinds() {
        let setting = |text: &str, name: &str, kind| {
            let name = name.to_owned();
            setting_for(text, &Example { name, kind })
        };
        let all = "[Match]\nName=!lo uplink0 lan0 docker0\n[Network]\nDHCP=ipv4\n";
        assert_eq!(setting(all, "slbr0", Kind::Bridge), Some(Setting::Managed));
        assert_eq!(setting(all, "tp0", Kind::Tap), Some(Setting::Managed));
        let bridges = "[Match]\nKind=bridge\n[Network]\nDHCP=ipv4\n";
        assert_eq!(
            setting(bridges, "slbr0", Kind::Bridge),
            Some(Setting::Managed)
        );
        assert_eq!(setting(bridges, "tp0", Kind::Tap), None);
        let two = "[Match]\nName=br9\nName=slbr*\n[Link]\nUnmanaged=yes\n";
        assert_eq!(
            setting(two, "slbr0", Kind::Bridge),
            Some(Setting::Unmanaged)
        );
    }

    #[test]
    fn a_file_for_all_links_manages_ours() {
        assert_eq!(
            setting_of("[Match]\nName=*\n[Network]\nDHCP=yes\n"),
            Some(Setting::Managed)
        );
        assert_eq!(
            setting_of("[Match]\nType=ether\n[Network]\nDHCP=yes\n"),
            Some(Setting::Managed)
        );
        assert_eq!(
            setting_of("[Match]\nKind=veth\n[Network]\nDHCP=yes\n"),
            Some(Setting::Managed)
        );
        assert_eq!(
            setting_of("[Match]\nName=!eth* en*\n[Network]\nDHCP=yes\n"),
            Some(Setting::Managed)
        );
    }

    #[test]
    fn files_for_other_links_do_not_match() {
        for other in [
            "[Match]\nName=eth0\n",
            "[Match]\nName=ve-*\nKind=veth\n",
            "[Match]\nMACAddress=02:00:00:00:00:01\n",
            "[Match]\nType=!ether\n",
            "[Network]\nDHCP=yes\n",
            "",
        ] {
            assert_eq!(setting_of(other), None, "{other}");
        }
    }

    #[test]
    fn unmanaged_counts_in_its_section_only() {
        assert_eq!(
            setting_of("[Match]\nName=sl*\n[Link]\nUnmanaged=yes\n"),
            Some(Setting::Unmanaged)
        );
        assert_eq!(
            setting_of("[Match]\nName=sl*\n[Network]\nUnmanaged=yes\n"),
            Some(Setting::Managed)
        );
    }
}
