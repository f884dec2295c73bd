//! The STATUS column: one word for what an object waits for or fails at, as in `kubectl get`.
//! Out of scope: the condition that is decisive (see [`super::rows`]).

use super::paint::Severity;
use crate::api::condition::Reason;

/// The word for a condition that is not True, from its type and its reason.
pub fn word(condition: &str, reason: Reason) -> &'static str {
    let [pending, conflict, error] = match condition {
        "Lease" => ["AddressPending", "AddressConflict", "AddressError"],
        "Net" => ["NetworkPending", "NetworkConflict", "NetworkError"],
        "Firewall" => ["FirewallPending", "FirewallConflict", "FirewallError"],
        "Vmm" => ["Starting", "StartConflict", "StartError"],
        "HostNetwork" => [
            "HostNetworkPending",
            "HostNetworkConflict",
            "HostNetworkError",
        ],
        _ => ["Progressing", "Conflict", "Error"],
    };
    match reason {
        Reason::Converged | Reason::Waiting | Reason::Converging => pending,
        Reason::Conflict | Reason::Contested => conflict,
        Reason::ActionFailed | Reason::NotConverging => error,
        Reason::ObserveFailed | Reason::NotObserved => "Unknown",
        Reason::Invalid => "InvalidSpec",
        Reason::ManifestInvalid => "InvalidManifest",
        Reason::RangeExhausted => "NoFreeAddress",
        Reason::CrashLoop => "CrashLoopBackOff",
        Reason::Paused => "Paused",
        Reason::Stopping => "Stopping",
        Reason::Stopped => "Stopped",
        Reason::Failed => "Failed",
        Reason::Terminating => "Terminating",
        Reason::StateNotWritable => "ReadOnly",
        Reason::Answering => "Answering",
        Reason::NotAnswering => "NotAnswering",
        Reason::Disabled => "Disabled",
        Reason::UserdataRunning => "UserdataRunning",
        Reason::UserdataFailed => "UserdataFailed",
        Reason::NotProvisioned => "NotProvisioned",
    }
}

/// The severity of a reason.
pub fn severity(reason: Reason) -> Severity {
    match reason {
        Reason::Converged | Reason::Answering | Reason::UserdataRunning => Severity::Good,
        Reason::Waiting
        | Reason::NotObserved
        | Reason::Converging
        | Reason::Terminating
        | Reason::Paused
        | Reason::Stopping
        | Reason::NotAnswering
        | Reason::Disabled
        | Reason::NotProvisioned
        | Reason::Stopped => Severity::Warning,
        Reason::Conflict
        | Reason::Contested
        | Reason::NotConverging
        | Reason::ActionFailed
        | Reason::ObserveFailed
        | Reason::Invalid
        | Reason::RangeExhausted
        | Reason::CrashLoop
        | Reason::Failed
        | Reason::ManifestInvalid
        | Reason::UserdataFailed
        | Reason::StateNotWritable => Severity::Error,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const REASONS: [Reason; 19] = [
        Reason::Converged,
        Reason::Waiting,
        Reason::Converging,
        Reason::Conflict,
        Reason::Contested,
        Reason::NotConverging,
        Reason::ActionFailed,
        Reason::ObserveFailed,
        Reason::NotObserved,
        Reason::Invalid,
        Reason::RangeExhausted,
        Reason::CrashLoop,
        Reason::Paused,
        Reason::Stopping,
        Reason::Stopped,
        Reason::StateNotWritable,
        Reason::Failed,
        Reason::Terminating,
        Reason::ManifestInvalid,
    ];

    /// Those of groups and VMs that need an explanation.
    #[test]
    fn the_page_about_symptoms_explains_every_word_and_no_other() {
        let page = include_str!("../../docs/troubleshooting.md");
        let (_, section) = page.split_once("\n## STATUS of a VM").expect("a section");
        let (section, _) = section.split_once("\n## ").expect("another section");
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.skip(1).filter_map(|row| row.split('|').nth(1));
        let explained: BTreeSet<&str> = cells
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .collect();
        let conditions = ["Lease", "Net", "Firewall", "Vmm", "HostNetwork", "Ready"];
        let words = conditions.iter().flat_map(|condition| {
            let reasons = REASONS.iter();
            reasons.map(|reason| word(condition, *reason))
        });
        assert_eq!(explained, words.collect());
    }

    #[test]
    fn every_reason_of_every_condition_is_one_word_of_users() {
        let per_condition = [
            Reason::Converged,
            Reason::Waiting,
            Reason::Converging,
            Reason::Conflict,
            Reason::Contested,
            Reason::ActionFailed,
            Reason::NotConverging,
        ];
        let conditions = [
            (
                "Lease",
                ["AddressPending", "AddressConflict", "AddressError"],
            ),
            ("Net", ["NetworkPending", "NetworkConflict", "NetworkError"]),
            (
                "Firewall",
                ["FirewallPending", "FirewallConflict", "FirewallError"],
            ),
            ("Vmm", ["Starting", "StartConflict", "StartError"]),
            (
                "HostNetwork",
                [
                    "HostNetworkPending",
                    "HostNetworkConflict",
                    "HostNetworkError",
                ],
            ),
            ("Ready", ["Progressing", "Conflict", "Error"]),
        ];
        for (condition, [pending, conflict, error]) in conditions {
            let expected = [pending, pending, pending, conflict, conflict, error, error];
            assert_eq!(
                per_condition.map(|reason| word(condition, reason)),
                expected
            );
            for (reason, expected) in [
                (Reason::ObserveFailed, "Unknown"),
                (Reason::NotObserved, "Unknown"),
                (Reason::Invalid, "InvalidSpec"),
                (Reason::ManifestInvalid, "InvalidManifest"),
                (Reason::RangeExhausted, "NoFreeAddress"),
                (Reason::CrashLoop, "CrashLoopBackOff"),
                (Reason::Paused, "Paused"),
                (Reason::Stopping, "Stopping"),
                (Reason::Stopped, "Stopped"),
                (Reason::Failed, "Failed"),
                (Reason::Terminating, "Terminating"),
                (Reason::StateNotWritable, "ReadOnly"),
            ] {
                assert_eq!(word(condition, reason), expected, "{condition}");
            }
        }
    }
}
