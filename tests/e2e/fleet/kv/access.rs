//! What users may do, and which certificates are accepted.
//! Out of scope: the life of tokens (`tokens`).

use std::time::{Duration, Instant};

use slicectl::fleet::kv::{
    Cause, Client, Compare, Config, Credentials, Error, Op, Password, Revision, Txn,
};
use test_support::kernel;

use super::super::lab::{Lab, password};
use super::super::pki::{Pki, Validity};
use super::{PAGE, VM, next_batch, put, refused, target};

/// The keys that the node may write, and keys that it may not.
const OWN: [&str; 3] = [
    "/slice/v1/nodestatus/node-a",
    "/slice/v1/alive/node-a",
    "/slice/v1/status/node-a/x",
];
const FOREIGN: [&str; 9] = [
    "/slice/v1/nodestatus/node-b",
    "/slice/v1/nodestatus/node-a2",
    "/slice/v1/nodestatus/",
    "/slice/v1/alive/node-b",
    "/slice/v1/status/node-b/x",
    "/slice/v1/status/node-a",
    "/slice/v1/nodes/node-a",
    VM,
    "/other",
];

#[test]
fn a_node_reads_the_fleet_and_writes_its_own_keys_alone() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("node-a");
        for key in OWN {
            client.put(key, "1", None).await.unwrap();
            client
                .txn(&Txn {
                    then: vec![put(key, 2)],
                    ..Txn::default()
                })
                .await
                .unwrap();
            assert!(client.delete(key).await.unwrap().1);
        }
        client.range("/slice/v1/", None, PAGE).await.unwrap();
        let _watch = client
            .watch(vec![target("/slice/v1/", Revision(1))])
            .await
            .unwrap();
        let is_denied = |what: &str, error: Error| {
            let is_denied = matches!(error, Error::Denied { .. });
            assert!(is_denied, "{what}: {error}");
        };
        for key in FOREIGN {
            is_denied(key, client.put(key, "1", None).await.unwrap_err());
            is_denied(key, client.delete(key).await.unwrap_err());
            // One of its own and one of another, in both branches.
            for (then, otherwise) in [
                (vec![put(OWN[0], 1), put(key, 1)], Vec::new()),
                (Vec::new(), vec![Op::Delete(key.into())]),
            ] {
                let txn = Txn {
                    compares: vec![Compare::absent(OWN[0])],
                    then,
                    otherwise,
                };
                is_denied(key, client.txn(&txn).await.unwrap_err());
            }
        }
        assert_eq!(client.get(OWN[0]).await.unwrap().1, None);
        for prefix in ["", "/", "/slice/", "/other/", "/slice/v2/"] {
            is_denied(prefix, client.range(prefix, None, PAGE).await.unwrap_err());
            let targets = vec![
                target("/slice/v1/", Revision(1)),
                target(prefix, Revision(1)),
            ];
            is_denied(prefix, client.watch(targets).await.err().unwrap());
        }
        is_denied("get", client.get("/other").await.unwrap_err());
        let txn = Txn {
            compares: vec![Compare::absent("/other")],
            ..Txn::default()
        };
        is_denied("compare", client.txn(&txn).await.unwrap_err());
    });
}

#[test]
fn a_user_that_is_deleted_is_cut_off_also_from_its_watch() {
    kernel::private(async {
        let lab = Lab::start();
        let mut config = lab.config("node-a");
        config.watch_check_interval = Duration::from_secs(1);
        let client = Client::new(&config).unwrap();
        let mut watch = client
            .watch(vec![target("/slice/v1/", Revision(0))])
            .await
            .unwrap();
        client.put(OWN[0], "1", None).await.unwrap();
        assert_eq!(next_batch(&mut watch).await.unwrap().events.len(), 1);
        lab.delete_user("node-a");
        let begin = Instant::now();
        for error in [
            client.get(VM).await.unwrap_err(),
            client.put(OWN[0], "1", None).await.unwrap_err(),
            next_batch(&mut watch).await.unwrap_err(),
            client
                .watch(vec![target("/slice/v1/", Revision(1))])
                .await
                .err()
                .unwrap(),
        ] {
            assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
        }
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        lab.client("node-b").get(VM).await.unwrap();
    });
}

/// The settings of a client that is not accepted, and a part of the error.
fn unacceptable(lab: &Lab, other: &Pki) -> Vec<(&'static str, Config, &'static str)> {
    let config = || lab.config("node-a");
    let user = |user: &str, secret: &str| Config {
        credentials: Some(Credentials {
            user: user.to_owned(),
            password: Password::new(secret),
        }),
        ..config()
    };
    vec![
        (
            "another authority",
            Config {
                ca: Some(other.ca()),
                ..config()
            },
            "no TLS connection",
        ),
        (
            "no certificate",
            Config {
                identity: None,
                ..config()
            },
            "no TLS connection",
        ),
        (
            "a certificate that has expired",
            Config {
                identity: Some(lab.pki.client("node-a", Validity::Expired)),
                ..config()
            },
            "no TLS connection",
        ),
        (
            "a certificate of another authority",
            Config {
                identity: Some(other.client("node-a", Validity::Now)),
                ..config()
            },
            "no TLS connection",
        ),
        (
            "a certificate with a common name",
            Config {
                identity: Some(lab.pki.client_with_common_name("node-a")),
                ..config()
            },
            "CommonName",
        ),
        (
            "another password",
            user("node-a", "wrong"),
            "authentication failed",
        ),
        (
            "an empty password",
            user("node-a", ""),
            "authentication failed",
        ),
        (
            "the password of another",
            user("root", &password("node-a")),
            "authentication failed",
        ),
        (
            "an unknown user",
            user("nobody", "wrong"),
            "authentication failed",
        ),
        (
            "no user",
            Config {
                credentials: None,
                ..config()
            },
            "denies this",
        ),
    ]
}

#[test]
fn a_client_that_is_not_accepted_learns_why_and_no_write_of_it_has_an_unknown_outcome() {
    kernel::private(async {
        let lab = Lab::start();
        let other = Pki::new(std::path::Path::new("/run/other"));
        for (what, config, expected) in unacceptable(&lab, &other) {
            let client = Client::new(&config).unwrap();
            let begin = Instant::now();
            let limit = Duration::from_secs(3);
            for error in [
                refused(begin, limit, client.put(OWN[0], "1", None).await),
                refused(begin, limit, client.get(VM).await),
                client
                    .watch(vec![target("/slice/v1/", Revision(1))])
                    .await
                    .err()
                    .unwrap(),
            ] {
                let text = error.to_string();
                println!("{what}: {text}");
                assert!(text.contains(expected), "{what}: {text}");
                assert!(text.contains("https://10.77.0.1"), "{what}: {text}");
                assert!(
                    !matches!(error, Error::OutcomeUnknown { .. }),
                    "{what}: {text}"
                );
                if let Error::Unreachable { cause, .. } = error {
                    assert!(matches!(cause, Cause::Tls(_)), "{what}: {text}");
                }
            }
        }
        // Also without a user, whose authentication would be first.
        for identity in [None, Some(lab.pki.client("node-a", Validity::Expired))] {
            let config = Config {
                identity,
                credentials: None,
                ..lab.config("node-a")
            };
            let client = Client::new(&config).unwrap();
            let error = client.put(OWN[0], "1", None).await.unwrap_err();
            assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        }
    });
}
