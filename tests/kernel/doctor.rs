//! What `doctor` says of hosts that are private kernels.
//! Out of scope: judging without a kernel, see the tests in `src/doctor`.

use std::time::{Duration, Instant};

use slicectl::api::view::{Check, CheckStatus};
use slicectl::doctor::{self, Examiner, Host};
use slicectl::host::netns::Netns;
use slicectl::owner::Instance;
use slicectl::reconcile::host_network::unmanaged::{OurLinks, write_unmanaged};
use test_support::kernel;
use test_support::programs::{assert_passes, this_test};

fn instance() -> Instance {
    Instance::of("/var/lib/slice".as_ref())
}

fn links() -> OurLinks {
    OurLinks {
        veth_prefix: instance().link_prefix(),
        ..OurLinks::default()
    }
}

fn host() -> Host {
    Host {
        examiner: Examiner::Daemon,
        home: Netns::current().unwrap(),
        instance: instance(),
        run_dir: "/run/slice".into(),
        config_dir: "/run/groups.d".into(),
        state_dir: "/var/lib/slice".into(),
        read_only: None,
        vmm_ids: Default::default(),
        allowed: Default::default(),
        cni: slicectl::cni::Runtime::new(),
        guarded: Vec::new(),
        links: links(),
    }
}

async fn examine() -> Vec<Check> {
    doctor::examine(&host()).await
}

fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let found = checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check `{name}` in {checks:#?}"))
}

/// What is there of the kernel's state that an examination might change by accident.
fn world() -> String {
    kernel::run(
        "ip -o link; ip -o addr; ip route; nft list ruleset; cat /proc/thread-self/net/ip_tables_names; \
         cat /proc/sys/net/ipv4/ip_forward; find /run | sort; grep -c . /proc/thread-self/mountinfo",
    )
}

