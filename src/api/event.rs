//! Events for users. Consecutive equal events are counted.
//! Out of scope: recording and storing events.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::condition::Reason;
use super::meta::{InvalidName, Name, Timestamp, Uid};
use super::view::Kind;

/// The type of an event, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum EventType {
    /// Normal operation.
    Normal,
    /// May need attention.
    Warning,
}

/// An event that happened `count` times, the last time at `time`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The time of the last occurrence.
    pub time: Timestamp,
    /// The object.
    pub object: ObjectRef,
    /// The uid of the object, which a later object of the same name does not have. `None` for what has no uid, and from a daemon of an
    /// earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// The reason.
    pub reason: EventReason,
    /// The message for users.
    pub message: String,
    /// The number of consecutive occurrences.
    pub count: u64,
    /// The type.
    #[serde(rename = "type")]
    pub kind: EventType,
}

/// An event of a node of a fleet, or why its events cannot be had: one of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetEvent {
    /// The node.
    pub node: Name,
    /// The event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A reference to the object of an event; as text `vm/sandbox-1`, `manifest/<file name>` or `host`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ObjectRef {
    /// A VM, a group or a lease.
    Named(Kind, Name),
    /// A file of the manifest directory, or the directory itself.
    Manifest(String),
    /// The host network, and the state of the daemon.
    Host,
    /// A resource without an object: the label that it has on the host.
    Orphan(String),
}

/// The reason for an event: one CamelCase word, for scripts. Reasons of conditions have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum EventReason {
    /// A VM was created on demand.
    Added,
    /// The CNI plugins assigned another address.
    AddressChanged,
    /// A VM was adopted from its record.
    Adopted,
    /// CHECK of the CNI plugins failed.
    CheckFailed,
    /// CHECK fails although nothing has changed since ADD; its result is ignored.
    CheckIgnored,
    /// The spec of a group was stored.
    Configured,
    /// Packets beyond the connection limit of a VM were dropped.
    ConnectionLimit,
    /// An object was created.
    Created,
    /// The object is deleted, and nothing of it is left on the host.
    Deleted,
    /// The deletion of the object was requested.
    Deleting,
    /// The daemon or the host has no free file descriptors.
    DescriptorsExhausted,
    /// DEL of the CNI plugins failed.
    DetachFailed,
    /// The persistent disk of a deleted VM is kept.
    DiskKept,
    /// The host differed from the desired state and was repaired.
    Drift,
    /// The VMM exited.
    Ended,
    /// The manifest directory does not exist, and no group is defined in it.
    FolderMissing,
    /// The manifest directory can be read again.
    FolderReadable,
    /// The manifest directory cannot be read.
    FolderUnreadable,
    /// A forced deletion was requested.
    ForceDeleted,
    /// Forwarding of VM traffic is disabled, because its rules cannot be maintained.
    ForwardingDisabled,
    /// An orphan was removed.
    GarbageCollected,
    /// A user has accessed the guest: a command, a copy, a shell, a connection.
    GuestAccess,
    /// What the daemon found about its instance id.
    InstanceNoticed,
    /// A group is kept although no file defines it.
    KeptWithoutFile,
    /// A manifest is invalid; the last valid version stays in effect.
    ManifestInvalid,
    /// As the condition.
    Answering,
    /// As the condition.
    NotAnswering,
    /// As the condition.
    Disabled,
    /// As the condition.
    UserdataRunning,
    /// The userdata of a guest failed.
    UserdataFailed,
    /// The userdata of a guest succeeded.
    UserdataSucceeded,
    /// As the condition.
    NotProvisioned,
    /// A secret was created.
    SecretCreated,
    /// A secret was changed.
    SecretUpdated,
    /// A secret was deleted.
    SecretDeleted,
    /// A manifest is valid again.
    ManifestFixed,
    /// An entry of a list never matches.
    NeverMatches,
    /// A file of the manifest directory is not read.
    NotAManifest,
    /// A VM is not replaced, because its new spec cannot run.
    NotReplaced,
    /// The observation failed, so the state is unknown.
    ObserveFailed,
    /// An orphan is kept, because it may be a VM whose object was lost.
    OrphanKept,
    /// A change of the host network waits.
    Pending,
    /// The egress policy of a group was changed, or the rules of a VM were updated for it.
    PolicyUpdated,
    /// A change of the power state was requested.
    Power,
    /// No range is free for a group.
    RangeUnavailable,
    /// The VM became ready.
    Ready,
    /// The number of VMs of a group was changed.
    Scaled,
    /// The second listener of the API does not listen, or with an earlier certificate.
    ApiListenerFailed,
    /// The second listener of the API listens, no longer, or with another token or certificate.
    ApiListenerChanged,
    /// Contact to the fleet is lost, or its settings cannot be used.
    FleetContactLost,
    /// There is contact to the fleet.
    FleetContact,
    /// The SSH server does not listen.
    SshServerFailed,
    /// The SSH server listens, or no longer.
    SshServerChanged,
    /// A VMM was started.
    Started,
    /// The copy of the state in the run directory cannot be read.
    StateCopyUnreadable,
    /// The state database is missing.
    StateLost,
    /// Changes cannot be stored, and are refused.
    StateNotWritable,
    /// What the daemon found when it opened its state.
    StateNoticed,
    /// A damaged state database was moved away.
    StateSetAside,
    /// Changes can be stored again.
    StateWritable,
    /// An action failed; retried with backoff.
    ActionFailed,
    /// Not observed yet since the start of the daemon.
    NotObserved,
    /// The plan is empty.
    Converged,
    /// Waits for another object.
    Waiting,
    /// Actions are in progress.
    Converging,
    /// A foreign object prevents an action.
    Conflict,
    /// A conflicting writer keeps reverting the repairs.
    Contested,
    /// The actions succeeded, but the plan did not become empty.
    NotConverging,
    /// The spec cannot be realized on this host.
    Invalid,
    /// The range has no free /30.
    RangeExhausted,
    /// The VMM exits repeatedly.
    CrashLoop,
    /// The guest is paused.
    Paused,
    /// The guest was requested to power down.
    Stopping,
    /// The VM is stopped: the VMM has ended as requested.
    Stopped,
    /// The VMM failed and is not restarted.
    Failed,
    /// The VM is being torn down.
    Terminating,
}

