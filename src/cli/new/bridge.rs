//! `new --net=bridge`: link names, the gateway, the VMs' addresses.
//! Out of scope: the rest of the group.

use super::super::failure::Failure;
use super::super::yaml;
use super::text::YamlText;
use super::{NewArgs, tap_owner};
use crate::api::link_name;

/// `network:` without `mode:`, since bridge mode is the default.
pub fn network(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    names(text, args)?;
    match &args.gateway {
        Some(gateway) => text.note(
            4,
            &format!("gateway: {}", yaml::scalar(gateway)?),
            "the host's address on the bridge",
        ),
        None => text.note(
            4,
            "# gateway: 192.168.137.1/24",
            "default: derived from the group's name, then kept",
        ),
    }
    addresses(text, args)?;
    if args.no_antispoof {
        text.note(
            4,
            "antispoof: false",
            "VMs may use any MAC and source address",
        );
    }
    if args.isolate_ports {
        text.note(4, "isolate_ports: true", "VMs cannot reach each other");
    }
    tap_owner(text, args);
    Ok(())
}

fn names(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    match &args.bridge {
        Some(bridge) => text.note(
            4,
            &format!("bridge: {}", yaml::scalar(bridge)?),
            "created if absent; an existing bridge is not changed",
        ),
        None => {
            let derived = yaml::scalar(&link_name::bridge_of(&args.name))?;
            let comment = format!("default: {derived}, derived from the group's name");
            text.note(4, "# bridge: brvm0", &comment);
        }
    }
    let prefix = match &args.tap_prefix {
        Some(prefix) => prefix.clone(),
        None => link_name::tap_prefix_of(&args.name),
    };
    let tap_names = match args.count() {
        0 | 1 => format!("TAP {prefix}0"),
        count => format!("TAPs {prefix}0 to {prefix}{}", count - 1),
    };
    match &args.tap_prefix {
        Some(prefix) => {
            let prefix = format!("tap_prefix: {}", yaml::scalar(prefix)?);
            text.note(4, &prefix, &tap_names);
        }
        None => text.note(4, "# tap_prefix: vmtap", &format!("default: {tap_names}")),
    }
    Ok(())
}

fn addresses(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    let comment = match args.gateway {
        Some(_) => {
            "Default: any free address of the gateway's subnet. To restrict it, set one of these:"
        }
        None => {
            "Default: any free address of the subnet. To restrict it, set gateway and one of these:"
        }
    };
    match (&args.range, args.addresses.as_slice()) {
        (None, []) => {
            text.line(4, &format!("# {comment}"));
            text.line(4, "# addresses: [192.168.137.2/24, 192.168.137.3/24]");
            text.line(4, "# range: 192.168.137.20-192.168.137.80");
        }
        (Some(range), _) => {
            let range = format!("range: {}", yaml::scalar(range)?);
            text.note(4, &range, "range of the VMs' addresses");
        }
        (None, listed) => {
            let listed: Result<Vec<String>, Failure> =
                listed.iter().map(|ip| flow_scalar(ip)).collect();
            let listed = format!("addresses: [{}]", listed?.join(", "));
            text.note(4, &listed, "one for each VM, in order");
        }
    }
    Ok(())
}

/// A scalar in a flow sequence, in which commas and brackets need quotes as well.
fn flow_scalar(text: &str) -> Result<String, Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/');
    match text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(is_plain) {
        true => yaml::scalar(text),
        false => serde_json::to_string(text).map_err(|error| Failure::one(error.to_string())),
    }
}
