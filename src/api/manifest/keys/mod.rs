//! The keys of manifests and of the settings file: one table for the parser, its suggestions, the JSON Schema and the reference.
//! Out of scope: parsing values.

mod format;
mod group;
pub mod limits;
mod nearest;
mod network;
mod other_products;
mod placement;
mod reference;
mod schema;
mod settings;
mod unknown;

use std::ops::RangeInclusive;

pub use format::Format;
pub use nearest::{nearest, quoted};
pub use reference::reference;
pub use schema::schema;
pub use unknown::{expected_mapping, is_kubernetes_object, unknown_key};

/// A mapping with known keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// A document of a manifest.
    Document,
    /// `config:`.
    Config,
    /// An item of `host_groups:`.
    HostGroup,
    /// An item of `disks:`.
    Disk,
    /// `network:` of a group.
    Network,
    /// `cni:` of a group.
    Cni,
    /// An item of `port_mappings:`.
    PortMapping,
    /// `bandwidth:`.
    Bandwidth,
    /// `placement:` of a group.
    Placement,
    /// `subnets:` of `placement:`.
    Subnets,
    /// `replacement:` of a group.
    Replacement,
    /// The settings file.
    Settings,
    /// `ssh:` of the settings file.
    Ssh,
    /// `api:` of the settings file.
    Api,
    /// `auth:` of `api:`.
    ApiAuth,
    /// `tls:` of `api:`.
    ApiTls,
    /// `fleet:` of the settings file.
    Fleet,
}

/// Network modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `isolated`.
    Isolated,
    /// `bridge`.
    Bridge,
    /// `cni`.
    Cni,
}

/// The type of a value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A whole number, a multiple of the second number.
    Whole(RangeInclusive<u64>, u64),
    /// `true` or `false`.
    Flag,
    /// One of these names.
    Choice(fn() -> Vec<&'static str>),
    /// A string.
    Text(Format),
    /// A number or string of this format.
    NumberOrText(Format),
    /// A list, with the maximum number of items.
    List(&'static Value, Option<usize>),
    /// A mapping with known keys.
    One(Mapping),
    /// A mapping of any names to strings.
    Arguments,
}

/// The default of a key.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// There is none: the key is required.
    Required,
    /// This number.
    Whole(u64),
    /// This flag.
    Flag(bool),
    /// This string.
    Word(&'static str),
    /// A description of it.
    Text(&'static str),
}

/// The effect of a change on running VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is not a setting of VMs.
    None,
    /// It applies to running VMs.
    Live,
    /// VMs are added or removed; the others are kept.
    Scales,
    /// Each VM is replaced.
    Replaces,
    /// The VMs that get another address are replaced.
    ReplacesReaddressed,
    /// It is another group.
    AnotherGroup,
}

/// A key.
#[derive(Clone, Debug)]
pub struct Key {
    /// The name.
    pub name: &'static str,
    /// The mappings in which it is valid.
    pub mappings: &'static [Mapping],
    /// The type of the value.
    pub value: Value,
    /// The default.
    pub default: Default,
    /// The network modes in which it is valid; empty for all.
    pub modes: &'static [Mode],
    /// The effect of a change.
    pub change: Change,
    /// The property that it sets, if several keys set the same one; at most one of them may be given.
    pub property: Option<&'static str>,
    /// What it is, in Markdown, on one line.
    pub about: &'static str,
    /// A value, in JSON.
    pub example: &'static str,
}

impl Key {
    /// Whether it is valid in a network of this mode.
    pub fn is_valid_in(&self, mode: Mode) -> bool {
        self.modes.is_empty() || self.modes.contains(&mode)
    }

    /// Whether a group inherits it from `config:`.
    pub fn is_inherited(&self) -> bool {
        [Mapping::Config, Mapping::HostGroup]
            .iter()
            .all(|mapping| self.mappings.contains(mapping))
    }
}

impl Mapping {
    /// All mappings, in the order of the reference.
    pub const ALL: [Self; 17] = [
        Self::Document,
        Self::Config,
        Self::HostGroup,
        Self::Disk,
        Self::Network,
        Self::Cni,
        Self::PortMapping,
        Self::Bandwidth,
        Self::Placement,
        Self::Subnets,
        Self::Replacement,
        Self::Settings,
        Self::Ssh,
        Self::Api,
        Self::ApiAuth,
        Self::ApiTls,
        Self::Fleet,
    ];

    /// Whether it is the settings file, or in it.
    pub fn is_setting(self) -> bool {
        match self {
            Self::Settings | Self::Ssh | Self::Api | Self::ApiAuth | Self::ApiTls | Self::Fleet => {
                true
            }
            Self::Document
            | Self::Config
            | Self::HostGroup
            | Self::Disk
            | Self::Network
            | Self::Cni
            | Self::PortMapping
            | Self::Bandwidth
            | Self::Placement
            | Self::Subnets
            | Self::Replacement => false,
        }
    }

    /// Its keys. A key whose value depends on the network mode occurs once for each.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        all().filter(move |key| key.mappings.contains(&self))
    }

    /// The names of its keys, each once.
    pub fn names(self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for key in self.keys() {
            if !names.contains(&key.name) {
                names.push(key.name);
            }
        }
        names
    }

    /// Whether it has a key of this name.
    pub fn has(self, name: &str) -> bool {
        self.keys().any(|key| key.name == name)
    }

    /// Where it is in a manifest, for messages.
    pub fn place(self) -> &'static str {
        match self {
            Self::Document => "at the top level",
            Self::Config => "in config:",
            Self::HostGroup => "in a group of host_groups:",
            Self::Disk => "in an item of disks:",
            Self::Network => "in network:",
            Self::Cni => "in cni:",
            Self::PortMapping => "in an item of cni.port_mappings:",
            Self::Bandwidth => "in cni.bandwidth:",
            Self::Placement => "in placement:",
            Self::Subnets => "in placement.subnets:",
            Self::Replacement => "in replacement:",
            Self::Settings => "in the settings file of sliced",
            Self::Ssh => "in ssh: of the settings file of sliced",
            Self::Api => "in api: of the settings file of sliced",
            Self::ApiAuth => "in api.auth: of the settings file of sliced",
            Self::ApiTls => "in api.tls: of the settings file of sliced",
            Self::Fleet => "in fleet: of the settings file of sliced",
        }
    }
}

