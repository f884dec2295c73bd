//! Names of links that people may write, and those made from a group's name when they write none.
//! Out of scope: the names of the links that only we name (`owner`).
//!
//! # Why
//! A derived TAP prefix does not depend on the group's count: a group that grows must not rename what it has. So it leaves room
//! for the largest number a bridge has ports for. TAPs of two groups never bear one name: a prefix made of the group's name
//! ends in `-`, so that a TAP's name is cut at its last `-` in one way only, and one made of a hash has a fixed length; the
//! second character, `-` or `_`, tells the two kinds apart, and no group's name has a `_`.

use super::meta::Name;

/// IFNAMSIZ without the closing NUL, in bytes (kernel, `include/uapi/linux/if.h`).
pub const LONGEST: usize = 15;
/// The longest name of a TAP, its number included: one less than the kernel's, for the programs that append a character.
pub const LONGEST_TAP: usize = 14;
/// Ports that a bridge can have (kernel, `net/bridge/br_private.h`: `BR_PORT_BITS` 10, and port 0 is none).
pub const MAX_PORTS: u32 = 1023;

/// systemd-networkd's shipped `80-container-*.network` and `80-vm-*.network` give links of these names new addresses.
const READDRESSED: [&str; 5] = ["ve-", "vb-", "vt-", "vz-", "ns-"];
/// `all` and `default` are the kernel's words in `/proc/sys/net/ipv4/conf` (`sysctl_dev_name_is_allowed`); `lo` is there.
const KEPT: [&str; 3] = ["all", "default", "lo"];

/// Why a bridge or the start of a TAP's name cannot be called so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Nothing is no name.
    #[error("it is empty")]
    Empty,
    /// See [`LONGEST`].
    #[error("it is longer than 15 characters")]
    TooLong,
    /// The kernel takes more, but `%` is a template to it and `+` a wildcard to iptables.
    #[error("it must start with a letter or a digit, and only those, `_`, `.` and `-` may follow")]
    Characters,
    /// See [`READDRESSED`].
    #[error("systemd-networkd gives links that start with ve-, vb-, vt-, vz- or ns- new addresses")]
    Readdressed,
    /// See [`KEPT`].
    #[error("the kernel uses that name itself")]
    Kept,
    /// `sl` and 13 characters of base 32.
    #[error("links that sliced makes for isolated VMs are named so")]
    Ours,
}

/// Whether a link may be called `name`.
pub fn check(name: &str) -> Result<(), Unfit> {
    let follows = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        Err(Unfit::Empty)
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(follows) {
        Err(Unfit::Characters)
    } else if name.len() > LONGEST {
        Err(Unfit::TooLong)
    } else if READDRESSED.iter().any(|lead| name.starts_with(lead)) {
        Err(Unfit::Readdressed)
    } else if KEPT.contains(&name) {
        Err(Unfit::Kept)
    } else if is_ours(name) {
        Err(Unfit::Ours)
    } else {
        Ok(())
    }
}

