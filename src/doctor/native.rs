//! Forward chains of nf_tables that iptables does not know: firewalld's, and those of hand-written rule sets.
//! Not here: iptables' own chains.
//!
//! # Why
//! Every base chain of a hook has to let a packet pass (nft(8), "CHAINS": an accept ends only the chain it is in). So no rule
//! of ours can overrule one of these, whatever its priority.

use serde_json::Value;

use super::{Host, ask, words};

/// A base chain at the hook `forward`, IPv4 or both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// `ip` or `inet`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What becomes of a packet that no rule takes out.
    pub end: End,
    /// Whether a rule of the same table names our links: then somebody has thought of us.
    pub ours: Mention,
}

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By policy, and no rule drops or rejects everything.
    Open,
    /// By policy or by a rule without a condition.
    Shut,
}

/// Whether our links are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mention {
    /// By no rule.
    Nowhere,
    /// By a rule.
    Somewhere,
}

/// All of them; an `Err` says in words why none was seen.
pub(super) async fn look(cx: &Host) -> Result<Vec<Base>, String> {
    // Terse: without the elements of sets, of which there may be very many.
    let said = ask(&["nft", "-j", "-t", "list", "ruleset"])
        .await
        .map_err(|e| words(&e))?;
    read(&said, &cx.instance.link_prefix())
}

/// Reads the JSON of `nft -j list ruleset` (libnftables-json(5)).
fn read(json: &str, link_prefix: &str) -> Result<Vec<Base>, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("nft's answer cannot be read: {why}");
    let document: Value = serde_json::from_str(json).map_err(|e| unreadable(&e))?;
    let items = document["nftables"]
        .as_array()
        .ok_or_else(|| unreadable(&"it is no list"))?;
    let rules: Vec<&Value> = items.iter().filter_map(|item| item.get("rule")).collect();
    let chains = items.iter().filter_map(|item| item.get("chain"));
    Ok(chains
        .filter(|chain| chain["hook"] == "forward" && chain["type"] == "filter")
        .filter(|chain| matches!(text(chain, "family"), "ip" | "inet"))
        .filter(|chain| !of_iptables(chain))
        .map(|chain| base(chain, &rules, link_prefix))
        .collect())
}

fn base(chain: &Value, rules: &[&Value], link_prefix: &str) -> Base {
    let same = |rule: &Value, key: &str, of: &str| rule[key] == chain[of];
    let in_table = || {
        rules
            .iter()
            .filter(|rule| same(rule, "family", "family") && same(rule, "table", "table"))
    };
    let shut = chain["policy"] == "drop"
        || in_table().any(|rule| same(rule, "chain", "name") && takes_all(rule));
    let named = in_table().any(|rule| rule["expr"].to_string().contains(link_prefix));
    Base {
        family: text(chain, "family").into(),
        table: text(chain, "table").into(),
        chain: text(chain, "name").into(),
        end: if shut { End::Shut } else { End::Open },
        ours: if named {
            Mention::Somewhere
        } else {
            Mention::Nowhere
        },
    }
}

/// `FORWARD` of the tables that iptables keeps in nf_tables: seen by `filter`.
fn of_iptables(chain: &Value) -> bool {
    let table = text(chain, "table");
    text(chain, "family") == "ip"
        && text(chain, "name") == "FORWARD"
        && matches!(table, "filter" | "mangle" | "security")
}

/// A rule that drops or rejects whatever comes.
fn takes_all(rule: &Value) -> bool {
    let Some(parts) = rule["expr"].as_array() else {
        return false;
    };
    let is = |part: &Value, words: &[&str]| words.iter().any(|word| part.get(word).is_some());
    parts.iter().any(|part| is(part, &["drop", "reject"]))
        && parts
            .iter()
            .all(|part| is(part, &["drop", "reject", "counter", "log", "comment"]))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(family: &str, table: &str, name: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "handle": 1, "type": "filter",
            "hook": "forward", "prio": 10, "policy": policy}})
    }

    fn rule(table: &str, chain: &str, expr: Value) -> Value {
        json!({"rule": {"family": "inet", "table": table, "chain": chain, "handle": 2, "expr": expr}})
    }

    fn bases(items: &[Value]) -> Vec<Base> {
        read(&json!({ "nftables": items }).to_string(), "slabcde").unwrap()
    }

    #[test]
    fn chains_of_iptables_and_of_other_families_are_passed_over() {
        let found = bases(&[
            chain("ip", "filter", "FORWARD", "drop"),
            chain("ip6", "filter", "forward", "drop"),
            chain("bridge", "filter", "forward", "drop"),
        ]);
        assert_eq!(found, []);
    }

    #[test]
    fn a_chain_is_shut_by_its_policy_or_by_a_rule_without_a_condition() {
        let drop_all = rule(
            "t",
            "f",
            json!([{"counter": {"packets": 0}}, {"drop": null}]),
        );
        let reject_all = rule("t", "f", json!([{"reject": {"type": "icmpx"}}]));
        let drop_some = rule(
            "t",
            "f",
            json!([{"match": {"op": "==", "left": 1, "right": 2}}, {"drop": null}]),
        );
        let elsewhere = rule("t", "g", json!([{"drop": null}]));
        let end = |items: &[Value]| bases(items)[0].end;
        assert_eq!(end(&[chain("inet", "t", "f", "drop")]), End::Shut);
        let open = chain("inet", "t", "f", "accept");
        assert_eq!(end(&[open.clone(), drop_all]), End::Shut);
        assert_eq!(end(&[open.clone(), reject_all]), End::Shut);
        assert_eq!(end(&[open.clone(), drop_some, elsewhere]), End::Open);
    }

    #[test]
    fn a_rule_anywhere_in_the_table_that_names_our_links_is_seen() {
        let named = |glob: &str| {
            rule(
                "t",
                "zones",
                json!([{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": glob}}]),
            )
        };
        let base = chain("inet", "t", "f", "drop");
        assert_eq!(
            bases(&[base.clone(), named("slabcde*")])[0].ours,
            Mention::Somewhere
        );
        assert_eq!(bases(&[base, named("eth0")])[0].ours, Mention::Nowhere);
    }

    #[test]
    fn half_an_answer_is_an_error() {
        assert!(read("{\"nftables\": [{\"chain\"", "slabcde").is_err());
        assert!(read("{}", "slabcde").is_err());
        assert!(read("", "slabcde").is_err());
    }
}
