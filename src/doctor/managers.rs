//! Checks whether network managers (systemd-networkd, NetworkManager) leave our links unmanaged.
//! Out of scope: addresses and routes; configuring these programs ([`crate::reconcile::host_network::unmanaged`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Host, ok, unseen, warn};
use crate::api::view::Check;
use crate::host::Error;
use crate::host::error_chain;
use crate::host::fs::{self, Dir};
use crate::reconcile::host_network::unmanaged::{self, Manager, OurLinks};

mod networkd;
mod nm;

const NETWORKD: &str = "systemd-networkd";
const NM: &str = "NetworkManager";

/// An example of a link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Example {
    /// Name of the link.
    name: String,
    kind: Kind,
}

/// Kind of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Veth,
    Bridge,
    Tap,
}

/// What a network manager would do with a link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    /// It leaves the link unmanaged, because of this file or because no file matches.
    Unmanaged(Option<PathBuf>),
    /// It configures the link, because of this file or by default.
    Managed(Option<PathBuf>),
}

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let check = |manager: Manager| {
        let name = match manager {
            Manager::Networkd => NETWORKD,
            Manager::NetworkManager => NM,
        };
        match unmanaged::runs(&cx.home, manager) {
            Err(error) => return unseen(name, &error_chain(&error)),
            Ok(false) => return ok(name, "not running"),
            Ok(true) => {}
        }
        let effects = examples(&cx.links).into_iter().map(|example| {
            let effect = match manager {
                Manager::Networkd => networkd::fate(&example),
                Manager::NetworkManager => nm::fate(&example),
            };
            effect.map(|fate| (example, fate))
        });
        match effects.collect::<Result<Vec<_>, Error>>() {
            Ok(fates) => evaluate(name, &fates, &remedy(manager, &cx.links)),
            Err(error) => unseen(name, &error_chain(&error)),
        }
    };
    Manager::ALL.map(check).into()
}

/// One link of each kind.
fn examples(links: &OurLinks) -> Vec<Example> {
    let veth = Example {
        name: format!("{}aaaaaaaa", links.veth_prefix),
        kind: Kind::Veth,
    };
    let bridges = links.bridges.iter().map(|name| Example {
        name: name.clone(),
        kind: Kind::Bridge,
    });
    let taps = links.tap_prefixes.iter().map(|prefix| Example {
        name: format!("{prefix}0"),
        kind: Kind::Tap,
    });
    [veth].into_iter().chain(bridges).chain(taps).collect()
}

fn evaluate(name: &str, effects: &[(Example, Effect)], remedy: &str) -> Check {
    let managed_by = effects.iter().find_map(|(_, fate)| match fate {
        Effect::Managed(file) => Some(file),
        Effect::Unmanaged(_) => None,
    });
    let Some(by) = managed_by else {
        let file = effects.iter().find_map(|(_, fate)| match fate {
            Effect::Unmanaged(file) => file.clone(),
            Effect::Managed(_) => None,
        });
        return match file {
            Some(file) => ok(
                name,
                format!("running; leaves our links unmanaged ({})", file.display()),
            ),
            None => ok(name, "running; none of its files matches our links"),
        };
    };
    let managed = effects
        .iter()
        .filter(|(_, fate)| matches!(fate, Effect::Managed(_)));
    let taken: Vec<&str> = managed.map(|(example, _)| example.name.as_str()).collect();
    let source = by
        .as_ref()
        .map_or("its defaults".into(), |file| file.display().to_string());
    warn(
        name,
        format!(
            "running; would manage {} because of {source}",
            taken.join(", ")
        ),
        remedy,
    )
}

fn remedy(manager: Manager, links: &OurLinks) -> String {
    let file = manager.file(&links.veth_prefix);
    let (file, text) = (file.display(), manager.content(links).replace('\n', "\\n"));
    let (permanent_file, reload) = match manager {
        Manager::Networkd => ("/etc/systemd/network/05-slice.network", "networkctl reload"),
        Manager::NetworkManager => (
            "/etc/NetworkManager/conf.d/90-slice.conf",
            "nmcli general reload conf",
        ),
    };
    format!(
        "Restart sliced, which writes {file}; to make it permanent: `printf '%b' \"{text}\" > {permanent_file} && {reload}`."
    )
}

/// The files with this suffix in several directories, by name. Of files with the same name, that of the earlier directory is used.
fn files(dirs: &[&str], suffix: &str) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    for dir in dirs {
        let Dir::Present(names) = fs::read_dir(Path::new(dir))? else {
            continue;
        };
        for name in names.into_iter().filter(|name| name.ends_with(suffix)) {
            let path = Path::new(dir).join(&name);
            found.entry(name).or_insert(path);
        }
    }
    Ok(found)
}

/// `KEY=VALUE` lines of an ini file as (section, key, value).
fn settings(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with(['#', ';']) {
            return None;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name;
            return None;
        }
        let (key, value) = line.split_once('=')?;
        Some((section, key.trim(), value.trim()))
    })
}

