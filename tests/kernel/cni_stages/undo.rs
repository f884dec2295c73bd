//! Whatever became of an attachment, it can be undone, and nothing of it is left.
//! Out of scope: crashes before each step (`crash`).

use serde_json::json;
use slicectl::api::meta::Uid;
use slicectl::reconcile::net::cni::sweep;

use crate::cni_stages::fixture::{Fixture, NETWORK, instance, ping};
use test_support::cni_networks::plugin_dirs;
use test_support::kernel;

/// What happens to an attachment before it is undone; commands of the host, `@NETNS` is the VM's namespace and `@RUN` its run
/// directory.
const DAMAGES: [(&str, &str); 13] = [
    ("nothing", "true"),
    ("the nat table is flushed", "iptables -t nat -F"),
    (
        "its chains are removed, too",
        "iptables -t nat -F; iptables -t nat -X",
    ),
    (
        "the filter table as well",
        "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X",
    ),
    ("nft flushes everything", "nft flush ruleset"),
    (
        "the jump to the masquerade chain is lost",
        "iptables -t nat -F POSTROUTING",
    ),
    (
        "the interface is deleted",
        "nsenter --net=@NETNS ip link del eth0",
    ),
    (
        "its addresses are flushed",
        "nsenter --net=@NETNS ip addr flush dev eth0",
    ),
    (
        "the interface is deleted and the rules are flushed",
        "nsenter --net=@NETNS ip link del eth0; nft flush ruleset",
    ),
    ("the namespace is lost", "umount @NETNS; rm @NETNS"),
    (
        "the namespace and the run directory are lost",
        "umount @NETNS; rm @NETNS; rm -r @RUN",
    ),
    (
        "the host reboots and keeps /var/lib",
        "umount @NETNS; rm @NETNS; rm -r @RUN; nft flush ruleset; ip link del cni0 2>/dev/null || true",
    ),
    ("the reservation is lost", "rm -f @DATA/net/10.7*"),
];

fn fixtures(plugins: &std::path::Path) -> Vec<(&'static str, Fixture)> {
    let with = |mut fixture: Fixture| {
        fixture.runtime.bin_dirs[1] = plugins.to_owned();
        fixture
    };
    vec![
        ("bridge", with(Fixture::bridge())),
        ("ptp", with(Fixture::ptp())),
    ]
}

fn damage(fixture: &Fixture, commands: &str) {
    let commands = commands
        .replace("@NETNS", &fixture.netns().display().to_string())
        .replace("@RUN", &fixture.desired.vm_dir().display().to_string())
        .replace("@DATA", &fixture.path("data").display().to_string());
    kernel::run(&commands);
}

/// What is left of attachments: chains that all of them share are nobody's leak.
fn leak(fixture: &Fixture) -> Vec<String> {
    let left = fixture.left().into_iter();
    left.filter(|left| {
        let shared = left.starts_with(":") && !left.starts_with(":CNI-")
            || [":CNI-FORWARD", ":CNI-ADMIN"]
                .iter()
                .any(|chain| left.starts_with(chain));
        let rule = left.starts_with("-A ") && !left.contains("10.7") && !left.contains("slice-");
        let file = left.ends_with("/lock") || left.contains("last_reserved");
        !(shared || rule || file || left == "0 veths" || left.contains("/canary"))
    })
    .collect()
}

