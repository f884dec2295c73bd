//! The event about a change of a group's spec: the fields that changed, and who requested it.
//! Out of scope: storing the change; which fields differ ([`crate::api::changes`]).

use crate::api::changes::{FieldChange, changes};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::host_group::HostGroupSpec;
use crate::api::manifest::Draft;
use crate::api::meta::{Name, Timestamp};
use crate::clock;
use crate::store::{Events, Txn};
use crate::wire::Caller;

/// The maximum number of changed fields that an event names.
const MAX_FIELDS: usize = 8;

/// The maximum number of characters of a value that an event contains.
const MAX_VALUE: usize = 200;

/// The fields of the egress policy.
const POLICY: [&str; 4] = ["allow", "drop", "on_deny", "allow_metadata"];

/// Who requested a change on the socket: `by root (uid 0)`.
pub(super) fn requester() -> String {
    match Caller::current() {
        Some(caller) => format!("by {caller}"),
        None => "by sliced".to_owned(),
    }
}

/// The event about a changed group.
#[derive(Debug, PartialEq)]
pub(super) struct GroupEvent {
    group: Name,
    reason: EventReason,
    message: String,
    /// Before the effect of the change begins.
    time: Timestamp,
}

impl GroupEvent {
    /// The event about storing `draft`, before it is stored. `source`: `by root (uid 0)`, or `from FILE`.
    pub(super) fn of(txn: &Txn<'_>, draft: &Draft, source: &str) -> Self {
        let group = txn.world().group(&draft.name);
        let before = group.filter(|group| !group.meta.deleting);
        let (reason, message) = event(before.map(|group| &group.spec), &draft.spec, source);
        Self {
            group: draft.name.clone(),
            reason,
            message,
            time: clock::now(),
        }
    }

    /// Records the event. `note`: what is added to its message.
    pub(super) fn record(&self, events: &Events, note: &str) {
        let object = ObjectRef::host_group(&self.group);
        let message = format!("{}{note}", self.message);
        let kind = EventType::Normal;
        events.note(self.time, kind, &object, self.reason, &message);
    }
}

fn event(
    before: Option<&HostGroupSpec>,
    spec: &HostGroupSpec,
    source: &str,
) -> (EventReason, String) {
    let Some(before) = before else {
        return (EventReason::Created, format!("created {source}"));
    };
    let found = changes(before, spec);
    let all_of = |fields: &[&str]| {
        let mut changed = found.iter();
        !found.is_empty() && changed.all(|change| fields.contains(&change.field.as_str()))
    };
    let reason = if all_of(&["count"]) {
        EventReason::Scaled
    } else if all_of(&POLICY) {
        EventReason::PolicyUpdated
    } else {
        EventReason::Configured
    };
    let mut fields: Vec<String> = found.iter().take(MAX_FIELDS).map(text).collect();
    if let Some(more) = found.len().checked_sub(MAX_FIELDS).filter(|more| *more > 0) {
        fields.push(format!("{more} more"));
    }
    match fields.is_empty() {
        true => (reason, source.to_owned()),
        false => (reason, format!("{source}: {}", fields.join("; "))),
    }
}

fn text(change: &FieldChange) -> String {
    let short = |value: &Option<String>| {
        let value = value.as_ref()?;
        Some(match value.char_indices().nth(MAX_VALUE) {
            Some((at, _)) => format!("{}…", &value[..at]),
            None => value.clone(),
        })
    };
    let shortened = FieldChange {
        from: short(&change.from),
        to: short(&change.to),
        ..change.clone()
    };
    shortened.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::manifest::{Source, parse};

    fn spec(count: u32, vcpu: u32, drop: &[String]) -> HostGroupSpec {
        let drop = drop.join(", ");
        let text = format!(
            "config: {{host_groups: [{{name: g, count: {count}, vcpu: {vcpu}, network: {{mode: isolated, drop: [{drop}]}}}}]}}"
        );
        let name = "test.yaml".to_owned();
        parse(&Source { name, text })
            .expect("a manifest")
            .remove(0)
            .spec
    }

    #[test]
    fn the_reason_and_the_fields_of_a_change_are_named() {
        use EventReason::{Configured, Created, PolicyUpdated, Scaled};
        let before = spec(1, 1, &[]);
        let lan = ["192.168.1.0/24".to_owned()];
        let many: Vec<String> = (0..20).map(|n| format!("10.0.{n}.0/24")).collect();
        let root = "by root (uid 0)";
        for (spec, reason, message) in [
            (spec(1, 1, &[]), Configured, "by root (uid 0)"),
            (spec(3, 1, &[]), Scaled, "by root (uid 0): count: 1 -> 3"),
            (
                spec(1, 1, &lan),
                PolicyUpdated,
                "by root (uid 0): drop: 192.168.1.0/24 added",
            ),
            (
                spec(3, 2, &lan),
                Configured,
                "by root (uid 0): count: 1 -> 3; vcpu: 1 -> 2; drop: 192.168.1.0/24 added",
            ),
        ] {
            assert_eq!(
                event(Some(&before), &spec, root),
                (reason, message.to_owned())
            );
        }
        assert_eq!(
            event(None, &before, root),
            (Created, "created by root (uid 0)".to_owned())
        );
        let (reason, message) = event(Some(&before), &spec(1, 1, &many), "from /etc/slice/a.yaml");
        assert_eq!(reason, PolicyUpdated);
        assert!(
            message.ends_with("drop: 10.0.7.0/24 added; 12 more"),
            "{message}"
        );
    }
}
