//! What daemons claim on the host, as its users see it: ranges, subnets and addresses of groups that are made at the same time, by one
//! daemon or by two, and who has them while a daemon is down.
//! Out of scope: interleavings inside one process (`tests/kernel/pipeline/claims.rs`).
//!
//! `SLICE_CLAIM_ROUNDS` sets how often the concurrent tests are repeated (`make soak`), `SLICE_SEED` the seed of their names; both are
//! printed.

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;
use slicectl::api::pool;

use test_support::harness::{self, Harness, bridge_group, empty, with_daemon};

/// How often, with which seed.
fn rounds(few: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (rounds, seed) = (
        number("SLICE_CLAIM_ROUNDS").unwrap_or(few),
        number("SLICE_SEED").unwrap_or(1),
    );
    eprintln!("SLICE_CLAIM_ROUNDS={rounds} SLICE_SEED={seed}");
    (rounds, seed)
}

/// Isolated groups without a range, of one slot each, in one manifest.
fn isolated(prefix: &str, count: usize) -> String {
    let groups = (0..count).map(|n| {
        format!(
            "    - {{name: {prefix}{n}, count: 1, vcpu: 1, ram_mb: 128, hypervisor: none, network: {{mode: isolated}}}}\n"
        )
    });
    format!("config:\n  host_groups:\n{}", groups.collect::<String>())
}

/// The range that each VM has its address from.
fn ranges(harness: &Harness) -> Vec<Ipv4Network> {
    let leases = harness.get("leases");
    let items = leases["items"].as_array().expect("items").iter();
    items
        .map(|lease| {
            lease["range"]
                .as_str()
                .expect("a range")
                .parse()
                .expect("a network")
        })
        .collect()
}

#[track_caller]
fn assert_disjoint(ranges: &[Ipv4Network], count: usize, what: &str) {
    let shared: Vec<_> = ranges
        .iter()
        .enumerate()
        .flat_map(|(n, one)| ranges[n + 1..].iter().map(move |other| (*one, *other)))
        .filter(|(one, other)| pool::overlaps(*one, *other))
        .collect();
    assert!(
        shared.is_empty(),
        "{what}: {} pairs share a range: {shared:?}",
        shared.len()
    );
    assert_eq!(ranges.len(), count, "{what}");
}

#[test]
fn fifty_six_groups_in_one_apply_get_a_range_each() {
    let (rounds, seed) = rounds(1);
    for round in 0..rounds {
        let what = format!("seed {seed}, round {round}");
        with_daemon(|harness| {
            let manifest = harness.write("m.yaml", &isolated(&format!("g{seed}-{round}-"), 56));
            harness.ctl(&format!("apply -f {manifest} --wait=60s"));
            assert_disjoint(&ranges(&harness), 56, &what);
            assert_eq!(harness.messages("", "RangeUnavailable").len(), 0, "{what}");
        });
    }
}

#[test]
fn a_fresh_daemon_never_meets_a_claim_of_its_own() {
    let (rounds, seed) = rounds(4);
    for round in 0..rounds {
        with_daemon(|harness| {
            harness.apply(&bridge_group(
                "web",
                1,
                "bridge: br0\ngateway: 10.55.0.1/24",
            ));
            harness.apply(&harness::slots(1, ""));
            let met = harness.messages("", "RangeUnavailable");
            assert_eq!(met.len(), 0, "seed {seed}, round {round}: {met:?}");
        });
    }
}

/// A second daemon on the host.
fn second() -> Harness {
    let mut two = Harness::new("slice2");
    two.start();
    two
}

/// Applies in the background.
fn applying(harness: &Harness, manifest: &str) -> std::process::Child {
    let manifest = harness.write("m.yaml", manifest);
    std::process::Command::new(env!("CARGO_BIN_EXE_slicectl"))
        .args(["apply", "-f", &manifest, "--wait=60s"])
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("slicectl")
}