fn is_ours(name: &str) -> bool {
    name.len() == LONGEST
        && name.starts_with("sl")
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The bridge of a group that names none: `br-web`, or `br-` with the start of a long name, `_` and a hash of it.
pub fn bridge_of(group: &Name) -> String {
    let whole = format!("br-{group}");
    match whole.len() <= LONGEST {
        true => whole,
        false => format!("br-{}_{}", cut(group, 5), hash("bridge", group)),
    }
}

/// The TAPs' prefix of a group that names none: `t-web-`, or `t_` with the start of a long name and a hash of it.
pub fn tap_prefix_of(group: &Name) -> String {
    let room = LONGEST_TAP - (MAX_PORTS - 1).to_string().len();
    let whole = format!("t-{group}-");
    match whole.len() <= room {
        true => whole,
        false => format!("t_{}{}", cut(group, 2), hash("tap prefix", group)),
    }
}

fn cut(group: &Name, length: usize) -> &str {
    // A name is ASCII.
    &group.as_str()[..length.min(group.as_str().len())]
}

/// Six characters of base 32 (RFC 4648, lower case): 30 bits.
fn hash(role: &str, group: &Name) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hasher = blake3::Hasher::new_derive_key(role);
    hasher.update(group.as_str().as_bytes());
    let digest = hasher.finalize();
    let letters = digest.as_bytes().iter().take(6);
    letters
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// The number after `prefix` in `name`, when it is written as a TAP's is: in decimal, without zeros before it.
pub fn tap_number(prefix: &str, name: &str) -> Option<u32> {
    let number: u32 = name.strip_prefix(prefix)?.parse().ok()?;
    (name == format!("{prefix}{number}")).then_some(number)
}

/// A name that TAPs of both have, if any: `a` and `b` are prefixes and how many TAPs each has, numbered from 0.
pub fn shared_tap(a: (&str, u32), b: (&str, u32)) -> Option<String> {
    let ((short, many), (long, few)) = match a.0.len() <= b.0.len() {
        true => (a, b),
        false => (b, a),
    };
    // Of the long one's TAPs its first has the smallest number to the short one.
    let first = format!("{long}0");
    let number = tap_number(short, &first)?;
    (number < many && few > 0).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn group() -> impl Strategy<Value = Name> {
        "(v[ebtz]-|ns-|sl|t-|br-)?[a-z0-9](([a-z0-9-]{0,30})[a-z0-9])?"
            .prop_map(|text| Name::new(text).unwrap())
    }

    proptest! {
        #[test]
        fn derived_names_fit_the_kernel_and_are_nobody_elses(group in group()) {
            let (bridge, prefix) = (bridge_of(&group), tap_prefix_of(&group));
            prop_assert_eq!(check(&bridge), Ok(()));
            prop_assert_eq!(check(&prefix), Ok(()));
            let last = format!("{prefix}{}", MAX_PORTS - 1);
            prop_assert!(last.len() <= LONGEST_TAP, "{}", last);
            prop_assert!(!bridge.starts_with("sl") && !prefix.starts_with("sl"));
            prop_assert_eq!((bridge_of(&group), tap_prefix_of(&group)), (bridge, prefix));
        }

        #[test]
        fn derived_names_of_groups_whose_names_run_into_each_other_stay_apart(
            groups in proptest::collection::hash_set("[ab1](-?[ab1]){0,12}", 2..20),
        ) {
            let groups: Vec<Name> = groups.into_iter().map(|g| Name::new(g).unwrap()).collect();
            let mut seen = HashSet::new();
            for group in &groups {
                prop_assert!(seen.insert(bridge_of(group)), "{}", group);
                let prefix = tap_prefix_of(group);
                for number in (0..30).chain(1000..MAX_PORTS) {
                    prop_assert!(seen.insert(format!("{prefix}{number}")), "{}", group);
                }
            }
        }

        #[test]
        fn shared_taps_are_found_exactly(
            (a, many) in ("t[01]{0,3}", 0_u32..130),
            (b, few) in ("t[01]{0,3}", 0_u32..130),
        ) {
            let names = |prefix: &str, count| -> HashSet<String> {
                (0..count).map(|n| format!("{prefix}{n}")).collect()
            };
            let (ours, theirs) = (names(&a, many), names(&b, few));
            let found = shared_tap((&a, many), (&b, few));
            prop_assert_eq!(found.is_some(), !ours.is_disjoint(&theirs));
            if let Some(name) = found {
                prop_assert!(ours.contains(&name) && theirs.contains(&name), "{}", name);
            }
        }
    }

    #[test]
    fn a_short_group_reads_well_and_a_long_one_keeps_its_start() {
        let name = |text: &str| Name::new(text).unwrap();
        assert_eq!(bridge_of(&name("web")), "br-web");
        assert_eq!(tap_prefix_of(&name("web")), "t-web-");
        let (bridge, prefix) = (
            bridge_of(&name("a-very-long-group")),
            tap_prefix_of(&name("a-very-long-group")),
        );
        assert!(
            bridge.starts_with("br-a-ver_") && bridge.len() == 15,
            "{bridge}"
        );
        assert!(prefix.starts_with("t_a-") && prefix.len() == 10, "{prefix}");
    }

    #[test]
    fn thousands_of_long_names_have_as_many_bridges_and_prefixes() {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for n in 0..3000 {
            let group = Name::new(format!("customer-number-{n}")).unwrap();
            for name in [bridge_of(&group), tap_prefix_of(&group)] {
                assert_eq!(seen.insert(name.clone(), n), None, "{name}");
            }
        }
    }

    #[test]
    fn what_the_kernel_or_others_would_stumble_over_is_unfit() {
        for good in [
            "br0",
            "vmbr0",
            "br-lan",
            "br0.100",
            "B_r",
            "exactly15bytes_",
            "slow0",
            "0",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", Unfit::Empty),
            ("sixteen_bytes_xx", Unfit::TooLong),
            (".", Unfit::Characters),
            ("..", Unfit::Characters),
            ("a/b", Unfit::Characters),
            ("a b", Unfit::Characters),
            ("a\tb", Unfit::Characters),
            ("br%d", Unfit::Characters),
            ("br+", Unfit::Characters),
            ("bür", Unfit::Characters),
            ("-br", Unfit::Characters),
            ("ve-1", Unfit::Readdressed),
            ("ns-", Unfit::Readdressed),
            ("lo", Unfit::Kept),
            ("all", Unfit::Kept),
            ("slabcdefghijklm", Unfit::Ours),
        ] {
            assert_eq!(check(bad), Err(why), "{bad:?}");
        }
    }
}
