//! Checks native nf_tables forward chains: those of firewalld and of hand-written rule sets.
//! Out of scope: the chains of iptables; how a chain is evaluated ([`crate::host::iptables::foreign`]).
//!
//! # Why
//! Every base chain of a hook must accept a packet (nft(8), "CHAINS": an accept ends only the evaluation of its own chain). So no rule
//! of ours can overrule such a chain, whatever its priority. The remedy names the links of every mode, and the check evaluates all of
//! them.

use std::collections::BTreeMap;

use super::{Host, ok, unseen, warn};
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::iptables::foreign::BaseChain;
use crate::host::iptables::{Backend, Flavour};
use crate::host::{Error, link, route};
use crate::reconcile::host_network::drops::{self, Found, Links, RoutedRange};

const OTHERS: &str = "other forward filters";
/// A public address: the route to it is the default route. No packet is sent to it.
const PUBLIC_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(1, 1, 1, 1);

pub(super) async fn check(cx: &Host) -> Check {
    match observe(cx).await {
        Ok(found) => evaluate(&found, &checked_ranges(cx)),
        Err(error) => unseen(OTHERS, &error_chain(&error)),
    }
}

/// The ranges to check. On a host without isolated VMs, a range of isolated mode is added.
fn checked_ranges(cx: &Host) -> Vec<RoutedRange> {
    let mut ranges = cx.guarded.clone();
    let is_veth = |guarded: &RoutedRange| matches!(guarded.links, Links::Isolated(_));
    if !ranges.iter().any(is_veth)
        && let Ok(range) = "169.254.100.0/22".parse()
    {
        ranges.push(RoutedRange {
            links: Links::Isolated(cx.instance.link_prefix()),
            range,
        });
    }
    ranges
}

async fn observe(cx: &Host) -> Result<Found, Error> {
    let netlink = cx.home.netlink()?;
    let uplink = match route::lookup(&netlink, PUBLIC_ADDRESS).await? {
        Some((index, _)) => link::at(&netlink, index).await?,
        None => None,
    };
    let flavour = Backend::detect().map_or(Flavour::Nft, |found| found.kind);
    let chains = Default::default();
    drops::evaluate(
        &cx.home,
        &netlink,
        &chains,
        flavour,
        checked_ranges(cx),
        uplink.as_ref(),
    )
    .await
}

fn evaluate(found: &Found, ranges: &[RoutedRange]) -> Check {
    let chains: Vec<String> = found.chains.iter().map(BaseChain::to_string).collect();
    if chains.is_empty() {
        return ok(
            OTHERS,
            "no nf_tables chains other than those of iptables at the forward hook",
        );
    }
    let mut by_chain: BTreeMap<&BaseChain, Vec<&RoutedRange>> = BTreeMap::new();
    // The check of CNI networks covers the chain of iptables.
    let foreign = found
        .dropped
        .iter()
        .filter(|dropped| !dropped.chain.is_iptables_forward());
    for dropped in foreign {
        let of = by_chain.entry(&dropped.chain).or_default();
        if !of.contains(&&dropped.range) {
            of.push(&dropped.range);
        }
    }
    if by_chain.is_empty() {
        let found = format!("{}: accept packets of {}", chains.join(", "), names(ranges));
        return ok(OTHERS, found);
    }
    let messages: Vec<String> = by_chain
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
            messages.join(", ")
        ),
        remedies.join(" "),
    )
}

fn names<'g>(guarded: impl IntoIterator<Item = &'g RoutedRange>) -> String {
    let mut names: Vec<String> = guarded.into_iter().map(RoutedRange::to_string).collect();
    names.dedup();
    names.join(", ")
}

