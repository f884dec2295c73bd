//! Clients that take up what they can: whatever they do, drift is repaired in time and root is answered.
//! Out of scope: the limits one by one (unit tests of `wire`).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use test_support::harness::{self, Harness, Place, slots};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(2);

/// The same, while 16,000 new VMs take both processors of a debug build.
const CROWDED: Duration = Duration::from_secs(5);

/// Who floods, until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    kept: Vec<UnixStream>,
}

impl Flood {
    fn new() -> Self {
        Self {
            stop: Arc::default(),
            threads: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Again and again, in a thread of its own.
    fn again(&mut self, mut act: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                act();
            }
        }));
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.kept.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A connection that neither waits for a backlog nor for an answer.
fn connect(socket: &Path) -> Option<UnixStream> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// So many connections that all say this first.
fn many(flood: &mut Flood, socket: &Path, count: usize, first: &[u8]) {
    for _ in 0..count {
        if let Some(mut stream) = connect(socket) {
            let _ = stream.write_all(first);
            flood.kept.push(stream);
        }
    }
}

/// As a user that is only in the socket's group: of this thread alone (raw system calls, setresuid(2)).
fn as_user(uid: u32) {
    // SAFETY: plain system calls that change this thread's ids.
    unsafe {
        assert_eq!(
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
            0
        );
        assert_eq!(libc::syscall(libc::SYS_setresgid, GROUP, GROUP, GROUP), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
    }
}

/// The socket's group.
const GROUP: u32 = 61_001;

const GET: &str = "GET /v1/objects/vm HTTP/1.1\r\nhost: x\r\n\r\n";

type Attack = fn(&mut Flood, PathBuf);

const TABLE: [(&str, Attack); 17] = [
    ("idle before any byte", |flood, socket| {
        many(flood, &socket, 1100, b"")
    }),
    ("half a header", |flood, socket| {
        many(flood, &socket, 1100, b"GET /v1/version HTTP/1.1\r\nhost: ");
    }),
    ("a header dripped", |flood, socket| {
        many(flood, &socket, 300, b"GET /v1/version HTTP/1.1\r\n");
        let mut streams: Vec<_> = std::mem::take(&mut flood.kept);
        flood.again(move || {
            streams
                .iter_mut()
                .for_each(|stream| drop(stream.write(b"a")));
            std::thread::sleep(Duration::from_millis(50));
        });
    }),
    ("a body announced and never sent", |flood, socket| {
        let head = b"POST /v1/diff HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n";
        many(flood, &socket, 600, head);
    }),
    ("a body dripped", |flood, socket| {
        let head = b"POST /v1/apply HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n{";
        many(flood, &socket, 300, head);
        let mut streams: Vec<_> = std::mem::take(&mut flood.kept);
        flood.again(move || {
            streams
                .iter_mut()
                .for_each(|stream| drop(stream.write(b" ")));
            std::thread::sleep(Duration::from_millis(50));
        });
    }),
    ("bodies sent all but the last byte", |flood, socket| {
        let head = "POST /v1/apply HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4194304\r\n\r\n";
        for _ in 0..40 {
            let Ok(mut stream) = UnixStream::connect(&socket) else {
                continue;
            };
            let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&vec![b' '; (4 << 20) - 1]);
            flood.kept.push(stream);
        }
    }),
    ("a huge header", |flood, socket| {
        flood.again(move || {
            let Some(mut stream) = connect(&socket) else {
                return;
            };
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
            let _ = stream.write_all(b"GET /v1/version HTTP/1.1\r\nx: ");
            let _ = stream.write_all(&vec![b'a'; 8 << 20]);
        });
    }),
    ("a huge body", |flood, socket| {
        let head = b"POST /v1/apply HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
        flood.again(move || {
            let Ok(mut stream) = UnixStream::connect(&socket) else {
                return;
            };
            let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
            let _ = stream.write_all(head);
            let _ = stream.write_all(&vec![b'a'; 8 << 20]);
        });
    }),
    ("an endless chunked body", |flood, socket| {
        for _ in 0..4 {
            let socket = socket.clone();
            flood.again(move || {
                let Ok(mut stream) = UnixStream::connect(&socket) else {
                    return;
                };
                let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
                let _ = stream.write_all(
                    b"POST /v1/names HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
                );
                let chunk = [b"10000\r\n".to_vec(), vec![b' '; 65536], b"\r\n".to_vec()].concat();
                while stream.write_all(&chunk).is_ok() {}
            });
        }
    }),
    ("answers never read", |flood, socket| {
        many(flood, &socket, 600, GET.as_bytes())
    }),
    ("pipelined requests never read", |flood, socket| {
        many(flood, &socket, 300, GET.repeat(200).as_bytes());
    }),
    (
        "watches and events that are followed and never read",
        |flood, socket| {
            for path in [
                "/v1/objects/vm?follow=true",
                "/v1/events?follow=true",
                "/v1/objects/lease?follow=true",
                "/v1/watch?events=true",
            ] {
                many(
                    flood,
                    &socket,
                    300,
                    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes(),
                );
            }
        },
    ),
    ("sockets closed half", |flood, socket| {
        many(flood, &socket, 600, GET.as_bytes());
        for stream in &flood.kept {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        many(flood, &socket, 600, b"");
        for stream in &flood.kept {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }),
    ("thousands of connects and closes", |flood, socket| {
        for _ in 0..2 {
            let socket = socket.clone();
            flood.again(move || drop(connect(&socket)));
        }
    }),
    ("heavy requests", |flood, socket| {
        let text = "config: {host_groups: []}\\n# ".to_owned() + &"x".repeat(500_000);
        let body = format!("{{\"sources\":[{{\"name\":\"a\",\"text\":\"{text}\"}}]}}");
        let head = format!(
            "POST /v1/diff HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        for _ in 0..8 {
            let (socket, request) = (socket.clone(), format!("{head}{body}"));
            flood.again(move || {
                let Ok(mut stream) = UnixStream::connect(&socket) else {
                    return;
                };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read(&mut [0; 1024]);
            });
        }
    }),
    ("several users of the group, idle", |flood, socket| {
        for uid in 61_010..61_014 {
            let socket = socket.clone();
            let (stop, begin) = (Arc::clone(&flood.stop), Instant::now());
            flood.threads.push(std::thread::spawn(move || {
                as_user(uid);
                let mut kept = Vec::new();
                while !stop.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(60) {
                    kept.extend(connect(&socket));
                    if kept.len() > 300 {
                        std::thread::sleep(Duration::from_millis(20));
                        kept.remove(0);
                    }
                }
            }));
        }
    }),
    (
        "several users of the group, who follow and never read",
        |flood, socket| {
            for uid in 61_010..61_014 {
                let socket = socket.clone();
                let stop = Arc::clone(&flood.stop);
                flood.threads.push(std::thread::spawn(move || {
                    as_user(uid);
                    let mut own = Flood::new();
                    many(
                        &mut own,
                        &socket,
                        200,
                        b"GET /v1/objects/vm?follow=true HTTP/1.1\r\nhost: x\r\n\r\n",
                    );
                    while !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }));
            }
        },
    ),
];

fn rules(place: &Place) -> String {
    run(&format!("ip netns exec {} iptables -S", place.name))
}

/// Drift is repaired, and root answered, in time.
fn lives(harness: &Harness, place: &Place, what: &str) {
    let right = rules(place);
    run(&format!("ip netns exec {} iptables -F", place.name));
    harness.within(BOUND, &format!("{what}: repaired"), || {
        (rules(place) == right).then_some(())
    });
    harness.within(BOUND, &format!("{what}: root is answered"), || {
        let output = harness.try_ctl("get vms -o name");
        output.status.success().then_some(())
    });
}

/// The most memory that the daemon has had, in MiB.
fn peak(harness: &Harness) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", harness.pid())).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("VmHWM") >> 10
}

/// `harness` with a limit of files that is as low as anybody's.
fn crowded(count: u32, test: impl FnOnce(Harness, Vec<Place>) + Send) {
    harness::empty(|mut harness| {
        harness.files = Some((1024, 1024));
        harness.args = vec!["--socket-group".into(), GROUP.to_string()];
        harness.start();
        std::fs::set_permissions(
            harness.dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("a mode");
        harness.apply(&slots(count, "drop: [\"192.168.1.0/24\"]"));
        let places = (1..=count).map(|n| harness.place(&format!("sandbox-{n}")));
        let places = places.collect();
        test(harness, places);
    });
}

#[test]
fn whatever_clients_do_drift_is_repaired_in_time_and_root_is_answered() {
    // A VM is not repaired again and again: whoever wants the opposite of us would be fought without end.
    crowded(2 * TABLE.len() as u32, |harness, places| {
        let socket = harness.run.join("sliced.sock");
        let mut places = places.iter();
        for (what, attack) in TABLE {
            let mut flood = Flood::new();
            attack(&mut flood, socket.clone());
            lives(&harness, places.next().expect("a VM"), what);
            std::thread::sleep(Duration::from_millis(300));
            lives(&harness, places.next().expect("a VM"), what);
            drop(flood);
        }
        eprintln!("peak: {} MiB", peak(&harness));
        assert!(peak(&harness) < 400, "{} MiB", peak(&harness));
        assert_eq!(harness.messages("host", "DescriptorsExhausted"), [""; 0]);
    });
}

#[test]
fn a_silent_connection_is_closed_and_a_follower_that_reads_is_not() {
    crowded(1, |harness, _| {
        let socket = harness.run.join("sliced.sock");
        let mut healthy = UnixStream::connect(&socket).expect("a connection");
        healthy
            .write_all(b"GET /v1/objects/vm?follow=true HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("written");
        healthy
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout");
        let mut silent = UnixStream::connect(&socket).expect("a connection");
        silent
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let begin = Instant::now();
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).expect("its end");
        let took = begin.elapsed();
        assert!((8..15).contains(&took.as_secs()), "{took:?}");
        // What it was told so far; then nothing, and no end.
        let mut buffer = [0; 65536];
        let quiet = loop {
            match healthy.read(&mut buffer) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::WouldBlock,
            }
        };
        assert!(quiet, "a watch that is read goes on");
    });
}

#[test]
fn what_exceeds_the_address_plan_is_refused_before_it_is_planned() {
    crowded(1, |harness, places| {
        let group =
            |n: usize, more: &str| format!("    - {{name: g{n}, hypervisor: none, {more}}}\n");
        let of = |groups: usize, more: &str| {
            let groups: String = (0..groups).map(|n| group(n, more)).collect();
            format!("config:\n  host_groups:\n{groups}")
        };
        let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f]\n";
        let table = [
            (
                of(1, "count: 20000, network_name: x, network: {mode: cni}"),
                "m.yaml:3",
                "at most 16384",
            ),
            (
                of(2, "count: 9000, network_name: x, network: {mode: cni}"),
                "m.yaml:4",
                "found 18001 VMs",
            ),
            (
                of(9000, "count: 1000, network_name: x, network: {mode: cni}"),
                "m.yaml:",
                "found 9000 groups",
            ),
            (
                of(57, "count: 256, network: {mode: isolated}"),
                "m.yaml:58",
                "at most 14336",
            ),
            (
                of(60, "count: 1, network: {mode: isolated}"),
                "m.yaml:58",
                "/22 ranges",
            ),
            (bomb.to_owned(), "m.yaml:", "alias"),
        ];
        for (text, line, word) in table {
            let file = harness.write("m.yaml", &text);
            for verb in ["diff", "apply"] {
                let begin = Instant::now();
                let said = harness.try_ctl(&format!("{verb} -f {file}"));
                let words = String::from_utf8_lossy(&said.stderr).into_owned();
                assert!(!said.status.success(), "{verb}: {word}");
                assert!(
                    words.contains(line) && words.contains(word),
                    "{verb}: {word}: {words}"
                );
                assert!(words.len() < 100_000, "{} bytes", words.len());
                assert!(
                    begin.elapsed() < Duration::from_secs(10),
                    "{:?}",
                    begin.elapsed()
                );
            }
            assert!(peak(&harness) < 250, "{word}: {} MiB", peak(&harness));
        }
        lives(&harness, &places[0], "after all that");
        // The largest that is planned: an answer says what it leaves out.
        let file = harness.write(
            "m.yaml",
            &of(16, "count: 1000, network_name: x, network: {mode: cni}"),
        );
        let output = harness.ctl(&format!("diff -f {file} --verbose"));
        assert!(output.contains("Plan: 16000 to add"));
        assert!(
            output.contains("and the steps for 13952 more VMs"),
            "{}",
            &output[output.len().saturating_sub(200)..]
        );
        assert!(output.len() < 1 << 20, "{} bytes", output.len());
        eprintln!("peak after a diff of 16,000 VMs: {} MiB", peak(&harness));
        assert!(peak(&harness) < 400, "{} MiB", peak(&harness));
    });
}

