//! Users without permission, and etcd that does not answer.
//! Out of scope: the client ([`super::super::kv`]).

use std::time::{Duration, Instant};

use slicectl::api::view::NodeAction;
use slicectl::clock;
use slicectl::fleet::kv::Config;
use slicectl::fleet::verbs::{self, Error, Snapshot};
use test_support::kernel;

use super::super::lab::Lab;
use super::{applied, apply, join, manifest, name, stored};

#[test]
fn a_user_that_may_not_write_is_told_so() {
    kernel::private(async {
        let lab = Lab::start();
        let control = lab.client("control");
        applied(&control, &manifest("web", 1, "")).await;
        join(&control, "node-a").await;
        let node = lab.client("node-a");
        let own = name("node-a");
        let cordon = verbs::act_on_node(&node, &own, NodeAction::Cordon, clock::now());
        let errors = [
            apply(&node, &manifest("web", 2, "")).await.unwrap_err(),
            verbs::delete_group(&node, &name("web"), None)
                .await
                .unwrap_err(),
            cordon.await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Denied { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.starts_with("etcd does not permit the user of this node to change"),
                "{text}"
            );
        }
        // What changes nothing needs no permission.
        applied(&node, &manifest("web", 1, "")).await;
        let group = stored(&control, "web").await.unwrap();
        assert_eq!((group.spec.count, group.meta.deleting), (1, false));
    });
}

#[test]
fn without_a_majority_a_request_fails_within_its_deadline() {
    kernel::private(async {
        let mut lab = Lab::start();
        let config = Config {
            deadline: Duration::from_secs(3),
            ..lab.config("control")
        };
        let client = slicectl::fleet::kv::Client::new(&config).unwrap();
        applied(&client, &manifest("web", 1, "")).await;
        lab.kill(0);
        lab.kill(1);
        let bound = Duration::from_secs(10);
        for is_read in [true, false] {
            let begin = Instant::now();
            let error = match is_read {
                true => Snapshot::read(&client).await.unwrap_err(),
                false => apply(&client, &manifest("web", 2, "")).await.unwrap_err(),
            };
            assert!(begin.elapsed() < bound, "{:?}", begin.elapsed());
            assert!(matches!(error, Error::Etcd(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("no endpoint of etcd answers"), "{text}");
        }
        lab.restart(0);
        assert_eq!(stored(&client, "web").await.unwrap().spec.count, 1);
    });
}