impl From<Reason> for EventReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Converged => Self::Converged,
            Reason::Waiting => Self::Waiting,
            Reason::Converging => Self::Converging,
            Reason::Conflict => Self::Conflict,
            Reason::Contested => Self::Contested,
            Reason::NotConverging => Self::NotConverging,
            Reason::ActionFailed => Self::ActionFailed,
            Reason::ObserveFailed => Self::ObserveFailed,
            Reason::NotObserved => Self::NotObserved,
            Reason::Invalid => Self::Invalid,
            Reason::RangeExhausted => Self::RangeExhausted,
            Reason::CrashLoop => Self::CrashLoop,
            Reason::Paused => Self::Paused,
            Reason::Stopping => Self::Stopping,
            Reason::Stopped => Self::Stopped,
            Reason::StateNotWritable => Self::StateNotWritable,
            Reason::Failed => Self::Failed,
            Reason::Terminating => Self::Terminating,
            Reason::Answering => Self::Answering,
            Reason::NotAnswering => Self::NotAnswering,
            Reason::Disabled => Self::Disabled,
            Reason::UserdataRunning => Self::UserdataRunning,
            Reason::UserdataFailed => Self::UserdataFailed,
            Reason::NotProvisioned => Self::NotProvisioned,
            Reason::ManifestInvalid => Self::ManifestInvalid,
        }
    }
}