/// Of the most VMs and of the most groups that the address plan has, in MiB.
const LARGEST_PEAK: u64 = 400;

#[test]
fn the_largest_manifests_that_are_accepted_use_bounded_memory_and_have_bounded_answers() {
    let group = |n: usize, count: usize, more: &str| {
        format!("    - {{name: g{n}, hypervisor: none, count: {count}, {more}}}\n")
    };
    let cni = "network_name: x, network: {mode: cni}";
    let of = |groups: String| format!("config:\n  host_groups:\n{groups}");
    // What is asked for; how many bytes the manifest has at least.
    let table = [
        (
            "most VMs",
            of((0..16).map(|n| group(n, 1000, cni)).collect()),
            1 << 10,
        ),
        (
            "most groups",
            of((0..4095).map(|n| group(n, 1, cni)).collect()),
            200 << 10,
        ),
    ];
    for (what, text, least) in table {
        assert!(text.len() >= least, "{what}: {} bytes", text.len());
        for verb in ["diff", "apply"] {
            crowded(1, |harness, places| {
                let before = peak(&harness);
                // The VM that is there is no new one.
                std::thread::sleep(Duration::from_secs(4));
                let file = harness.write("m.yaml", &text);
                let said = harness.try_ctl(&format!("{verb} -f {file}"));
                let length = said.stdout.len() + said.stderr.len();
                let words = String::from_utf8_lossy(&said.stderr).into_owned();
                let words: String = words.chars().take(300).collect();
                eprintln!(
                    "{verb}, {what}, {} bytes: {}, answer {length} bytes, peak {} -> {} MiB {words}",
                    text.len(),
                    said.status,
                    before,
                    peak(&harness)
                );
                assert!(
                    length < 2 << 20,
                    "{verb}, {what}: an answer of {length} bytes"
                );
                // Thousands of new VMs wait behind it.
                let right = rules(&places[0]);
                run(&format!("ip netns exec {} iptables -F", places[0].name));
                let repaired = || (rules(&places[0]) == right).then_some(());
                let time = Instant::now();
                harness.within(CROWDED, &format!("{verb}, {what}: repaired"), repaired);
                eprintln!("repaired after {:?}", time.elapsed());
                assert!(
                    peak(&harness) < LARGEST_PEAK,
                    "{verb}, {what}: {} MiB",
                    peak(&harness)
                );
            });
        }
    }
}

