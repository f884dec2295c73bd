//! What NetworkManager's configuration says of a link.
//! Not here: whether it runs.

use super::{Fate, NM_RUN, example, files, glob, settings};
use crate::host::{Error, fs};

/// In the order of NetworkManager.conf(5), the strongest first.
const DIRS: [&str; 3] = [
    "/etc/NetworkManager/conf.d",
    NM_RUN,
    "/usr/lib/NetworkManager/conf.d",
];
const MAIN: &str = "/etc/NetworkManager/NetworkManager.conf";

/// Any file that says so is enough; by default a link that comes up is taken.
pub(super) fn fate(link_prefix: &str) -> Result<Fate, Error> {
    let link = example(link_prefix);
    let snippets = files(&DIRS, ".conf")?.into_values();
    for path in snippets.chain([MAIN.into()]) {
        let text = fs::read_text(&path)?.unwrap_or_default();
        if leaves_alone(&text, &link) {
            return Ok(Fate::LeftAlone(Some(path)));
        }
    }
    Ok(Fate::Captured(None))
}

/// `unmanaged-devices=` of `[keyfile]`, or a `[device…]` section with `managed=0` that matches.
pub(super) fn leaves_alone(text: &str, link: &str) -> bool {
    let of = |wanted: &str, key: &str| {
        settings(text)
            .find(|(section, name, _)| *section == wanted && *name == key)
            .map(|(_, _, value)| value)
    };
    let device = |section: &str| {
        section.starts_with("device")
            && matches!(of(section, "managed"), Some("0" | "false" | "no" | "off"))
            && of(section, "match-device").is_none_or(|specs| names(specs, link))
    };
    settings(text).any(|(section, key, value)| match (section, key) {
        ("keyfile", "unmanaged-devices") => names(value, link),
        _ => device(section),
    })
}

/// A list of device specifications (NetworkManager.conf(5), "Device List Format"): parted by `;` or `,`, `except:` turns one
/// round and wins.
fn names(specs: &str, link: &str) -> bool {
    let mut named = false;
    for spec in specs.split([';', ',']).map(str::trim) {
        match spec.strip_prefix("except:") {
            Some(spec) if is(spec, link) => return false,
            Some(_) => {}
            None => named |= is(spec, link),
        }
    }
    named
}

fn is(spec: &str, link: &str) -> bool {
    match spec.split_once(':') {
        Some(("interface-name", pattern)) => {
            let pattern = pattern.strip_prefix('=').unwrap_or(pattern);
            glob(pattern.as_bytes(), link.as_bytes())
        }
        Some(("type", kind)) => matches!(kind, "veth" | "ethernet"),
        Some(("driver", driver)) => glob(driver.as_bytes(), b"veth"),
        Some(_) => false,
        None => spec == "*",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> bool {
        leaves_alone(text, "slabcdeaaaaaaaa")
    }

    #[test]
    fn lists_name_links_by_pattern_and_exceptions_win() {
        assert!(left(
            "[keyfile]\nunmanaged-devices=interface-name:eth0;interface-name:sl*\n"
        ));
        assert!(left(
            "[keyfile]\nunmanaged-devices=*,except:interface-name:eth0\n"
        ));
        assert!(!left(
            "[keyfile]\nunmanaged-devices=*;except:interface-name:sl*\n"
        ));
        assert!(!left("[main]\nunmanaged-devices=interface-name:sl*\n"));
    }

    #[test]
    fn a_device_section_counts_when_it_matches_and_says_unmanaged() {
        assert!(left("[device-x]\nmatch-device=driver:veth\nmanaged=0\n"));
        assert!(!left("[device-x]\nmatch-device=driver:veth\nmanaged=1\n"));
        assert!(!left(
            "[device-x]\nmatch-device=interface-name:eth*\nmanaged=0\n"
        ));
        assert!(!left(""));
    }
}
