//! CNI: checks which networks are configured, whether their plugins are installed, and whether they can attach a VM now (STATUS).
//! Out of scope: attaching a VM.

use std::time::Duration;

use futures::{StreamExt, stream};

use super::{Host, ok, warn};
use crate::api::view::Check;
use crate::cni::{Error, Network, Runtime, Version};
use crate::host::error_chain;

const CNI: &str = "CNI networks";
const GC: &str = "CNI garbage collection";
const ABANDONED: &str = "CNI attachments not released";

/// The deadline of each plugin call in the STATUS check, unless the deadline of the runtime is shorter.
const PATIENCE: Duration = Duration::from_secs(5);

/// The deadline of STATUS of all plugins of one network.
const NETWORK_DEADLINE: Duration = Duration::from_secs(15);

/// How many networks are examined at the same time.
const CONCURRENCY: usize = 16;

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let networks = cx.cni.networks();
    let networks = networks.map_err(|error| error_chain(&error));
    let mut checks = vec![evaluate(&cx.cni, &networks).await];
    checks.extend(evaluate_gc(&cx.cni, &networks));
    checks.extend(evaluate_abandoned(cx));
    checks
}

/// Other runtimes do not see our attachments: when they run GC on a network (CNI 1.1.0 or later), its plugins remove every attachment
/// that is not listed, including ours.
fn evaluate_gc(runtime: &Runtime, networks: &Result<Vec<String>, String>) -> Option<Check> {
    let names = networks.as_ref().ok()?.iter();
    let found = names.filter_map(|name| runtime.find(name).ok());
    let is_exposed = |network: &Network| {
        !network.disable_gc && network.versions.last() >= Some(&Version::V1_1_0)
    };
    let exposed: Vec<String> = found.filter(is_exposed).map(|it| it.name).collect();
    (!exposed.is_empty()).then(|| {
        warn(
            GC,
            format!(
                "{}: if another runtime on this host runs GC, the plugins remove our VMs' attachments",
                exposed.join(", ")
            ),
            "If another CNI runtime uses this directory, add \"disableGC\": true to the network.",
        )
    })
}

/// Attachments that plugins failed to release.
fn evaluate_abandoned(cx: &Host) -> Option<Check> {
    let abandoned = cx.cni.abandoned().ok()?;
    let ours = abandoned.iter().filter(|it| {
        cx.instance
            .uid_from_container_id(&it.attachment.container_id)
            .is_some()
    });
    let names: Vec<String> = ours
        .map(|it| format!("{} on {}", it.attachment.container_id, it.network))
        .collect();
    (!names.is_empty()).then(|| {
        warn(
            ABANDONED,
            format!("plugins failed to release {}", names.join(", ")),
            "slicectl gc runs DEL again and reports the plugins' errors; sliced retries at each resync.",
        )
    })
}

async fn evaluate(runtime: &Runtime, networks: &Result<Vec<String>, String>) -> Check {
    let folder = runtime.conf_dir.display();
    let names = match networks {
        Ok(names) if names.is_empty() => {
            let found = format!("none in {folder}: `network_name` cannot be used in manifests");
            return ok(CNI, found);
        }
        Ok(names) => names,
        Err(error) => {
            let remedy = "Fix the file; networks in other files still work.";
            return warn(CNI, error.clone(), remedy);
        }
    };
    let examined =
        stream::iter(names.clone()).map(|name| async move { examine(runtime, &name).await });
    let examined: Vec<NetworkStatus> = examined.buffered(CONCURRENCY).collect().await;
    let (mut lacking, mut unable) = (Vec::new(), Vec::new());
    for network in examined {
        lacking.extend(network.lacking);
        unable.extend(network.status_error);
    }
    let found = names.join(", ");
    let problems = [lacking.as_slice(), unable.as_slice()].concat();
    let but = format!("{found}, but: {}", problems.join("; "));
    match (lacking.is_empty(), unable.is_empty()) {
        (true, true) => ok(CNI, format!("{found}, with their plugins")),
        (false, _) => warn(
            CNI,
            but,
            "Install the plugins (on Debian: apt-get install containernetworking-plugins), or set CNI_PATH to their directory.",
        ),
        (true, false) => warn(
            CNI,
            but,
            "Fix what the plugin reports. Code 50: no VM can be attached. Code 51: attached VMs may have limited connectivity, too.",
        ),
    }
}

/// Why a network cannot be used.
#[derive(Default)]
struct NetworkStatus {
    /// Plugins that are not installed, or why the configuration cannot be used.
    lacking: Vec<String>,
    /// The error of STATUS.
    status_error: Option<String>,
}

async fn examine(runtime: &Runtime, name: &str) -> NetworkStatus {
    let network = match runtime.find(name) {
        Ok(network) => network,
        Err(error) => {
            return NetworkStatus {
                lacking: vec![error_chain(&error)],
                ..NetworkStatus::default()
            };
        }
    };
    let lacking = runtime.missing_plugins(&network);
    if !lacking.is_empty() {
        return NetworkStatus {
            lacking,
            ..NetworkStatus::default()
        };
    }
    let unable = match tokio::time::timeout(NETWORK_DEADLINE, status(runtime, &network)).await {
        Ok(status) => status.err().map(|error| error_chain(&error)),
        Err(_) => Some(format!(
            "the plugins of {name} did not answer STATUS within {}",
            humantime::format_duration(NETWORK_DEADLINE)
        )),
    };
    NetworkStatus {
        lacking: Vec::new(),
        status_error: unable,
    }
}