#[test]
fn a_clean_host_has_no_failure_every_note_has_a_remedy_and_nothing_is_changed() {
    kernel::private(async {
        let before = world();
        let start = Instant::now();
        let checks = examine().await;
        let took = start.elapsed();
        assert_eq!(world(), before, "an examination changed something");
        assert!(took < Duration::from_secs(2), "took {took:?}");
        for check in &checks {
            assert_ne!(check.status, CheckStatus::Fail, "{check:#?}");
            assert_eq!(
                check.remedy.is_empty(),
                matches!(check.status, CheckStatus::Ok | CheckStatus::Skipped),
                "{check:#?}"
            );
            assert!(
                !check.found.is_empty() && !check.found.contains('\n'),
                "{check:#?}"
            );
        }
        for name in [
            "network namespaces",
            "veth links",
            "TAP links",
            "netfilter",
            "connection tracking",
            "iptables back end",
            "rules in one back end",
            "FORWARD chain",
            "other forward filters",
            "free ranges of 169.254.0.0/16",
        ] {
            assert_eq!(find(&checks, name).status, CheckStatus::Ok, "{checks:#?}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| &check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "two checks of one name");
    });
}

#[test]
fn forwarding_that_is_off_is_reported() {
    kernel::private(async {
        kernel::run("echo 0 > /proc/sys/net/ipv4/ip_forward");
        assert_eq!(
            find(&examine().await, "ip_forward").status,
            CheckStatus::Warn
        );
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        assert_eq!(find(&examine().await, "ip_forward").status, CheckStatus::Ok);
    });
}

#[test]
fn docker_is_named_and_a_rule_above_our_jump_is_reported() {
    kernel::private(async {
        kernel::run(
            "iptables -P FORWARD DROP
             iptables -N DOCKER-USER
             iptables -A DOCKER-USER -j RETURN
             iptables -N DOCKER
             iptables -A FORWARD -j DOCKER-USER
             iptables -A FORWARD -o docker0 -j DOCKER",
        );
        let checks = examine().await;
        let check = find(&checks, "FORWARD chain");
        assert_eq!(check.status, CheckStatus::Ok, "{check:#?}");
        assert!(
            check.found.contains("policy DROP") && check.found.contains("docker"),
            "{check:#?}"
        );

        let chain = instance().chain("FWD");
        kernel::run(&format!(
            "iptables -N {chain}; iptables -A FORWARD -j {chain}"
        ));
        let checks = examine().await;
        let check = find(&checks, "FORWARD chain");
        assert_eq!(check.status, CheckStatus::Warn, "{check:#?}");
        assert!(check.found.contains("2 foreign rule(s)"), "{check:#?}");

        kernel::run(&format!(
            "iptables -D FORWARD -j {chain}; iptables -I FORWARD -j {chain}"
        ));
        let checks = examine().await;
        let check = find(&checks, "FORWARD chain");
        assert_eq!(check.status, CheckStatus::Ok, "{check:#?}");
        assert!(check.found.contains("our jump is first"), "{check:#?}");
    });
}

#[test]
fn rules_in_both_back_ends_are_reported() {
    kernel::private(async {
        kernel::run("iptables-nft -A FORWARD -i eth7 -j ACCEPT");
        let name = "rules in one back end";
        assert_eq!(find(&examine().await, name).status, CheckStatus::Ok);
        // Tables without rules are no mixing: `iptables-legacy -L` is enough to make them.
        kernel::run("iptables-legacy -t nat -L");
        assert_eq!(find(&examine().await, name).status, CheckStatus::Ok);
        kernel::run(
            "iptables-legacy -A INPUT -i eth7 -j ACCEPT; iptables-legacy -t nat -A POSTROUTING -o eth7 -j MASQUERADE",
        );
        let checks = examine().await;
        let check = find(&checks, name);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(
            check
                .found
                .contains("nf_tables has filter, ip_tables has nat, filter"),
            "{check:#?}"
        );
        kernel::run("iptables-legacy -P FORWARD DROP");
        assert!(
            find(&examine().await, name)
                .found
                .contains("VMs reach nothing")
        );
    });
}

#[test]
fn commands_that_write_to_different_back_ends_are_reported() {
    // A program of the search path's own, in a kernel of its own: the variable is read when a program is looked up.
    let restore = "/usr/sbin/iptables-legacy-restore";
    let bin = tempfile::tempdir().unwrap();
    let bin = bin.path().display();
    let output = kernel::private_sync(|| {
        kernel::run(&format!("ln -s {restore} {bin}/iptables-restore"));
        let mut test = this_test(prints_the_back_end);
        let path = std::env::var("PATH").unwrap();
        test.env("PATH", format!("{bin}:{path}"))
            .env("DOCTOR_PRINTS", "1");
        assert_passes(test)
    });
    assert!(output.contains("warn: iptables-restore v"), "{output}");
    assert!(output.contains("write to different back ends"), "{output}");
}

/// Helps the test above, which needs a process with another `PATH`; by itself it checks the ordinary one.
#[test]
fn prints_the_back_end() {
    kernel::private(async {
        let checks = examine().await;
        let check = find(&checks, "iptables back end");
        match std::env::var_os("DOCTOR_PRINTS") {
            Some(_) => println!("{}: {}", check.status, check.found),
            None => assert_eq!(check.status, CheckStatus::Ok, "{check:#?}"),
        }
    });
}

#[test]
fn a_foreign_chain_that_drops_what_is_forwarded_is_reported_until_its_remedy_is_taken() {
    kernel::private(async {
        kernel::run(
            "nft 'add table inet mine; add chain inet mine forwarded { type filter hook forward priority 10; policy drop; }'",
        );
        let name = "other forward filters";
        let checks = examine().await;
        let check = find(&checks, name);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.found.contains("inet mine forwarded"), "{check:#?}");
        // As a person would paste it.
        kernel::run(check.remedy.split('`').nth(1).unwrap());
        assert_eq!(find(&examine().await, name).status, CheckStatus::Ok);
    });
}

#[test]
fn network_managers_are_configured_to_leave_our_links_alone_before_they_run() {
    kernel::private(async {
        let home = Netns::current().unwrap();
        // A process of that name is what is looked for; it lives in this namespace, and ends with the test.
        kernel::run("mkdir /run/p; cp $(command -v sleep) /run/p/NetworkManager");
        let start = || {
            let mut command = std::process::Command::new("/run/p/NetworkManager");
            command.arg("60").spawn().unwrap()
        };
        assert!(
            find(&examine().await, "NetworkManager")
                .found
                .contains("not running")
        );
        let mut program = start();
        let reported = find(&examine().await, "NetworkManager").clone();
        program.kill().unwrap();
        program.wait().unwrap();
        assert_eq!(reported.status, CheckStatus::Warn, "{reported:#?}");

        let written = write_unmanaged(&home, &links()).await.unwrap();
        assert_eq!(written.len(), 2, "one for each, though none runs");
        assert!(
            reported.remedy.contains(written[1].to_str().unwrap()),
            "{reported:#?}"
        );
        let again = write_unmanaged(&home, &links()).await.unwrap();
        assert!(again.is_empty(), "what is there is not written again");
        let mut program = start();
        let after = find(&examine().await, "NetworkManager").clone();
        program.kill().unwrap();
        program.wait().unwrap();
        assert_eq!(after.status, CheckStatus::Ok, "{after:#?}");

        let more = OurLinks {
            bridges: ["slbr0".to_owned()].into(),
            tap_prefixes: ["tp".to_owned()].into(),
            ..links()
        };
        assert_eq!(write_unmanaged(&home, &more).await.unwrap().len(), 2);
        kernel::run("rm /run/systemd/network/*");
        assert_eq!(write_unmanaged(&home, &more).await.unwrap().len(), 1);
    });
}

#[test]
fn ranges_in_use_on_the_host_are_not_counted_as_free() {
    kernel::private(async {
        kernel::run(
            "ip link add d0 type veth peer name d1; ip link set d1 up; ip addr add 169.254.100.1/24 dev d0; ip link set d0 up
             ip route add 169.254.16.0/20 dev d0",
        );
        let checks = examine().await;
        let found = &find(&checks, "free ranges of 169.254.0.0/16").found;
        // One /22 by the address; four by the route, of which two are never used anyway.
        assert!(found.starts_with("53 of 56"), "{found}");
    });
}
