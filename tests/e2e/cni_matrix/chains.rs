//! The chains of CNI plugins.
//! Out of scope: what happens to them.

use std::path::Path;

use serde_json::{Value, json};

use test_support::cni_networks::ipam;

/// A chain: its name is that of the network and of the group; the plugins beside the first one and `firewall`; more lines of the group.
pub struct Chain {
    pub name: &'static str,
    more: fn() -> Option<Value>,
    pub group: &'static str,
}

/// One VM each; `sbr`, `portmap` and `tuning` of some releases fail CHECK right after ADD.
pub const CHAINS: [Chain; 6] = [
    Chain {
        name: "bridge",
        more: || None,
        group: "",
    },
    Chain {
        name: "ptp",
        more: || None,
        group: "",
    },
    Chain {
        name: "portmap",
        more: || Some(json!({"type": "portmap", "capabilities": {"portMappings": true}})),
        group: "\n      cni: {port_mappings: [{host_port: 8080, guest_port: 80}]}",
    },
    Chain {
        name: "tuning",
        more: || {
            Some(json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}))
        },
        group: "",
    },
    Chain {
        name: "sbr",
        more: || Some(json!({"type": "sbr"})),
        group: "",
    },
    Chain {
        name: "bandwidth",
        more: || {
            let rate = 8_000_000;
            Some(
                json!({"type": "bandwidth", "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate}),
            )
        },
        group: "",
    },
];

impl Chain {
    /// The chain, in a subnet of that number.
    pub fn plugins(&self, number: usize) -> Value {
        let ipam = ipam(&format!("10.7{number}.0.0/24"));
        let first = match self.name {
            "ptp" => json!({"type": "ptp", "ipMasq": true, "ipam": ipam}),
            _ => {
                json!({"type": "bridge", "bridge": format!("cni{number}"), "isGateway": true, "ipMasq": true, "ipam": ipam})
            }
        };
        let firewall = json!({"type": "firewall"});
        [first, firewall].into_iter().chain((self.more)()).collect()
    }

    /// Whether all of its plugins exist there.
    pub fn is_in(&self, dir: &Path) -> bool {
        let plugins = self.plugins(0);
        let mut kinds = plugins.as_array().into_iter().flatten();
        kinds.all(|plugin| dir.join(plugin["type"].as_str().expect("a type")).exists())
    }
}
