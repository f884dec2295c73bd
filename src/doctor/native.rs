//! Forward chains of nf_tables that iptables does not know: firewalld's, and those of hand-written rule sets.
//! Out of scope: iptables' own chains; how a chain is asked ([`crate::host::iptables::foreign`]).
//!
//! # Why
//! Every base chain of a hook has to let a packet pass (nft(8), "CHAINS": an accept ends only the chain it is in). So no rule
//! of ours can overrule one of these, whatever its priority. A remedy names the links of every mode, and each of them is asked for
//! afterwards.

use std::collections::BTreeMap;

use super::{Host, ok, unseen, warn, words};
use crate::api::view::Check;
use crate::host::iptables::foreign::BaseChain;
use crate::host::iptables::{Backend, Flavour};
use crate::host::{Error, link, route};
use crate::reconcile::ground::drops::{self, Found, Guarded, Links};

const OTHERS: &str = "other forward filters";
/// A public address: the way to it is the default route. Nothing is sent to it.
const ANYWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(1, 1, 1, 1);

pub(super) async fn check(cx: &Host) -> Check {
    match look(cx).await {
        Ok(found) => judge(&found, &asked(cx)),
        Err(error) => unseen(OTHERS, &words(&error)),
    }
}

/// A host without VMs is asked for isolated ones.
fn asked(cx: &Host) -> Vec<Guarded> {
    let mut asked = cx.guarded.clone();
    let is_veth = |guarded: &Guarded| matches!(guarded.links, Links::Veths(_));
    if !asked.iter().any(is_veth)
        && let Ok(range) = "169.254.100.0/22".parse()
    {
        asked.push(Guarded {
            links: Links::Veths(cx.instance.link_prefix()),
            range,
        });
    }
    asked
}

async fn look(cx: &Host) -> Result<Found, Error> {
    let netlink = cx.home.netlink()?;
    let uplink = match route::lookup(&netlink, ANYWHERE).await? {
        Some((index, _)) => link::at(&netlink, index).await?,
        None => None,
    };
    let flavour = Backend::detect().map_or(Flavour::Nft, |found| found.flavour);
    let chains = Default::default();
    drops::look(
        &cx.home,
        &netlink,
        &chains,
        flavour,
        asked(cx),
        uplink.as_ref(),
    )
    .await
}

fn judge(found: &Found, asked: &[Guarded]) -> Check {
    let chains: Vec<String> = found.chains.iter().map(BaseChain::to_string).collect();
    if chains.is_empty() {
        return ok(
            OTHERS,
            "no nf_tables chain but iptables' own sees forwarded packets",
        );
    }
    let mut by_chain: BTreeMap<&BaseChain, Vec<&Guarded>> = BTreeMap::new();
    // The check of CNI networks covers iptables' own chain.
    let foreign = found
        .dropped
        .iter()
        .filter(|dropped| !dropped.by.is_own_forward());
    for dropped in foreign {
        let of = by_chain.entry(&dropped.by).or_default();
        if !of.contains(&&dropped.of) {
            of.push(&dropped.of);
        }
    }
    if by_chain.is_empty() {
        let found = format!("{}: open for {}", chains.join(", "), names(asked));
        return ok(OTHERS, found);
    }
    let told: Vec<String> = by_chain
        .iter()
        .map(|(chain, of)| format!("{chain} drops packets of {}", names(of.iter().copied())))
        .collect();
    let remedies: Vec<String> = by_chain
        .iter()
        .map(|(chain, of)| remedy(chain, of))
        .collect();
    warn(
        OTHERS,
        format!(
            "{}: a packet must pass every chain at this hook",
            told.join(", ")
        ),
        remedies.join(" "),
    )
}

fn names<'g>(guarded: impl IntoIterator<Item = &'g Guarded>) -> String {
    let mut names: Vec<String> = guarded.into_iter().map(Guarded::to_string).collect();
    names.dedup();
    names.join(", ")
}

fn remedy(chain: &BaseChain, of: &[&Guarded]) -> String {
    if chain.table == "firewalld" {
        let commands: String = zoned(of)
            .iter()
            .map(|words| format!("firewall-cmd --permanent --zone=trusted{words} && "))
            .collect();
        return format!(
            "Configure firewalld to trust these links, which sliced guards: `{commands}firewall-cmd --reload`."
        );
    }
    let mut rules: Vec<String> = Vec::new();
    for rule in of.iter().flat_map(|guarded| inserted(chain, guarded)) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    format!(
        "Open {chain} for VMs' links, which sliced guards: `{}`, and put the same into /etc/nftables.conf.",
        rules.join("; ")
    )
}

