//! `docs/reference/yaml.md`: the keys of each mapping as tables, and the texts beside them.
//! Out of scope: what is not about keys.

use super::super::super::pool;
use super::{Change, Default, Key, Mapping, Mode, Value};

const INTRO: &str = include_str!("reference/intro.md");
const ENTRIES: &str = include_str!("reference/entries.md");

/// The reference, in Markdown.
pub fn reference() -> String {
    let mut text = INTRO.to_owned();
    for mapping in Mapping::ALL.into_iter().filter(|m| !m.is_setting()) {
        text.push_str(&section(mapping));
    }
    text.push('\n');
    text.push_str(ENTRIES);
    text.push_str(&reserved_ranges());
    for mapping in Mapping::ALL.into_iter().filter(|m| m.is_setting()) {
        text.push_str(&section(mapping));
    }
    text
}

fn section(mapping: Mapping) -> String {
    let (heading, intro) = heading(mapping);
    let mut text = format!("\n## {heading}\n\n{intro}\n");
    match mapping {
        Mapping::Network => {
            for (title, modes) in [
                ("All modes", &[][..]),
                ("Mode isolated", &[Mode::Isolated]),
                ("Mode bridge", &[Mode::Bridge]),
                ("Modes isolated and bridge", &[Mode::Isolated, Mode::Bridge]),
            ] {
                let keys = mapping.keys().filter(|key| key.modes == modes);
                text.push_str(&format!("\n### {title}\n"));
                text.push_str(&table(mapping, keys));
            }
        }
        Mapping::Config => {
            let own = mapping.keys().filter(|key| !key.is_inherited());
            text.push_str(&table(mapping, own));
            let inherited: Vec<String> = mapping
                .keys()
                .filter(|key| key.is_inherited())
                .map(|key| format!("`{}`", key.name))
                .collect();
            text.push_str(&format!(
                "\nThe default of all groups, with the values that they have in a group: {}.\n",
                inherited.join(", ")
            ));
        }
        _ => text.push_str(&table(mapping, mapping.keys())),
    }
    text
}

fn heading(mapping: Mapping) -> (&'static str, &'static str) {
    match mapping {
        Mapping::Document => ("Document", "The keys at the top level."),
        Mapping::Config => ("config", "The groups and their defaults."),
        Mapping::HostGroup => (
            "config.host_groups[]",
            "A group of VMs. A key that is also valid in `config:` has the value of `config:` as its default, and only then the one of the table.",
        ),
        Mapping::Disk => (
            "config.host_groups[].disks[]",
            "A disk in addition to `image`.",
        ),
        Mapping::Network => (
            "config.host_groups[].network",
            "The network of a group. Every field is optional, and without the section a group is in mode bridge, or in mode cni with a `network_name`.",
        ),
        Mapping::Cni => (
            "config.host_groups[].cni",
            "What a group in CNI mode requests from the plugins; see [CNI](../network-cni.md).",
        ),
        Mapping::PortMapping => (
            "config.host_groups[].cni.port_mappings[]",
            "A port of the host that is forwarded to the VM.",
        ),
        Mapping::Bandwidth => (
            "config.host_groups[].cni.bandwidth",
            "Limits on the traffic of each VM. Numbers are bits; `k`, `M` and `G` are powers of 1000.",
        ),
        Mapping::Placement => (
            "config.host_groups[].placement",
            "Where the VMs of a group of a fleet run; see [fleet](../fleet.md). A group with `placement` or `replacement` is applied with\n\
             `--fleet`.",
        ),
        Mapping::Subnets => (
            "config.host_groups[].placement.subnets",
            "A subnet of the group for each node, in bridge mode. The group then sets no `gateway` and no addresses.",
        ),
        Mapping::Replacement => (
            "config.host_groups[].replacement",
            "Starts VMs on other nodes when contact to their node is lost; without it, VMs of a node without contact are not replaced. Not with\n\
             a persistent or writable disk, with fixed addresses, and with `hypervisor: none`.",
        ),
        Mapping::Settings => (
            "/etc/slice/sliced.yaml",
            "The settings file of `sliced` (`--settings`). It may be absent, and every key is optional. `sliced --check-config` checks it; a\n\
             change applies after a restart of `sliced`, except for `ssh`, `ssh_keys` and `api`, which apply at once.",
        ),
        Mapping::Ssh => (
            "ssh of /etc/slice/sliced.yaml",
            "The SSH server for the guests of this host; see [SSH](../ssh.md).",
        ),
        Mapping::Api => (
            "api of /etc/slice/sliced.yaml",
            "The API on the network or on a second Unix socket; see [access](../access.md#over-the-network). Flags of\n[`sliced`](sliced.md) take precedence.",
        ),
        Mapping::ApiAuth => (
            "api.auth of /etc/slice/sliced.yaml",
            "The token of the API.",
        ),
        Mapping::ApiTls => (
            "api.tls of /etc/slice/sliced.yaml",
            "TLS of the API, version 1.2 or 1.3. Both files are required; changes of them apply at once.",
        ),
        Mapping::Fleet => (
            "fleet of /etc/slice/sliced.yaml",
            "The fleet that this host is a node of; see [fleet](../fleet.md). A change applies after a restart of `sliced`.",
        ),
    }
}