/// As [`leak`], after the kernel had time to remove the veth of a namespace that has lost its last user (`cleanup_net`).
async fn last_leak(fixture: &Fixture) -> Vec<String> {
    for _ in 0..100 {
        if leak(fixture).is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    leak(fixture)
}

#[test]
fn an_attachment_is_undone_at_once_whatever_became_of_it() {
    for plugins in plugin_dirs() {
        for chain in 0..2 {
            for (what, commands) in DAMAGES {
                let plugins = &plugins;
                kernel::private(async move {
                    let (name, fixture) = fixtures(plugins).swap_remove(chain);
                    let case = format!("{}: {name}: {what}", plugins.display());
                    fixture
                        .up()
                        .await
                        .unwrap_or_else(|error| panic!("{case}: {error}"));
                    damage(&fixture, commands);
                    if let Err(error) = fixture.down().await {
                        panic!("{case}: {error}");
                    }
                    assert_eq!(last_leak(&fixture).await, [""; 0], "{case}");
                });
            }
        }
    }
}

/// How a plugin at the end of the chain fails at DEL, as a script or by its absence.
const FAILURES: [(&str, Option<&str>); 5] = [
    (
        "an error",
        Some(r#"echo '{"code":999,"msg":"I will not"}'; exit 1"#),
    ),
    (
        "try again later",
        Some(r#"echo '{"code":11,"msg":"I will not"}'; exit 1"#),
    ),
    ("nonsense", Some("echo I will not; exit 2")),
    ("death", Some("echo I will not >&2; kill -9 $$")),
    ("no program", None),
];

/// Passes on what it is given; at DEL does `how`.
fn stubborn(fixture: &Fixture, how: &str) {
    fixture.plugin(
        "stubborn",
        &format!(
            "#!/bin/sh\ncase $CNI_COMMAND in\nDEL) {how} ;;\n*) exec /usr/lib/cni/tuning ;;\nesac\n"
        ),
    );
}

/// A VM on a bridge, with a chain that cannot be undone from here on.
async fn with_a_stubborn_plugin(how: Option<&str>, last: bool) -> Fixture {
    let fixture = Fixture::new();
    let mut plugins = fixture.bridge_plugins();
    let place = if last { 2 } else { 1 };
    let chain = plugins.as_array_mut().unwrap();
    chain.insert(place, json!({"type": "stubborn"}));
    fixture.configure("1.0.0", &plugins);
    stubborn(&fixture, "exit 0");
    fixture.up().await.unwrap();
    match how {
        Some(how) => stubborn(&fixture, how),
        None => std::fs::remove_file(fixture.path("bin/stubborn")).unwrap(),
    }
    fixture
}

#[test]
fn a_deletion_completes_whatever_a_plugin_reports_and_what_it_owes_is_kept_for_the_sweep() {
    for (what, how) in FAILURES {
        for last in [true, false] {
            kernel::private(async move {
                let fixture = with_a_stubborn_plugin(how, last).await;
                let mut tries = 0;
                while let Err(error) = fixture.down().await {
                    tries += 1;
                    assert!(tries <= 5, "{what}: {error}");
                    assert!(
                        fixture.netns().exists(),
                        "{what}: it is kept while there is hope"
                    );
                }
                assert_eq!(tries, 5, "{what}");
                let received = fixture.calls().join("\n");
                assert!(received.starts_with("DetachFailed: "), "{what}: {received}");
                assert!(
                    how.is_none() || last || received.contains("stubborn"),
                    "{what}: {received}"
                );
                let left = leak(&fixture);
                assert_eq!(left.len(), 1, "{what}: {left:?}");
                assert!(left[0].contains("/slice/abandoned/"), "{what}: {left:?}");

                // A living VM's is not tried: its plugins would take away what it has by now.
                let uid = slicectl::owner::uid_of(&fixture.desired.label);
                let networks = [NETWORK.to_owned()];
                let alive = || [uid].into();
                let swept = sweep(&fixture.runtime, &instance(), &alive, &networks).await;
                assert_eq!(swept, Default::default(), "{what}");
                let nobody = || [Uid::random()].into();
                let swept = sweep(&fixture.runtime, &instance(), &nobody, &networks).await;
                assert_eq!((swept.failures.len(), leak(&fixture)), (1, left), "{what}");
                stubborn(&fixture, "exit 0");
                let swept = sweep(&fixture.runtime, &instance(), &nobody, &networks).await;
                assert_eq!(swept.failures, [""; 0], "{what}");
                assert_eq!(last_leak(&fixture).await, [""; 0], "{what}");
            });
        }
    }
}

#[test]
fn a_vm_that_is_desired_is_attached_again_after_as_many_tries() {
    for (what, how) in FAILURES.into_iter().filter(|(_, how)| how.is_some()) {
        kernel::private(async move {
            let fixture = with_a_stubborn_plugin(how, true).await;
            fixture.up().await.unwrap();
            let before = fixture.up().await.unwrap().0;
            fixture.inside("ip route flush dev eth0");
            let mut tries = 0;
            let again = loop {
                match fixture.up().await {
                    Ok((again, _)) => break again,
                    Err(error) => {
                        tries += 1;
                        assert!(tries <= 5, "{what}: {error}");
                    }
                }
            };
            assert_eq!(tries, 5, "{what}");
            assert_ne!(again.host_link, before.host_link, "{what}");
            ping(&again);
            stubborn(&fixture, "exit 0");
            fixture.down().await.unwrap();
            assert_eq!(last_leak(&fixture).await, [""; 0], "{what}");
        });
    }
}
