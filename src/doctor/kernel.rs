//! Checks the features of the kernel: namespaces, links, and the packet filter matches and targets that our rules use.
//! Out of scope: the configuration of this host.
//!
//! # Why features are tried
//! `/proc/net/ip_tables_matches` lists only loaded modules, and the kernel loads a match when a rule first uses it. So one rule of
//! each kind is committed in a temporary network namespace.

use std::fs::OpenOptions;

use super::{Host, fail, ok, run_program, unseen, warn};
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::{conntrack, sysctl};

pub(super) const NAMESPACES: &str = "network namespaces";
pub(super) const TUN: &str = "/dev/net/tun";
pub(super) const CONNTRACK: &str = "connection tracking";
const IPV6: &str = "IPv6";
/// Required by bridge mode.
const BRIDGES: &str = "bridges";
/// Required by the anti-spoofing of bridge mode and the redirect of cni mode.
const FILTERS: &str = "traffic filters";

/// Prints one line per feature: `FEATURE yes` or `FEATURE no REASON`. Commits all rules in one process first; only if that fails, each
/// rule separately, to find the missing features. `-w 1`: wait a second for the lock of the legacy back end.
const SCRIPT: &str = r#"
echo 'namespace yes'
try() {
    feature=$1; shift
    if said=$("$@" 2>&1); then echo "$feature yes"; else echo "$feature no" $said; fi
}
setting() {
    for key in ipv4/ip_forward ipv4/conf/lo/rp_filter ipv6/conf/lo/disable_ipv6; do
        path=/proc/sys/net/$key
        [ ! -e $path ] || echo 1 >$path || return 1
    done
}
try setting setting
if command -v ip >/dev/null; then
    try veth ip link add v0 type veth peer name v1
    try tap ip tuntap add t0 mode tap
    try bridge ip link add b0 type bridge
fi
if command -v tc >/dev/null; then
    hook() { tc qdisc add dev lo clsact; }
    program() { tc filter add dev lo ingress prio 1 protocol all bpf da bytecode '1,6 0 0 0'; }
    redirect() { tc filter add dev lo ingress prio 2 protocol all u32 match u32 0 0 action mirred egress redirect dev lo; }
    try sch_ingress hook
    try cls_bpf program
    try mirred redirect
fi
all=yes
if ! command -v iptables >/dev/null || ! command -v iptables-restore >/dev/null; then
    exit 0
fi
commit() {
    feature=$1 table=$2; shift 2
    case $all in
        yes) echo "*$table"; echo "-A $*"; echo COMMIT;;
        no) try $feature iptables -w 1 -t $table -A "$@";;
    esac
}
rules() {
    commit comment filter FORWARD -m comment --comment trial
    commit conntrack filter FORWARD -m conntrack --ctstate ESTABLISHED,RELATED
    commit addrtype filter FORWARD -m addrtype --dst-type LOCAL
    commit mac filter FORWARD -m mac --mac-source 02:00:00:00:00:01
    commit devgroup mangle FORWARD -m devgroup --src-group 0x1 -j DROP
    commit REJECT filter FORWARD -p tcp -j REJECT --reject-with tcp-reset
    commit TCPMSS mangle FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    commit MASQUERADE nat POSTROUTING -j MASQUERADE
    commit raw raw PREROUTING -j DROP
    commit connlimit mangle PREROUTING -m conntrack ! --ctstatus CONFIRMED -m connlimit --connlimit-above 9 --connlimit-mask 30 --connlimit-saddr -j DROP
    commit hashlimit mangle PREROUTING -m hashlimit --hashlimit-above 9/sec --hashlimit-mode srcip --hashlimit-name slice-trial -j DROP
    commit limit filter FORWARD -m limit --limit 10/sec -j ACCEPT
    commit CT raw PREROUTING -p tcp -j CT
}
if rules | iptables-restore -w 1 --noflush 2>/dev/null; then
    for feature in comment conntrack addrtype mac devgroup REJECT TCPMSS MASQUERADE raw connlimit hashlimit limit CT; do
        echo "$feature yes"
    done
else
    all=no
    rules
fi
"#;

