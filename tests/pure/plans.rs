//! Golden plans: `tests/goldens/plans/<stage>/<case>/{desired,observed,plan}.yaml`. `BLESS=1` rewrites the plans.
//! Out of scope: laws that hold for every plan (`tests/pure/laws.rs`).

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use slicectl::reconcile::disk::Disks;
use slicectl::reconcile::firewall::bridge::BridgeFirewall;
use slicectl::reconcile::firewall::cni::CniFirewall;
use slicectl::reconcile::firewall::isolated::IsolatedFirewall;
use slicectl::reconcile::host_network::HostNetwork;
use slicectl::reconcile::lease::Leases;
use slicectl::reconcile::net::bridge::BridgeNet;
use slicectl::reconcile::net::cni::CniNet;
use slicectl::reconcile::net::isolated::IsolatedNet;
use slicectl::reconcile::vmm::Vmm;
use slicectl::reconcile::{Conflict, Reconcile, group};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<A> {
    Actions(Vec<A>),
    Conflict { object: String, remedy: String },
}

#[test]
fn every_net_isolated_plan_is_the_one_on_disk() {
    check("net_isolated", IsolatedNet::plan, 25);
}

#[test]
fn every_firewall_isolated_plan_is_the_one_on_disk() {
    check("firewall_isolated", IsolatedFirewall::plan, 10);
}

#[test]
fn every_host_network_plan_is_the_one_on_disk() {
    check("host_network", HostNetwork::plan, 45);
}

#[test]
fn every_net_bridge_plan_is_the_one_on_disk() {
    check("net_bridge", BridgeNet::plan, 40);
}

#[test]
fn every_firewall_bridge_plan_is_the_one_on_disk() {
    check("firewall_bridge", BridgeFirewall::plan, 21);
}

#[test]
fn every_group_plan_is_the_one_on_disk() {
    check(
        "group",
        |desired, observed| Ok(group::plan(desired, observed)),
        12,
    );
}

#[test]
fn every_lease_plan_is_the_one_on_disk() {
    check("lease", Leases::plan, 21);
}

#[test]
fn every_vmm_plan_is_the_one_on_disk() {
    check("vmm", Vmm::plan, 20);
}

#[test]
fn every_disk_plan_is_the_one_on_disk() {
    check("disk", Disks::plan, 20);
}

#[test]
fn every_net_cni_plan_is_the_one_on_disk() {
    check("net_cni", CniNet::plan, 43);
}

#[test]
fn every_firewall_cni_plan_is_the_one_on_disk() {
    check("firewall_cni", CniFirewall::plan, 14);
}

#[test]
fn every_folder_of_plans_is_looked_at() {
    let folders: BTreeSet<_> = fs::read_dir(plans())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let known = [
        "disk",
        "firewall_bridge",
        "firewall_cni",
        "firewall_isolated",
        "group",
        "host_network",
        "lease",
        "net_bridge",
        "net_cni",
        "net_isolated",
        "vmm",
    ]
    .map(Into::into);
    assert_eq!(folders, known.into());
}

fn plans() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/plans")
}

/// Plans every case of a stage, of which there are `at_least` so many.
fn check<D, O, A>(stage: &str, plan: impl Fn(&D, &O) -> Result<Vec<A>, Conflict>, at_least: usize)
where
    D: DeserializeOwned,
    O: DeserializeOwned,
    A: Debug + PartialEq + Serialize,
{
    let bless = std::env::var_os("BLESS").is_some();
    let mut cases: Vec<PathBuf> = fs::read_dir(plans().join(stage))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    for case in &cases {
        let outcome = match plan(
            &read(&case.join("desired.yaml")),
            &read(&case.join("observed.yaml")),
        ) {
            Ok(actions) => Outcome::Actions(actions),
            Err(Conflict { object, remedy }) => Outcome::Conflict { object, remedy },
        };
        // Also when it is blessed: what converged needs no action.
        if case.to_string_lossy().ends_with("converged") {
            assert_eq!(outcome, Outcome::Actions(Vec::new()), "{}", case.display());
        }
        let (text, golden) = (
            serde_yaml::to_string(&outcome).unwrap(),
            case.join("plan.yaml"),
        );
        if bless {
            fs::write(&golden, &text).unwrap();
        }
        let stored = fs::read_to_string(&golden)
            .unwrap_or_else(|e| panic!("{}: {e}; BLESS=1 writes it", golden.display()));
        assert_eq!(text, stored, "{}", case.display());
    }
    assert!(
        cases.len() >= at_least,
        "only {} cases of {stage}",
        cases.len()
    );
}

/// Every key of a file must be one of the type's: a misspelt one would make the case test less than it says.
fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut unknown = Vec::new();
    let value = serde_ignored::deserialize(serde_yaml::Deserializer::from_str(&text), |key| {
        unknown.push(key.to_string());
    });
    assert_eq!(unknown, [""; 0], "{}", path.display());
    value.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
