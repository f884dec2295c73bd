//! Tests of the evaluation, without a kernel.
//! Out of scope: the observation, see tests/kernel/doctor.rs.

use super::*;
use crate::api::view::CheckStatus;
use crate::host::iptables::Backend;
use crate::host::rule::{Chain, Table};

const OURS: &str = "SLICE-abcde-";

fn jump(chain: &str) -> Rule {
    Rule::when().jump(chain)
}

fn observed(policy: Policy, forward: Vec<Rule>, chains: &[&str]) -> Observed {
    let users = chains
        .iter()
        .map(|name| Chain::user(*name, vec![jump("RETURNED")]));
    let mut all = vec![Chain::builtin("FORWARD", policy, forward)];
    all.extend(users);
    Observed {
        restore: Ok(Backend {
            kind: Flavour::Nft,
            restore_program: "/usr/sbin/iptables-restore".into(),
            version: "v1.8.9 (nf_tables)".into(),
            timeout: crate::host::iptables::DEADLINE,
        }),
        tool: Ok("v1.8.9 (nf_tables)".into()),
        nft: Ok(Ruleset::new([Table {
            name: TableName::Filter,
            chains: all,
        }])),
        legacy: Ok(Ruleset::default()),
    }
}

#[test]
fn forwarding_that_is_off_is_a_warning_with_the_command_that_turns_it_on() {
    assert_eq!(evaluate_ip_forward(Some("1")).status, CheckStatus::Ok);
    let off = evaluate_ip_forward(Some("0"));
    assert_eq!(off.status, CheckStatus::Warn);
    assert!(off.remedy.contains("net.ipv4.ip_forward=1"));
    assert_eq!(evaluate_ip_forward(None).status, CheckStatus::Fail);
}

#[test]
fn docker_with_policy_drop_is_named_and_is_ok_while_our_jump_is_first() {
    let forward = vec![jump("SLICE-abcde-FWD"), jump("DOCKER-USER")];
    let check = evaluate_chain(
        &observed(Policy::Drop, forward, &["DOCKER-USER", "DOCKER"]),
        OURS,
    );
    assert_eq!(check.status, CheckStatus::Ok);
    assert_eq!(
        check.found,
        "policy DROP, chains of docker: our jump is first and decides for VMs"
    );
}

#[test]
fn a_foreign_rule_above_our_jump_is_a_warning_and_the_jump_of_another_daemon_is_not() {
    let ours = jump("SLICE-abcde-FWD");
    let after_docker = vec![jump("DOCKER-USER"), ours.clone()];
    let check = evaluate_chain(
        &observed(Policy::Accept, after_docker, &["DOCKER-USER"]),
        OURS,
    );
    assert_eq!(check.status, CheckStatus::Warn);
    let after_another = vec![jump("SLICE-zzzzz-FWD"), ours];
    let check = evaluate_chain(&observed(Policy::Accept, after_another, &[]), OURS);
    assert_eq!(check.status, CheckStatus::Ok);
}

#[test]
fn all_programs_with_chains_are_named() {
    let chains = ["DOCKER", "ufw-before-forward", "LIBVIRT_FWO"];
    let check = evaluate_chain(&observed(Policy::Drop, Vec::new(), &chains), OURS);
    assert!(
        check.found.contains("chains of docker and ufw and libvirt"),
        "{}",
        check.found
    );
}

#[test]
fn bridged_packets_and_reverse_path_filters_are_always_ok() {
    for value in [Some("0"), Some("1"), None] {
        assert_eq!(evaluate_bridge_nf(value).status, CheckStatus::Ok);
    }
    assert_eq!(
        evaluate_rp_filter(Some("1"), Some("2")).found,
        "all strict, default loose: VMs' packets pass with any of them"
    );
}

#[test]
fn a_cni_network_without_firewall_plugin_is_named_if_forward_drops() {
    let networks = ["slicer".to_owned(), "other".to_owned()];
    for (policy, unopened, is_reported) in [
        (Policy::Drop, &networks[..], true),
        (Policy::Drop, &networks[..0], false),
        (Policy::Accept, &networks[..], false),
    ] {
        let check = evaluate_networks(&observed(policy, vec![], &["DOCKER-USER"]), unopened);
        assert_eq!(check.is_some(), is_reported, "{policy} {unopened:?}");
        if let Some(check) = check {
            assert_eq!(check.status, CheckStatus::Warn);
            assert!(check.found.contains("slicer, other"), "{}", check.found);
            assert!(check.remedy.contains("firewall"), "{}", check.remedy);
        }
    }
}
