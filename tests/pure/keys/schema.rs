//! The JSON Schema and the parser accept and refuse the same manifests, up to rules about several keys.
//! Out of scope: messages.

use std::fs;

use jsonschema::Validator;
use serde::Deserialize as _;
use slicectl::api::manifest::keys::{self, Format, Mapping, Value};
use slicectl::api::manifest::{Source, settings};

use super::fixture::{drafts, places};
use crate::source::{files, relative};

fn validator(root: Mapping) -> Validator {
    let schema = keys::schema(root);
    jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{error}"));
    jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{error}"))
}

/// The documents of a text; `None` if it is not YAML, or has values that JSON lacks.
fn documents(text: &str) -> Option<Vec<serde_json::Value>> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| serde_json::Value::deserialize(document).ok())
        .collect()
}

/// Whether the schema accepts all documents of a text.
fn accepts(validator: &Validator, text: &str) -> Option<bool> {
    let documents = documents(text)?;
    let mut all = documents.iter().filter(|document| !document.is_null());
    Some(all.all(|document| validator.is_valid(document)))
}

/// Values that a key of this type has never, and those of its bounds.
fn invalid_values(value: &Value) -> Vec<String> {
    let own: Vec<String> = match value {
        Value::Whole(range, multiple) => {
            let below = *range.start() as i128 - 1;
            let above = u128::from(*range.end()) + u128::from(*multiple);
            vec![
                below.to_string(),
                above.to_string(),
                "'7'".into(),
                "1.5".into(),
                "[]".into(),
            ]
        }
        Value::Flag => vec!["'yes'".into(), "1".into(), "{}".into()],
        Value::Choice(_) => vec!["zzz".into(), "7".into(), "[]".into(), "''".into()],
        Value::Text(_) => vec!["7".into(), "[]".into(), "{}".into(), "true".into()],
        Value::NumberOrText(_) => vec!["-1".into(), "[]".into(), "'x y'".into(), "''".into()],
        Value::List(item, most) => {
            let items = invalid_values(item)
                .into_iter()
                .map(|item| format!("[{item}]"));
            let too_many = most.map(|most| format!("[{}]", "7, ".repeat(most + 1)));
            items
                .chain(too_many)
                .chain(["7".into(), "{}".into()])
                .collect()
        }
        Value::One(_) => vec!["7".into(), "[]".into(), "{zzz: 1}".into()],
        Value::Arguments => vec!["7".into(), "[]".into(), "{a: 1}".into()],
    };
    own.into_iter().chain(["null".into()]).collect()
}

#[test]
fn an_example_of_every_key_is_valid_and_no_value_of_another_type_is() {
    let validator = validator(Mapping::Document);
    for place in places() {
        let text = place.manifest(place.key.example);
        let parsed = drafts(&text);
        assert!(parsed.is_ok(), "{text}: {parsed:?}");
        assert_eq!(accepts(&validator, &text), Some(true), "{text}");
        for value in invalid_values(&place.key.value) {
            let text = place.manifest(&value);
            assert!(drafts(&text).is_err(), "the parser accepts {text}");
            assert_eq!(accepts(&validator, &text), Some(false), "{text}");
        }
        // Required keys, and keys that do not exist.
        let without = place.without();
        let is_required = matches!(place.key.default, keys::Default::Required);
        if place.mapping != Mapping::Bandwidth {
            assert_eq!(drafts(&without).is_err(), is_required, "{without}");
            assert_eq!(
                accepts(&validator, &without),
                Some(!is_required),
                "{without}"
            );
        }
        let unknown = text.replace(&format!("  {}:", place.key.name), "  zzz: 1, x:");
        assert!(drafts(&unknown).is_err(), "{unknown}");
        assert_eq!(accepts(&validator, &unknown), Some(false), "{unknown}");
    }
}

