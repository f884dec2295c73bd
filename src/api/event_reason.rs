//! The reasons of events.
//! Out of scope: recording events; messages.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::condition::Reason;

/// The reason of an event: one CamelCase word, which scripts may compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventReason {
    /// A condition changed to this reason.
    Condition(Reason),
    /// A change of an object or of the host.
    Change(ChangeReason),
}

/// The reasons of events that are not about a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChangeReason {
    /// A CNI attachment has another address than before.
    AddressChanged,
    /// A VM was found on the host and is in the store again.
    Adopted,
    /// A CNI plugin's CHECK failed; the VM is attached again.
    CheckFailed,
    /// A CNI plugin's CHECK failed right after ADD and is ignored from now on.
    CheckIgnored,
    /// An object was created or changed on request.
    Configured,
    /// Packets of a VM were dropped because it has too many connections.
    ConnectionLimit,
    /// An object is gone.
    Deleted,
    /// The daemon has no file descriptors left.
    DescriptorsExhausted,
    /// A CNI plugin's DEL failed.
    DetachFailed,
    /// A persistent disk stays when its VM is deleted.
    DiskKept,
    /// Something on the host differed from the desired state and was repaired.
    Drift,
    /// A VMM process ended.
    Ended,
    /// The manifest directory cannot be read.
    FolderUnreadable,
    /// An object was deleted without waiting.
    ForceDeleted,
    /// Forwarding in a VM's namespace is off because its rules cannot be maintained.
    ForwardingDisabled,
    /// An orphaned resource was removed.
    GarbageCollected,
    /// Where the instance id was read, if not from the state directory.
    InstanceNoticed,
    /// A group whose file is gone still has the VMs of that file.
    KeptWithoutFile,
    /// An entry of a policy never matches.
    NeverMatches,
    /// An orphaned resource is not removed.
    OrphanKept,
    /// The power state of a VM was changed on request.
    Power,
    /// A VM is ready.
    Ready,
    /// A copy of the state cannot be read.
    StateCopyUnreadable,
    /// The state directory was empty although this daemon had state.
    StateLost,
    /// What was found when the state was opened.
    StateNoticed,
    /// The state database was damaged and moved away.
    StateSetAside,
    /// Changes can be stored again.
    StateWritable,
}

impl From<Reason> for EventReason {
    fn from(reason: Reason) -> Self {
        Self::Condition(reason)
    }
}

impl From<ChangeReason> for EventReason {
    fn from(reason: ChangeReason) -> Self {
        Self::Change(reason)
    }
}

impl fmt::Display for EventReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition(reason) => fmt::Debug::fmt(reason, f),
            Self::Change(reason) => fmt::Debug::fmt(reason, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_word_in_json_and_is_read_back() {
        for reason in [
            EventReason::from(Reason::Contested),
            EventReason::from(Reason::StateNotWritable),
            EventReason::from(ChangeReason::Drift),
            EventReason::from(ChangeReason::Ready),
        ] {
            let json = serde_json::to_string(&reason).expect("JSON");
            assert_eq!(json, format!("\"{reason}\""));
            assert_eq!(
                serde_json::from_str::<EventReason>(&json).expect("JSON"),
                reason
            );
        }
    }
}