/// Links and sources: firewall-cmd takes one sort in a command.
fn zoned(of: &[&Guarded]) -> Vec<String> {
    let (mut links, mut sources) = (String::new(), String::new());
    for guarded in of {
        let (to, word) = match &guarded.links {
            Links::Veths(prefix) => (&mut links, format!(" --add-interface={prefix}+")),
            Links::Bridge(name) => (&mut links, format!(" --add-interface={name}")),
            Links::OfPlugin => (&mut sources, format!(" --add-source={}", guarded.range)),
        };
        if !to.contains(&word) {
            to.push_str(&word);
        }
    }
    let mut words = vec![links, sources];
    words.retain(|words| !words.is_empty());
    words
}

fn inserted(chain: &BaseChain, guarded: &Guarded) -> Vec<String> {
    let (from, to) = match &guarded.links {
        Links::Veths(prefix) => (
            format!("iifname \"{prefix}*\""),
            format!("oifname \"{prefix}*\""),
        ),
        Links::Bridge(name) => (format!("iifname \"{name}\""), format!("oifname \"{name}\"")),
        Links::OfPlugin => (
            format!("ip saddr {}", guarded.range),
            format!("ip daddr {}", guarded.range),
        ),
    };
    vec![
        format!("nft insert rule {chain} {from} accept"),
        format!("nft insert rule {chain} {to} ct state established,related accept"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckVerdict;
    use crate::reconcile::ground::drops::Dropped;

    fn chain(table: &str) -> BaseChain {
        BaseChain {
            family: "inet".into(),
            table: table.into(),
            chain: "forward".into(),
        }
    }

    fn everybody() -> Vec<Guarded> {
        let guarded = |links, range: &str| Guarded {
            links,
            range: range.parse().unwrap(),
        };
        vec![
            guarded(Links::Veths("slabcde".into()), "169.254.100.0/22"),
            guarded(Links::Bridge("slbr0".into()), "10.55.0.0/24"),
            guarded(Links::OfPlugin, "10.88.0.0/16"),
        ]
    }

    fn found(table: &str, dropped: &[Guarded]) -> Found {
        let drop = |of: &Guarded| Dropped {
            by: chain(table),
            of: of.clone(),
            answers: false,
        };
        Found {
            chains: vec![chain(table)],
            dropped: dropped.iter().map(drop).collect(),
        }
    }

    #[test]
    fn a_shut_chain_that_we_cannot_overrule_comes_with_rules_for_the_links_of_every_mode() {
        let check = judge(&found("mine", &everybody()), &everybody());
        assert_eq!(check.verdict, CheckVerdict::Warn);
        for rule in [
            "nft insert rule inet mine forward iifname \"slabcde*\" accept",
            "nft insert rule inet mine forward oifname \"slbr0\" ct state established,related accept",
            "nft insert rule inet mine forward ip saddr 10.88.0.0/16 accept",
        ] {
            assert!(check.remedy.contains(rule), "{}", check.remedy);
        }
    }

    #[test]
    fn firewalld_is_asked_in_its_own_words_for_those_that_it_drops_only() {
        let all = everybody();
        let remedy = judge(&found("firewalld", &all), &all).remedy;
        assert!(remedy.contains(
            "--zone=trusted --add-interface=slabcde+ --add-interface=slbr0 && firewall-cmd --permanent --zone=trusted --add-source=10.88.0.0/16 && firewall-cmd --reload`"
        ), "{remedy}");
        let remedy = judge(&found("firewalld", &all[1..2]), &all).remedy;
        assert!(
            remedy.contains("--zone=trusted --add-interface=slbr0 &&"),
            "{remedy}"
        );
        let check = judge(&found("firewalld", &[]), &all);
        assert_eq!(check.verdict, CheckVerdict::Ok);
        assert!(
            check
                .found
                .contains("open for slabcde*, slbr0, 10.88.0.0/16")
        );
    }

    #[test]
    fn no_chains_are_fine() {
        let check = judge(&Found::default(), &everybody());
        assert_eq!(check.verdict, CheckVerdict::Ok);
    }
}