fn remedy(chain: &BaseChain, dropped: &[&RoutedRange]) -> String {
    if chain.table == "firewalld" {
        let commands: String = firewalld_options(dropped)
            .iter()
            .map(|words| format!("firewall-cmd --permanent --zone=trusted{words} && "))
            .collect();
        return format!(
            "Configure firewalld to trust these links, which sliced filters itself: `{commands}firewall-cmd --reload`."
        );
    }
    let mut rules: Vec<String> = Vec::new();
    for rule in dropped
        .iter()
        .flat_map(|guarded| nft_commands(chain, guarded))
    {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    format!(
        "Accept packets of VMs' links in {chain}; sliced filters them itself: `{}`, and add the same rules to /etc/nftables.conf.",
        rules.join("; ")
    )
}

/// Options for links and for sources: firewall-cmd accepts only one kind per command.
fn firewalld_options(dropped: &[&RoutedRange]) -> Vec<String> {
    let (mut links, mut sources) = (String::new(), String::new());
    for guarded in dropped {
        let (options, option) = match &guarded.links {
            Links::Isolated(prefix) => (&mut links, format!(" --add-interface={prefix}+")),
            Links::Bridge(name) => (&mut links, format!(" --add-interface={name}")),
            Links::Cni => (&mut sources, format!(" --add-source={}", guarded.range)),
        };
        if !options.contains(&option) {
            options.push_str(&option);
        }
    }
    let mut words = vec![links, sources];
    words.retain(|words| !words.is_empty());
    words
}

fn nft_commands(chain: &BaseChain, guarded: &RoutedRange) -> Vec<String> {
    let (from, to) = match &guarded.links {
        Links::Isolated(prefix) => (
            format!("iifname \"{prefix}*\""),
            format!("oifname \"{prefix}*\""),
        ),
        Links::Bridge(name) => (format!("iifname \"{name}\""), format!("oifname \"{name}\"")),
        Links::Cni => (
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
    use crate::api::view::CheckStatus;
    use crate::reconcile::host_network::drops::Dropped;

    fn chain(table: &str) -> BaseChain {
        BaseChain {
            family: "inet".into(),
            table: table.into(),
            chain: "forward".into(),
        }
    }

    fn all_modes() -> Vec<RoutedRange> {
        let guarded = |links, range: &str| RoutedRange {
            links,
            range: range.parse().unwrap(),
        };
        vec![
            guarded(Links::Isolated("slabcde".into()), "169.254.100.0/22"),
            guarded(Links::Bridge("slbr0".into()), "10.55.0.0/24"),
            guarded(Links::Cni, "10.88.0.0/16"),
        ]
    }

    fn found(table: &str, dropped: &[RoutedRange]) -> Found {
        let drop = |of: &RoutedRange| Dropped {
            chain: chain(table),
            range: of.clone(),
            replies_only: false,
        };
        Found {
            chains: vec![chain(table)],
            dropped: dropped.iter().map(drop).collect(),
        }
    }

    #[test]
    fn a_dropping_chain_is_a_warning_with_rules_for_the_links_of_every_mode() {
        let check = evaluate(&found("mine", &all_modes()), &all_modes());
        assert_eq!(check.status, CheckStatus::Warn);
        for rule in [
            "nft insert rule inet mine forward iifname \"slabcde*\" accept",
            "nft insert rule inet mine forward oifname \"slbr0\" ct state established,related accept",
            "nft insert rule inet mine forward ip saddr 10.88.0.0/16 accept",
        ] {
            assert!(check.remedy.contains(rule), "{}", check.remedy);
        }
    }

    #[test]
    fn firewalld_gets_commands_only_for_links_that_it_drops() {
        let all = all_modes();
        let remedy = evaluate(&found("firewalld", &all), &all).remedy;
        assert!(remedy.contains(
            "--zone=trusted --add-interface=slabcde+ --add-interface=slbr0 && firewall-cmd --permanent --zone=trusted --add-source=10.88.0.0/16 && firewall-cmd --reload`"
        ), "{remedy}");
        let remedy = evaluate(&found("firewalld", &all[1..2]), &all).remedy;
        assert!(
            remedy.contains("--zone=trusted --add-interface=slbr0 &&"),
            "{remedy}"
        );
        let check = evaluate(&found("firewalld", &[]), &all);
        assert_eq!(check.status, CheckStatus::Ok);
        assert!(
            check
                .found
                .contains("accept packets of slabcde*, slbr0, 10.88.0.0/16")
        );
    }

    #[test]
    fn no_chains_are_ok() {
        let check = evaluate(&Found::default(), &all_modes());
        assert_eq!(check.status, CheckStatus::Ok);
    }
}
