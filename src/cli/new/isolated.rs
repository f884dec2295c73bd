//! `new --net=isolated`: a range, and where VMs may send.
//! Out of scope: the rest of the group.

use ipnetwork::Ipv4Network;

use super::super::failure::{self, Failure};
use super::text::Text;
use super::{Denial, NewArgs, tap_owner};
use crate::api::policy::{Entry, OnDeny, Policy, reserved};

/// `network:` with its range and lists.
pub fn network(text: &mut Text, args: &NewArgs) -> Result<(), Failure> {
    if let Some((entry, closed)) = closed(&args.allow) {
        return Err(Failure::Usage(format!(
            "--allow {entry} lies in {closed}, which is always closed"
        )));
    }
    text.line(4, "mode: isolated");
    match args.range.as_deref().map(range).transpose()? {
        Some(range) => text.note(4, &format!("range: {range}"), "a /30 of it for each VM"),
        None => text.note(
            4,
            "# range: 169.254.100.0/22",
            "else derived from the group's name",
        ),
    }
    let policy = Policy {
        allow: args.allow.clone(),
        drop: args.drop.clone(),
        on_deny: match args.on_deny {
            None | Some(Denial::Drop) => OnDeny::Drop,
            Some(Denial::Reject) => OnDeny::Reject,
        },
        allow_metadata: false,
    };
    text.line(4, &format!("# {}", in_words(&policy)));
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
        text.note(4, &on_deny, "the default is drop: no answer");
    }
    tap_owner(text, args);
    for warning in policy.warnings() {
        failure::warn(&warning);
    }
    Ok(())
}

/// The first entry in a range that no list opens.
fn closed(allow: &[Entry]) -> Option<(Entry, Ipv4Network)> {
    allow.iter().find_map(|entry| {
        let range = reserved().find(|range| entry.network.is_subnet_of(*range))?;
        Some((*entry, range))
    })
}

/// What the lists mean together.
fn in_words(policy: &Policy) -> &'static str {
    match (policy.allow.is_empty(), policy.drop.is_empty()) {
        (true, true) => "Neither allow nor drop: every destination is open but the reserved ones.",
        (true, false) => "What drop does not match is open.",
        (false, true) => "Only what allow matches is open.",
        (false, false) => "allow is asked first, then drop; what matches neither is open.",
    }
}

/// Entries are of digits and `./:-` and two words, so double quotes need no escapes.
fn flow(entries: &[Entry]) -> String {
    let quoted: Vec<String> = entries.iter().map(|entry| format!("\"{entry}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A network of 169.254.0.0/16 that has room for more than one /30.
fn range(text: &str) -> Result<Ipv4Network, Failure> {
    let wrong = |why: String| Err(Failure::Usage(format!("--range {text}: {why}")));
    let range: Ipv4Network = match text.parse() {
        Ok(range) => range,
        Err(error) => return wrong(error.to_string()),
    };
    let link_local = range.ip().octets()[..2] == [169, 254];
    if !link_local || !(16..=29).contains(&range.prefix()) {
        return wrong("it must be a /16 to /29 of 169.254.0.0/16".to_owned());
    }
    let network = range.network();
    match network == range.ip() {
        true => Ok(range),
        false => wrong(format!(
            "it has host bits set, {network}/{} has none",
            range.prefix()
        )),
    }
}