/// Runs STATUS, which networks before version 1.1.0 do not support: for those it returns `Ok`.
async fn status(runtime: &Runtime, network: &Network) -> Result<(), Error> {
    if !network
        .versions
        .iter()
        .any(|version| version.has_gc_and_status())
    {
        return Ok(());
    }
    let mut runtime = runtime.clone();
    runtime.deadline = PATIENCE.min(runtime.deadline);
    let network = runtime.negotiate(network).await?;
    runtime.status(&network).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::view::CheckStatus;

    /// Answers STATUS with the code in the file `code` in its own directory.
    const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
STATUS)
    code=$(cat "$(dirname "$0")/code")
    [ "$code" = 0 ] && exit 0
    [ "$code" = hang ] && exec sleep 600
    echo "{\"cniVersion\":\"1.1.0\",\"code\":$code,\"msg\":\"no controller\",\"details\":\"it is down\"}"
    exit 1 ;;
esac
"#;

    /// A runtime whose configuration and plugins are in this directory.
    fn runtime_in(dir: &Path) -> Runtime {
        let mut runtime = Runtime::new();
        runtime.conf_dir = dir.to_owned();
        runtime.bin_dirs = vec![dir.to_owned()];
        runtime
    }

    /// Puts the plugin `p` there, which fails STATUS with this code.
    fn install_plugin(dir: &Path, code: &str) {
        std::fs::write(dir.join("code"), code).unwrap();
        let plugin = dir.join("p");
        std::fs::write(&plugin, PLUGIN).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&plugin, mode).unwrap();
    }

    #[tokio::test]
    async fn a_network_that_fails_status_is_named_with_the_error_of_the_plugin() {
        for (version, code, expected) in [
            ("1.1.0", "0", None),
            (
                "1.1.0",
                "50",
                Some("`p` failed STATUS with code 50: no controller (it is down)"),
            ),
            (
                "1.1.0",
                "51",
                Some("`p` failed STATUS with code 51: no controller (it is down)"),
            ),
            ("1.1.0", "100", Some("code 100: no controller")),
            ("1.1.0", "hang", Some("did not finish STATUS")),
            // Version 1.0.0 has no STATUS.
            ("1.0.0", "50", None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let list = format!(
                r#"{{"cniVersion": "{version}", "name": "net", "plugins": [{{"type": "p"}}]}}"#
            );
            std::fs::write(dir.path().join("10-net.conflist"), list).unwrap();
            install_plugin(dir.path(), code);
            let mut runtime = runtime_in(dir.path());
            runtime.deadline = Duration::from_millis(500);
            let networks = runtime.networks().map_err(|error| error_chain(&error));
            let check = evaluate(&runtime, &networks).await;
            match expected {
                None => assert_eq!(check.status, CheckStatus::Ok, "{}", check.found),
                Some(expected) => {
                    assert_eq!(check.status, CheckStatus::Warn, "{code}");
                    assert!(check.found.contains(expected), "{}", check.found);
                    assert!(!check.found.contains("apt-get"), "{}", check.found);
                }
            }
        }
    }

    #[tokio::test]
    async fn networks_that_do_not_respond_are_checked_concurrently() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..8 {
            let list = format!(
                r#"{{"cniVersion": "1.1.0", "name": "net{n}", "plugins": [{{"type": "p"}}]}}"#
            );
            std::fs::write(dir.path().join(format!("{n}.conflist")), list).unwrap();
        }
        install_plugin(dir.path(), "hang");
        let mut runtime = runtime_in(dir.path());
        runtime.deadline = Duration::from_secs(1);
        let networks = runtime.networks().map_err(|error| error_chain(&error));
        let begin = std::time::Instant::now();
        let check = evaluate(&runtime, &networks).await;
        assert_eq!(check.found.matches("did not finish STATUS").count(), 8);
        // Sequentially, they would take eight deadlines.
        assert!(
            begin.elapsed() < 4 * runtime.deadline,
            "{:?}",
            begin.elapsed()
        );
    }

    #[tokio::test]
    async fn a_network_without_its_plugins_is_named_with_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let list =
            r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "no-such-plugin"}]}"#;
        std::fs::write(dir.path().join("10-net.conflist"), list).unwrap();
        let runtime = runtime_in(dir.path());
        let check = evaluate(&runtime, &runtime.networks().map_err(|e| error_chain(&e))).await;
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.found.starts_with("net, but: "), "{}", check.found);
        assert!(check.found.contains("no-such-plugin"), "{}", check.found);
    }

    #[test]
    fn a_network_that_another_runtime_may_run_gc_on_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime_in(dir.path());
        for (version, disabled, is_reported) in [
            ("1.0.0", false, false),
            ("1.1.0", false, true),
            ("1.1.0", true, false),
        ] {
            let list = format!(
                r#"{{"cniVersion": "{version}", "disableGC": {disabled}, "name": "net", "plugins": [{{"type": "bridge"}}]}}"#
            );
            std::fs::write(dir.path().join("10-net.conflist"), list).unwrap();
            let check = evaluate_gc(&runtime, &runtime.networks().map_err(|e| error_chain(&e)));
            assert_eq!(check.is_some(), is_reported, "{version} {disabled}");
        }
    }

    #[tokio::test]
    async fn no_network_at_all_is_ok() {
        let runtime = runtime_in(Path::new("/nowhere/at/all"));
        let check = evaluate(&runtime, &runtime.networks().map_err(|e| error_chain(&e))).await;
        assert_eq!(check.status, CheckStatus::Ok);
    }
}