/// A shell pattern with `*`, `?` and sets in brackets (glob(7)).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            glob(rest, text)
                || text
                    .split_first()
                    .is_some_and(|(_, tail)| glob(pattern, tail))
        }
        ([b'?', rest @ ..], [_, tail @ ..]) => glob(rest, tail),
        ([b'[', set @ ..], [c, tail @ ..]) if set.contains(&b']') => {
            let end = set.iter().position(|byte| *byte == b']').unwrap_or(0);
            in_set(&set[..end], *c) && glob(&set[end + 1..], tail)
        }
        ([c, rest @ ..], [d, tail @ ..]) => c == d && glob(rest, tail),
        _ => false,
    }
}

fn in_set(set: &[u8], c: u8) -> bool {
    let (mut set, expected) = match set {
        [b'!' | b'^', rest @ ..] => (rest, false),
        _ => (set, true),
    };
    let mut found = false;
    while let [first, rest @ ..] = set {
        (found, set) = match rest {
            [b'-', last, rest @ ..] => (found || (*first..=*last).contains(&c), rest),
            _ => (found || *first == c, rest),
        };
    }
    found == expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;

    fn links() -> OurLinks {
        OurLinks {
            veth_prefix: "slabcde".into(),
            bridges: ["slbr0".to_owned(), "br-vm".to_owned()].into(),
            tap_prefixes: ["tp".to_owned(), "e".to_owned()].into(),
        }
    }

    fn example(name: &str, kind: Kind) -> Example {
        Example {
            name: name.into(),
            kind,
        }
    }

    #[test]
    fn our_files_make_both_leave_our_links_unmanaged_and_no_others() {
        let ours = [
            ("slabcdeaaaaaaaa", Kind::Veth),
            ("slbr0", Kind::Bridge),
            ("br-vm", Kind::Bridge),
            ("tp0", Kind::Tap),
            ("tp1023", Kind::Tap),
            ("tpx7", Kind::Tap),
            ("e0", Kind::Tap),
        ];
        let others = [
            ("slaves0", Kind::Veth),
            ("slbr01", Kind::Bridge),
            ("slbr", Kind::Bridge),
            ("br-vm2", Kind::Bridge),
            ("eth0", Kind::Veth),
            ("enp3s0", Kind::Veth),
            ("t0", Kind::Tap),
        ];
        let networkd = Manager::Networkd.content(&links());
        let nm = Manager::NetworkManager.content(&links());
        for (name, kind) in ours {
            let link = example(name, kind);
            let found = networkd::setting_for(&networkd, &link);
            assert_eq!(found, Some(networkd::Setting::Unmanaged), "{name}");
            assert!(nm::is_unmanaged(&nm, &link), "{name}: {nm}");
        }
        for (name, kind) in others {
            let link = example(name, kind);
            assert_eq!(networkd::setting_for(&networkd, &link), None, "{name}");
            assert!(!nm::is_unmanaged(&nm, &link), "{name}");
        }
    }

    #[test]
    fn a_managed_link_is_a_warning_with_the_link_the_file_and_the_remedy() {
        let file = Some(PathBuf::from("/etc/systemd/network/all.network"));
        let fates = [
            (
                example("slabcdeaaaaaaaa", Kind::Veth),
                Effect::Unmanaged(None),
            ),
            (example("tp0", Kind::Tap), Effect::Managed(file)),
        ];
        let check = evaluate(NETWORKD, &fates, &remedy(Manager::Networkd, &links()));
        assert_eq!(check.status, CheckStatus::Warn);
        assert_eq!(
            check.found,
            "running; would manage tp0 because of /etc/systemd/network/all.network"
        );
        assert!(
            check
                .remedy
                .contains("/run/systemd/network/05-slice-slabcde.network")
        );
        assert!(!check.remedy.contains('\n'), "{}", check.remedy);
        assert_eq!(evaluate(NM, &fates[..1], "").status, CheckStatus::Ok);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let matches = |pattern: &str, text: &str| glob(pattern.as_bytes(), text.as_bytes());
        assert!(matches("*", "") && matches("sl*", "slx") && matches("s?x*", "slx"));
        assert!(!matches("sl", "slx") && !matches("?", "") && !matches("eth*", "slx"));
        assert!(
            matches("tp[0-9]*", "tp07") && !matches("tp[0-9]*", "tpx") && !matches("tp[0-9]", "tp")
        );
        assert!(matches("[!a-c]x", "dx") && !matches("[!a-c]x", "bx") && matches("[ab]", "b"));
        assert!(matches("[", "[") && !matches("[", "a"));
    }

    #[test]
    fn settings_know_their_section() {
        let text = "a=1\n[One]\n# b=2\n c = 3 = 4\n[Two]\nd=\n";
        let found: Vec<_> = settings(text).collect();
        assert_eq!(
            found,
            [("", "a", "1"), ("One", "c", "3 = 4"), ("Two", "d", "")]
        );
    }
}
