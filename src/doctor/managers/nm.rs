//! Evaluates the configuration of NetworkManager for a link.
//! Out of scope: whether NetworkManager is running.

use std::path::PathBuf;

use super::{Effect, Example, Kind, files, glob, settings};
use crate::host::{Error, fs};

/// In the order of precedence of NetworkManager.conf(5), highest first.
const DIRS: [&str; 3] = [
    "/etc/NetworkManager/conf.d",
    "/run/NetworkManager/conf.d",
    "/usr/lib/NetworkManager/conf.d",
];
const MAIN: &str = "/etc/NetworkManager/NetworkManager.conf";

/// By default, NetworkManager manages a link that comes up.
pub(super) fn fate(link: &Example) -> Result<Effect, Error> {
    // Files in /etc are read after those in /run; the last setting is used.
    let snippets = files(&DIRS, ".conf")?.into_values();
    let (own, others): (Vec<PathBuf>, Vec<PathBuf>) =
        snippets.partition(|path| path.starts_with("/etc"));
    let order = others.into_iter().chain([MAIN.into()]).chain(own);
    let mut fate = Effect::Managed(None);
    for path in order {
        let text = fs::read_text(&path)?.unwrap_or_default();
        if is_unmanaged(&text, link) {
            fate = Effect::Unmanaged(Some(path));
        } else if takes(&text, link) {
            fate = Effect::Managed(Some(path));
        }
    }
    Ok(fate)
}

/// A `[device…]` section with `managed=1` that matches.
fn takes(text: &str, link: &Example) -> bool {
    let value_of = |wanted_section: &str, key: &str| {
        settings(text)
            .find(|(section, name, _)| *section == wanted_section && *name == key)
            .map(|(_, _, value)| value)
    };
    settings(text).any(|(section, _, _)| {
        section.starts_with("device")
            && matches!(
                value_of(section, "managed"),
                Some("1" | "true" | "yes" | "on")
            )
            && value_of(section, "match-device").is_none_or(|specs| names(specs, link))
    })
}

/// `unmanaged-devices=` of `[keyfile]`, or a `[device…]` section with `managed=0` that matches.
pub(super) fn is_unmanaged(text: &str, link: &Example) -> bool {
    let value_of = |in_section: &str, key: &str| {
        settings(text)
            .find(|(section, name, _)| *section == in_section && *name == key)
            .map(|(_, _, value)| value)
    };
    let device = |section: &str| {
        section.starts_with("device")
            && matches!(
                value_of(section, "managed"),
                Some("0" | "false" | "no" | "off")
            )
            && value_of(section, "match-device").is_none_or(|specs| names(specs, link))
    };
    settings(text).any(|(section, key, value)| match (section, key) {
        ("keyfile", "unmanaged-devices") => names(value, link),
        _ => device(section),
    })
}

/// Whether a list of device specifications (NetworkManager.conf(5), "Device List Format") matches: separated by `;` or `,`; `except:`
/// excludes a device and takes precedence.
fn names(specs: &str, link: &Example) -> bool {
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

fn is(spec: &str, link: &Example) -> bool {
    let (kind, driver) = match link.kind {
        Kind::Veth => ("veth", "veth"),
        Kind::Bridge => ("bridge", "bridge"),
        Kind::Tap => ("tun", "tun"),
    };
    match spec.split_once(':') {
        Some(("interface-name", pattern)) => match pattern.strip_prefix('=') {
            Some(name) => name == link.name,
            None => glob(pattern.as_bytes(), link.name.as_bytes()),
        },
        // Veths also have the type ethernet.
        Some(("type", "ethernet")) => link.kind == Kind::Veth,
        Some(("type", named)) => named == kind,
        Some(("driver", pattern)) => glob(pattern.as_bytes(), driver.as_bytes()),
        Some(_) => false,
        None => spec == "*",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> bool {
        let name = "slabcdeaaaaaaaa".to_owned();
        let kind = Kind::Veth;
        is_unmanaged(text, &Example { name, kind })
    }

    #[test]
    fn lists_match_links_by_pattern_and_exceptions_take_precedence() {
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
    fn a_section_that_manages_every_device_manages_ours() {
        let link = Example {
            name: "slabcdeaaaaaaaa".to_owned(),
            kind: Kind::Veth,
        };
        assert!(takes("[device-all]\nmatch-device=*\nmanaged=1\n", &link));
        assert!(takes("[device]\nmanaged=true\n", &link));
        assert!(!takes(
            "[device-x]\nmatch-device=interface-name:eth*\nmanaged=1\n",
            &link
        ));
        assert!(!takes("[device-x]\nmatch-device=*\nmanaged=0\n", &link));
    }

    #[test]
    fn a_device_section_applies_if_it_matches_and_is_unmanaged() {
        assert!(left("[device-x]\nmatch-device=driver:veth\nmanaged=0\n"));
        assert!(!left("[device-x]\nmatch-device=driver:veth\nmanaged=1\n"));
        assert!(!left(
            "[device-x]\nmatch-device=interface-name:eth*\nmanaged=0\n"
        ));
        assert!(!left(""));
    }
}
