//! CNI: which networks are configured, and whether their plugins are there.
//! Out of scope: running a plugin.

use super::{Host, ok, warn, words};
use crate::api::view::Check;
use crate::cni::Runtime;

const CNI: &str = "CNI networks";

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let networks = cx.cni.networks();
    let networks = networks.map_err(|error| words(&error));
    vec![judge(&cx.cni, &networks)]
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
    fn no_network_at_all_is_no_fault() {
        let mut runtime = Runtime::new();
        runtime.conf_dir = "/nowhere/at/all".into();
        let check = judge(&runtime, &runtime.networks().map_err(|e| words(&e)));
        assert_eq!(check.verdict, CheckVerdict::Ok);
    }
}