#[test]
fn two_daemons_that_apply_at_once_share_nothing_while_vms_are_made_on_demand() {
    let (rounds, seed) = rounds(1);
    for round in 0..rounds {
        let what = format!("seed {seed}, round {round}");
        with_daemon(|one| {
            let two = second();
            let harnesses = [&one, &two];
            // Of the same names, so that both begin with the same candidates.
            let manifest = isolated(&format!("g{seed}-{round}-"), 24);
            // Links of both are in one namespace, so that these have names of their own.
            let bridges = "    - {name: NAME, count: 3, vcpu: 1, ram_mb: 128, hypervisor: none, network: {mode: bridge}}\n";
            let of = |harness, name| {
                let bridges = bridges.replace("NAME", name);
                applying(harness, &format!("{manifest}{bridges}"))
            };
            let mut children = [of(&one, "weba"), of(&two, "webb")];
            let mut ordered = [0, 0];
            for n in 0..8 {
                for (harness, ordered) in harnesses.iter().zip(&mut ordered) {
                    let group = format!("g{seed}-{round}-{n}");
                    harness.until(&group, || {
                        harness
                            .try_ctl(&format!("vm add {group} --name x{n}y"))
                            .status
                            .success()
                            .then_some(())
                    });
                    *ordered += 1;
                }
            }
            for child in &mut children {
                assert!(child.wait().unwrap().success(), "{what}");
            }
            let mut all = Vec::new();
            for harness in harnesses {
                assert_eq!(harness.messages("", "RangeUnavailable").len(), 0, "{what}");
                let ranges = ranges(harness);
                assert_eq!(ranges.len(), 24 + 3 + 8, "{what}");
                all.extend(ranges.into_iter().collect::<BTreeSet<_>>());
            }
            assert_disjoint(&all, 2 * 25, &what);
        });
    }
}

#[test]
fn what_a_daemon_has_is_nobody_elses_while_it_is_down_and_its_own_again_afterwards() {
    /// How the first daemon goes.
    type Go = fn(&mut Harness);
    const TABLE: [(&str, Go); 3] = [
        ("killed", Harness::kill),
        ("stopped", |harness| {
            harness.stop();
        }),
        ("killed, its state gone", |harness| {
            harness.kill();
            std::fs::remove_dir_all(harness.state().join("db")).unwrap();
        }),
    ];
    const BRIDGE: &str = "bridge: br0\ngateway: 10.55.0.1/24";
    for (what, go) in TABLE {
        with_daemon(|mut one| {
            let mut two = second();
            one.apply(&harness::slots(2, ""));
            one.apply(&bridge_group("web", 2, BRIDGE));
            go(&mut one);
            // As it is after a restart, too: claims are read, not remembered.
            two.restart();
            for (group, manifest) in [
                ("sandbox", harness::slots(1, "")),
                (
                    "other",
                    bridge_group("other", 1, "bridge: br1\ngateway: 10.55.0.1/24"),
                ),
            ] {
                let manifest = two.write("m.yaml", &manifest);
                two.ctl(&format!("apply -f {manifest}"));
                let reported = two.until(what, || {
                    two.messages(&format!("hg/{group}"), "RangeUnavailable")
                        .pop()
                });
                assert!(
                    reported.contains("claimed by another sliced") || reported.contains("overlaps"),
                    "{what}: {reported}"
                );
                two.ctl(&format!("delete hg {group} --wait=10s"));
            }
            // On the same bridge, with addresses of its own.
            two.apply(&bridge_group("beside", 2, BRIDGE));
            let mine = |harness: &Harness| -> Vec<String> {
                let leases = harness.get("leases");
                let items = leases["items"].as_array().unwrap().iter();
                items
                    .map(|lease| lease["ip"].as_str().unwrap().to_owned())
                    .collect()
            };
            let theirs = mine(&two);
            two.ctl("delete hg beside --wait=10s");
            one.start();
            one.ctl("wait hg/sandbox --for ready --timeout 20s");
            one.ctl("wait hg/web --for ready --timeout 20s");
            assert!(
                mine(&one).iter().all(|ip| !theirs.contains(ip)),
                "{what}: {theirs:?}"
            );
            assert_eq!(one.messages("", "RangeUnavailable").len(), 0, "{what}");
            assert_eq!(ranges(&one).len(), 4, "{what}");
            // What it gives up is anybody's.
            one.ctl("delete hg sandbox --wait=20s");
            two.apply(&harness::slots(1, ""));
        });
    }
}

#[test]
fn a_range_is_free_again_when_its_daemon_and_all_that_it_made_are_gone() {
    empty(|mut one| {
        one.start();
        one.apply(&harness::slots(1, ""));
        one.kill();
        let mut two = second();
        for dir in [one.state(), one.run.clone()] {
            std::fs::remove_dir_all(dir.join("db")).ok();
            std::fs::remove_file(dir.join("state.journal")).ok();
        }
        let manifest = two.write("m.yaml", &harness::slots(1, ""));
        two.ctl(&format!("apply -f {manifest}"));
        let reported = two.until("refused", || {
            two.messages("hg/sandbox", "RangeUnavailable").pop()
        });
        assert!(reported.contains("which does not run now"), "{reported}");
        two.ctl("delete hg sandbox --wait=10s");
        // The link of its VM was all that was left.
        for link in test_support::kernel::run("ls /sys/class/net").split_whitespace() {
            if link.starts_with("sl") {
                test_support::kernel::run(&format!("ip link del {link}"));
            }
        }
        two.restart();
        two.apply(&harness::slots(1, ""));
    });
}
