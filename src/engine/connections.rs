//! The connections of a VM: its limit, the number in use, and packets that were refused beyond the limit.
//! Out of scope: the rules that enforce the limit.
//!
//! The kernel is not queried for this alone, except when a client requests the counters: events are recorded by observations that
//! happen anyway.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tracing::debug;

use super::Engine;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::network::NetworkSpec;
use crate::api::vm::Vm;
use crate::host::netns::Netns;
use crate::host::{Error, conntrack};
use crate::owner;
use crate::reconcile::firewall;
use crate::reconcile::limits::Limit;

/// The minimum interval between two dumps of the host's connection tracking table for requests of counters.
const MAX_AGE: Duration = Duration::from_millis(200);

impl Engine {
    /// Reports an isolated guest that has exceeded its limit since the last observation. `dropped` is the counter of its rules.
    pub(super) fn report_dropped(&self, vm: &Vm, dropped: u64) {
        let before = {
            let mut seen = self.isolated_refused_packets.lock();
            seen.insert(vm.meta.uid, dropped).unwrap_or(0)
        };
        // The counters of rules that were written again start at 0.
        self.report_refused(vm, dropped.checked_sub(before).unwrap_or(dropped));
    }

    /// The same for a guest on a bridge; `is_new` if it was never connected before. Returns the number of packets refused since this
    /// process has first observed it.
    pub(super) async fn observe_refused(
        &self,
        vm: &Vm,
        address: Ipv4Addr,
        is_new: bool,
    ) -> Result<u64, Error> {
        let target = (vm.meta.uid, address, is_new);
        let refused = self.observe_bridge_refused_packets(target).await?;
        self.report_refused(vm, refused.new);
        Ok(refused.total)
    }

    fn report_refused(&self, vm: &Vm, new_packets: u64) {
        if new_packets == 0 {
            return;
        }
        let limit = self.limit(vm).all();
        let message = format!(
            "{new_packets} packets were dropped that would have opened connections beyond the limit of {limit} (max_connections)"
        );
        let object = ObjectRef::vm(&vm.meta.name);
        self.record_event(
            EventType::Warning,
            &object,
            EventReason::ConnectionLimit,
            &message,
        );
    }

    /// The maximum number of connections of a VM.
    pub(super) fn limit(&self, vm: &Vm) -> Limit {
        let configured = vm.spec.network.max_connections().map(Limit::of);
        configured.unwrap_or_else(|| Limit::default_for(self.conntrack_max()))
    }

    /// `nf_conntrack_max` of the last observation of the host. When it changes, all VMs are enqueued.
    fn conntrack_max(&self) -> Option<u32> {
        let sized = self.host_properties.lock();
        let known = sized.as_ref().map(|(max, ..)| *max);
        drop(sized);
        known.unwrap_or_else(conntrack::max)
    }

    /// Returns counters about a VM's connections, by name; queries the kernel. None for a VM on a CNI network, which has no limit.
    pub async fn connections(&self, vm: &Vm) -> Vec<(String, u64)> {
        let counts = match &vm.spec.network {
            NetworkSpec::Isolated(_) => self.isolated_connections(vm).await.map(Some),
            NetworkSpec::Bridge(_) => self.bridged_connections(vm).await,
            NetworkSpec::Cni(_) => Ok(None),
        };
        let (entries, refused) = match counts {
            Ok(Some(found)) => found,
            Ok(None) => return Vec::new(),
            Err(error) => {
                debug!(vm = %vm.meta.name, %error, "cannot count its connections");
                return Vec::new();
            }
        };
        let counter = |name: &str, count: u64| (format!("connections.{name}"), count);
        vec![
            counter("limit", u64::from(self.limit(vm).all())),
            counter("entries", u64::from(entries)),
            counter("refused_packets", refused),
        ]
    }

    async fn isolated_connections(&self, vm: &Vm) -> Result<(u32, u64), Error> {
        let names = owner::vm_names(&self.instance, vm.meta.uid);
        let backend = self.host.backend.clone();
        let (timeout, runs_a_program) = (backend.timeout, backend.runs_a_program());
        let count = move || {
            let refused = backend.matched(
                firewall::isolated::rules::ALLOW,
                firewall::isolated::rules::LIMIT,
            )?;
            Ok((conntrack::count()?, refused))
        };
        let netns = Netns::open(&self.run_dir.netns(&names))?;
        match runs_a_program {
            false => netns.run_here(count),
            true => netns.run_for(timeout, count).await,
        }
    }

    /// None: the VM has no address.
    async fn bridged_connections(&self, vm: &Vm) -> Result<Option<(u32, u64)>, Error> {
        let leased = self.store.read(|world| world.lease(&vm.meta.name).cloned());
        let Some(address) = leased.map(|lease| lease.address.ip()) else {
            return Ok(None);
        };
        let entries = self.host_conntrack_entries(MAX_AGE).await?;
        let refused = self.observe_refused(vm, address, false).await?;
        Ok(Some((entries.get(&address).copied().unwrap_or(0), refused)))
    }
}

/// Counts the connection tracking entries of the calling thread's namespace by address; an entry counts for its source and destination.
pub(super) fn entries() -> Result<HashMap<Ipv4Addr, u32>, Error> {
    let mut entries = HashMap::new();
    for flow in conntrack::list()? {
        let mut addresses = vec![flow.src, flow.dst, flow.reply_src];
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            *entries.entry(address).or_default() += 1;
        }
    }
    Ok(entries)
}
