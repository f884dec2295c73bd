//! The Net and Firewall stages of a VM on a bridge: its TAP as a port, and the filter and the forwarding switch of the TAP.
//! Out of scope: the bridge itself (host network); the Lease and Vmm stages, which are the same in every mode.

use tracing::debug;

use super::Engine;
use super::step::{BringUpRunner, ReadyStage};
use crate::api::lease::Address;
use crate::api::network::{BridgeSpec, Connection};
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::owner;
use crate::reconcile::OnHost;
use crate::reconcile::firewall::antispoof::PortIsolation;
use crate::reconcile::firewall::bridge::{self as filter, AllowedFrames, BridgeFirewall};
use crate::reconcile::net::bridge::{self, BridgeNet, BridgeSeen};
use crate::reconcile::{connection, net};

/// Whether sliced manages the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Managed {
    Yes,
    No,
}

impl Engine {
    /// Converges the Net and Firewall stages.
    pub(super) async fn connect_bridge<A: BringUpRunner>(
        &self,
        vm: &Vm,
        spec: &BridgeSpec,
        address: &Address,
        record: String,
        runner: &mut A,
    ) -> Result<Connection, A::Break> {
        let uid = vm.meta.uid;
        let (label, tap) = (
            self.instance.vm_label(&vm.meta.name, uid),
            spec.tap(vm.index),
        );
        let desired = bridge::Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            tap: tap.clone(),
            slot: Some(bridge::Slot {
                bridge: spec.bridge.clone(),
                ip: address.ip(),
                tap_owner: Self::tap_owner(vm, runner.vmm_user(uid)),
                isolated: spec.isolate_ports,
                antispoof: spec.antispoof,
                record,
            }),
            last_location: None,
        };
        let reconciler = self.port();
        let (observed, record_error) =
            match runner.run_stage(Stage::Net, &reconciler, &desired).await {
                Ok(seen) => (seen, None),
                // As in isolated mode: a full run directory does not delay rules that restrict the VM.
                Err(stop)
                    if reconciler.lacks_record()
                        && self.acquired(uid).contains(&Stage::Firewall) =>
                {
                    match reconciler.observe(&desired).await {
                        Ok(seen) => (seen, Some(stop)),
                        Err(_) => return Err(stop),
                    }
                }
                Err(stop) => return Err(stop),
            };
        let mtu = observed
            .bridge
            .as_ref()
            .map_or(net::MTU, |bridge| bridge.mtu);
        // sliced creates a bridge that does not exist.
        let managed = match &observed.bridge {
            Some(bridge) if !desired.is_managed(bridge) => Managed::No,
            Some(_) | None => Managed::Yes,
        };
        let location = (spec.bridge.as_str(), tap.clone());
        let connection = connection::on_bridge(&self.instance, uid, address, location, mtu);
        if record_error.is_none() {
            let ready = ReadyStage::with_connection(&connection);
            runner.ready(Stage::Net, ready).await?;
        }
        let pass = self.allowed_frames(vm, spec, address, managed, observed.bridge);
        let ready = ReadyStage::with_checkpoint(pass.digest());
        let desired = filter::Desired {
            label,
            tap,
            allowed: Some(pass),
            last_verified: self.checkpoint(uid, Stage::Firewall),
        };
        let is_new = desired.last_verified.is_none();
        let net_reconciler = self.bridge_firewall_reconciler();
        runner
            .run_stage(Stage::Firewall, &net_reconciler, &desired)
            .await?;
        let ready = runner.ready(Stage::Firewall, ready).await;
        if runner.counts_refused()
            && let Err(error) = self.observe_refused(vm, address.ip(), is_new).await
        {
            debug!(vm = %vm.meta.name, %error, "cannot count its refused packets");
        }
        if let Some(stop) = record_error {
            return Err(stop);
        }
        ready?;
        Ok(connection)
    }

    /// The frames of a bridge VM that may pass.
    fn allowed_frames(
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
        BridgeNet::new(self.host.host_netns.clone(), self.host.netlink.clone())
    }

    /// The reconciler of the Firewall stage in bridge mode.
    pub(super) fn bridge_firewall_reconciler(&self) -> BridgeFirewall {
        BridgeFirewall {
            netlink: self.host.netlink.clone(),
        }
    }
}
