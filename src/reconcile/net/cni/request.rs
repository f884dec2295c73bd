//! What a VM requests from the plugins of its CNI network: arguments (`CNI_ARGS`) and capabilities (`runtimeConfig`). Pure.
//! Out of scope: running the plugins; the use of their results.
//!
//! The names and forms are those of <https://github.com/containernetworking/cni/blob/main/CONVENTIONS.md>.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::state::{DataPath, Desired, GuestIdentity, Inside};
use super::{guest, has_tap_plugin};
use crate::api::cni::{CniOptions, PortMapping};
use crate::cni::{Attachment, CniResult, Error, Network};
use crate::owner::TAP;

/// A capability, the manifest field that requests it, and the best-known plugin that supports it.
struct Capability {
    name: &'static str,
    field: &'static str,
    plugin: &'static str,
}

const PORT_MAPPINGS: Capability = Capability {
    name: "portMappings",
    field: "cni.port_mappings",
    plugin: "portmap",
};
const BANDWIDTH: Capability = Capability {
    name: "bandwidth",
    field: "cni.bandwidth",
    plugin: "bandwidth",
};
const ALIASES: Capability = Capability {
    name: "aliases",
    field: "cni.aliases",
    plugin: "dnsname",
};

/// Returns the attachment for ADD, which CHECK and DEL use as well. `taken`: another container has the address that the guest had.
///
/// # Errors
/// [`Error::UnsupportedRequest`] if no plugin of the network declares a requested capability. A VM without its bandwidth limit or its port
/// mappings would not match its spec.
pub(super) fn attachment(
    desired: &Desired,
    network: &Network,
    is_taken: bool,
) -> Result<Attachment, Error> {
    let mut attachment = desired.attachment();
    if let Some(data_path) = &desired.data_path {
        attachment.capability_args = capabilities(&data_path.requested, network)?;
        attachment.args = arguments(data_path, network, is_taken);
    }
    Ok(attachment)
}

fn capabilities(requested: &CniOptions, network: &Network) -> Result<Map<String, Value>, Error> {
    let declared = network.capabilities();
    let mut all = Map::new();
    let mut require =
        |capability: &Capability, value: Value| match declared.contains(capability.name) {
            true => {
                all.insert(capability.name.to_owned(), value);
                Ok(())
            }
            false => Err(undeclared(capability, network)),
        };
    if !requested.port_mappings.is_empty() {
        let mappings = requested.port_mappings.iter().map(port_mapping).collect();
        require(&PORT_MAPPINGS, mappings)?;
    }
    if let Some(limits) = &requested.bandwidth {
        // The plugin treats a rate of 0 as no limit.
        let bits = |bits: Option<u64>| bits.unwrap_or_default();
        let limits = json!({
            "ingressRate": bits(limits.ingress_rate),
            "ingressBurst": bits(limits.ingress_burst),
            "egressRate": bits(limits.egress_rate),
            "egressBurst": bits(limits.egress_burst),
        });
        require(&BANDWIDTH, limits)?;
    }
    if !requested.aliases.is_empty() {
        require(&ALIASES, json!(requested.aliases))?;
    }
    // If the capability is not declared, the argument may have the same effect: host-local, bridge and macvlan support both.
    if declared.contains("ips") && !requested.ips.is_empty() {
        all.insert("ips".to_owned(), json!(requested.ips));
    }
    if let Some(mac) = requested.mac.filter(|_| declared.contains("mac")) {
        all.insert("mac".to_owned(), json!(mac));
    }
    Ok(all)
}

fn port_mapping(mapping: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.guest_port,
        "protocol": mapping.protocol.to_string(),
    });
    if let (Some(ip), Value::Object(value)) = (mapping.host_ip, &mut value) {
        value.insert("hostIP".to_owned(), json!(ip));
    }
    value
}

