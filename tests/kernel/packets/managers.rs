//! The real network managers and firewalls of Debian beside VMs of every mode: they leave our links alone, and where one of them keeps VMs'
//! packets from passing, that is reported until it is opened.
//! Out of scope: chains written by hand (`foreign_chains`).

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use slicectl::host::tap::Framing;

use test_support::frames::{self, ICMP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Ping;
use test_support::harness::Harness;
use test_support::kernel::run;
use test_support::lab::{INTERNET, Lab, lab_with};
use test_support::managers::Managers;

const BOUND: Duration = Duration::from_secs(2);
const WEB: &str = "bridge: slbr0\ntap_prefix: tp\ngateway: 192.168.137.1/24";
const MORE: &str = "bridge: other-br\ntap_prefix: more\ngateway: 192.168.139.1/24";

const PODS: &str = "config:\n  network_name: pods\n  host_groups:\n    - {name: pod, count: 1, hypervisor: none}\n";
const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni-pods", "isGateway": true, "ipMasq": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

/// A lab in which the managers may be started.
fn managed(test: impl FnOnce(&Lab, Managers) + Send) {
    let unpacked = std::sync::Mutex::new(None);
    let before = |harness: &mut Harness| {
        *unpacked.lock().unwrap() = Some(Managers::unpacked());
        run("mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni");
        let conf = harness.dir.path().join("net.d");
        std::fs::create_dir(&conf).unwrap();
        std::fs::write(conf.join("10-pods.conflist"), CONFLIST).unwrap();
        let conf = conf.display().to_string();
        harness.env.push(("SLICE_CNI_CONF_DIR", conf));
        harness.env.push(("CNI_PATH", "/usr/lib/cni".to_owned()));
    };
    lab_with(before, |lab| {
        let managers = unpacked.lock().unwrap().take().unwrap();
        test(lab, managers);
    });
}

fn answered(lab: &Lab, guest: &Guest, to: Ipv4Addr) -> bool {
    let id = lab.probe(guest, to, Ping);
    let answer = guest.receive_packet(Duration::from_millis(300), |seen| {
        // A refusal holds what it refuses.
        let is_reply = seen.protocol == ICMP && seen.payload.first() == Some(&0);
        is_reply && seen.source == to && frames::marked(&seen.payload) == Some(id)
    });
    answer.is_some()
}

fn both(lab: &Lab) -> [Guest; 2] {
    lab.apply(1, "allow: []");
    lab.apply_bridge("web", 1, WEB);
    [lab.guest(1, Framing::Plain), lab.port("web-1")]
}

fn check(lab: &Lab, name: &str) -> Value {
    let text = lab.harness.try_ctl("doctor -o json").stdout;
    let checks: Value = serde_json::from_slice(&text).unwrap();
    let checks = checks.as_array().or(checks["items"].as_array()).unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found
        .unwrap_or_else(|| panic!("{name}: {checks:#?}"))
        .clone()
}

fn warned(lab: &Lab, object: &str) -> String {
    let found = lab.harness.get(object);
    let conditions = found["status"]["conditions"].as_array().unwrap();
    let of_host = conditions.iter().find(|c| c["type"] == "HostNetwork");
    of_host.map_or(String::new(), |c| c["message"].as_str().unwrap().to_owned())
}

/// Masters and addresses of our links, with their indices, so that a link that was made again differs.
fn links() -> String {
    run("ip -o link | grep -E ': (sl|tp|more|other)' | sed -E 's/^([0-9]+: [^:]+):.*( master [^ ]+).*/\\1\\2/; s/ (qdisc|state|mode|mtu|group|qlen) [^ ]+//g; s/<[^>]*>//'
         ip -o addr | grep -E ' (sl|tp|more|other)[^ ]* ' | sed 's/ *valid_lft.*//'")
}

#[test]
fn networkd_with_files_for_every_link_leaves_ours_alone_whenever_it_starts() {
    managed(|lab, mut managers| {
        let guests = both(lab);
        // Everybody's links: as DHCP client, and as ports of a bridge.
        run("mkdir -p /run/systemd/network
             printf '[NetDev]\\nName=br9\\nKind=bridge\\n' > /run/systemd/network/10-br9.netdev
             printf '[Match]\\nKind=veth\\nName=!lan0 wan0 ctr0\\n\\n[Network]\\nBridge=br9\\n' > /run/systemd/network/80-guests.network
             printf '[Match]\\nName=!lo lan0 wan0 ctr0 canary0\\n\\n[Network]\\nDHCP=ipv4\\n' > /run/systemd/network/99-all.network");
        let before = links();
        let rests = |what: &str| {
            for _ in 0..10 {
                assert_eq!(links(), before, "{what}");
                std::thread::sleep(Duration::from_millis(100));
            }
            for guest in &guests {
                assert!(answered(lab, guest, INTERNET), "{what}");
            }
        };
        for round in 0..3 {
            let networkd = managers.networkd();
            rests("networkd has started");
            let list = run("networkctl --no-pager --no-legend list");
            for line in list.lines() {
                let name = line.split_whitespace().nth(1).unwrap();
                let is_ours =
                    name.starts_with("slbr0") || name.starts_with("sl") || name.starts_with("tp");
                assert!(!is_ours || line.trim_end().ends_with("unmanaged"), "{line}");
            }
            assert!(list.contains("br9"), "networkd does nothing at all: {list}");
            let check = check(lab, "systemd-networkd");
            assert_eq!(check["verdict"], "ok", "{check}");
            if round < 2 {
                managers.stop(networkd);
            }
        }
        // Groups that come while it runs.
        lab.apply_bridge("late", 2, MORE);
        lab.harness.until("the links are unmanaged", || {
            let list = run("networkctl --no-pager --no-legend list");
            let late = list
                .lines()
                .filter(|line| line.contains("other-br") || line.contains(" more"));
            let late: Vec<&str> = late.collect();
            let unmanaged = late
                .iter()
                .all(|line| line.trim_end().ends_with("unmanaged"));
            (late.len() == 3 && unmanaged).then_some(())
        });
        assert_eq!(lab.harness.messages("", "Drift"), [""; 0]);
        // What is reported if the file is removed.
        run("rm /run/systemd/network/05-slice-*");
        let reported = check(lab, "systemd-networkd");
        assert_eq!(reported["verdict"], "warn", "{reported}");
        for name in ["slbr0", "tp0", "other-br", "more0"] {
            assert!(
                reported["found"].as_str().unwrap().contains(name),
                "{reported}"
            );
        }
        lab.harness.ctl("delete hg/late --wait");
        lab.harness.within(BOUND, "the file is written again", || {
            let text = run("cat /run/systemd/network/05-slice-*");
            (text.contains("Name=slbr0") && !text.contains("other-br")).then_some(())
        });
    });
}

#[test]
fn network_manager_leaves_our_links_alone_whenever_it_starts() {
    managed(|lab, mut managers| {
        let guests = both(lab);
        // What Debian's package does not do: every link is NetworkManager's.
        run("mkdir -p /etc/NetworkManager/conf.d
             printf '[main]\\nplugins=keyfile\\ndhcp=internal\\n\\n[keyfile]\\nunmanaged-devices=interface-name:lan0;interface-name:wan0;interface-name:ctr0;interface-name:canary0\\n' > /etc/NetworkManager/NetworkManager.conf
             ip link add stranger type veth peer name stranger1");
        let before = links();
        for _ in 0..2 {
            let nm = managers.network_manager();
            std::thread::sleep(Duration::from_secs(1));
            let states = run("nmcli -t -f DEVICE,STATE device");
            let of = |name: &str| {
                let line = states.lines().find(|line| line.starts_with(name));
                line.unwrap_or_else(|| panic!("{name}: {states}"))
                    .to_owned()
            };
            for name in ["slbr0:", "tp0:", "sl"] {
                assert!(of(name).ends_with(":unmanaged"), "{states}");
            }
            assert!(!of("stranger:").ends_with(":unmanaged"), "{states}");
            assert_eq!(links(), before);
            for guest in &guests {
                assert!(answered(lab, guest, INTERNET));
            }
            let check = check(lab, "NetworkManager");
            assert_eq!(check["verdict"], "ok", "{check}");
            managers.stop(nm);
        }
        managers.network_manager();
        lab.apply_bridge("late", 1, MORE);
        lab.harness.until("it knows the new links", || {
            let states = run("nmcli -t -f DEVICE,STATE device");
            let both = states.contains("other-br:") && states.contains("more0:");
            both.then_some(states)
        });
        // It must not take them over later either.
        std::thread::sleep(Duration::from_secs(1));
        let states = run("nmcli -t -f DEVICE,STATE device");
        for name in ["other-br:unmanaged", "more0:unmanaged"] {
            assert!(states.contains(name), "{states}");
        }
        // When it lets go of a link it resets settings of IPv6 there, which are set back.
        lab.harness
            .ctl("wait hg/sandbox hg/web hg/late --for ready --timeout 20s");
        // A file of the administrator in /etc has precedence over ours: doctor reports that, and how to undo it.
        run(
            "printf '[device-all]\\nmatch-device=*\\nmanaged=1\\n' > /etc/NetworkManager/conf.d/10-all.conf; nmcli general reload conf",
        );
        let reported = check(lab, "NetworkManager");
        assert_eq!(reported["verdict"], "warn", "{reported}");
        assert!(
            reported["found"].as_str().unwrap().contains("10-all.conf"),
            "{reported}"
        );
        run(reported["remedy"]
            .as_str()
            .unwrap()
            .split('`')
            .nth(1)
            .unwrap());
        assert_eq!(check(lab, "NetworkManager")["verdict"], "ok");
        lab.harness.until("they are left alone again", || {
            let states = run("nmcli -t -f DEVICE,STATE device");
            let left = ["slbr0:unmanaged", "tp0:unmanaged", "more0:unmanaged"];
            left.iter().all(|name| states.contains(name)).then_some(())
        });
    });
}

#[test]
fn firewalld_is_reported_on_the_vms_that_it_rejects_until_doctors_remedy_is_applied() {
    managed(|lab, mut managers| {
        let guests = both(lab);
        lab.harness.save("pods.yaml", PODS);
        lab.harness.ctl("wait hg/pod --for ready --timeout 30s");
        let pod = lab.harness.get("vm pod-1");
        let pod_ip = pod["status"]["network"]["ip"].as_str().unwrap().to_owned();
        let objects = [
            "vm sandbox-1",
            "hg sandbox",
            "vm web-1",
            "hg web",
            "vm pod-1",
            "hg pod",
        ];
        for object in objects {
            assert_eq!(warned(lab, object), "", "{object}");
        }
        // It flushes the tables of iptables when it starts, everybody's rules.
        let canaries =
            run("iptables-save | grep -iE '^([*:]|-A|COMMIT).*(canary|192.0.2)|^[*]|^COMMIT'");
        managers.firewalld();
        for guest in &guests {
            assert!(!answered(lab, guest, INTERNET));
        }
        for object in objects {
            lab.harness.within(BOUND, object, || {
                warned(lab, object).contains("inet firewalld").then_some(())
            });
        }
        let reported = check(lab, "other forward filters");
        let remedy = reported["remedy"].as_str().unwrap();
        for part in [
            "--add-interface=sl",
            "--add-interface=slbr0",
            "--add-source=10.99.0.0/24",
        ] {
            assert!(remedy.contains(part), "{remedy}");
        }
        for command in remedy.split('`').skip(1).step_by(2) {
            run(command);
        }
        for object in objects {
            lab.harness.within(BOUND, object, || {
                warned(lab, object).is_empty().then_some(())
            });
        }
        for guest in &guests {
            assert!(answered(lab, guest, INTERNET), "{remedy}");
        }
        let reported = check(lab, "other forward filters");
        assert_eq!(reported["verdict"], "ok", "{reported}");
        for part in ["slbr0", "10.99.0.0/24"] {
            assert!(
                reported["found"].as_str().unwrap().contains(part),
                "{reported}"
            );
        }
        // With one of the remedies taken back, the others stay open.
        run("firewall-cmd --zone=trusted --remove-interface=slbr0");
        lab.harness.within(BOUND, "the bridge alone", || {
            (warned(lab, "vm web-1").contains("firewalld")
                && warned(lab, "vm sandbox-1").is_empty())
            .then_some(())
        });
        assert!(answered(lab, &guests[0], INTERNET) && !answered(lab, &guests[1], INTERNET));
        // Whoever binds the uplink to a zone opens all of them: nobody is warned in vain.
        run("firewall-cmd --zone=public --add-interface=wan0");
        lab.harness.within(BOUND, "the uplink's zone", || {
            warned(lab, "vm web-1").is_empty().then_some(())
        });
        assert!(answered(lab, &guests[1], INTERNET), "{pod_ip}");
        run(&format!("echo '{canaries}' | iptables-restore -n"));
    });
}

#[test]
fn ufw_with_its_defaults_stops_no_vm_and_none_is_warned() {
    managed(|lab, managers| {
        let guests = both(lab);
        // What the package does when it is installed.
        run(
            "cp /usr/share/ufw/*.init /usr/share/ufw/ufw.conf /usr/share/ufw/iptables/*.rules /etc/ufw/
             ufw --force enable",
        );
        for step in [
            "ufw default deny routed",
            "ufw reload",
            "ufw default reject routed",
        ] {
            run(step);
            lab.harness.until("our jumps are first", || {
                let passes = guests.iter().all(|guest| answered(lab, guest, INTERNET));
                passes.then_some(())
            });
            assert_eq!(warned(lab, "vm sandbox-1") + &warned(lab, "vm web-1"), "");
            let check = check(lab, "FORWARD chain");
            assert_eq!(check["verdict"], "ok", "{check}");
            assert!(check["found"].as_str().unwrap().contains("ufw"), "{check}");
        }
        run("ufw disable");
        drop(managers);
    });
}
