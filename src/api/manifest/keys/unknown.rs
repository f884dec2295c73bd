//! Messages for keys that a mapping does not have.
//! Out of scope: finding them.

use super::super::yaml::Value;
use super::nearest::{least_different, nearest, quoted};
use super::other_products::{KUBERNETES, instead_of};
use super::{Default, Mapping};

/// The message for a key that `mapping` does not have: where it belongs, what to use instead, or which keys are similar.
pub fn unknown_key(mapping: Mapping, key: &str) -> String {
    if key == "<<" {
        return "merge keys are not supported; use an alias for the whole value".to_owned();
    }
    let shown = Value::Text(key.to_owned());
    if let Some(instead) = of_slicer(mapping, key) {
        return format!("key {shown} of Slicer is not supported; {instead}");
    }
    let homes: Vec<&str> = homes(mapping, key);
    if !homes.is_empty() {
        return format!("unknown key {shown}; it belongs {}", homes.join(" or "));
    }
    let names = mapping.names();
    let near = nearest(key, &names);
    match near.is_empty() {
        false => format!("unknown key {shown}; did you mean {}?", quoted(&near)),
        true => format!(
            "unknown key {shown}; the most similar keys are {}",
            least_different(key, &names).join(", ")
        ),
    }
}

fn of_slicer(mapping: Mapping, key: &str) -> Option<&'static str> {
    match mapping {
        Mapping::Document | Mapping::Config | Mapping::HostGroup => instead_of(key, false),
        Mapping::Network => instead_of(key, true),
        Mapping::Disk
        | Mapping::Cni
        | Mapping::PortMapping
        | Mapping::Bandwidth
        | Mapping::Placement
        | Mapping::Subnets
        | Mapping::Replacement
        | Mapping::Settings
        | Mapping::Ssh
        | Mapping::Api
        | Mapping::ApiAuth
        | Mapping::ApiTls
        | Mapping::Fleet => None,
    }
}

/// Where else a key of this name is valid. The settings file is another file: its keys belong there, and not the reverse.
fn homes(mapping: Mapping, key: &str) -> Vec<&'static str> {
    Mapping::ALL
        .into_iter()
        .filter(|other| *other != mapping && mapping != Mapping::Settings && other.has(key))
        .filter(|other| !mapping.is_setting() || other.is_setting())
        .map(Mapping::place)
        .collect()
}

/// `a mapping with name`: the required keys, else the first ones.
pub fn expected_mapping(mapping: Mapping) -> String {
    let required: Vec<&str> = mapping
        .keys()
        .filter(|key| matches!(key.default, Default::Required))
        .map(|key| key.name)
        .collect();
    match required.is_empty() {
        false => format!("a mapping with {}", required.join(", ")),
        true => {
            let names = mapping.names();
            let first = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let more = match names.len() > 3 {
                true => ", ...",
                false => "",
            };
            format!("a mapping with {first}{more}")
        }
    }
}

/// Whether a document with these keys is a Kubernetes object rather than a manifest.
pub fn is_kubernetes_object(keys: &[&str]) -> bool {
    !keys.contains(&"config") && keys.iter().any(|key| KUBERNETES.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_explained_by_its_place_its_origin_or_its_spelling() {
        for (mapping, key, expected) in [
            (Mapping::HostGroup, "drop", "it belongs in network:"),
            (Mapping::HostGroup, "host_groups", "it belongs in config:"),
            (
                Mapping::Config,
                "count",
                "it belongs in a group of host_groups:",
            ),
            (
                Mapping::Network,
                "hypervisor",
                "it belongs in config: or in a group of host_groups:",
            ),
            (Mapping::Config, "images", "the settings file of sliced"),
            (Mapping::Network, "mac", "it belongs in cni:"),
            (
                Mapping::HostGroup,
                "apiVersion",
                "it belongs at the top level",
            ),
            (Mapping::HostGroup, "storage", "key \"storage\" of Slicer"),
            (
                Mapping::Config,
                "github_user",
                "key \"github_user\" of Slicer",
            ),
            (Mapping::Network, "parent", "key \"parent\" of Slicer"),
            (Mapping::HostGroup, "parent", "unknown key"),
            (Mapping::Network, "alow", "did you mean \"allow\"?"),
            (Mapping::Settings, "image", "did you mean \"images\"?"),
            (Mapping::HostGroup, "<<", "merge keys"),
            (Mapping::HostGroup, "zzzzzz", "the most similar keys are "),
        ] {
            let message = unknown_key(mapping, key);
            assert!(message.contains(expected), "{mapping:?} {key}: {message}");
            assert!(message.matches(", ").count() <= 4, "{message}");
        }
    }

    #[test]
    fn a_mapping_is_described_by_its_required_keys() {
        assert_eq!(expected_mapping(Mapping::Document), "a mapping with config");
        assert_eq!(
            expected_mapping(Mapping::Network),
            "a mapping with mode, range, allow, ..."
        );
    }
}