fn undeclared(capability: &Capability, network: &Network) -> Error {
    let Capability {
        name,
        field,
        plugin,
    } = capability;
    let plugins: Vec<&str> = network.plugins.iter().map(|p| p.name.as_str()).collect();
    let remedy = match plugins.contains(plugin) {
        true => {
            format!("set \"capabilities\": {{\"{name}\": true}} in the configuration of `{plugin}`")
        }
        false => format!("add a plugin that declares it, such as `{plugin}`"),
    };
    Error::UnsupportedRequest(format!(
        "{field} needs the capability {name}, which no plugin of the network declares ({}): {remedy}",
        plugins.join(", ")
    ))
}

/// Returns `CNI_ARGS`: the name and the owner of the TAP for `tc-redirect-tap`, and the arguments of the VM's spec and the guest's
/// address and MAC for every plugin. `IgnoreUnknown` is set because without it a plugin may reject arguments that it does not know.
fn arguments(data_path: &DataPath, network: &Network, is_taken: bool) -> Vec<(String, String)> {
    let mut arguments = Vec::new();
    let mut add = |key: &str, value: String| arguments.push((key.to_owned(), value));
    if has_tap_plugin(network) {
        add("TC_REDIRECT_TAP_NAME", TAP.to_owned());
        add("TC_REDIRECT_TAP_UID", data_path.tap_owner.uid.to_string());
        if let Some(gid) = data_path.tap_owner.gid {
            add("TC_REDIRECT_TAP_GID", gid.to_string());
        }
    }
    for (key, value) in &data_path.requested.args {
        add(key, value.clone());
    }
    let declared = network.capabilities();
    match (data_path.requested.ips.first(), data_path.identity) {
        // Without the capability: plugins read one address from the argument.
        (Some(asked), _) if !declared.contains("ips") => add("IP", asked.to_string()),
        (None, Some(GuestIdentity { ip, .. }))
            if !is_taken && network.can_request(IpAddr::V4(ip)) =>
        {
            add("IP", ip.to_string());
        }
        (Some(_), _) | (None, _) => {}
    }
    match (data_path.requested.mac, data_path.identity) {
        (Some(mac), _) if !declared.contains("mac") => add("MAC", mac.to_string()),
        (None, Some(GuestIdentity { mac, .. })) => add("MAC", mac.to_string()),
        (Some(_), _) | (None, None) => {}
    }
    if !arguments.is_empty() {
        arguments.insert(0, ("IgnoreUnknown".to_owned(), "1".to_owned()));
    }
    arguments
}

/// Whether an argument only requests what the guest had before. Without it the guest has another identity on the network, but runs.
pub(super) fn is_preference(data_path: &DataPath, key: &str) -> bool {
    match key {
        "IP" => data_path.requested.ips.is_empty(),
        "MAC" => data_path.requested.mac.is_none(),
        _ => false,
    }
}

/// Describes the first requested address or MAC that is not in the result.
pub(super) fn unmet(
    data_path: &DataPath,
    result: &CniResult,
    attachment: &Attachment,
    inside: &Inside,
) -> Option<String> {
    let asked = &data_path.requested;
    let given: BTreeSet<_> = guest::addresses(result, attachment)
        .into_iter()
        .map(|(address, _)| address.ip())
        .collect();
    let list = |given: Vec<String>| match given.is_empty() {
        true => "none".to_owned(),
        false => given.join(", "),
    };
    if let Some(missing) = asked.ips.iter().find(|asked| !given.contains(&asked.ip)) {
        let given = list(given.iter().map(ToString::to_string).collect());
        return Some(format!(
            "cni.ips requests {}, but the plugins assigned {given}: the IPAM plugin ignores requested addresses",
            missing.ip
        ));
    }
    // A result need not contain the MAC.
    let of_eth = || inside.eth.as_ref().map(|eth| eth.mac);
    let given = guest::mac_of(result, attachment).or_else(of_eth);
    let other = asked.mac.filter(|asked| given != Some(*asked));
    other.map(|asked| {
        let given = list(given.iter().map(ToString::to_string).collect());
        format!(
            "cni.mac requests {asked}, but the plugins assigned {given}: every plugin of the network ignores a requested MAC"
        )
    })
}
