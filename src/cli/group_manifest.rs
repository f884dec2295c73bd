//! `get hg -o manifest` and `edit`: host groups as a manifest that has the same result when it is applied.
//! Out of scope: reading manifests (`api::manifest`), comments and the layout of the file that the group came from.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::Serialize;

use super::failure::Failure;
use super::yaml;
use crate::api::cni::CniOptions;
use crate::api::guest_access::Agent;
use crate::api::host_group::{HostGroupSpec, UpdatePolicy};
use crate::api::life::{GracePeriod, MachineType, Restart};
use crate::api::meta::Name;
use crate::api::network::{Addresses, Mode, NetworkSpec, TapOwner};
use crate::api::policy::{Entry, OnDeny};
use crate::api::provision::{Script, Userdata};
use crate::api::secret::SecretName;
use crate::api::ssh_key::SshKey;
use crate::api::storage::AdditionalDisk;
use crate::api::vm::{Hypervisor, VmSpec};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Serialize)]
struct Manifest {
    config: Config,
}

#[derive(Serialize)]
struct Config {
    host_groups: Vec<Group>,
}

/// The keys of a group, in the order of the examples. Defaults that do not depend on other keys are left out.
#[derive(Serialize)]
struct Group {
    name: Name,
    count: u32,
    vcpu: u32,
    ram_mb: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_servers: Vec<Ipv4Addr>,
    hypervisor: Hypervisor,
    #[serde(skip_serializing_if = "MachineType::is_default")]
    machine: MachineType,
    #[serde(skip_serializing_if = "Option::is_none")]
    qemu_bin: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firecracker_bin: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jailer_bin: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cloud_hypervisor_bin: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<String>,
    #[serde(skip_serializing_if = "Restart::is_default")]
    restart: Restart,
    #[serde(skip_serializing_if = "GracePeriod::is_default")]
    graceful_shutdown: GracePeriod,
    #[serde(skip_serializing_if = "Clone::clone")]
    vsock: bool,
    #[serde(skip_serializing_if = "Agent::is_default")]
    agent: Agent,
    #[serde(skip_serializing_if = "Option::is_none")]
    userdata: Option<Script>,
    #[serde(skip_serializing_if = "Option::is_none")]
    userdata_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_keys: Vec<SshKey>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<SecretName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_size: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    persistent: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<AdditionalDisk>,
    #[serde(skip_serializing_if = "is_rolling")]
    update: UpdatePolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_name: Option<String>,
    network: Network,
    #[serde(skip_serializing_if = "CniOptions::is_default")]
    cni: CniOptions,
}

#[derive(Serialize)]
struct Network {
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tap_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<Ipv4Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    antispoof: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolate_ports: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<Entry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drop: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_deny: Option<OnDeny>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_metadata: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tap_owner: Option<String>,
}

fn is_rolling(update: &UpdatePolicy) -> bool {
    *update == UpdatePolicy::default()
}

/// The manifest of these groups.
pub fn text<'g>(
    groups: impl IntoIterator<Item = (&'g Name, &'g HostGroupSpec)>,
) -> Result<String, Failure> {
    let groups = groups.into_iter().map(|(name, spec)| group(name, spec));
    yaml::in_order(&Manifest {
        config: Config {
            host_groups: groups.collect(),
        },
    })
}

fn group(name: &Name, spec: &HostGroupSpec) -> Group {
    let template = &spec.template;
    let (network, network_name, cni) = network(template);
    let life = template.lifecycle.clone();
    let storage = template.storage.clone();
    let provision = &template.guest_access.provision;
    let program = |hypervisor| {
        let program = life.program.clone();
        program.filter(|_| template.hypervisor == hypervisor)
    };
    Group {
        name: name.clone(),
        count: spec.count,
        vcpu: template.vcpu,
        ram_mb: template.ram_bytes / MIB,
        dns_servers: template.dns_servers.clone(),
        hypervisor: template.hypervisor,
        machine: life.machine,
        qemu_bin: program(Hypervisor::Qemu),
        firecracker_bin: program(Hypervisor::Firecracker),
        cloud_hypervisor_bin: program(Hypervisor::CloudHypervisor),
        jailer_bin: life.jailer.clone(),
        kernel_file: template.kernel_file.clone(),
        initrd_file: template.initrd_file.clone(),
        cmdline: life.cmdline.clone(),
        restart: life.restart,
        graceful_shutdown: life.graceful_shutdown,
        vsock: template.guest_access.vsock,
        agent: template.guest_access.agent,
        userdata: match &provision.userdata {
            Some(Userdata::Script(script)) => Some(script.clone()),
            Some(Userdata::File(_)) | None => None,
        },
        userdata_file: provision.userdata_file(),
        ssh_keys: provision.ssh_keys.clone(),
        secrets: provision.secrets.clone(),
        image: storage.image,
        storage_size: storage.size_bytes.map(size),
        persistent: storage.persistent,
        disks: storage.disks,
        update: spec.update,
        network_name,
        network,
        cni,
    }
}

