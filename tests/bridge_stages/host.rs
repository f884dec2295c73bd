//! A daemon's hands without the daemon: the ground and VMs on bridges, converged by call.
//! Out of scope: tests.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use slicectl::api::network::{Mac, TapOwner};
use slicectl::host::Handle;
use slicectl::host::iptables::Backend;
use slicectl::host::netns::Netns;
use slicectl::owner::{self, Instance};
use slicectl::reconcile::firewall::bridge::{self as gate, AllowedFrames, BridgeFirewall, Filter};
use slicectl::reconcile::host_network::{self, HostNetwork};
use slicectl::reconcile::net::bridge::{self, BridgeNet, Location, Slot};
use slicectl::reconcile::{Reconcile, converge, diff, no_probe};
use slicectl::store::HostRequirements;

use crate::support::guest_stack::Guest;
use crate::support::kernel;

/// The host's address on the bridge, in most tests.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 1);

/// A host that drops what it is not told to forward, as Docker makes it.
pub struct Host {
    pub instance: Instance,
    home: Netns,
    netlink: Handle,
    backend: Backend,
    before: HostRequirements,
}

/// A VM that is wanted.
#[derive(Clone)]
pub struct Wish {
    pub port: bridge::Desired,
    pub pass: AllowedFrames,
}

impl Host {
    pub async fn new() -> Self {
        kernel::run(
            "iptables -P FORWARD DROP
             cat /proc/sys/net/bridge/bridge-nf-call-iptables | grep -q 1",
        );
        let home = Netns::current().unwrap();
        Self {
            instance: Instance::of("/state".as_ref()),
            netlink: home.netlink().unwrap(),
            home,
            backend: Backend::detect().unwrap(),
            before: HostRequirements::default(),
        }
    }

    /// A VM with that number, which is also the last byte of its address.
    pub fn wish(&self, number: u8, bridge: &str) -> Wish {
        let name = format!("web-{number}").parse().unwrap();
        let uid = format!("7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a{number:02x}");
        let label = self.instance.vm_label(&name, uid.parse().unwrap());
        let ip = Ipv4Addr::new(192, 168, 137, number);
        let mac = owner::names_of(&label).guest_mac;
        let slot = Slot {
            bridge: bridge.into(),
            ip,
            tap_owner: TapOwner::default(),
            isolated: false,
            antispoof: true,
            record: "{}".into(),
        };
        Wish {
            port: bridge::Desired {
                label,
                run_dir: "/run/slice".into(),
                tap: format!("vmtap{number}"),
                slot: Some(slot),
                last_location: None,
            },
            pass: AllowedFrames::Only(Filter {
                mac,
                ip,
                isolation: None,
            }),
        }
    }

    /// The steps that were taken.
    pub async fn ground(&mut self, requirements: HostRequirements) -> Vec<String> {
        let hands = HostNetwork {
            home: self.home.clone(),
            netlink: self.netlink.clone(),
            backend: self.backend.clone(),
            scope: host_network::Scope::All,
            forward_chains: Default::default(),
            touched_bridges: Default::default(),
        };
        let desired = host_network::Desired {
            instance: self.instance.clone(),
            requirements: requirements.clone(),
            previous: std::mem::replace(&mut self.before, requirements),
        };
        firm(&hands, &desired).await
    }

    pub async fn port(&self, wish: &Wish) -> Vec<String> {
        firm(&self.port_hands(), &wish.port).await
    }

    pub async fn gate(&self, wish: &Wish) -> Vec<String> {
        firm(&self.gate_hands(), &gate_of(wish, Some(wish.pass.clone()))).await
    }

    /// What would be done first; or why nothing can be.
    pub async fn port_diff(&self, wish: &Wish) -> Result<Vec<String>, String> {
        let plan = diff(&self.port_hands(), &wish.port).await;
        plan.map(|(steps, _)| steps.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    /// Why the port cannot be made.
    pub async fn port_fails(&self, wish: &Wish) -> String {
        let done = converge(&self.port_hands(), &wish.port, &no_probe()).await;
        match done.result {
            Ok(_) => panic!("it was made"),
            Err(error) => error.to_string(),
        }
    }

    /// All of a VM; its guest is at the TAP.
    pub async fn vm(&self, wish: &Wish) -> Guest {
        self.port(wish).await;
        self.gate(wish).await;
        self.plug(wish)
    }

    pub fn plug(&self, wish: &Wish) -> Guest {
        let (mac, ip) = identity(wish);
        Guest::plug(&wish.port.tap, mac.0, ip, GATEWAY)
    }

    /// Down again, as deletion goes: the gate, then the port.
    pub async fn tear_down(&self, wish: &Wish) -> Vec<String> {
        let mut taken = firm(&self.gate_hands(), &gate_of(wish, None)).await;
        let slot = wish.port.slot.as_ref().unwrap();
        let nothing = bridge::Desired {
            slot: None,
            last_location: Some(Location {
                bridge: slot.bridge.clone(),
                ip: slot.ip,
            }),
            ..wish.port.clone()
        };
        taken.extend(firm(&self.port_hands(), &nothing).await);
        taken
    }

    fn port_hands(&self) -> BridgeNet {
        BridgeNet::new(self.home.clone(), self.netlink.clone())
    }

    fn gate_hands(&self) -> BridgeFirewall {
        BridgeFirewall {
            netlink: self.netlink.clone(),
        }
    }
}

impl Wish {
    pub fn slot(&mut self) -> &mut Slot {
        self.port.slot.as_mut().unwrap()
    }
}

pub fn identity(wish: &Wish) -> (Mac, Ipv4Addr) {
    let slot = wish.port.slot.as_ref().unwrap();
    (wish.port.names().guest_mac, slot.ip)
}

/// One bridge with these addresses of the host.
pub fn requirements(bridge: &str, gateways: &[&str]) -> HostRequirements {
    let gateways: BTreeSet<_> = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
    HostRequirements {
        bridges: [(bridge.to_owned(), gateways)].into(),
        ..HostRequirements::default()
    }
}

fn gate_of(wish: &Wish, pass: Option<AllowedFrames>) -> gate::Desired {
    gate::Desired {
        label: wish.port.label.clone(),
        tap: wish.port.tap.clone(),
        allowed: pass,
        last_verified: None,
    }
}

/// Converges, and makes sure that it stays so.
async fn firm<R: Reconcile>(hands: &R, desired: &R::Desired) -> Vec<String> {
    let done = converge(hands, desired, &no_probe()).await;
    if let Err(error) = done.result {
        panic!("{error}; taken: {:?}", done.actions);
    }
    let (left, _) = diff(hands, desired).await.unwrap();
    assert!(left.is_empty(), "something is left to do");
    done.actions
}
