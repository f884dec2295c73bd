//! Changes for programs: a watch continues from a version without a gap, or is told to list again.
//! Out of scope: the log of changes in every order (unit tests of `status`), the output of `slicectl get -w` (`screens`).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;

use slicectl::api::meta::Name;
use slicectl::api::view::{Kind, Object, ResourceVersion, WatchFilter, WatchLine};
use slicectl::wire::Client;
use slicectl::wire::client::ClientError;

use test_support::dice::Dice;
use test_support::harness::{Harness, empty, slots, with_daemon};
use test_support::turns;

const KINDS: [Kind; 3] = [Kind::HostGroup, Kind::Vm, Kind::Lease];

fn tokio<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

fn client(harness: &Harness) -> Client {
    Client::new(harness.run.join("sliced.sock"))
}

fn filter(kinds: &[Kind], events: bool) -> WatchFilter {
    WatchFilter {
        kinds: kinds.to_vec(),
        events,
        object: None,
    }
}

fn list(client: &Client, kind: Kind) -> (Vec<Object>, ResourceVersion) {
    let list = tokio(client.get(kind, None)).expect("a list");
    (list.items, list.resource_version.expect("a version"))
}

/// The lines of a watch until one is the last.
fn lines_until(
    client: &Client,
    since: Option<ResourceVersion>,
    filter: &WatchFilter,
    is_last: impl Fn(&WatchLine) -> bool,
) -> Vec<WatchLine> {
    tokio(async {
        let mut stream = client.watch_since(since, filter).await.expect("a watch");
        let mut lines = Vec::new();
        let all = async {
            while let Some(line) = stream.next().await {
                lines.push(line.expect("a line"));
                if is_last(&lines[lines.len() - 1]) {
                    break;
                }
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert!(all.is_ok(), "the last of {lines:#?}");
        lines
    })
}

fn is_synced(line: &WatchLine) -> bool {
    matches!(line, WatchLine::Synced { .. })
}

fn deletes(line: &WatchLine, name: &str) -> bool {
    matches!(line, WatchLine::Deleted { object, .. } if object.reference() == name)
}

fn version(line: &WatchLine) -> Option<ResourceVersion> {
    match line {
        WatchLine::Added {
            resource_version, ..
        }
        | WatchLine::Event {
            resource_version, ..
        } => *resource_version,
        WatchLine::Modified {
            resource_version, ..
        }
        | WatchLine::Deleted {
            resource_version, ..
        }
        | WatchLine::Synced { resource_version }
        | WatchLine::Bookmark { resource_version } => Some(*resource_version),
        WatchLine::Error { .. } => None,
    }
}

fn status(result: Result<impl Sized, ClientError>) -> u16 {
    match result {
        Err(ClientError::Refused { status, .. }) => status,
        Err(error) => panic!("{error}"),
        Ok(_) => 200,
    }
}

#[test]
fn a_watch_continues_from_each_version_with_exactly_the_later_lines() {
    with_daemon(|harness| {
        harness.apply(&slots(2, ""));
        let client = client(&harness);
        let all = filter(&KINDS, true);
        let (vms, listed) = list(&client, Kind::Vm);
        assert_eq!(vms.len(), 2);
        // What exists, at once: the objects, then the events.
        let first = lines_until(&client, None, &all, is_synced);
        let objects = first
            .iter()
            .filter(|line| matches!(line, WatchLine::Added { .. }));
        assert_eq!(objects.count(), 1 + 2 + 2, "{first:#?}");
        let created = |line: &&WatchLine| matches!(line, WatchLine::Event { event, .. } if event.reason.to_string() == "Created");
        assert!(first.iter().any(|line| created(&line)), "{first:#?}");
        harness.ctl("scale hg/sandbox --count 3 --wait");
        harness.ctl("scale hg/sandbox --count 1 --wait");
        let vms = Cell::new(0);
        let is_second = |line: &WatchLine| {
            let is_vm = deletes(line, "vm/sandbox-2") || deletes(line, "vm/sandbox-3");
            vms.set(vms.get() + usize::from(is_vm));
            vms.get() == 2
        };
        let whole = lines_until(&client, Some(listed), &all, is_second);
        let is_last = |line: &WatchLine| Some(line) == whole.last();
        let (mut names, mut versions) = (Vec::new(), Vec::new());
        for line in &whole {
            versions.push(version(line).expect("a version").number);
            match line {
                WatchLine::Added { object, .. } => names.push(format!("+{}", object.reference())),
                WatchLine::Deleted { object, .. } => names.push(format!("-{}", object.reference())),
                _ => {}
            }
        }
        assert!(
            versions.is_sorted_by(|one, next| one < next),
            "{versions:?}"
        );
        for name in [
            "+vm/sandbox-3",
            "+lease/sandbox-3",
            "-vm/sandbox-2",
            "-vm/sandbox-3",
        ] {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
        // Wherever the connection is lost.
        for at in 0..whole.len() - 1 {
            let since = version(&whole[at]);
            let rest = lines_until(&client, since, &all, is_last);
            assert_eq!(rest, whole[at + 1..], "after {at}");
        }
        // Filters.
        let vms = lines_until(&client, Some(listed), &filter(&[Kind::Vm], false), is_last);
        let of_vms = whole.iter().filter(|line| {
            matches!(line, WatchLine::Added { object, .. } | WatchLine::Modified { object, .. }
                | WatchLine::Deleted { object, .. } if object.kind() == Kind::Vm)
        });
        assert_eq!(vms, of_vms.cloned().collect::<Vec<_>>());
        let mut one = filter(&KINDS, true);
        one.object = Some("vm/sandbox-3".parse().expect("an object"));
        let removed = |line: &WatchLine| deletes(line, "vm/sandbox-3");
        let found = lines_until(&client, Some(listed), &one, removed);
        let is_other = |line: &&WatchLine| match line {
            WatchLine::Event { event, .. } => event.object.to_string() != "vm/sandbox-3",
            WatchLine::Added { object, .. }
            | WatchLine::Modified { object, .. }
            | WatchLine::Deleted { object, .. } => object.reference() != "vm/sandbox-3",
            _ => true,
        };
        assert!(!found.iter().any(|line| is_other(&line)), "{found:#?}");
        assert!(
            found
                .iter()
                .any(|line| matches!(line, WatchLine::Event { .. }))
        );
    });
}

#[test]
fn versions_of_another_run_or_another_state_and_invalid_ones_are_refused() {
    empty(|mut harness| {
        harness.start();
        harness.apply(&slots(1, ""));
        let first = client(&harness);
        let (_, old) = list(&first, Kind::Vm);
        let vms = filter(&[Kind::Vm], false);
        let watch = |client: &Client, since| status(tokio(client.watch_since(Some(since), &vms)));
        assert_eq!(watch(&first, old), 200);
        let later = ResourceVersion {
            number: old.number + 1_000_000,
            ..old
        };
        assert_eq!(watch(&first, later), 410, "a version that never was");
        harness.kill();
        harness.start();
        assert_eq!(watch(&first, old), 410, "of the run before");
        let (_, new) = list(&first, Kind::Vm);
        assert_ne!(old.incarnation, new.incarnation);
        assert_eq!(watch(&first, new), 200);
        let mut other = Harness::new("other");
        other.start();
        assert_eq!(
            watch(&client(&other), new),
            410,
            "of another state directory"
        );
        let socket = harness.run.join("sliced.sock");
        for (query, status) in [
            ("since=", 422),
            ("since=1", 422),
            ("since=0", 422),
            ("since=0123456789abcdef-1", 410),
            ("kinds=pods", 422),
            ("kinds=vm,", 422),
            ("object=vm", 422),
            ("events=perhaps", 400),
        ] {
            let head = head(&socket, query);
            let expected = format!("HTTP/1.1 {status} ");
            assert!(head.starts_with(&expected), "{query}: {head}");
        }
    });
}

/// The first line of a response.
fn head(socket: &Path, query: &str) -> String {
    let mut line = String::new();
    let stream = request(socket, query);
    BufReader::new(stream).read_line(&mut line).expect("a line");
    line
}

fn request(socket: &Path, query: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connected");
    let request = format!("GET /v1/watch?{query} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    stream
}

/// What a client that loses its connection knows.
#[derive(Default)]
struct Model {
    objects: Mutex<BTreeMap<String, Object>>,
    resumed: AtomicUsize,
    told_to_list: AtomicUsize,
    stop: AtomicBool,
}

impl Model {
    /// Watches until it is stopped, and loses its connection after some lines.
    async fn follow(&self, client: &Client, seed: u64) {
        let (mut dice, mut version) = (Dice::new(seed), None);
        let all = filter(&KINDS, false);
        while !self.stop.load(Ordering::Relaxed) {
            if version.is_none() && dice.below(2) == 0 {
                version = self.list(client).await;
            }
            let resumes = version.is_some();
            if !resumes {
                self.objects.lock().unwrap().clear();
            }
            match client.watch_since(version, &all).await {
                Ok(stream) => {
                    self.resumed.fetch_add(resumes.into(), Ordering::Relaxed);
                    let lines = 1 + dice.below(40);
                    // A list that was not received completely is begun again.
                    version = self.receive(stream, lines, resumes).await.or(version);
                }
                Err(ClientError::Refused { status: 410, .. }) => {
                    self.told_to_list.fetch_add(1, Ordering::Relaxed);
                    version = None;
                }
                // It restarts.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn list(&self, client: &Client) -> Option<ResourceVersion> {
        let (mut objects, mut first) = (BTreeMap::new(), None);
        for kind in KINDS {
            let list = client.get(kind, None).await.ok()?;
            first = first.or(list.resource_version);
            let items = list.items.into_iter();
            objects.extend(items.map(|object| (object.reference(), object)));
        }
        *self.objects.lock().unwrap() = objects;
        first
    }

    async fn receive(
        &self,
        mut stream: impl futures::Stream<Item = Result<WatchLine, ClientError>> + Unpin,
        lines: usize,
        resumes: bool,
    ) -> Option<ResourceVersion> {
        let (mut last, mut is_synced) = (None, resumes);
        for _ in 0..lines {
            let next = tokio::time::timeout(Duration::from_millis(300), stream.next());
            let Ok(Some(Ok(line))) = next.await else {
                break;
            };
            is_synced |= matches!(line, WatchLine::Synced { .. });
            last = version(&line).filter(|_| is_synced).or(last);
            let mut objects = self.objects.lock().unwrap();
            match line {
                WatchLine::Added { object, .. } | WatchLine::Modified { object, .. } => {
                    objects.insert(object.reference(), object);
                }
                WatchLine::Deleted { object, .. } => {
                    objects.remove(&object.reference());
                }
                _ => {}
            }
        }
        last
    }
}

fn change(harness: &mut Harness, dice: &mut Dice) {
    match dice.below(8) {
        0 => {
            harness.kill();
            harness.start();
        }
        1 | 2 => {
            let drop = format!("drop: [10.{}.0.0/16]", dice.below(200));
            // A group that is being deleted refuses it.
            let path = harness.write("random.yaml", &slots(dice.below(6) as u32, &drop));
            std::mem::drop(harness.try_ctl(&format!("apply -f {path}")));
        }
        3 => drop(harness.try_ctl("delete hg/sandbox")),
        4 | 5 => {
            let arguments = format!("scale hg/sandbox --count {}", dice.below(6));
            drop(harness.try_ctl(&arguments));
        }
        6 => {
            let arguments = format!("vm add sandbox --name extra-{}", dice.below(3));
            drop(harness.try_ctl(&arguments));
        }
        _ => drop(harness.try_ctl(&format!("vm rm extra-{}", dice.below(3)))),
    }
}

#[test]
fn a_client_has_missed_nothing_after_random_changes_kills_and_lost_connections() {
    let seed = std::env::var("SLICE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(0x5eed);
    eprintln!("SLICE_SEED={seed}");
    empty(|mut harness| {
        harness.start();
        let client = client(&harness);
        let models: Vec<Arc<Model>> = (0..4).map(|_| Arc::default()).collect();
        let threads = (0..).zip(&models).map(|(number, model)| {
            let (model, client) = (Arc::clone(model), client.clone());
            std::thread::spawn(move || tokio(model.follow(&client, seed + number)))
        });
        let threads: Vec<_> = threads.collect();
        let mut dice = Dice::new(seed);
        for _ in 0..60 {
            change(&mut harness, &mut dice);
        }
        harness.kill();
        harness.start();
        for model in &models {
            harness.until("the objects of the daemon", || {
                let lists = KINDS.iter().flat_map(|kind| list(&client, *kind).0);
                let now: BTreeMap<_, _> =
                    lists.map(|object| (object.reference(), object)).collect();
                (*model.objects.lock().unwrap() == now).then_some(())
            });
        }
        for model in &models {
            model.stop.store(true, Ordering::Relaxed);
        }
        threads
            .into_iter()
            .for_each(|thread| thread.join().expect("a client"));
        let (mut resumed, mut told) = (0, 0);
        for model in &models {
            resumed += model.resumed.load(Ordering::Relaxed);
            told += model.told_to_list.load(Ordering::Relaxed);
        }
        eprintln!("{resumed} watches continued, {told} were told to list again");
        assert!(resumed > 20 && told > 4, "{resumed}, {told}");
    });
}

/// Time on a CPU in nanoseconds, and the number of times at one, of all threads (sched-stats.rst).
fn scheduled(pid: u32) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let (mut time, mut runs) = (0, 0);
    for task in tasks {
        let text = fs::read_to_string(task.expect("a thread").path().join("schedstat"));
        let Ok(text) = text else { continue };
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>());
        time += numbers.next().expect("a time").expect("a number");
        runs += numbers.nth(1).expect("runs").expect("a number");
    }
    (time, runs)
}

/// What the daemon uses in 5 s.
fn usage(harness: &Harness) -> (Duration, u64) {
    // The last change has been handled, and idle threads have ended.
    std::thread::sleep(Duration::from_secs(3));
    let before = scheduled(harness.pid());
    std::thread::sleep(Duration::from_secs(5));
    let after = scheduled(harness.pid());
    let time = Duration::from_nanos(after.0.saturating_sub(before.0));
    (time, after.1.saturating_sub(before.1))
}

#[test]
fn two_hundred_watches_at_rest_cost_no_cpu_time_and_all_receive_the_next_change() {
    let _alone = turns::alone();
    with_daemon(|harness| {
        harness.apply(&slots(8, ""));
        let without = usage(&harness);
        let socket = harness.run.join("sliced.sock");
        let watch = |_| {
            let mut stream = BufReader::new(request(&socket, "events=true"));
            until_line(&mut stream, "SYNCED");
            stream
        };
        let mut watches: Vec<_> = (0..200).map(watch).collect();
        let with = usage(&harness);
        eprintln!("5 s without watches: {without:?}, with 200: {with:?}");
        // Less than one wake-up for every fourth watch.
        assert!(with.1 < without.1 + 50, "{without:?}, {with:?}");
        assert!(
            with.0 < without.0 + Duration::from_millis(10),
            "{without:?}, {with:?}"
        );
        harness.ctl("vm add sandbox --name extra --wait");
        for stream in &mut watches {
            until_line(stream, "\"name\":\"extra\"");
        }
        drop(watches);
        let name = Name::new("extra").expect("a name");
        tokio(client(&harness).remove_vm(&name)).expect("removed");
    });
}

fn until_line(stream: &mut BufReader<UnixStream>, part: &str) {
    let timeout = Some(Duration::from_secs(60));
    stream
        .get_ref()
        .set_read_timeout(timeout)
        .expect("a timeout");
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        let count = stream.read_line(&mut line).expect("a line");
        assert!(count > 0, "the watch ended before {part}");
    }
}
