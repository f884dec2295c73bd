//! The desired state in `describe`: the spec of a group or a VM, and the settings of a VM made on demand.
//! Out of scope: the actual state.

use super::{Description, list, on_off, some};
use crate::api::cni::CniOptions;
use crate::api::guest_access::{Agent, GuestAccess};
use crate::api::network::{Addresses, NetworkSpec, TapOwner};
use crate::api::on_demand::VmOverrides;
use crate::api::policy::Policy;
use crate::api::provision::{Provision, Userdata};
use crate::api::storage::{Bytes, Storage};
use crate::api::vm::{Hypervisor, VmSpec};
use crate::cli::rows;

impl Description {
    pub(super) fn overrides(&mut self, on_demand: &VmOverrides) {
        let own_fields = [
            ("vcpu", on_demand.vcpu.is_some()),
            ("memory", on_demand.ram_bytes.is_some()),
            ("allow", on_demand.allow.is_some()),
            ("drop", on_demand.drop.is_some()),
            ("a persistent disk", on_demand.persistent),
            ("port mappings", !on_demand.cni.port_mappings.is_empty()),
            ("bandwidth", on_demand.cni.bandwidth.is_some()),
            ("aliases", !on_demand.cni.aliases.is_empty()),
            ("CNI arguments", !on_demand.cni.args.is_empty()),
            ("address", !on_demand.cni.ips.is_empty()),
            ("MAC", on_demand.cni.mac.is_some()),
            ("userdata", on_demand.userdata.is_some()),
            ("SSH keys", !on_demand.ssh_keys.is_empty()),
            ("secrets", on_demand.secrets.is_some()),
        ];
        let own: Vec<&str> = own_fields
            .into_iter()
            .filter_map(|(name, is_set)| is_set.then_some(name))
            .collect();
        let description = match own.as_slice() {
            [] => "yes".to_owned(),
            own => format!("yes, with own {}", own.join(", ")),
        };
        self.line("On demand", description);
        if on_demand.delete_on_exit {
            self.line(
                "When it exits",
                "deleted, if its guest powers off or reboots",
            );
        }
        let tags: Vec<String> = on_demand
            .tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        self.line("Tags", list(&tags));
    }

    fn storage(&mut self, storage: &Storage) {
        if let Some(image) = &storage.image {
            self.line("Image", image.display());
            if let Some(size) = storage.size_bytes {
                self.line("Disk size", Bytes(size));
            }
            self.line("Persistent", storage.persistent);
        }
        for disk in &storage.disks {
            let access = match disk.read_only {
                true => "read-only",
                false => "writable",
            };
            self.line(
                "Additional disk",
                format!("{} ({access})", disk.path.display()),
            );
        }
    }

    pub(super) fn spec(&mut self, spec: &VmSpec) {
        self.line("Hypervisor", spec.hypervisor);
        self.line("Vcpu", spec.vcpu);
        self.line("Memory", rows::memory(spec.ram_bytes));
        if let Some(kernel) = &spec.kernel_file {
            self.line("Kernel", kernel.display());
        }
        if let Some(initrd) = &spec.initrd_file {
            self.line("Initrd", initrd.display());
        }
        self.storage(&spec.storage);
        if spec.hypervisor != Hypervisor::None {
            self.line("Restart", spec.lifecycle.restart);
            self.line("Graceful shutdown", spec.lifecycle.graceful_shutdown);
            self.guest_access(&spec.guest_access);
        }
        self.line("Network", spec.network.mode());
        match &spec.network {
            NetworkSpec::Isolated(isolated) => {
                self.maybe("Max connections", isolated.max_connections);
                self.tap_owner(spec, isolated.tap_owner);
                self.policy(&isolated.policy);
            }
            NetworkSpec::Bridge(bridge) => {
                self.line("Bridge", &bridge.bridge);
                self.line("TAP prefix", &bridge.tap_prefix);
                match bridge.gateway {
                    Some(gateway) => self.line("Gateway", gateway),
                    None => self.line("Gateway", "assigned automatically"),
                }
                self.line("Addresses", addresses(&bridge.addresses));
                self.line("Antispoof", on_off(bridge.antispoof));
                self.line("Isolate ports", on_off(bridge.isolate_ports));
                self.maybe("Max connections", bridge.max_connections);
                self.tap_owner(spec, bridge.tap_owner);
            }
            NetworkSpec::Cni(cni) => {
                self.line("CNI network", &cni.network_name);
                self.cni_options(&cni.cni);
                self.tap_owner(spec, cni.tap_owner);
            }
        }
    }

    /// Only what is not the default.
    fn guest_access(&mut self, access: &GuestAccess) {
        match (access.vsock, access.agent) {
            (false, _) => self.line("Vsock", "none: no guest access"),
            (true, agent @ (Agent::None | Agent::Inject)) => self.line("Agent", agent),
            (true, Agent::Baked) => {}
        }
        let Provision {
            userdata,
            ssh_keys,
            secrets,
        } = &access.provision;
        match userdata {
            Some(Userdata::Script(script)) => {
                let bytes = Bytes(script.as_str().len() as u64);
                self.line("Userdata", format!("a script of {bytes}"));
            }
            Some(Userdata::File(path)) => self.line("Userdata", path.display()),
            None => {}
        }
        for key in ssh_keys {
            self.line("SSH key", key.short());
        }
        self.given("Secrets", some(secrets));
    }

    fn cni_options(&mut self, options: &CniOptions) {
        let args = options
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let args: Vec<String> = args.collect();
        self.given("Port mappings", some(&options.port_mappings));
        self.given("Bandwidth", options.bandwidth);
        self.given("Aliases", some(&options.aliases));
        self.given("CNI arguments", some(&args));
        self.given("Requested IPs", some(&options.ips));
        self.given("Requested MAC", options.mac);
    }

    /// Printed only for VMs without a VMM of ours: our VMMs open the TAP with their own user id.
    fn tap_owner(&mut self, spec: &VmSpec, owner: TapOwner) {
        if spec.hypervisor == Hypervisor::None {
            self.line("TAP owner", owner);
        }
    }

    fn policy(&mut self, policy: &Policy) {
        self.line("Allow", list(&policy.allow));
        self.line("Drop", list(&policy.drop));
        self.line("On deny", policy.on_deny);
        if policy.allow_metadata {
            self.line("Metadata", "allow and drop apply");
        }
    }
}

/// The address source of a bridge group.
fn addresses(addresses: &Addresses) -> String {
    match addresses {
        Addresses::Any => "any free address of the subnet".to_owned(),
        Addresses::Range(first, last) => format!("{first}-{last}"),
        Addresses::Listed(listed) => list(listed),
    }
}
