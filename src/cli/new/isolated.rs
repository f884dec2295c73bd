//! `new --net=isolated`: the range, and the allow and drop lists.
//! Out of scope: the rest of the group.

use ipnetwork::Ipv4Network;

use super::super::failure::{self, Failure};
use super::text::YamlText;
use super::{NewArgs, OnDenyArg, tap_owner};
use crate::api::policy::{Entry, OnDeny, Policy, reserved};

/// `network:` with its range and lists.
pub fn network(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    if let Some((entry, reserved_range)) = closed(&args.allow) {
        return Err(Failure::Usage(format!(
            "invalid --allow {entry}: {reserved_range} is always denied"
        )));
    }
    text.line(4, "mode: isolated");
    match args.range.as_deref().map(range).transpose()? {
        Some(range) => text.note(4, &format!("range: {range}"), "one /30 for each VM"),
        None => text.note(
            4,
            "# range: 169.254.100.0/22",
            "default: derived from the group's name",
        ),
    }
    let policy = Policy {
        allow: args.allow.clone(),
        drop: args.drop.clone(),
        on_deny: match args.on_deny {
            None | Some(OnDenyArg::Drop) => OnDeny::Drop,
            Some(OnDenyArg::Reject) => OnDeny::Reject,
        },
        allow_metadata: false,
    };
    text.line(4, &format!("# {}", describe_policy(&policy)));
    match policy.allow.as_slice() {
        [] => text.line(4, "# allow: [\"192.168.222.1:3128\", \"1.1.1.1:53/udp\"]"),
        allow => text.line(4, &format!("allow: {}", flow(allow))),
    }
    match policy.drop.as_slice() {
        [] => text.line(4, "# drop: [\"192.168.1.0/24\"]"),
        drop => text.line(4, &format!("drop: {}", flow(drop))),
    }
    if args.on_deny.is_some() {
        let on_deny = format!("on_deny: {}", policy.on_deny);
        text.note(4, &on_deny, "default: drop (no response)");
    }
    tap_owner(text, args);
    for warning in policy.warnings() {
        failure::warn(&warning);
    }
    Ok(())
}

/// The first entry that is in a reserved range, which the lists cannot allow.
fn closed(allow: &[Entry]) -> Option<(Entry, Ipv4Network)> {
    allow.iter().find_map(|entry| {
        let range = reserved().find(|range| entry.network.is_subnet_of(*range))?;
        Some((*entry, range))
    })
}

/// Describes the effect of the lists.
fn describe_policy(policy: &Policy) -> &'static str {
    match (policy.allow.is_empty(), policy.drop.is_empty()) {
        (true, true) => {
            "Without allow and drop, all destinations are allowed except reserved ones."
        }
        (true, false) => "Destinations that do not match drop are allowed.",
        (false, true) => "Only destinations that match allow are allowed.",
        (false, false) => {
            "allow is evaluated first, then drop; destinations that match neither are allowed."
        }
    }
}

/// A flow sequence. Entries contain only digits, `./:-`, `tcp` and `udp`, so they need no escapes within double quotes.
fn flow(entries: &[Entry]) -> String {
    let quoted: Vec<String> = entries.iter().map(|entry| format!("\"{entry}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// Parses a network of 169.254.0.0/16 that contains more than one /30.
fn range(text: &str) -> Result<Ipv4Network, Failure> {
    let usage_error =
        |reason: String| Err(Failure::Usage(format!("invalid --range {text}: {reason}")));
    let range: Ipv4Network = match text.parse() {
        Ok(range) => range,
        Err(error) => return usage_error(error.to_string()),
    };
    let link_local = range.ip().octets()[..2] == [169, 254];
    if !link_local || !(16..=29).contains(&range.prefix()) {
        return usage_error("expected a /16 to /29 of 169.254.0.0/16".to_owned());
    }
    let network = range.network();
    match network == range.ip() {
        true => Ok(range),
        false => usage_error(format!(
            "host bits are set, expected {network}/{}",
            range.prefix()
        )),
    }
}
