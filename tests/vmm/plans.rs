//! Golden plans: `tests/plans/vmm/<case>/{desired,observed,plan}.yaml`. `BLESS=1` rewrites the plans.
//! Not here: laws that hold for every plan.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use slicectl::reconcile::Reconcile;
use slicectl::reconcile::vmm::{Action, Vmm};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Actions(Vec<Action>),
    Conflict { thing: String, remedy: String },
}

#[test]
fn every_plan_is_the_one_on_disk() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans/vmm");
    let bless = std::env::var_os("BLESS").is_some();
    let mut seen = 0;
    for case in fs::read_dir(&cases).unwrap() {
        let case = case.unwrap().path();
        let read = |name: &str| fs::read_to_string(case.join(name)).unwrap();
        let desired = serde_yaml::from_str(&read("desired.yaml")).unwrap();
        let observed = serde_yaml::from_str(&read("observed.yaml")).unwrap();
        let verdict = match Vmm::plan(&desired, &observed) {
            Ok(actions) => Verdict::Actions(actions),
            Err(conflict) => Verdict::Conflict {
                thing: conflict.thing,
                remedy: conflict.remedy,
            },
        };
        let text = serde_yaml::to_string(&verdict).unwrap();
        if bless {
            fs::write(case.join("plan.yaml"), &text).unwrap();
        }
        assert_eq!(text, read("plan.yaml"), "{}", case.display());
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} cases");
}
