//! Manifests in which one key is set, each in the context that it needs.
//! Out of scope: what is checked with them.

use slicectl::api::manifest::keys::{self, Key, Mapping, Mode};
use slicectl::api::manifest::{Draft, Problem, Source, parse};
use slicectl::api::validate;

/// A key in one of its mappings.
pub struct Place {
    pub key: &'static Key,
    pub mapping: Mapping,
}

/// Every key of manifests, in each mapping in which it is valid.
pub fn places() -> Vec<Place> {
    let of = |key: &'static Key| {
        let is_manifest = |m: &&Mapping| !m.is_setting();
        let mappings = key.mappings.iter().filter(is_manifest);
        mappings.map(move |mapping| Place {
            key,
            mapping: *mapping,
        })
    };
    keys::all().flat_map(of).collect()
}

/// As `slicectl apply` checks a text on an empty host.
pub fn drafts(text: &str) -> Result<Vec<Draft>, Vec<Problem>> {
    let drafts = parse(&Source {
        name: "t.yaml".into(),
        text: text.into(),
    })?;
    validate::check_apply(&[], &drafts)?;
    Ok(drafts)
}

impl Place {
    /// A manifest with this value, in YAML's flow style.
    pub fn manifest(&self, value: &str) -> String {
        self.text(Some(value))
    }

    /// The same without the key.
    pub fn without(&self) -> String {
        self.text(None)
    }

    /// The line of the key in [`Self::manifest`].
    pub fn line(&self) -> usize {
        self.around().0.lines().count() + 1
    }

    fn text(&self, value: Option<&str>) -> String {
        let (before, after) = self.around();
        let member = value.map(|value| format!("  {}: {value}", self.key.name));
        format!("{before}\n{}\n{after}\n", member.unwrap_or_default())
    }

    /// What is before and after the key, which has a line of its own.
    fn around(&self) -> (String, String) {
        let group = format!("{{config: {{host_groups: [{{{}", self.group());
        let below = self.siblings();
        let (before, after) = match (self.mapping, self.key.name) {
            (Mapping::Document, "config") => ("{".to_owned(), "}"),
            (Mapping::Document, _) => ("{config: {host_groups: [{name: g}]},".to_owned(), "}"),
            (Mapping::Config, "host_groups") => ("{config: {".to_owned(), "}}"),
            (Mapping::Config, _) => (format!("{group}}}],"), "}}"),
            (Mapping::HostGroup, _) => (group, "}]}}"),
            (Mapping::Disk, _) => (format!("{group} disks: [{{{below}"), "}]}]}}"),
            (Mapping::Network, _) => (format!("{group} network: {{{below}"), "}}]}}"),
            (Mapping::Cni, _) => (format!("{group} cni: {{{below}"), "}}]}}"),
            (Mapping::PortMapping, _) => (
                format!("{group} cni: {{port_mappings: [{{{below}"),
                "}]}}]}}",
            ),
            (Mapping::Bandwidth, _) => (format!("{group} cni: {{bandwidth: {{{below}"), "}}}]}}"),
            (Mapping::Placement, _) => (format!("{group} placement: {{{below}"), "}}]}}"),
            (Mapping::Subnets, _) => (format!("{group} placement: {{subnets: {{{below}"), "}}}]}}"),
            (Mapping::Replacement, _) => (format!("{group} replacement: {{{below}"), "}}]}}"),
            (_, _) => unreachable!("not a manifest"),
        };
        (before, after.to_owned())
    }

    /// The other keys of the group, with those that the key needs.
    fn group(&self) -> &'static str {
        match self.key.name {
            "name" => "",
            "machine" | "qemu_bin" | "restart" | "graceful_shutdown" | "cmdline" | "hypervisor"
            | "vsock" | "agent" | "userdata" | "userdata_file" | "ssh_keys" | "secrets"
            | "replacement" => "name: g, kernel_file: /k,",
            "firecracker_bin" | "jailer_bin" => {
                "name: g, kernel_file: /k, hypervisor: firecracker,"
            }
            "cloud_hypervisor_bin" => "name: g, kernel_file: /k, hypervisor: cloud-hypervisor,",
            "storage_size" | "persistent" => "name: g, image: /i,",
            "cni" => "name: g, network_name: n,",
            _ => match self.mapping {
                Mapping::Cni | Mapping::PortMapping | Mapping::Bandwidth => {
                    "name: g, network_name: n,"
                }
                Mapping::Replacement => "name: g, kernel_file: /k,",
                _ => "name: g,",
            },
        }
    }

    /// The other keys of the mapping below the group.
    fn siblings(&self) -> &'static str {
        match (self.mapping, self.key.name) {
            (Mapping::Network, "mode") => "",
            (Mapping::Network, "addresses") => "gateway: 192.168.137.1/24,",
            (Mapping::Network, _) if self.key.is_valid_in(Mode::Isolated) => "mode: isolated,",
            (Mapping::Network, "range") => "gateway: 192.168.137.1/24,",
            (Mapping::Network, _) => "mode: bridge,",
            (Mapping::Disk, "read_only") => "path: /d,",
            (Mapping::PortMapping, "host_port") => "guest_port: 1,",
            (Mapping::PortMapping, "guest_port") => "host_port: 1,",
            (Mapping::PortMapping, _) => "host_port: 1, guest_port: 1,",
            (Mapping::Bandwidth, "ingress_rate") => "ingress_burst: 10M,",
            (Mapping::Bandwidth, "ingress_burst") => "ingress_rate: 10M,",
            (Mapping::Bandwidth, "egress_rate") => "egress_burst: 10M,",
            (Mapping::Bandwidth, _) => "egress_rate: 10M,",
            (Mapping::Subnets, "pool") => "prefix_len: 24,",
            (Mapping::Subnets, _) => "pool: 10.64.0.0/12,",
            (Mapping::Replacement, "replace_after") => "stop_after: 1m,",
            (Mapping::Replacement, "stop_after") => "replace_after: 2h,",
            (Mapping::Replacement, _) => "replace_after: 5m, stop_after: 1m,",
            _ => "",
        }
    }
}
