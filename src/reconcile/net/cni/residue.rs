//! iptables chains that plugins leave behind when DEL finds no address on their interface, or fails half way.
//! Out of scope: when they may exist; rules that contain an address only, which another container may have by now.
//!
//! # Why
//! The bridge and ptp plugins masquerade through one chain per attachment, and the portmap plugin publishes ports through one. The chain's
//! name is made of the network's name and the container's id (`utils.FormatChainName` of containernetworking/plugins), so it belongs to
//! this attachment and to no other.

use std::time::Duration;

use sha2::{Digest, Sha512};

use crate::cni::Attachment;
use crate::host::iptables::{Family, has_nat_chain, remove_nat_chain};
use crate::host::{self, blocking};

/// How long each of the short programs may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The maximum length of the name of an iptables chain (`XT_EXTENSION_MAXNAMELEN`).
const CHAIN_LENGTH: usize = 28;

/// The prefix of each chain's name, followed by the hash, and the chain that jumps to it.
const CHAINS: [(&str, &str); 2] = [("CNI-", "POSTROUTING"), ("CNI-DN-", "CNI-HOSTPORT-DNAT")];

/// Removes what is left of an attachment's chains.
pub(super) async fn remove(network: &str, attachment: &Attachment) -> Result<(), host::Error> {
    let chains = CHAINS.map(|(prefix, parent)| {
        let chain = chain(prefix, network, &attachment.container_id);
        (parent, chain)
    });
    let thing = format!("the chains of {}", attachment.container_id);
    let removed = blocking::within(DEADLINE, "remove", thing, move || {
        let mut removed = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            for (parent, chain) in &chains {
                if remove_nat_chain(family, parent, chain, DEADLINE)? {
                    removed.push(chain.clone());
                }
            }
        }
        Ok(removed)
    });
    let removed = removed.await?;
    if !removed.is_empty() {
        tracing::debug!(network, ?removed, "removed chains that CNI plugins left");
    }
    Ok(())
}

/// Whether iptables has a chain that masquerades the attachment, and a jump to it. A program that flushes foreign tables removes it, and
/// CHECK of the bridge and ptp plugins does not detect that.
pub(super) async fn masquerades(
    network: &str,
    attachment: &Attachment,
) -> Result<bool, host::Error> {
    let (_, parent) = CHAINS[0];
    let chain = masquerade_chain(network, &attachment.container_id);
    let thing = format!("chain {chain}");
    blocking::within(DEADLINE, "look for", thing, move || {
        has_nat_chain(Family::Ipv4, parent, &chain, DEADLINE)
    })
    .await
}

/// The chain by which the bridge and ptp plugins masquerade a container.
pub fn masquerade_chain(network: &str, container: &str) -> String {
    chain(CHAINS[0].0, network, container)
}

fn chain(prefix: &str, network: &str, container: &str) -> String {
    let hash = Sha512::digest(format!("{network}{container}"));
    let mut name = prefix.to_owned();
    for byte in hash {
        name.push_str(&format!("{byte:02x}"));
    }
    name.truncate(CHAIN_LENGTH);
    name
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[test]
    fn chains_have_the_same_names_as_in_the_plugins() {
        // From `utils_test.go`, and from a real attachment.
        assert_eq!(
            chain("CNI-", "test", "1234"),
            "CNI-2bbe0c48b91a7d1b8a6753a8"
        );
        let container = "slice-zt4oo-7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44";
        assert_eq!(
            chain("CNI-", "net", container),
            "CNI-ba535e9e198866cc9963204c"
        );
        assert_eq!(chain("CNI-DN-", "net", container).len(), 28);
    }
}