/// Strings of each format: those that are valid, and those that are not.
const STRINGS: &[(Format, &[&str], &[&str])] = &[
    (Format::ApiVersion, &["slice/v1"], &["v1", "slice/v2", ""]),
    (Format::Kind, &["Config"], &["config", "Pod"]),
    (
        Format::Name,
        &["a", "0", "a-b", "a0"],
        &["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b"],
    ),
    (
        Format::File,
        &["/a", "/a/b..c", "/a/...", "/a b/ü", "//a"],
        &[
            "a", "/", "/a/", "/a/..", "/../a", "", "/a\\nb", "/a/../b", "~/a",
        ],
    ),
    (
        Format::Size,
        &["1M", "10G", "2Ti", "512MiB", "16T", "010G"],
        &["10", "10GB", "1.5G", "-1G", "0G", "G", "", " 1G", "1K"],
    ),
    (
        Format::GracePeriod,
        &["0s", "3s", "1m 30s", "1m30s", "10m", "500ms", "1min"],
        &["5", "", "s", "-1s", "1,5s"],
    ),
    (
        Format::Cmdline,
        &["quiet", "", "a=b  c", "skip=1", "root=/dev/vda ip6=x"],
        &["ip=dhcp", "quiet ip=off", "é", "a\\tb", "a\\nb"],
    ),
    (
        Format::Address,
        &["1.1.1.1", "192.0.2.255"],
        &["1.1.1", "1.1.1.256", "01.1.1.1", "1.1.1.1/32", "::1", ""],
    ),
    (
        Format::Entry,
        &[
            "10.0.0.0/8",
            "1.1.1.1",
            "1.1.1.1:53/udp",
            "192.168.7.0/24:8000-8099",
            "1.1.1.1/tcp",
            "0.0.0.0/0",
        ],
        &[
            "10.0.0.1:",
            "a",
            "10.0.0.0/8/icmp",
            "::1",
            "10.0.0.0/ 8",
            "1.1.1.1 ",
            "10.0.0.0/8:a",
            "",
        ],
    ),
    (
        Format::IsolatedRange,
        &["169.254.100.0/22", "169.254.100.0/29"],
        &[
            "10.0.0.0/22",
            "169.254.100.0",
            "169.254.100.0/30",
            "169.254.0.0/15",
            "169.254.100.0/22:53",
        ],
    ),
    (
        Format::Link,
        &["br0", "br-web", "0", "a_b.c"],
        &["", "-a", "br 0", "a/b", "sixteen-bytes-xx", "vm%d"],
    ),
    (
        Format::LinkPrefix,
        &["vmtap", "t-web-"],
        &["", "a/b", "fourteen-bytes"],
    ),
    (
        Format::Gateway,
        &["192.168.137.1/24", "10.0.0.1/8", "10.0.0.1/30"],
        &[
            "192.168.137.1",
            "10.0.0.1/7",
            "10.0.0.1/31",
            "10.0.0.1/+24",
            "10.0.0.1/255.0.0.0",
            "fd00::1/64",
        ],
    ),
    (
        Format::AddressRange,
        &[
            "192.168.137.20-192.168.137.80",
            "192.168.137.20 - 192.168.137.80",
        ],
        &[
            "192.168.137.20",
            "192.168.137.0/24",
            "192.168.137.20-80",
            "a-b",
        ],
    ),
    (
        Format::NetworkName,
        &["slicer", "0", "a.b_c-d"],
        &["", ".a", "-a", "a b", "a/b"],
    ),
    (
        Format::Owner,
        &["1000", "0:0", "1000:36"],
        &["root", ":1", "1:", "1:2:3", "+1", ""],
    ),
    (
        Format::Bits,
        &["16000", "512k", "10M", "1G"],
        &["10m", "10 M", "k", "1.5M", "10Mi", "-1M"],
    ),
    (
        Format::Mac,
        &["02:00:00:00:00:01", "02:AB:cd:00:00:01"],
        &[
            "02:00:00:00:00",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
            "zz:00:00:00:00:01",
        ],
    ),
    (Format::Script, &["", "echo", "#!/bin/sh -e"], &[]),
    (
        Format::SshKey,
        &[
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f a b",
        ],
        &["", "ssh-ed25519", "hello", "no-pty ssh-ed25519 AAAA"],
    ),
    (
        Format::Pool,
        &["10.64.0.0/12", "192.0.2.0/24"],
        &["", "10.64.0.0", "10.0.0.0/7", "10.0.0.0/31", "a"],
    ),
    (
        Format::StopAfter,
        &["30s", "1m", "1h"],
        &["", "1", "1 fortnight!", "-1m"],
    ),
    (Format::ReplaceAfter, &["5m", "1h 30m"], &["", "5", "-5m"]),
    (
        Format::SecretName,
        &["a", "tls.key", "A_b-1"],
        &["", ".a", "-a", "a/b", "a b"],
    ),
];