/// Features that are tried: name in [`SCRIPT`], check, kernel options.
const FEATURES: [(&str, &str, &str); 19] = [
    ("veth", "veth links", "CONFIG_VETH"),
    ("tap", "TAP links", "CONFIG_TUN"),
    ("bridge", BRIDGES, "CONFIG_BRIDGE"),
    ("sch_ingress", FILTERS, "CONFIG_NET_SCH_INGRESS"),
    ("cls_bpf", FILTERS, "CONFIG_NET_CLS_BPF"),
    (
        "mirred",
        FILTERS,
        "CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED (act_mirred)",
    ),
    (
        "comment",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_COMMENT (xt_comment)",
    ),
    (
        "conntrack",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_CONNTRACK (xt_conntrack)",
    ),
    (
        "addrtype",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE (xt_addrtype)",
    ),
    ("mac", "netfilter", "CONFIG_NETFILTER_XT_MATCH_MAC (xt_mac)"),
    (
        "devgroup",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_DEVGROUP (xt_devgroup)",
    ),
    (
        "REJECT",
        "netfilter",
        "CONFIG_IP_NF_TARGET_REJECT (ipt_REJECT)",
    ),
    (
        "TCPMSS",
        "netfilter",
        "CONFIG_NETFILTER_XT_TARGET_TCPMSS (xt_TCPMSS)",
    ),
    (
        "MASQUERADE",
        "netfilter",
        "CONFIG_NETFILTER_XT_TARGET_MASQUERADE (xt_MASQUERADE)",
    ),
    ("raw", "netfilter", "CONFIG_IP_NF_RAW (iptable_raw)"),
    (
        "connlimit",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_CONNLIMIT (xt_connlimit, nf_conncount)",
    ),
    (
        "hashlimit",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_HASHLIMIT (xt_hashlimit)",
    ),
    (
        "limit",
        "netfilter",
        "CONFIG_NETFILTER_XT_MATCH_LIMIT (xt_limit)",
    ),
    ("CT", "netfilter", "CONFIG_NETFILTER_XT_TARGET_CT (xt_CT)"),
];

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let trial = ["unshare", "--net", "sh", "-c", SCRIPT];
    let (trial, observed) = tokio::join!(run_program(&trial), cx.home.run(|| Ok(observe())));
    let mut checks = match trial {
        Ok(output) => evaluate_trial(&output),
        Err(error) => vec![unseen(NAMESPACES, &error_chain(&error))],
    };
    match observed {
        Ok(here) => checks.extend([
            evaluate_tun(&here.tun),
            evaluate_conntrack(&here.flows),
            evaluate_ipv6(here.ipv6),
        ]),
        Err(error) => checks.push(unseen(TUN, &error_chain(&error))),
    }
    checks
}

/// Observations that need no temporary namespace.
struct Observed {
    tun: Result<(), String>,
    flows: Result<u32, String>,
    ipv6: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Present,
    Absent,
}

fn observe() -> Observed {
    // Opening does not create a link: that needs TUNSETIFF.
    let tun = OpenOptions::new().read(true).write(true).open(TUN);
    Observed {
        tun: tun.map(drop).map_err(|e| e.to_string()),
        flows: conntrack::count().map_err(|e| error_chain(&e)),
        ipv6: match sysctl::read("net.ipv6.conf.all.disable_ipv6") {
            Ok(_) => Protocol::Present,
            Err(_) => Protocol::Absent,
        },
    }
}

fn evaluate_trial(output: &str) -> Vec<Check> {
    let result_of = |feature: &str| {
        output.lines().find_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            (name == feature).then_some(rest)
        })
    };
    if result_of("namespace") != Some("yes") {
        let remedy = "Run sliced as root (CAP_SYS_ADMIN) on a kernel with CONFIG_NET_NS, outside of a container that blocks unshare(2).";
        return vec![fail(NAMESPACES, "cannot create one", remedy)];
    }
    let mut checks = vec![match result_of("setting") {
        None | Some("yes") => ok(NAMESPACES, "a network namespace was created"),
        Some(message) => settings_not_writable(message),
    }];
    for name in ["veth links", "TAP links", BRIDGES, FILTERS, "netfilter"] {
        let parts = FEATURES.iter().filter(|(_, check, _)| *check == name);
        let parts: Vec<_> = parts
            .map(|(feature, _, option)| (*feature, *option, result_of(feature)))
            .collect();
        checks.push(evaluate_features(name, &parts));
    }
    checks
}

/// In a container, `/proc/sys` is usually read-only, also for the settings of new namespaces.
fn settings_not_writable(message: &str) -> Check {
    // The shell's message begins with its name and the line number.
    let reason = message
        .split_once("create ")
        .map_or(message, |(_, why)| why);
    fail(
        NAMESPACES,
        format!(
            "cannot write settings in a new namespace: {}",
            reason.trim_start_matches("no ")
        ),
        "Make /proc/sys writable for sliced: start it outside of a container, or with `--privileged` or `--security-opt \
         systempaths=unconfined`, and without ProtectKernelTunables= in its unit.",
    )
}

/// Evaluates a check from its parts: feature, kernel option, result.
fn evaluate_features(name: &str, parts: &[(&str, &str, Option<&str>)]) -> Check {
    let failed = |part: &&(&str, &str, Option<&str>)| part.2.is_some_and(|result| result != "yes");
    let missing: Vec<_> = parts.iter().filter(failed).collect();
    let tried: Vec<_> = parts
        .iter()
        .filter(|part| part.2.is_some())
        .map(|part| part.0)
        .collect();
    if let Some((feature, _, explanation)) = missing.first() {
        let names: Vec<_> = missing.iter().map(|part| part.0).collect();
        let options: Vec<_> = missing.iter().map(|part| part.1).collect();
        let message = explanation.unwrap_or_default().trim_start_matches("no ");
        return fail(
            name,
            format!("does not work: {} ({feature}: {message})", names.join(", ")),
            format!(
                "Use a kernel with {}, or load the module.",
                options.join(", ")
            ),
        );
    }
    if tried.len() < parts.len() {
        return warn(
            name,
            format!(
                "only {} of {} features could be tried",
                tried.len(),
                parts.len()
            ),
            "Install iproute2 and iptables, then run slicectl doctor again.",
        );
    }
    ok(name, format!("works: {}", tried.join(", ")))
}

