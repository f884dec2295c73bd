//! Watches of real changes: no gap, whatever happens to members.
//! Out of scope: answers that etcd does not give.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures::StreamExt;
use slicectl::fleet::kv::{Client, Config, Error, Event, Revision, WatchTarget};
use test_support::kernel;

use super::super::lab::{Lab, Options, PATIENCE};
use super::{PAGE, VM, compare_and_put, next_batch, target};

/// Follows a prefix until an event has this value, and continues after every error; all values, and the number of errors.
async fn follow(client: Client, prefix: &str, from: Revision, last: &str) -> (Vec<String>, usize) {
    let (mut values, mut errors, mut next) = (Vec::new(), 0, from);
    loop {
        let mut watch = match client.watch(vec![target(prefix, next)]).await {
            Ok(watch) => watch,
            Err(error) => {
                println!("cannot watch: {error}");
                errors += 1;
                continue;
            }
        };
        while let Some(batch) = watch.next().await {
            match batch {
                Ok(batch) => {
                    next = batch.next;
                    for event in batch.events {
                        let Event::Put { kv } = event else {
                            continue;
                        };
                        values.push(String::from_utf8(kv.value).unwrap());
                    }
                }
                Err(error) => {
                    println!("watch ended: {error}");
                    errors += 1;
                }
            }
            if values.last().is_some_and(|value| value == last) {
                return (values, errors);
            }
        }
    }
}

/// Writes these numbers to the key, each once: a write with an unknown outcome is repeated if it was not applied.
async fn count_up(
    client: &Client,
    numbers: RangeInclusive<u32>,
    mut revision: Revision,
) -> Revision {
    for number in numbers {
        revision = loop {
            match compare_and_put(client, VM, revision, number).await {
                Ok(Some(done)) => break done,
                Ok(None) => {
                    // The write before was applied after all.
                    let found = client.get(VM).await.unwrap().1.unwrap();
                    assert_eq!(found.value, number.to_string().into_bytes());
                    break found.mod_revision;
                }
                Err(error) => println!("{number}: {error}"),
            }
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    revision
}

fn numbers(count: u32) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

#[test]
fn a_watch_that_is_continued_has_no_gap_when_leaders_are_killed() {
    kernel::private(async {
        let mut lab = Lab::start();
        let client = lab.client("control");
        let first = client.get(VM).await.unwrap().0.revision.next();
        // One at each member, so that one is at each leader that is killed.
        let watches: Vec<_> = (0..3)
            .map(|member| {
                let mut config = lab.config("node-a");
                config.endpoints.rotate_left(member);
                config.watch_check_interval = Duration::from_secs(1);
                let client = Client::new(&config).unwrap();
                tokio::spawn(follow(client, "/slice/v1/", first, "60"))
            })
            .collect();
        let mut revision = Revision(0);
        for numbers in [1..=20, 21..=40] {
            revision = count_up(&client, numbers, revision).await;
            let leader = lab.leader();
            lab.kill(leader);
            lab.restart_without_majority(leader);
        }
        count_up(&client, 41..=60, revision).await;
        let mut errors = 0;
        for watch in watches {
            let (values, count) = tokio::time::timeout(PATIENCE, watch)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(values, numbers(60));
            errors += count;
        }
        assert!(errors >= 2, "the watches of leaders have ended: {errors}");
    });
}

#[test]
fn a_watch_of_several_prefixes_is_continued_at_the_revision_of_each() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let keys = [
            "/slice/v1/vms/a",
            "/slice/v1/groups/g",
            "/slice/v1/status/node-b/x",
        ];
        let prefixes = ["/slice/v1/vms/", "/slice/v1/groups/"];
        let begin = client.get(VM).await.unwrap().0.revision.next();
        let mut targets: Vec<WatchTarget> = prefixes.iter().map(|p| target(p, begin)).collect();
        let mut seen = [Vec::new(), Vec::new()];
        let mut written = 0;
        for round in 0..10 {
            for key in keys {
                client.put(key, format!("{round}"), None).await.unwrap();
                written += 1;
            }
            // A new connection each round, which is dropped after two batches.
            let mut watch = client.watch(targets.clone()).await.unwrap();
            for _ in 0..2 {
                let batch = next_batch(&mut watch).await.unwrap();
                targets[batch.target].from = batch.next;
                assert!(
                    batch.events.iter().all(|event| {
                        event.key().to_string().starts_with(prefixes[batch.target])
                    })
                );
                seen[batch.target].extend(batch.events.iter().map(Event::mod_revision));
            }
        }
        let listing = client.range("/slice/v1/", None, PAGE).await.unwrap();
        assert_eq!(listing.revision.0, begin.0 + written - 1);
        for (at, revisions) in seen.iter().enumerate() {
            let first = begin.0 + u64::try_from(at).unwrap();
            let expected: Vec<_> = (0..10).map(|round| Revision(first + 3 * round)).collect();
            assert_eq!(*revisions, expected, "{}", prefixes[at]);
        }
    });
}