#[test]
fn strings_of_every_format_are_accepted_and_refused_alike() {
    let validator = validator(Mapping::Document);
    let mut used = 0;
    for place in places() {
        let (format, is_list) = match &place.key.value {
            Value::Text(format) | Value::NumberOrText(format) => (*format, false),
            Value::List(Value::Text(format), _) => (*format, true),
            _ => continue,
        };
        let Some((_, good, bad)) = STRINGS.iter().find(|(of, ..)| *of == format) else {
            // An address of a VM: the gateway's subnet and the count decide.
            assert_eq!(
                format,
                Format::AddressOrNetwork,
                "no strings for {format:?}"
            );
            continue;
        };
        used += 1;
        for (text, is_valid) in good
            .iter()
            .map(|t| (t, true))
            .chain(bad.iter().map(|t| (t, false)))
        {
            let quoted = format!("\"{text}\"");
            let value = match is_list {
                true => format!("[{quoted}]"),
                false => quoted,
            };
            let manifest = place.manifest(&value);
            let parsed = drafts(&manifest);
            assert_eq!(parsed.is_ok(), is_valid, "{manifest}: {parsed:?}");
            assert_eq!(accepts(&validator, &manifest), Some(is_valid), "{manifest}");
        }
    }
    assert!(used > 20, "{used}");
}

/// Refused manifests that the schema accepts: rules about several keys, about numbers in strings, or about YAML itself.
const BEYOND_THE_SCHEMA: &[&str] = &[
    "allow-metadata-closed",
    "allow-metadata-others",
    "allow-reserved",
    "bridge-is-a-tap",
    "bridge-too-many",
    "cni-and-another-mode",
    "cni-requested-twice",
    "cni-without-a-name",
    "count-256",
    "count-range",
    "dns-reserved",
    "duplicate-key",
    "empty",
    "hypervisor-cloud",
    "hypervisor-firecracker",
    "name-too-long-with-count",
    "overlap",
    "qemu-without-kernel-group",
    "qemu-without-kernel",
    "range-host-bits",
    "range-reserved",
    "range-touches-reserved",
    "same-group-twice",
    "tag-anchor",
    "tag-handle",
    "tag-key",
    "tag-verbatim",
    "tap-owner-of-ours",
    "tap-owner",
];