fn table(mapping: Mapping, keys: impl Iterator<Item = &'static Key>) -> String {
    let keys: Vec<&Key> = keys.collect();
    let changes = keys.iter().any(|key| key.change != Change::None);
    let mut text = "\n| key | values | default | description |".to_owned();
    let mut rule = "\n|---|---|---|---|".to_owned();
    if changes {
        text.push_str(" a change |");
        rule.push_str("---|");
    }
    text.push_str(&rule);
    for key in keys {
        text.push_str(&format!(
            "\n| `{}` | {} | {} | {} |",
            key.name,
            values(&key.value),
            default(mapping, key),
            key.about
        ));
        if changes {
            text.push_str(&format!(" {} |", effect(key.change)));
        }
    }
    text.push('\n');
    text
}

fn values(value: &Value) -> String {
    match value {
        Value::Whole(range, _) => {
            format!("{} to {}", grouped(*range.start()), grouped(*range.end()))
        }
        Value::Flag => "`true`, `false`".to_owned(),
        Value::Choice(names) => {
            let names: Vec<String> = names().iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        }
        Value::Text(format) | Value::NumberOrText(format) => format.text(),
        Value::List(item, most) => {
            let most = most.map_or(String::new(), |most| {
                format!(", at most {}", grouped(most as u64))
            });
            format!("list of: {}{most}", values(item))
        }
        Value::One(mapping) => {
            let (heading, _) = heading(*mapping);
            format!("[mapping](#{})", anchor(heading))
        }
        Value::Arguments => "mapping of `KEY: \"value\"`, without `=` and `;`".to_owned(),
    }
}

fn default(mapping: Mapping, key: &Key) -> String {
    let own = match key.default {
        Default::Required => "required".to_owned(),
        Default::Whole(number) => format!("`{number}`"),
        Default::Flag(flag) => format!("`{flag}`"),
        Default::Word(word) => format!("`{word}`"),
        Default::Text(text) => text.to_owned(),
    };
    match mapping == Mapping::HostGroup && key.is_inherited() {
        true => format!("`config.{}`, else {own}", key.name),
        false => own,
    }
}

fn effect(change: Change) -> &'static str {
    match change {
        Change::None => "",
        Change::Live => "live",
        Change::Scales => "live: the others are kept",
        Change::Replaces => "replaces",
        Change::ReplacesReaddressed => "replaces the VMs that get another address",
        Change::AnotherGroup => "another group",
    }
}

fn reserved_ranges() -> String {
    let indices: Vec<String> = pool::RESERVED_INDICES.iter().map(u8::to_string).collect();
    format!(
        "## Reserved ranges\n\nThe /{}s of 169.254.0.0/16 with index {} are never used: RFC 3927 and cloud providers reserve them.\n",
        pool::PREFIX_LEN,
        indices.join(", ")
    )
}

/// With commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_anchors_are_those_of_github() {
        assert_eq!(grouped(262_144), "262,144");
        assert_eq!(grouped(16), "16");
        assert_eq!(
            anchor("config.host_groups[].cni.bandwidth"),
            "confighost_groupscnibandwidth"
        );
        assert_eq!(
            anchor("Entries of allow and drop"),
            "entries-of-allow-and-drop"
        );
    }
}