/// Descriptors that the process has open.
fn open_files(pid: u32) -> u64 {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    entries.count() as u64
}

#[test]
fn when_descriptors_are_exhausted_an_event_reports_it_and_repair_continues_as_soon_as_there_are_some()
 {
    crowded(3, |harness, places| {
        let pid = harness.pid();
        let set = |soft: u64| {
            let limit = rustix::process::Rlimit {
                current: Some(soft),
                maximum: Some(1024),
            };
            let of = rustix::process::Pid::from_raw(pid.cast_signed());
            rustix::process::prlimit(of, rustix::process::Resource::Nofile, limit)
                .expect("a limit");
        };
        let reported = || -> u64 {
            let events = harness.events("host").into_iter();
            let ours = events.filter(|event| event["reason"] == "DescriptorsExhausted");
            ours.filter_map(|event| event["count"].as_u64()).sum()
        };
        // What is left beside those that are open now, whether a repair has enough.
        for (round, (spare, enough)) in [(200, true), (0, false), (2, false)]
            .into_iter()
            .enumerate()
        {
            let what = format!("{spare} descriptors left");
            let place = &places[round];
            let (right, before) = (rules(place), reported());
            set(open_files(pid) + spare);
            run(&format!("ip netns exec {} iptables -F", place.name));
            if !enough {
                std::thread::sleep(BOUND);
                assert_ne!(rules(place), right, "{what}: it was repaired");
            }
            if enough {
                harness.within(BOUND, &what, || (rules(place) == right).then_some(()));
                assert_eq!(reported(), before, "{what}");
                continue;
            }
            set(1024);
            harness.until(&format!("repaired: {what}"), || {
                (rules(place) == right).then_some(())
            });
            harness.until(&format!("the event: {what}"), || {
                (reported() > before).then_some(())
            });
            for place in &places {
                lives(&harness, place, &what);
            }
            // The next event is due after a pause.
            std::thread::sleep(Duration::from_secs(5));
        }
    });
}
