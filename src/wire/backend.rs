//! The interface between the server and the daemon.
//! Out of scope: HTTP, JSON.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use super::fleet_backend::FleetBackend;
pub use super::operation::{Deletion, Detail, Effect, LogOutput, LogStart, Refusal, StreamMode};
use super::peer::Fleet;
use crate::api::event::{Event, ObjectRef};
use crate::api::meta::Name;
use crate::api::metrics::Metrics;
use crate::api::node::{Node, NodeDetails, TagChange};
use crate::api::on_demand::NewVm;
use crate::api::policy::Packet;
use crate::api::secret::{SecretChange, SecretName, SecretView};
use crate::api::tag::TagSet;
use crate::api::usage::Usage;
use crate::api::view::{
    Applied, ApplyResult, Check, DiffResult, Explanation, Kind, List, NewVmResult, Orphan,
    RouteInfo, Scale, ServerInfo, Source, WatchRequest,
};
use crate::api::vm::PowerCommand;
use crate::guest::endpoint::Access;

/// The name, type, help and value of a metric of the host.
pub type HostFigure = (&'static str, &'static str, &'static str, f64);

/// The operations of the daemon. All methods may be called concurrently.
///
/// Implementations write the methods as `async fn`.
pub trait Backend: FleetBackend + Send + Sync + 'static {
    /// Stores the groups of these manifests, all or none; with [`Effect::DryRun`] only checks them.
    fn apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> impl Future<Output = Result<Vec<ApplyResult>, Refusal>> + Send;

    /// What applying these manifests would do.
    fn diff(
        &self,
        sources: Vec<Source>,
        detail: Detail,
    ) -> impl Future<Output = Result<DiffResult, Refusal>> + Send;

    /// The names of the groups in these manifests, in order, whether the groups exist or not.
    fn names(
        &self,
        sources: Vec<Source>,
    ) -> impl Future<Output = Result<Vec<Name>, Refusal>> + Send;

    /// All objects of a kind, or the object of this name, or [`Refusal::NotFound`].
    fn get(
        &self,
        kind: Kind,
        name: Option<Name>,
    ) -> impl Future<Output = Result<List, Refusal>> + Send;

    /// Lines of [`WatchLine`](crate::api::view::WatchLine), as JSON: the existing objects and events, one `SYNCED`, then every change; or
    /// the changes after a version. A name that does not exist is not an error: the object may be created later. The lines are not
    /// encoded for each watch.
    fn watch(
        &self,
        request: WatchRequest,
    ) -> impl Future<Output = Result<BoxStream<'static, Bytes>, Refusal>> + Send;

    /// Requests the deletion of an object. Returns when the request is stored, not when the object is removed. A deletion in progress can
    /// be forced by a second call.
    fn delete(
        &self,
        kind: Kind,
        name: Name,
        how: Deletion,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Changes the number of VMs of a group that `apply` has created.
    fn scale(
        &self,
        group: Name,
        scale: Scale,
    ) -> impl Future<Output = Result<ApplyResult, Refusal>> + Send;

    /// Creates a VM on demand in a group. Idempotent for requests with the same name.
    fn add_vm(
        &self,
        group: Name,
        request: NewVm,
    ) -> impl Future<Output = Result<NewVmResult, Refusal>> + Send;

    /// The VMs of a group, or all, as the REST API lists them: without those that are being deleted.
    fn nodes(&self, group: Option<Name>)
    -> impl Future<Output = Result<Vec<Node>, Refusal>> + Send;

    /// One of them, with more details.
    fn node(&self, vm: Name) -> impl Future<Output = Result<NodeDetails, Refusal>> + Send;

    /// Changes the tags of a VM that was created on demand.
    fn set_tags(
        &self,
        vm: Name,
        change: TagChange,
    ) -> impl Future<Output = Result<TagSet, Refusal>> + Send;

    /// Figures of the host and of the daemon, for metrics: name, type, help and value.
    fn host_figures(&self) -> impl Future<Output = Vec<HostFigure>> + Send;

    /// Ends the daemon, as SIGTERM does. Returns when the request is made.
    fn shutdown(&self) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Requests the deletion of a VM that was created on demand; any other VM is refused. Returns when the request is stored, not when the
    /// VM is removed.
    fn remove_vm(&self, vm: Name) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Changes the desired power state of a VM. Returns when the request is stored, not when the VM has reached the state.
    fn power(
        &self,
        vm: Name,
        verb: PowerCommand,
    ) -> impl Future<Output = Result<Applied, Refusal>> + Send;

    /// The metrics of a VM's VMM.
    fn metrics(&self, vm: Name) -> impl Future<Output = Result<Metrics, Refusal>> + Send;

    /// What a VM's VMM uses on the host.
    fn usage(&self, vm: Name) -> impl Future<Output = Result<Usage, Refusal>> + Send;

    /// Events, oldest first, of one object (`vm/sandbox-1`) or of all; a repeated event is sent again with a higher count.
    fn events(
        &self,
        object: Option<ObjectRef>,
        span: StreamMode,
    ) -> impl Future<Output = Result<BoxStream<'static, Event>, Refusal>> + Send;

    /// The output of the VM's guest and VMM.
    fn logs(
        &self,
        vm: Name,
        start: LogStart,
        span: StreamMode,
    ) -> impl Future<Output = Result<LogOutput, Refusal>> + Send;

    /// Writes to the VM's serial port; an empty write checks whether that is possible.
    fn write_console(
        &self,
        vm: Name,
        keys: Bytes,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// The socket of the vsock device of a VM that runs, behind which its agent listens; [`Refusal::Conflict`] if it cannot answer now.
    /// `access` is recorded as an event.
    fn agent(
        &self,
        vm: Name,
        access: Option<Access>,
    ) -> impl Future<Output = Result<PathBuf, Refusal>> + Send;

    /// All secrets of the host, without their values.
    fn secrets(&self) -> impl Future<Output = Result<Vec<SecretView>, Refusal>> + Send;

    /// Creates a secret.
    fn create_secret(
        &self,
        name: SecretName,
        change: SecretChange,
    ) -> impl Future<Output = Result<SecretView, Refusal>> + Send;

    /// Changes a secret, also in running guests. Returns when it is stored.
    fn update_secret(
        &self,
        name: SecretName,
        change: SecretChange,
    ) -> impl Future<Output = Result<SecretView, Refusal>> + Send;

    /// Deletes a secret, also from running guests. Returns when it is removed from the host.
    fn delete_secret(&self, name: SecretName) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Removes orphaned host resources; with [`Effect::DryRun`] only lists them.
    fn gc(&self, effect: Effect) -> impl Future<Output = Result<Vec<Orphan>, Refusal>> + Send;

    /// Checks whether this host meets the requirements.
    fn doctor(&self) -> impl Future<Output = Result<Vec<Check>, Refusal>> + Send;

    /// Evaluates the firewall rules for a packet that the VM sends.
    fn explain(
        &self,
        vm: Name,
        packet: Packet,
    ) -> impl Future<Output = Result<Explanation, Refusal>> + Send;

    /// The addresses for a route to the VMs of a group on other machines; bridge groups only.
    fn route(&self, group: Name) -> impl Future<Output = Result<RouteInfo, Refusal>> + Send;

    /// What is known of the fleet; `None`: there is no other node, ever.
    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        None
    }

    /// Called when accept(2) has failed, which is due to a lack of descriptors or memory.
    fn accept_failed(&self, _: &io::Error) {}

    /// The version and directories of the daemon.
    fn version(&self) -> impl Future<Output = ServerInfo> + Send;
}