/// A size in the largest unit that divides it. A manifest has no smaller unit than MiB.
fn size(bytes: u64) -> String {
    match bytes.is_multiple_of(GIB) {
        true => format!("{}G", bytes / GIB),
        false => format!("{}M", bytes / MIB),
    }
}

/// The network, the name of the CNI network and the requests to its plugins.
fn network(spec: &VmSpec) -> (Network, Option<String>, CniOptions) {
    let owner = spec.network.tap_owner();
    let empty = Network {
        mode: spec.network.mode(),
        bridge: None,
        tap_prefix: None,
        gateway: None,
        range: None,
        addresses: Vec::new(),
        antispoof: None,
        isolate_ports: None,
        allow: Vec::new(),
        drop: Vec::new(),
        on_deny: None,
        allow_metadata: false,
        max_connections: spec.network.max_connections(),
        tap_owner: (owner != TapOwner::default()).then(|| owner.to_string()),
    };
    match &spec.network {
        NetworkSpec::Isolated(isolated) => {
            let policy = isolated.policy.clone();
            let network = Network {
                range: isolated.range.map(|range| range.to_string()),
                allow: policy.allow,
                drop: policy.drop,
                on_deny: (policy.on_deny != OnDeny::default()).then_some(policy.on_deny),
                allow_metadata: policy.allow_metadata,
                ..empty
            };
            (network, None, CniOptions::default())
        }
        NetworkSpec::Bridge(bridge) => {
            let (range, addresses) = match &bridge.addresses {
                Addresses::Any => (None, Vec::new()),
                Addresses::Range(first, last) => (Some(format!("{first}-{last}")), Vec::new()),
                Addresses::Listed(listed) => (None, listed.clone()),
            };
            let network = Network {
                bridge: Some(bridge.bridge.clone()),
                tap_prefix: Some(bridge.tap_prefix.clone()),
                gateway: bridge.gateway,
                range,
                addresses,
                antispoof: Some(bridge.antispoof),
                isolate_ports: Some(bridge.isolate_ports),
                ..empty
            };
            (network, None, CniOptions::default())
        }
        NetworkSpec::Cni(cni) => (empty, Some(cni.network_name.clone()), cni.cni.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::manifest;
    use crate::api::manifest::Source;

    fn groups(name: &str, text: String) -> Vec<(Name, HostGroupSpec)> {
        let source = Source {
            name: name.to_owned(),
            text,
        };
        let drafts = manifest::parse(&source);
        let drafts = drafts.unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        drafts
            .into_iter()
            .map(|draft| (draft.name, draft.spec))
            .collect()
    }

    #[track_caller]
    fn assert_round_trip(name: &str, text: String) {
        let read = groups(name, text);
        assert!(!read.is_empty(), "{name}");
        let written = super::text(read.iter().map(|(name, spec)| (name, spec))).unwrap();
        assert_eq!(groups(name, written.clone()), read, "{name}:\n{written}");
    }

    #[test]
    fn every_valid_manifest_has_the_same_groups_after_a_round_trip() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut tested = 0;
        for folder in ["manifests", "tests/goldens/manifests/good"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "yaml")
                {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert_round_trip(&path.display().to_string(), text);
                    tested += 1;
                }
            }
        }
        assert!(tested >= 9, "{tested}");
    }

    #[test]
    fn every_key_of_a_group_survives_a_round_trip() {
        let common = "count: 1
      vcpu: 3
      ram_mb: 1536
      dns_servers: [1.1.1.1, 8.8.8.8]
      kernel_file: '/images/a: #kernel'
      initrd_file: /images/initrd
      cmdline: 'quiet \"quoted\" # no comment'
      restart: on-failure
      graceful_shutdown: 1m 30s
      image: /images/root.raw
      storage_size: 1536M
      persistent: true
      disks: [{path: /images/data.raw}, {path: /images/own.raw, read_only: false}]
      userdata: \"#!/bin/sh\\necho ': # x'\\n\\ttab \\n\\n\"
      ssh_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f]
      secrets: [a, tls.key]
      update: on-delete";
        let isolated = "network: {mode: isolated, range: 169.254.100.0/22, allow: ['10.0.0.1:80-90/tcp'], drop: [10.0.0.0/8], on_deny: reject, allow_metadata: true, max_connections: 100}";
        for vmm in [
            "hypervisor: qemu\n      qemu_bin: /opt/qemu\n      machine: q35",
            "hypervisor: firecracker\n      firecracker_bin: /opt/fc\n      jailer_bin: /opt/jailer",
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: /opt/ch",
        ] {
            for network in [
                isolated,
                "network: {mode: bridge, max_connections: 16}",
                "network_name: net-1\n      cni: {args: {A: '1', B: 'yes'}, mac: '02:00:00:00:00:01'}",
            ] {
                let text = format!(
                    "config:\n  host_groups:\n    - name: 'on'\n      {common}\n      {vmm}\n      {network}\n"
                );
                assert_round_trip("keys", text);
            }
        }
    }
}
