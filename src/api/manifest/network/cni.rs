//! Reads the fields of CNI mode: `network_name`, `cni:`, and the few fields that `network:` may have in addition.
//! Out of scope: whether the network exists.

use super::super::super::cni::CniOptions;
use super::super::super::network::{CniSpec, NetworkSpec};
use super::super::keys::limits::MAX_NETWORK_NAME_LEN;
use super::super::keys::{Mode, exclusive_to, invalid_in};
use super::super::section::{Field, Reader, Section};
use super::{Capacity, GroupInfo, Network, cni_options, read_tap_owner, refuse_lists};

/// Reads `network:` of mode cni, which is empty if only `network_name` is given, and `cni:`, the requests to the plugins. The
/// plugins decide the rest.
pub fn read(
    reader: &mut Reader,
    network: &Section,
    options: Option<&Field>,
    info: &GroupInfo,
    network_name: &str,
) -> Network {
    refuse_lists(reader, network, "cni");
    let isolated: Vec<&str> = exclusive_to(Mode::Isolated).collect();
    for key in invalid_in(Mode::Cni).filter(|key| !isolated.contains(key)) {
        if let Some(field) = network.get(key) {
            let message = "has no effect with mode: cni, in which the plugins of the network decide; only tap_owner is valid here";
            reader.refuse(field, message);
        }
    }
    Network {
        warnings: Vec::new(),
        spec: NetworkSpec::Cni(CniSpec {
            network_name: network_name.to_owned(),
            tap_owner: read_tap_owner(reader, network),
            cni: options
                .map(|field| cni_options::read(reader, field, info.count))
                .unwrap_or_default(),
        }),
    }
}

/// The maximum number of VMs, if the group lists addresses.
pub fn capacity(options: &CniOptions) -> Option<Capacity> {
    let listed = options.ips.len();
    (listed > 0).then(|| Capacity {
        vms: u32::try_from(listed).unwrap_or(u32::MAX),
        why: format!("cni.ips lists {listed}"),
    })
}

/// Reads a network's name (CNI spec 1.1.0, section 1). Returns the name even if it is refused, so that it is not reported as missing
/// for the groups that use it.
pub fn read_name(reader: &mut Reader, field: &Field) -> String {
    const EXPECTED: &str = "the name of a CNI network: a letter or digit, then letters, digits, _, . and -, at most 128";
    let Some(name) = reader.text(field, EXPECTED) else {
        return String::new();
    };
    let is_valid_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let is_valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_valid_char)
        && name.len() <= MAX_NETWORK_NAME_LEN;
    if !is_valid {
        reader.unexpected(field, EXPECTED);
    }
    name.to_owned()
}
