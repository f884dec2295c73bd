//! CNI mode with Debian's ptp and host-local: every single action of it; what is left when one file is the only trace of a VM.
//! Out of scope: the stages alone (`tests/kernel/cni_stages`); a crash within a chain of plugins (`tests/kernel/cni`, `tests/e2e/cni_faults`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::reconcile::Probe;

use crate::crash::life::{Dirs, End, Intent};
use crate::crash::sweep::{self, Scene};
use crate::crash::world::whole;
use test_support::cni_networks::{self, NETWORK};
use test_support::kernel::{self, Canaries};
use test_support::objects::{cni_spec, spec as isolated};

/// Beside it the reservation of a stranger's container.
pub const PTP: Scene = Scene {
    template: || cni_spec(NETWORK),
    counted: 2,
    strangers: NETWORKS,
    settlers: "true",
    build: 18,
    teardown: 10,
};

const NETWORKS: &str = r#"
    mkdir -p /run/cni-test/conf /run/cni-test/data/net
    printf 'stranger\r\neth0' >/run/cni-test/data/net/10.78.0.200
    cat >/run/cni-test/conf/10-net.conflist <<END
{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam":
    {"type": "host-local", "dataDir": "/run/cni-test/data", "subnet": "10.78.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}
END"#;

#[test]
fn killed_before_any_action_of_a_cni_groups_build_the_next_life_finishes_it() {
    sweep::killed_building(&PTP);
}

#[test]
fn killed_before_any_action_of_a_cni_groups_teardown_the_next_life_finishes_it() {
    sweep::killed_taking_down(&PTP);
}

#[test]
fn an_action_of_a_cni_groups_build_that_fails_is_tried_again() {
    sweep::failing_building(&PTP);
}

#[test]
fn an_action_of_a_cni_groups_teardown_that_fails_is_tried_again() {
    sweep::failing_taking_down(&PTP);
}

#[test]
fn killed_during_the_bring_up_of_a_cni_group_and_without_its_state_it_adopts_what_exists() {
    sweep::robbed_building(&PTP);
}

#[test]
fn killed_and_robbed_of_its_state_during_a_cni_groups_teardown_nothing_is_left_over() {
    sweep::robbed_taking_down(&PTP);
}

/// One VM's things, of which something is taken away.
struct Remains {
    dir: PathBuf,
    netns: PathBuf,
}

impl Remains {
    fn lose(&self, file: &str) {
        fs::remove_file(self.dir.join(file)).unwrap();
    }

    fn lose_the_namespace(&self) {
        kernel::run(&format!("umount {0}; rm {0}", self.netns.display()));
    }

    /// Its record speaks of an earlier boot: it is nobody to adopt.
    fn age_the_record(&self) {
        let path = self.dir.join("record.json");
        let mut record: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        record["boot_id"] = "an earlier one".into();
        fs::write(&path, record.to_string()).unwrap();
    }
}

/// The state is lost, and some of the rest; nothing is left in the end.
fn goes(lose: impl FnOnce(&Remains) + Send) {
    kernel::private_sync(|| {
        let canaries = Canaries::release();
        kernel::run(&format!(
            "{NETWORKS}\necho 1 > /proc/sys/net/ipv4/ip_forward"
        ));
        let dirs = Dirs::below(Path::new("/run/place"));
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        let empty = whole(&dirs);
        let spec = HostGroupSpec {
            count: 1,
            update: UpdatePolicy::Rolling,
            template: cni_spec(NETWORK),
        };
        assert_eq!(dirs.live(Intent::Apply("web", &spec)), End::Converged);
        assert_eq!(
            (
                cni_networks::records().len(),
                cni_networks::reservations().len()
            ),
            (1, 2)
        );
        let only = |dir: &str| {
            let mut entries = fs::read_dir(dirs.run.join(dir)).unwrap();
            entries.next().unwrap().unwrap().path()
        };
        lose(&Remains {
            dir: only("vm"),
            netns: only("netns"),
        });
        dirs.lose_state_and_journal();
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        assert_eq!(whole(&dirs), empty);
        canaries.assert_alive();
    });
}

#[test]
fn an_orphan_with_an_intent_and_a_namespace_and_no_record_is_detached_and_goes() {
    goes(|remains| remains.lose("record.json"));
}

#[test]
fn an_orphan_with_a_record_and_a_namespace_and_no_intent_is_detached_and_goes() {
    goes(|remains| {
        remains.age_the_record();
        remains.lose("cni.json");
    });
}

#[test]
fn an_orphan_with_nothing_but_a_namespace_is_detached_and_goes() {
    goes(|remains| {
        remains.lose("record.json");
        remains.lose("cni.json");
    });
}

#[test]
fn an_orphan_with_nothing_but_a_record_is_detached_and_goes() {
    goes(|remains| {
        remains.age_the_record();
        remains.lose("cni.json");
        remains.lose_the_namespace();
    });
}

/// The plugins choose the subnet, so the host network learns of it only after ADD.
#[test]
fn no_redirect_is_set_before_the_host_network_has_closed_the_subnet_to_isolated_vms() {
    kernel::private_sync(|| {
        kernel::run(NETWORKS);
        let dirs = Dirs::below(Path::new("/run/place"));
        let mut spec = HostGroupSpec {
            count: 1,
            update: UpdatePolicy::Rolling,
            template: isolated(Some("169.254.100.0/22"), ""),
        };
        assert_eq!(dirs.live(Intent::Apply("shut", &spec)), End::Converged);
        assert!(!is_closed(), "before anybody asked for it");
        spec.template = cni_spec(NETWORK);
        let redirects: Arc<Mutex<Vec<bool>>> = Arc::default();
        let seen = redirects.clone();
        let probe: Probe = Arc::new(move |action| {
            if action.contains("redirect") {
                seen.lock().unwrap().push(is_closed());
            }
            Ok(())
        });
        let end = dirs.live_probed(Intent::Apply("web", &spec), probe);
        assert_eq!(end, End::Converged);
        let redirects = redirects.lock().unwrap();
        assert!(
            redirects.len() >= 2 && redirects.iter().all(|closed| *closed),
            "{redirects:?}"
        );
        assert_eq!(dirs.live(Intent::Delete("web")), End::Converged);
        assert!(!is_closed(), "nobody is there any more");
    });
}

fn is_closed() -> bool {
    let rules = kernel::rules("filter");
    let drops = |rule: &String| rule.contains("-d 10.78.0.0/24") && rule.ends_with("-j DROP");
    rules.iter().any(drops)
}
