//! All that the server needs of the daemon.
//! Out of scope: HTTP, JSON.

use std::future::Future;
use std::io;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::api::event::Event;
use crate::api::meta::Name;
use crate::api::metrics::Metrics;
use crate::api::on_demand::NewVm;
use crate::api::policy::Packet;
use crate::api::view::{
    Applied, ApplyResult, Change, Check, DiffResult, Explanation, Kind, Leftover, List,
    NewVmResult, Reach, Server, Source,
};
use crate::api::vm::PowerVerb;

/// Whether something is done or only thought through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Done.
    Commit,
    /// Checked, and nothing changed.
    DryRun,
}

/// How an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Guests are asked to power down, and DEL of CNI plugins is retried.
    Graceful,
    /// VMMs are killed at once, and a CNI attachment is given up after the first DEL that fails.
    Forced,
}

/// How long a stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Ends after what there is.
    Once,
    /// Goes on with what comes.
    Follow,
}

/// Why the daemon did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 404: what was named is not there, `vm/sandbox-9`.
    #[error("{0} not found")]
    NotFound(String),
    /// 404, and what may have been meant.
    #[error("{0} not found; did you mean {1}?")]
    NotFoundBut(String, String),
    /// 422: what was asked for makes no sense; one cause each, with file and line where there is one.
    #[error("the request is invalid")]
    Invalid(Vec<String>),
    /// 409: it belongs to somebody else, or it is not the time for it; one cause each.
    #[error("the request conflicts with what is")]
    Conflict(Vec<String>),
    /// 500: it should have worked; the error and its causes.
    #[error("{0}")]
    Failed(String),
}

/// What the daemon does when asked. Every method may run many times at once.
///
/// A method is written `async fn` in an implementation.
pub trait Backend: Send + Sync + 'static {
    /// Stores the groups of these manifests, all or none; with [`Effect::DryRun`] only checks them.
    fn apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> impl Future<Output = Result<Vec<ApplyResult>, Refusal>> + Send;

    /// The actions that applying these manifests would take.
    fn diff(
        &self,
        sources: Vec<Source>,
    ) -> impl Future<Output = Result<DiffResult, Refusal>> + Send;

    /// The groups that these manifests name, in their order, whether they exist or not.
    fn names(
        &self,
        sources: Vec<Source>,
    ) -> impl Future<Output = Result<Vec<Name>, Refusal>> + Send;

    /// All objects of a kind, or the one with this name, or [`Refusal::NotFound`].
    fn get(
        &self,
        kind: Kind,
        name: Option<Name>,
    ) -> impl Future<Output = Result<List, Refusal>> + Send;

    /// What is there as [`Change::Added`], one [`Change::Synced`], then every change. A name that is not there is no
    /// error: it may come.
    fn watch(
        &self,
        kind: Kind,
        name: Option<Name>,
    ) -> impl Future<Output = Result<BoxStream<'static, Change>, Refusal>> + Send;

    /// Requests the deletion of an object. Returns when the request is stored, not when the object is gone. A deletion that is under way can be forced.
    fn delete(
        &self,
        kind: Kind,
        name: Name,
        how: Deletion,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Orders a VM from a group. Asked again by the same name, it is one and the same VM.
    fn add_vm(
        &self,
        group: Name,
        wanted: NewVm,
    ) -> impl Future<Output = Result<NewVmResult, Refusal>> + Send;

    /// Takes back the order for a VM, and it down; one that its group counts is refused. Returns when that is stored, not when
    /// it is done.
    fn remove_vm(&self, vm: Name) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// What a VM is to do from now on. Returns when that is stored, not when it is done.
    fn power(
        &self,
        vm: Name,
        verb: PowerVerb,
    ) -> impl Future<Output = Result<Applied, Refusal>> + Send;

    /// What a VM's VMM has counted.
    fn metrics(&self, vm: Name) -> impl Future<Output = Result<Metrics, Refusal>> + Send;

    /// Events, oldest first, of one object (`vm/sandbox-1`) or of all; an event that happens again comes again with a
    /// higher count.
    fn events(
        &self,
        object: Option<String>,
        span: Span,
    ) -> impl Future<Output = Result<BoxStream<'static, Event>, Refusal>> + Send;

    /// What the VM's guest and VMM have written; of what is there, the last `lines` or all.
    fn logs(
        &self,
        vm: Name,
        lines: Option<usize>,
        span: Span,
    ) -> impl Future<Output = Result<BoxStream<'static, io::Result<Bytes>>, Refusal>> + Send;

    /// Types at the VM's serial port; nothing, to know whether that can be done.
    fn type_in(&self, vm: Name, keys: Bytes) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Removes what is ours and unwanted, or with [`Effect::DryRun`] tells it.
    fn gc(&self, effect: Effect) -> impl Future<Output = Result<Vec<Leftover>, Refusal>> + Send;

    /// Whether this host can do what is asked of it.
    fn doctor(&self) -> impl Future<Output = Result<Vec<Check>, Refusal>> + Send;

    /// What happens to a packet that the VM sends.
    fn explain(
        &self,
        vm: Name,
        packet: Packet,
    ) -> impl Future<Output = Result<Explanation, Refusal>> + Send;

    /// How other machines reach the VMs of a group: only a bridge group's can be.
    fn route(&self, group: Name) -> impl Future<Output = Result<Reach, Refusal>> + Send;

    /// A connection could not be accepted: descriptors or memory are short.
    fn exhausted(&self, _: &io::Error) {}

    /// Who answers.
    fn version(&self) -> impl Future<Output = Server> + Send;
}
