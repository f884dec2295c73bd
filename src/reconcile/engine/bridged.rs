//! The Net and Firewall stages of a VM on a bridge: its TAP as a port, and the filter and the forwarding switch of the TAP.
//! Out of scope: the bridge itself (host network); the Lease and Vmm stages, which are the same in every mode.

use tracing::debug;

use super::Engine;
use super::step::{Ascent, Ready};
use crate::api::lease::Address;
use crate::api::network::{BridgeSpec, Connection};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::owner;
use crate::reconcile::Reconcile;
use crate::reconcile::firewall::antispoof::PortIsolation;
use crate::reconcile::firewall::port::{self as filter, AllowedFrames, BridgeFirewall};
use crate::reconcile::net::port::{self, BridgeNet, BridgeSeen};
use crate::reconcile::{connection, net};

/// Whether sliced manages the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Managed {
    Yes,
    No,
}

impl Engine {
    /// Converges the Net and Firewall stages.
    pub(super) async fn connect_bridged<A: Ascent>(
        &self,
        vm: &Vm,
        spec: &BridgeSpec,
        address: &Address,
        record: String,
        ascent: &mut A,
    ) -> Result<Connection, A::Stop> {
        let uid = vm.meta.uid;
        let (label, tap) = (
            self.instance.vm_label(&vm.meta.name, uid),
            spec.tap(vm.index),
        );
        let desired = port::Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            tap: tap.clone(),
            slot: Some(port::Slot {
                bridge: spec.bridge.clone(),
                ip: address.ip(),
                tap_owner: self.tap_owner(vm),
                isolated: spec.isolate_ports,
                antispoof: spec.antispoof,
                record,
            }),
            last_location: None,
        };
        let hands = self.port();
        let (seen, unrecorded) = match ascent.meet(Rung::Net, &hands, &desired).await {
            Ok(seen) => (seen, None),
            // As in isolated mode: a full run directory does not delay rules that restrict the VM.
            Err(stop) if hands.lacks_record() && self.held(uid).contains(&Rung::Firewall) => {
                match hands.observe(&desired).await {
                    Ok(seen) => (seen, Some(stop)),
                    Err(_) => return Err(stop),
                }
            }
            Err(stop) => return Err(stop),
        };
        let mtu = seen.bridge.as_ref().map_or(net::MTU, |bridge| bridge.mtu);
        // sliced creates a bridge that does not exist.
        let managed = match &seen.bridge {
            Some(bridge) if !desired.is_managed(bridge) => Managed::No,
            Some(_) | None => Managed::Yes,
        };
        let place = (spec.bridge.as_str(), tap.clone());
        let connected = connection::bridged(&self.instance, uid, address, place, mtu);
        if unrecorded.is_none() {
            let ready = Ready::connected(&connected);
            ascent.ready(Rung::Net, ready).await?;
        }
        let pass = self.pass(vm, spec, address, managed, seen.bridge);
        let ready = Ready::marked(pass.digest());
        let desired = filter::Desired {
            label,
            tap,
            allowed: Some(pass),
            last_verified: self.mark(uid, Rung::Firewall),
        };
        let is_new = desired.last_verified.is_none();
        let hands = self.gate();
        ascent.meet(Rung::Firewall, &hands, &desired).await?;
        let ready = ascent.ready(Rung::Firewall, ready).await;
        if let Err(error) = self.look_at_refused(vm, address.ip(), is_new).await {
            debug!(vm = %vm.meta.name, %error, "cannot count its refused packets");
        }
        if let Some(stop) = unrecorded {
            return Err(stop);
        }
        ready?;
        Ok(connected)
    }

    /// The frames of a bridge VM that may pass.
    fn pass(
        &self,
        vm: &Vm,
        spec: &BridgeSpec,
        address: &Address,
        managed: Managed,
        bridge: Option<BridgeSeen>,
    ) -> AllowedFrames {
        let names = owner::vm_names(&self.instance, vm.meta.uid);
        let apart = bridge
            .zip(address.gateway())
            .filter(|_| spec.isolate_ports)
            .map(|(bridge, gateway)| PortIsolation {
                bridge: bridge.mac,
                port: names.port_mac,
                subnet: address.range(),
                gateway,
                host_addresses: bridge.host_addresses,
            });
        match (spec.antispoof, apart) {
            (false, apart) if managed == Managed::No => AllowedFrames::Unmanaged(apart),
            (true, apart) => AllowedFrames::Only(filter::Filter {
                mac: names.guest_mac,
                ip: address.ip(),
                isolation: apart,
            }),
            (false, Some(apart)) => AllowedFrames::Apart(apart),
            (false, None) => AllowedFrames::Any,
        }
    }

    /// The reconciler of the Net stage in bridge mode.
    pub(super) fn port(&self) -> BridgeNet {
        BridgeNet::new(self.hands.home.clone(), self.hands.netlink.clone())
    }

    /// The reconciler of the Firewall stage in bridge mode.
    pub(super) fn gate(&self) -> BridgeFirewall {
        BridgeFirewall {
            netlink: self.hands.netlink.clone(),
        }
    }
}
