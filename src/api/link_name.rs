//! Names of links that users may specify, and names that are derived from a group's name if none is specified.
//! Out of scope: the names of other links (`owner`).
//!
//! # Why
//! A derived TAP prefix does not depend on the group's count, because a group that grows must not rename existing TAPs. It therefore
//! reserves characters for the largest number of a bridge port. TAPs of two groups never have the same name: a prefix that consists of
//! the group's name ends in `-`, so the last `-` of a TAP's name determines its prefix, and a prefix with a hash has a fixed length. The
//! second character, `-` or `_`, distinguishes the two formats, and group names contain no `_`.

use super::meta::Name;

/// The maximum length of a link's name in bytes: IFNAMSIZ without the final NUL (kernel, `include/uapi/linux/if.h`).
pub const LONGEST: usize = 15;
/// The maximum length of a TAP's name with its number: one less than the kernel's limit, for programs that append a character.
pub const MAX_TAP_LEN: usize = 14;
/// The maximum number of ports of a bridge (kernel, `net/bridge/br_private.h`: `BR_PORT_BITS` is 10, and port 0 is not used).
pub const MAX_PORTS: u32 = 1023;

/// Prefixes of names that match `80-container-*.network` and `80-vm-*.network` of systemd-networkd, which assigns addresses to such links.
const NETWORKD_PREFIXES: [&str; 5] = ["ve-", "vb-", "vt-", "vz-", "ns-"];
/// Names that the kernel reserves: `all` and `default` in `/proc/sys/net/ipv4/conf` (`sysctl_dev_name_is_allowed`), and `lo`.
const RESERVED: [&str; 3] = ["all", "default", "lo"];

/// The reason why a text is not a valid name of a bridge, or prefix of TAP names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLinkName {
    /// The name is empty.
    #[error("it is empty")]
    Empty,
    /// The name is longer than [`LONGEST`].
    #[error("it is longer than 15 characters")]
    TooLong,
    /// The name has other characters. The kernel accepts more, but `%` is a template for it, and `+` is a wildcard for iptables.
    #[error(
        "it must start with a letter or a digit and contain only letters, digits, `_`, `.` and `-`"
    )]
    Characters,
    /// The name starts with one of [`NETWORKD_PREFIXES`].
    #[error(
        "systemd-networkd assigns addresses to links with names that start with ve-, vb-, vt-, vz- or ns-"
    )]
    ManagedByNetworkd,
    /// The name is one of [`RESERVED`].
    #[error("the kernel reserves this name")]
    Kept,
    /// The name has the format of the links of isolated VMs: `sl` and 13 characters of base 32.
    #[error("sliced uses this format for the links of isolated VMs")]
    Ours,
}

/// Checks whether `name` is valid for a link.
///
/// # Errors
/// The reason why it is not.
pub fn check(name: &str) -> Result<(), InvalidLinkName> {
    let is_valid_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        Err(InvalidLinkName::Empty)
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.chars().all(is_valid_char)
    {
        Err(InvalidLinkName::Characters)
    } else if name.len() > LONGEST {
        Err(InvalidLinkName::TooLong)
    } else if NETWORKD_PREFIXES
        .iter()
        .any(|prefix| name.starts_with(prefix))
    {
        Err(InvalidLinkName::ManagedByNetworkd)
    } else if RESERVED.contains(&name) {
        Err(InvalidLinkName::Kept)
    } else if is_ours(name) {
        Err(InvalidLinkName::Ours)
    } else {
        Ok(())
    }
}

fn is_ours(name: &str) -> bool {
    name.len() == LONGEST
        && name.starts_with("sl")
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The derived bridge name of a group: `br-web`, or for a long name `br-`, its first 5 characters, `_` and its hash.
pub fn bridge_of(group: &Name) -> String {
    let name = format!("br-{group}");
    match name.len() <= LONGEST {
        true => name,
        false => format!("br-{}_{}", cut(group, 5), hash("bridge", group)),
    }
}

/// The derived TAP prefix of a group: `t-web-`, or for a long name `t_`, its first 2 characters and its hash.
pub fn tap_prefix_of(group: &Name) -> String {
    let max_len = MAX_TAP_LEN - (MAX_PORTS - 1).to_string().len();
    let whole = format!("t-{group}-");
    match whole.len() <= max_len {
        true => whole,
        false => format!("t_{}{}", cut(group, 2), hash("tap prefix", group)),
    }
}

fn cut(group: &Name, length: usize) -> &str {
    // Names are ASCII.
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

/// The number of the TAP `name` with `prefix`: decimal, without leading zeros. `None` for other names.
pub fn tap_number(prefix: &str, name: &str) -> Option<u32> {
    let number: u32 = name.strip_prefix(prefix)?.parse().ok()?;
    (name == format!("{prefix}{number}")).then_some(number)
}

/// A TAP name that `a` and `b` have in common, if any. Both are a prefix and a number of TAPs, which are numbered from 0.
pub fn shared_tap(a: (&str, u32), b: (&str, u32)) -> Option<String> {
    let ((short, many), (long, few)) = match a.0.len() <= b.0.len() {
        true => (a, b),
        false => (b, a),
    };
    // Of the TAPs with the long prefix, the first has the smallest number with the short prefix.
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
        fn derived_names_are_valid_and_outside_the_range_of_other_links(group in group()) {
            let (bridge, prefix) = (bridge_of(&group), tap_prefix_of(&group));
            prop_assert_eq!(check(&bridge), Ok(()));
            prop_assert_eq!(check(&prefix), Ok(()));
            let last = format!("{prefix}{}", MAX_PORTS - 1);
            prop_assert!(last.len() <= MAX_TAP_LEN, "{}", last);
            prop_assert!(!bridge.starts_with("sl") && !prefix.starts_with("sl"));
            prop_assert_eq!((bridge_of(&group), tap_prefix_of(&group)), (bridge, prefix));
        }

        #[test]
        fn derived_names_of_groups_with_similar_names_do_not_collide(
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
    fn a_short_name_is_used_in_full_and_a_long_one_is_shortened() {
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
    fn derived_names_of_3000_long_group_names_are_unique() {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for n in 0..3000 {
            let group = Name::new(format!("customer-number-{n}")).unwrap();
            for name in [bridge_of(&group), tap_prefix_of(&group)] {
                assert_eq!(seen.insert(name.clone(), n), None, "{name}");
            }
        }
    }

    #[test]
    fn names_that_the_kernel_or_other_programs_reserve_are_invalid() {
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
        for (bad, reason) in [
            ("", InvalidLinkName::Empty),
            ("sixteen_bytes_xx", InvalidLinkName::TooLong),
            (".", InvalidLinkName::Characters),
            ("..", InvalidLinkName::Characters),
            ("a/b", InvalidLinkName::Characters),
            ("a b", InvalidLinkName::Characters),
            ("a\tb", InvalidLinkName::Characters),
            ("br%d", InvalidLinkName::Characters),
            ("br+", InvalidLinkName::Characters),
            ("bür", InvalidLinkName::Characters),
            ("-br", InvalidLinkName::Characters),
            ("ve-1", InvalidLinkName::ManagedByNetworkd),
            ("ns-", InvalidLinkName::ManagedByNetworkd),
            ("lo", InvalidLinkName::Kept),
            ("all", InvalidLinkName::Kept),
            ("slabcdefghijklm", InvalidLinkName::Ours),
        ] {
            assert_eq!(check(bad), Err(reason), "{bad:?}");
        }
    }
}
