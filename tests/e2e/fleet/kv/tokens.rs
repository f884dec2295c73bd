//! Tokens that are not valid any more.
//! Out of scope: who gets one (`access`).

use std::time::Duration;

use slicectl::fleet::kv::{Client, Config, Revision};
use test_support::kernel;

use super::super::lab::{Lab, Options};
use super::{VM, target};

#[test]
fn a_token_that_has_expired_is_replaced_without_an_error() {
    kernel::private(async {
        let lab = Lab::with(Options {
            token_ttl: Duration::from_secs(1),
            ..Options::default()
        });
        let client = lab.client("control");
        for round in 0..2 {
            client.put(VM, format!("{round}"), None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
            // etcd answers a watch with such a token as it answers one that is denied.
            let _watch = client
                .watch(vec![target("/slice/v1/", Revision(1))])
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
            client.get(VM).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
    });
}

#[test]
fn a_token_that_a_member_has_forgotten_is_replaced_without_an_error() {
    kernel::private(async {
        let mut lab = Lab::start();
        let config = Config {
            endpoints: vec![lab.endpoint(0)],
            ..lab.config("control")
        };
        let client = Client::new(&config).unwrap();
        client.put(VM, "1", None).await.unwrap();
        for round in 0..2 {
            lab.kill(0);
            lab.restart(0);
            match round {
                0 => drop(client.put(VM, "2", None).await.unwrap()),
                _ => drop(
                    client
                        .watch(vec![target("/slice/v1/", Revision(1))])
                        .await
                        .unwrap(),
                ),
            }
        }
    });
}