impl fmt::Display for EventReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl ObjectRef {
    /// The text of a reference to the host.
    const HOST: &str = "host";
    /// How the text of a reference to a manifest begins.
    const MANIFEST: &str = "manifest/";
    /// How a label begins, see `owner`.
    const LABEL: &str = "slice/";

    /// A VM.
    pub fn vm(name: &Name) -> Self {
        Self::Named(Kind::Vm, name.clone())
    }

    /// A group.
    pub fn host_group(name: &Name) -> Self {
        Self::Named(Kind::HostGroup, name.clone())
    }

    /// A file of the manifest directory, by its name, or by its path if it has none.
    pub fn manifest(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self::Manifest(name.to_string_lossy().into_owned())
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(kind, name) => write!(f, "{kind}/{name}"),
            Self::Manifest(name) => write!(f, "{}{name}", Self::MANIFEST),
            Self::Host => f.write_str(Self::HOST),
            Self::Orphan(label) => f.write_str(label),
        }
    }
}

impl From<ObjectRef> for String {
    fn from(object: ObjectRef) -> Self {
        object.to_string()
    }
}

impl TryFrom<String> for ObjectRef {
    type Error = InvalidObjectRef;
    fn try_from(text: String) -> Result<Self, InvalidObjectRef> {
        text.parse()
    }
}

/// The error for a text that is not a valid [`ObjectRef`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidObjectRef {
    /// Neither a reference to a named object nor one of the other texts.
    #[error("invalid object \"{0}\": expected KIND/NAME, host or manifest/FILE")]
    Unknown(String),
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for ObjectRef {
    type Err = InvalidObjectRef;
    fn from_str(text: &str) -> Result<Self, InvalidObjectRef> {
        if text == Self::HOST {
            return Ok(Self::Host);
        }
        if let Some(name) = text.strip_prefix(Self::MANIFEST) {
            return Ok(Self::Manifest(name.to_owned()));
        }
        if text.starts_with(Self::LABEL) {
            return Ok(Self::Orphan(text.to_owned()));
        }
        let unknown = || InvalidObjectRef::Unknown(text.to_owned());
        let (kind, name) = text.split_once('/').ok_or_else(unknown)?;
        let kind: Kind = kind.parse().map_err(|_| unknown())?;
        Ok(Self::Named(kind, name.parse()?))
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_as_it_is_written() {
        let name: Name = "web-1".parse().expect("a name");
        for (object, text) in [
            (ObjectRef::vm(&name), "vm/web-1"),
            (ObjectRef::host_group(&name), "hostgroup/web-1"),
            (ObjectRef::Named(Kind::Lease, name), "lease/web-1"),
            (
                ObjectRef::manifest(Path::new("/etc/slice/a.yaml")),
                "manifest/a.yaml",
            ),
            (
                ObjectRef::Manifest("/etc/slice".into()),
                "manifest//etc/slice",
            ),
            (ObjectRef::Host, "host"),
            (
                ObjectRef::Orphan("slice/zt4oo/ground".into()),
                "slice/zt4oo/ground",
            ),
        ] {
            assert_eq!(object.to_string(), text);
            assert_eq!(text.parse(), Ok(object));
        }
    }

    #[test]
    fn an_event_of_an_earlier_version_has_no_uid() {
        let text = r#"{"time":"2026-01-02T03:04:05Z","object":"vm/a-1","reason":"Ready","message":"VM is ready","count":1,"type":"Normal"}"#;
        let event: Event = serde_json::from_str(text).expect("an event");
        assert_eq!(event.uid, None);
        assert_eq!(serde_json::to_string(&event).expect("JSON"), text);
    }

    #[test]
    fn a_text_that_is_no_reference_is_an_error() {
        for text in ["", "ground", "vm", "vm/", "vm/Bad_Name", "pod/web", "/web"] {
            assert!(text.parse::<ObjectRef>().is_err(), "{text}");
        }
    }
}