fn evaluate_tun(opened: &Result<(), String>) -> Check {
    match opened {
        Ok(()) => ok(TUN, "opens"),
        Err(error) => fail(
            TUN,
            format!("cannot be opened: {error}"),
            "Load the driver: `modprobe tun`; where the file is missing: `mkdir -p /dev/net && mknod /dev/net/tun c 10 200`.",
        ),
    }
}

fn evaluate_conntrack(count: &Result<u32, String>) -> Check {
    match count {
        Ok(count) => ok(CONNTRACK, format!("on, {count} flows")),
        Err(error) => fail(
            CONNTRACK,
            format!("missing: {error}"),
            "Load it: `modprobe nf_conntrack nf_conntrack_netlink`; without it no replies reach VMs.",
        ),
    }
}

fn evaluate_ipv6(protocol: Protocol) -> Check {
    match protocol {
        Protocol::Present => ok(IPV6, "supported; disabled and blocked in VMs' namespaces"),
        Protocol::Absent => ok(IPV6, "not supported by the kernel: nothing to block"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;

    fn all_but(broken: &str, result: &str) -> String {
        let lines = FEATURES.map(|(feature, _, _)| match feature == broken {
            true => format!("{feature} {result}"),
            false => format!("{feature} yes"),
        });
        format!("namespace yes\n{}\n", lines.join("\n"))
    }

    #[test]
    fn every_feature_is_tried() {
        for (feature, _, _) in FEATURES {
            assert!(
                SCRIPT.contains(&format!("try {feature} "))
                    || SCRIPT.contains(&format!("commit {feature} ")),
                "{feature}"
            );
        }
    }

    #[test]
    fn a_kernel_with_all_features_is_ok() {
        let checks = evaluate_trial(&all_but("", ""));
        assert!(
            checks.iter().all(|check| check.status == CheckStatus::Ok),
            "{checks:?}"
        );
    }

    #[test]
    fn a_missing_match_is_named_with_the_error_and_its_module() {
        let checks = evaluate_trial(&all_but(
            "addrtype",
            "no Extension addrtype revision 0 not supported",
        ));
        let broken: Vec<_> = checks
            .iter()
            .filter(|c| c.status == CheckStatus::Fail)
            .collect();
        assert_eq!(broken.len(), 1);
        assert_eq!(
            broken[0].found,
            "does not work: addrtype (addrtype: Extension addrtype revision 0 not supported)"
        );
        assert!(broken[0].remedy.contains("xt_addrtype"));
    }

    #[test]
    fn features_that_were_not_tried_are_not_reported_as_missing() {
        let checks = evaluate_trial("namespace yes\nveth yes\ntap yes\nbridge yes\n");
        let verdicts: Vec<_> = checks.iter().map(|check| check.status).collect();
        use CheckStatus::{Ok, Warn};
        assert_eq!(verdicts, [Ok, Ok, Ok, Ok, Warn, Warn]);
    }

    #[test]
    fn settings_that_cannot_be_written_are_a_failure() {
        let result = "no sh: 8: cannot create /proc/sys/net/ipv4/ip_forward: Read-only file system";
        let output = all_but("", "").replace(
            "namespace yes\n",
            &format!("namespace yes\nsetting {result}\n"),
        );
        let checks = evaluate_trial(&output);
        assert_eq!(checks[0].status, CheckStatus::Fail);
        assert!(
            checks[0]
                .found
                .ends_with("namespace: /proc/sys/net/ipv4/ip_forward: Read-only file system"),
            "{}",
            checks[0].found
        );
        assert!(
            checks[1..]
                .iter()
                .all(|check| check.status == CheckStatus::Ok)
        );
    }

    #[test]
    fn without_namespaces_nothing_else_is_reported() {
        let checks = evaluate_trial("");
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].status, CheckStatus::Fail);
    }

    #[test]
    fn devices_that_cannot_be_opened_come_with_the_command_that_loads_them() {
        let check = evaluate_tun(&Err("No such file or directory".into()));
        assert_eq!(check.status, CheckStatus::Fail);
        assert!(check.remedy.contains("modprobe tun"));
        let check = evaluate_conntrack(&Err("entity not found".into()));
        assert_eq!(check.status, CheckStatus::Fail);
        assert_eq!(evaluate_conntrack(&Ok(3)).status, CheckStatus::Ok);
        assert_eq!(evaluate_ipv6(Protocol::Absent).status, CheckStatus::Ok);
    }
}