#[test]
fn the_schema_agrees_with_the_parser_on_all_manifests_of_the_repository() {
    let validator = validator(Mapping::Document);
    for path in [
        files("manifests", &["yaml"]),
        files("examples", &["yaml"]),
        files("tests/goldens/manifests/good", &["yaml"]),
    ]
    .concat()
    {
        let text = fs::read_to_string(&path).expect("a manifest");
        assert_eq!(
            accepts(&validator, &text),
            Some(true),
            "{}",
            relative(&path)
        );
    }
    let mut beyond = Vec::new();
    for path in files("tests/goldens/manifests", &["yaml"]) {
        let text = fs::read_to_string(&path).expect("a manifest");
        let is_good = path.parent().is_some_and(|parent| parent.ends_with("good"));
        if !is_good && accepts(&validator, &text) == Some(true) {
            beyond.push(
                path.file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    assert_eq!(beyond, BEYOND_THE_SCHEMA);
}

#[test]
fn settings_are_accepted_and_refused_alike() {
    let validator = validator(Mapping::Settings);
    for (text, is_valid) in [
        (
            "programs: [/usr/bin]\nimages: [/srv/images, /dev/vg0/]\nremoval_grace: 1m 5s\n",
            true,
        ),
        ("images: []\n", true),
        ("ssh: {}\nssh_keys: []\n", true),
        (
            "ssh: {bind_address: '::', port: 22, host_key: /etc/key}\nssh_keys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a']\n",
            true,
        ),
        ("ssh_keys: [ssh-rsa]\n", false),
        (
            "ssh_keys: ['sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dczAAAABHNzaDo=']\n",
            false,
        ),
        ("ssh_keys: [abc def]\n", false),
        ("ssh: {port: 0}\nssh_keys: []\n", false),
        ("ssh: {bind_address: localhost}\nssh_keys: []\n", false),
        ("ssh: {host_key: key}\nssh_keys: []\n", false),
        ("ssh: {keys: []}\nssh_keys: []\n", false),
        ("ssh: []\nssh_keys: []\n", false),
        ("api: {}\n", true),
        (
            "api: {bind_address: '::', port: 443, auth: {enabled: true, token_file: /t}, tls: {cert: /c, key: /k}}\n",
            true,
        ),
        ("api: {bind_address: /run/api.sock}\n", true),
        ("api: {socket: /run/api.sock, auth: {}}\n", true),
        ("api: {bind_address: localhost}\n", false),
        ("api: {bind_address: /a/../b}\n", false),
        ("api: {socket: api.sock}\n", false),
        ("api: {socket: /run/}\n", false),
        ("api: {port: 0}\n", false),
        ("api: {tls: {cert: /c}}\n", false),
        ("api: {tls: {}}\n", false),
        ("api: {auth: {enabled: 'yes'}}\n", false),
        ("api: {token: x}\n", false),
        ("api: []\n", false),
        ("# nothing\n", true),
        ("images: /srv\n", false),
        ("images: [srv]\n", false),
        ("images: [/]\n", false),
        ("images: [/a/../b]\n", false),
        ("programs: [7]\n", false),
        ("image: []\n", false),
        ("removal_grace: 2\n", false),
        ("removal_grace: ''\n", false),
        ("config: {}\n", false),
    ] {
        let parsed = settings::parse(&Source {
            name: "sliced.yaml".into(),
            text: text.into(),
        });
        assert_eq!(parsed.is_ok(), is_valid, "{text}: {parsed:?}");
        assert_eq!(accepts(&validator, text), Some(is_valid), "{text}");
    }
}

#[test]
fn keys_of_another_mode_and_keys_that_exclude_each_other_are_refused_by_both() {
    let validator = validator(Mapping::Document);
    for (rest, is_valid) in [
        ("network: {mode: isolated, gateway: 10.0.0.1/24}", false),
        ("network: {mode: isolated, range: 10.0.0.2-10.0.0.3}", false),
        (
            "network: {mode: bridge, gateway: 10.0.0.1/24, range: 10.0.0.2-10.0.0.3}",
            true,
        ),
        ("network: {mode: bridge, allow: [10.0.0.0/8]}", false),
        ("network: {mode: bridge, range: 169.254.100.0/22}", false),
        (
            "network_name: n, network: {mode: cni, max_connections: 16}",
            false,
        ),
        ("network_name: n, network: {mode: cni, tap_owner: 7}", true),
        ("ram_mb: 512, ram_gb: 1", false),
        ("ram_gb: 1, ram_bytes: 1048576", false),
        ("ram_bytes: 1048577", false),
        ("ram_bytes: 2097152", true),
    ] {
        let text = format!("config: {{host_groups: [{{name: g, {rest}}}]}}");
        let parsed = drafts(&text);
        assert_eq!(parsed.is_ok(), is_valid, "{text}: {parsed:?}");
        assert_eq!(accepts(&validator, &text), Some(is_valid), "{text}");
    }
}