/// All keys.
pub fn all() -> impl Iterator<Item = &'static Key> {
    let tables = [group::KEYS, network::KEYS, placement::KEYS, settings::KEYS];
    tables.into_iter().flatten()
}

/// The keys of `network:` that are valid in this mode only.
pub fn exclusive_to(mode: Mode) -> impl Iterator<Item = &'static str> {
    let keys = Mapping::Network.keys();
    keys.filter(move |key| key.modes == [mode])
        .filter(|key| {
            let mut others = Mapping::Network
                .keys()
                .filter(|other| other.name == key.name);
            others.all(|other| other.modes == key.modes)
        })
        .map(|key| key.name)
}

/// The keys of `network:` that are not valid in this mode.
pub fn invalid_in(mode: Mode) -> impl Iterator<Item = &'static str> {
    let names = Mapping::Network.names().into_iter();
    names.filter(move |name| {
        let mut keys = Mapping::Network.keys().filter(|key| key.name == *name);
        keys.all(|key| !key.is_valid_in(mode))
    })
}

/// The keys of a group that set the same property as `name`, except `name` itself.
pub fn alternatives(name: &str) -> impl Iterator<Item = &'static str> + use<> {
    let key = Mapping::HostGroup.keys().find(|key| key.name == name);
    let property = key.and_then(|key| key.property);
    let keys = Mapping::HostGroup.keys();
    let own = key.map(|key| key.name);
    keys.filter(move |key| property.is_some() && key.property == property)
        .map(|key| key.name)
        .filter(move |other| Some(*other) != own)
}

/// The names of a list of choices.
pub fn names<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_and_its_example_has_the_type_of_its_value() {
        for key in all() {
            assert!(
                !key.about.contains('\n') && !key.about.is_empty(),
                "{}",
                key.name
            );
            let example: serde_json::Value = serde_json::from_str(key.example)
                .unwrap_or_else(|error| panic!("{}: {error}", key.name));
            let is_valid = match &key.value {
                Value::Whole(range, multiple) => example
                    .as_u64()
                    .is_some_and(|n| range.contains(&n) && n % multiple == 0),
                Value::Flag => example.is_boolean(),
                Value::Choice(names) => names().iter().any(|name| example == *name),
                Value::Text(_) => example.is_string(),
                Value::NumberOrText(_) => example.is_string() || example.is_u64(),
                Value::List(..) => example.is_array(),
                Value::One(_) | Value::Arguments => example.is_object(),
            };
            assert!(is_valid, "{}: {example}", key.name);
        }
    }

    #[test]
    fn a_mapping_has_a_key_once_for_each_mode_only() {
        for mapping in Mapping::ALL {
            let keys: Vec<&Key> = mapping.keys().collect();
            assert!(!keys.is_empty());
            for (at, key) in keys.iter().enumerate() {
                for other in &keys[..at] {
                    let apart = key.modes.iter().all(|mode| !other.is_valid_in(*mode));
                    assert!(
                        key.name != other.name || !key.modes.is_empty() && apart,
                        "{mapping:?}: {}",
                        key.name
                    );
                }
            }
        }
    }

    #[test]
    fn modes_divide_the_keys_of_a_network() {
        let invalid: Vec<&str> = invalid_in(Mode::Isolated).collect();
        assert!(invalid.contains(&"gateway") && !invalid.contains(&"range"));
        let own: Vec<&str> = exclusive_to(Mode::Isolated).collect();
        assert_eq!(own, ["allow", "drop", "on_deny", "allow_metadata"]);
        let cni: Vec<&str> = invalid_in(Mode::Cni).collect();
        assert!(
            cni.contains(&"range") && !cni.contains(&"tap_owner"),
            "{cni:?}"
        );
        assert_eq!(
            alternatives("ram_mb").collect::<Vec<_>>(),
            ["ram_gb", "ram_bytes"]
        );
        assert_eq!(alternatives("count").count(), 0);
    }
}
