//! CNI: which networks are configured, and whether their plugins are there.
//! Out of scope: running a plugin.

use super::{Host, ok, warn, words};
use crate::api::view::Check;
use crate::cni::{Network, Runtime, Version};

const CNI: &str = "CNI networks";
const GC: &str = "CNI garbage collection";
const ABANDONED: &str = "CNI attachments given up";

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let networks = cx.cni.networks();
    let networks = networks.map_err(|error| words(&error));
    let mut checks = vec![judge(&cx.cni, &networks)];
    checks.extend(judge_gc(&cx.cni, &networks));
    checks.extend(judge_abandoned(cx));
    checks
}

/// Other runtimes do not see our records, but their GC of a network has its plugins forget whatever they do not list; from 1.1.0 on,
/// which is when plugins know GC.
fn judge_gc(runtime: &Runtime, networks: &Result<Vec<String>, String>) -> Option<Check> {
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
                "{}: a GC by another runtime on this host has the plugins forget our VMs",
                exposed.join(", ")
            ),
            "If another CNI runtime uses this folder, add \"disableGC\": true to the network.",
        )
    })
}

/// Attachments that plugins failed to release.
fn judge_abandoned(cx: &Host) -> Option<Check> {
    let abandoned = cx.cni.abandoned().ok()?;
    let ours = abandoned.iter().filter(|it| {
        cx.instance
            .uid_of_container(&it.attachment.container_id)
            .is_some()
    });
    let names: Vec<String> = ours
        .map(|it| format!("{} on {}", it.attachment.container_id, it.network))
        .collect();
    (!names.is_empty()).then(|| {
        warn(
            ABANDONED,
            format!("plugins failed to take back {}", names.join(", ")),
            "slicectl gc runs DEL again and reports the plugins' errors; sliced retries at each resync.",
        )
    })
}

fn judge(runtime: &Runtime, networks: &Result<Vec<String>, String>) -> Check {
    let folder = runtime.conf_dir.display();
    let names = match networks {
        Ok(names) if names.is_empty() => {
            let found =
                format!("none in {folder}: `network_name` in a manifest has nothing to name");
            return ok(CNI, found);
        }
        Ok(names) => names,
        Err(why) => {
            let remedy = "Mend the file; what stands in another file works meanwhile.";
            return warn(CNI, why.clone(), remedy);
        }
    };
    let mut lacking = Vec::new();
    for name in names {
        match runtime.find(name) {
            Ok(network) => lacking.extend(runtime.lacking(&network)),
            Err(error) => lacking.push(words(&error)),
        }
    }
    let found = names.join(", ");
    match lacking.is_empty() {
        true => ok(CNI, format!("{found}, with their plugins")),
        false => warn(
            CNI,
            format!("{found}, but: {}", lacking.join("; ")),
            "Install the plugins (on Debian: apt-get install containernetworking-plugins), or name their folder in CNI_PATH.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckVerdict;

    #[test]
    fn a_network_without_its_plugins_is_named_with_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let list =
            r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "no-such-plugin"}]}"#;
        std::fs::write(dir.path().join("10-net.conflist"), list).unwrap();
        let mut runtime = Runtime::new();
        runtime.conf_dir = dir.path().to_owned();
        runtime.bin_dirs = vec![dir.path().to_owned()];
        let check = judge(&runtime, &runtime.networks().map_err(|e| words(&e)));
        assert_eq!(check.verdict, CheckVerdict::Warn);
        assert!(check.found.starts_with("net, but: "), "{}", check.found);
        assert!(check.found.contains("no-such-plugin"), "{}", check.found);
    }

    #[test]
    fn a_network_that_another_runtime_may_collect_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = Runtime::new();
        runtime.conf_dir = dir.path().to_owned();
        for (version, disabled, is_told) in [
            ("1.0.0", false, false),
            ("1.1.0", false, true),
            ("1.1.0", true, false),
        ] {
            let list = format!(
                r#"{{"cniVersion": "{version}", "disableGC": {disabled}, "name": "net", "plugins": [{{"type": "bridge"}}]}}"#
            );
            std::fs::write(dir.path().join("10-net.conflist"), list).unwrap();
            let check = judge_gc(&runtime, &runtime.networks().map_err(|e| words(&e)));
            assert_eq!(check.is_some(), is_told, "{version} {disabled}");
        }
    }

    #[test]
    fn no_network_at_all_is_no_fault() {
        let mut runtime = Runtime::new();
        runtime.conf_dir = "/nowhere/at/all".into();
        let check = judge(&runtime, &runtime.networks().map_err(|e| words(&e)));
        assert_eq!(check.verdict, CheckVerdict::Ok);
    }
}
