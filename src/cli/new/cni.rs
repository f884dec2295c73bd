//! `new --net=cni`: the name of a CNI network, and the TAP owner.
//! Out of scope: the network.

use super::super::failure::Failure;
use super::super::yaml;
use super::text::YamlText;
use super::{NewArgs, tap_owner};

/// The name of the network configuration that `make install` writes to /etc/cni/net.d.
const DEFAULT_NETWORK: &str = "slicer";

/// `network_name:`, for all groups of the file.
pub fn network_name(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    let name = yaml::scalar(args.network_name.as_deref().unwrap_or(DEFAULT_NETWORK))?;
    let comment = "a network of /etc/cni/net.d; groups may override it";
    text.note(1, &format!("network_name: {name}"), comment);
    Ok(())
}

/// `network:`, only if there is a TAP owner: the plugins choose addresses, gateway and routes.
pub fn network(text: &mut YamlText, args: &NewArgs) {
    if args.tap_owner.is_some() {
        // `network_name` alone makes a group without this section a CNI group.
        text.line(4, "mode: cni");
        tap_owner(text, args);
    }
}
