//! The reconcilers of bridge mode without the daemon: the host network and VMs on bridges, converged by call.
//! Out of scope: tests.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use slicectl::api::network::{Mac, TapOwner};
use slicectl::host::Handle;
use slicectl::host::iptables::Backend;
use slicectl::host::netns::Netns;
use slicectl::owner::{self, Instance};
use slicectl::reconcile::firewall::bridge::{
    self as bridge_firewall, AllowedFrames, BridgeFirewall, Filter,
};
use slicectl::reconcile::host_network::{self, HostNetwork};
use slicectl::reconcile::net::bridge::{self, BridgeNet, Location, Slot};
use slicectl::reconcile::{Basis, OnHost, converge, diff, no_probe};
use slicectl::store::HostRequirements;

use test_support::guest_stack::Guest;
use test_support::kernel;

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
pub struct DesiredVm {
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
    pub fn desired_vm(&self, number: u8, bridge: &str) -> DesiredVm {
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
        DesiredVm {
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
    pub async fn converge_host_network(&mut self, requirements: HostRequirements) -> Vec<String> {
        let reconciler = HostNetwork {
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
        converge_all(&reconciler, &desired).await
    }

    pub async fn port(&self, desired_vm: &DesiredVm) -> Vec<String> {
        converge_all(&self.port_reconciler(), &desired_vm.port).await
    }

    pub async fn converge_firewall(&self, desired_vm: &DesiredVm) -> Vec<String> {
        converge_all(
            &self.firewall_reconciler(),
            &firewall_of(desired_vm, Some(desired_vm.pass.clone())),
        )
        .await
    }

    /// What would be done first; or why nothing can be.
    pub async fn port_diff(&self, desired_vm: &DesiredVm) -> Result<Vec<String>, String> {
        let plan = diff(&self.port_reconciler(), &desired_vm.port, Basis::Existing).await;
        plan.map(|(steps, _)| steps.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    /// Why the port cannot be made.
    pub async fn port_fails(&self, desired_vm: &DesiredVm) -> String {
        let done = converge(&self.port_reconciler(), &desired_vm.port, &no_probe()).await;
        match done.result {
            Ok(_) => panic!("it was made"),
            Err(error) => error.to_string(),
        }
    }

    /// All of a VM; its guest is at the TAP.
    pub async fn vm(&self, desired_vm: &DesiredVm) -> Guest {
        self.port(desired_vm).await;
        self.converge_firewall(desired_vm).await;
        self.attach(desired_vm)
    }

    pub fn attach(&self, desired_vm: &DesiredVm) -> Guest {
        let (mac, ip) = identity(desired_vm);
        Guest::on_tap(&desired_vm.port.tap, mac.0, ip, GATEWAY)
    }

    /// Down again, as deletion goes: the firewall, then the port.
    pub async fn tear_down(&self, desired_vm: &DesiredVm) -> Vec<String> {
        let mut taken =
            converge_all(&self.firewall_reconciler(), &firewall_of(desired_vm, None)).await;
        let slot = desired_vm.port.slot.as_ref().unwrap();
        let nothing = bridge::Desired {
            slot: None,
            last_location: Some(Location {
                bridge: slot.bridge.clone(),
                ip: slot.ip,
            }),
            ..desired_vm.port.clone()
        };
        taken.extend(converge_all(&self.port_reconciler(), &nothing).await);
        taken
    }

    fn port_reconciler(&self) -> BridgeNet {
        BridgeNet::new(self.home.clone(), self.netlink.clone())
    }

    fn firewall_reconciler(&self) -> BridgeFirewall {
        BridgeFirewall {
            netlink: self.netlink.clone(),
        }
    }
}

impl DesiredVm {
    pub fn slot(&mut self) -> &mut Slot {
        self.port.slot.as_mut().unwrap()
    }
}

pub fn identity(desired_vm: &DesiredVm) -> (Mac, Ipv4Addr) {
    let slot = desired_vm.port.slot.as_ref().unwrap();
    (desired_vm.port.names().guest_mac, slot.ip)
}

/// One bridge with these addresses of the host.
pub fn requirements(bridge: &str, gateways: &[&str]) -> HostRequirements {
    let gateways: BTreeSet<_> = gateways.iter().map(|ip| ip.parse().unwrap()).collect();
    HostRequirements {
        bridges: [(bridge.to_owned(), gateways)].into(),
        ..HostRequirements::default()
    }
}

fn firewall_of(desired_vm: &DesiredVm, pass: Option<AllowedFrames>) -> bridge_firewall::Desired {
    bridge_firewall::Desired {
        label: desired_vm.port.label.clone(),
        tap: desired_vm.port.tap.clone(),
        allowed: pass,
        last_verified: None,
    }
}

/// Converges, and makes sure that it stays so.
async fn converge_all<R: OnHost>(reconciler: &R, desired: &R::Desired) -> Vec<String> {
    let done = converge(reconciler, desired, &no_probe()).await;
    if let Err(error) = done.result {
        panic!("{error}; taken: {:?}", done.actions);
    }
    let (left, _) = diff(reconciler, desired, Basis::Existing).await.unwrap();
    assert!(left.is_empty(), "something is left to do");
    done.actions
}