#[test]
fn deletions_are_reported_and_progress_without_changes() {
    kernel::private(async {
        let lab = Lab::with(Options {
            progress_interval: Duration::from_secs(1),
            ..Options::default()
        });
        let client = lab.client("control");
        let mut watch = client.watch(vec![target(VM, Revision(0))]).await.unwrap();
        client.put(VM, "1", None).await.unwrap();
        client.put(VM, "2", None).await.unwrap();
        let (header, _) = client.delete(VM).await.unwrap();
        let mut events = Vec::new();
        while events.len() < 3 {
            events.extend(next_batch(&mut watch).await.unwrap().events);
        }
        let value =
            |kv: &slicectl::fleet::kv::KeyValue| String::from_utf8(kv.value.clone()).unwrap();
        let [
            Event::Put { kv: first },
            Event::Put { kv: second },
            Event::Delete { key, mod_revision },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!([first, second].map(value), ["1", "2"]);
        assert_eq!(
            (key.to_string().as_str(), *mod_revision),
            (VM, header.revision)
        );
        // Of other keys: the position advances, so that it is not compacted.
        let other = client.put("/slice/v1/vms/other", "", None).await.unwrap();
        let begin = Instant::now();
        loop {
            let batch = next_batch(&mut watch).await.unwrap();
            assert_eq!(batch.events, []);
            if batch.next == other.revision.next() {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{batch:?}");
        }
    });
}

#[test]
fn a_compacted_revision_is_an_error_after_which_the_caller_lists_and_watches_again() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let old = client.put(VM, "1", None).await.unwrap().revision;
        for number in 2..10 {
            client.put(VM, format!("{number}"), None).await.unwrap();
        }
        let last = client.put(VM, "10", None).await.unwrap().revision;
        lab.compact(last.0);
        let error = client
            .range("/slice/v1/", Some(old), PAGE)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
        let mut watch = client.watch(vec![target("/slice/v1/", old)]).await.unwrap();
        let error = next_batch(&mut watch).await.unwrap_err();
        assert!(
            matches!(error, Error::Compacted { at: Some(at), .. } if at == last),
            "{error}"
        );
        let listing = client.range("/slice/v1/", None, PAGE).await.unwrap();
        let from = listing.revision.next();
        let mut watch = client
            .watch(vec![target("/slice/v1/", from)])
            .await
            .unwrap();
        let next = client.put(VM, "11", None).await.unwrap().revision;
        let batch = next_batch(&mut watch).await.unwrap();
        assert_eq!(batch.events[0].mod_revision(), next);
    });
}

#[test]
fn a_watch_at_a_member_that_is_cut_off_or_suspended_ends() {
    kernel::private(async {
        let lab = Lab::start();
        type Fault = (&'static str, fn(&Lab, usize), fn(&Lab, usize), Duration);
        let second = Duration::from_secs(1);
        let faults: [Fault; 3] = [
            ("suspended", Lab::pause, Lab::resume, second),
            // The member itself ends it.
            ("without leader", Lab::partition, Lab::heal, 60 * second),
            ("not reachable", Lab::isolate, Lab::heal, second),
        ];
        for (what, begin_fault, end_fault, interval) in faults {
            let member = lab.follower();
            let config = Config {
                endpoints: vec![lab.endpoint(member)],
                deadline: Duration::from_secs(2),
                watch_check_interval: interval,
                ..lab.config("node-a")
            };
            let client = Client::new(&config).unwrap();
            let mut watch = client
                .watch(vec![target("/slice/v1/", Revision(0))])
                .await
                .unwrap();
            begin_fault(&lab, member);
            let begin = Instant::now();
            let error = next_batch(&mut watch).await.unwrap_err();
            println!("{what}: {error} after {:?}", begin.elapsed());
            assert!(matches!(error, Error::WatchEnded { .. }), "{what}: {error}");
            assert!(
                begin.elapsed() < Duration::from_secs(6),
                "{what}: {:?}",
                begin.elapsed()
            );
            end_fault(&lab, member);
            lab.until("the member serves", || {
                let handle = tokio::runtime::Handle::current();
                tokio::task::block_in_place(|| handle.block_on(client.get(VM)).ok())
            });
        }
    });
}

#[test]
fn a_watch_that_is_not_polled_loses_nothing() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let mut watch = client
            .watch(vec![target("/slice/v1/", Revision(0))])
            .await
            .unwrap();
        let value = "x".repeat(20_000);
        let writes = (0..2_000).map(|number| {
            let key = format!("/slice/v1/vms/{}", number % 50);
            let (client, value) = (client.clone(), value.clone());
            async move {
                client
                    .put(key.as_str(), value, None)
                    .await
                    .unwrap()
                    .revision
            }
        });
        let mut written: Vec<_> = futures::stream::iter(writes)
            .buffer_unordered(16)
            .collect()
            .await;
        written.sort();
        let mut seen = Vec::new();
        while seen.len() < written.len() {
            let batch = next_batch(&mut watch).await.unwrap();
            seen.extend(batch.events.iter().map(Event::mod_revision));
        }
        assert_eq!(seen, written);
    });
}
