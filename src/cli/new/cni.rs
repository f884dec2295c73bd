//! `new --net=cni`: the name of a network, and that is nearly all.
//! Out of scope: the network.

use super::super::failure::Failure;
use super::super::yaml;
use super::text::Text;
use super::{NewArgs, tap_owner};

/// The name of the list that `make install` puts into /etc/cni/net.d.
const SHIPPED: &str = "slicer";

/// `network_name:`, for all groups of the file.
pub fn network_name(text: &mut Text, args: &NewArgs) -> Result<(), Failure> {
    let name = yaml::scalar(args.network_name.as_deref().unwrap_or(SHIPPED))?;
    let comment = "a network of /etc/cni/net.d; a group may name another";
    text.note(1, &format!("network_name: {name}"), comment);
    Ok(())
}

/// A section only for who may open the TAP: addresses, gateway and routes are the plugins'.
pub fn network(text: &mut Text, args: &NewArgs) {
    if args.tap_owner.is_some() {
        // `network_name` alone makes a group without this section a CNI group.
        text.line(4, "mode: cni");
        tap_owner(text, args);
    }
}
