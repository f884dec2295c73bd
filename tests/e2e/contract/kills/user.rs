//! A client that creates and deletes VMs, and sends again what was not answered. It fails at once if an answer contradicts an earlier one.
//! Out of scope: the daemon, and who kills it.

use std::io;
use std::iter::Sum;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use test_support::dice::Dice;

use super::super::client::{Answer, Api, answer, request};

/// The VMs that a client has at most.
pub const MOST: usize = 3;

const CREATE: &str = "/hostgroup/sandbox/nodes";

/// A daemon that is down, or refuses requests while it starts, is asked again after this.
const PAUSE: Duration = Duration::from_millis(10);

/// What a client has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    created: usize,
    deleted: usize,
    /// Requests without an answer: their connection ended before it.
    lost: usize,
    /// Creates that were sent again and had been stored the first time.
    conflicts: usize,
}

impl Tally {
    /// Whether enough has happened for a conclusion.
    pub fn is_meaningful(&self, kills: u64) -> bool {
        let kills = usize::try_from(kills).unwrap_or(usize::MAX);
        self.created > 50 && self.deleted > 20 && self.lost >= 5 * kills && self.conflicts > 0
    }
}

impl<'a> Sum<&'a Self> for Tally {
    fn sum<I: Iterator<Item = &'a Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            created: sum.created + one.created,
            deleted: sum.deleted + one.deleted,
            lost: sum.lost + one.lost,
            conflicts: sum.conflicts + one.conflicts,
        })
    }
}

/// How a request ended.
enum Outcome {
    Answered(Answer),
    /// The daemon may have received it.
    Lost,
    /// It has not received it, or has refused it and changed nothing.
    NotReceived,
}

/// A client with its VMs: their friendly names and hostnames.
pub struct User {
    api: Api,
    number: u64,
    dice: Dice,
    next: usize,
    held: Vec<(String, String)>,
    /// The hostnames of VMs with an answered deletion.
    pub deleted: Vec<String>,
    pub tally: Tally,
}

impl User {
    pub fn new(api: Api, seed: u64, number: u64) -> Self {
        Self {
            api,
            number,
            dice: Dice::new(seed.wrapping_mul(1000).wrapping_add(number)),
            next: 0,
            held: Vec::new(),
            deleted: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// The friendly names and hostnames of its VMs.
    pub fn held(&self) -> impl Iterator<Item = (&str, &str)> {
        let held = self.held.iter();
        held.map(|(label, name)| (label.as_str(), name.as_str()))
    }

    /// Creates and deletes until it is stopped, and counts the answers; every request that it began is answered then.
    pub fn run_until(&mut self, stop: &AtomicBool, answered: &AtomicUsize) {
        while !stop.load(Ordering::Relaxed) {
            match self.held.len() {
                0 => self.create(),
                MOST => self.delete(),
                _ if self.dice.below(2) == 0 => self.create(),
                _ => self.delete(),
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn create(&mut self) {
        let label = format!("c{}x{}", self.number, self.next);
        self.next += 1;
        let body = json!({"tags": [format!("name={label}")]}).to_string();
        let body = Some(body.as_bytes());
        let mut was_sent = self.abandon("POST", CREATE, body);
        let name = self.insist(&label, |user| match user.send("POST", CREATE, body) {
            Outcome::Answered(answer) if answer.status == 200 => {
                let name = answer.json()["hostname"].as_str().map(str::to_owned);
                Some(name.expect("a name"))
            }
            Outcome::Answered(answer) if answer.status == 409 && was_sent => {
                user.tally.conflicts += 1;
                Some(user.find(&label))
            }
            Outcome::Answered(answer) => panic!("{label}: {answer:?}"),
            Outcome::Lost => {
                was_sent = true;
                None
            }
            Outcome::NotReceived => None,
        });
        self.tally.created += 1;
        self.held.push((label, name));
    }

    /// Deletes one of its VMs, after a look at whether it exists.
    fn delete(&mut self) {
        let at = self.dice.below(self.held.len());
        let (label, name) = self.held.swap_remove(at);
        let seen = self.status("GET", &format!("/vm/{name}"), &label);
        assert_eq!(seen, 200, "{label}, vm/{name}: created and lost");
        let path = format!("{CREATE}/{name}");
        let mut was_sent = self.abandon("DELETE", &path, None);
        self.insist(&name, |user| match user.send("DELETE", &path, None) {
            Outcome::Answered(answer) if answer.status == 200 => Some(()),
            Outcome::Answered(answer) if answer.status == 404 && was_sent => Some(()),
            Outcome::Answered(answer) => panic!("{label}: {answer:?}"),
            Outcome::Lost => {
                was_sent = true;
                None
            }
            Outcome::NotReceived => None,
        });
        self.tally.deleted += 1;
        self.deleted.push(name);
        let at = self.dice.below(self.deleted.len());
        let gone = self.deleted[at].clone();
        let seen = self.status("GET", &format!("/vm/{gone}"), &gone);
        assert_eq!(seen, 404, "vm/{gone}: deleted, and there again");
    }

    pub fn delete_all(&mut self) {
        while !self.held.is_empty() {
            self.delete();
        }
    }

    /// The hostname of the only VM with this friendly name.
    fn find(&mut self, label: &str) -> String {
        let path = format!("/nodes?tag=name={label}");
        self.insist(label, |user| match user.send("GET", &path, None) {
            Outcome::Answered(answer) => {
                let found = answer.json();
                let found = found.as_array().expect("a list");
                assert_eq!(found.len(), 1, "{label}: {found:?}");
                Some(found[0]["hostname"].as_str().expect("a name").to_owned())
            }
            Outcome::Lost | Outcome::NotReceived => None,
        })
    }

    fn status(&mut self, method: &str, path: &str, what: &str) -> u16 {
        self.insist(what, |user| match user.send(method, path, None) {
            Outcome::Answered(answer) => Some(answer.status),
            Outcome::Lost | Outcome::NotReceived => None,
        })
    }

    /// Tries until there is a result.
    fn insist<T>(&mut self, what: &str, mut attempt: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = attempt(self) {
                return found;
            }
            assert!(begin.elapsed().as_secs() < 120, "{what}: no answer");
            std::thread::sleep(PAUSE);
        }
    }

    fn send(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Outcome {
        let Some(stream) = self.api.try_connect() else {
            return Outcome::NotReceived;
        };
        let _: io::Result<()> = request(&stream, method, path, body);
        match answer(stream, method) {
            // It is starting, or has too much to do: it has changed nothing.
            Some(answer) if answer.status == 503 => Outcome::NotReceived,
            Some(answer) => Outcome::Answered(answer),
            None => {
                self.tally.lost += 1;
                Outcome::Lost
            }
        }
    }

    /// Now and then the client sends a request and closes the connection without reading, at any moment. Whether it did.
    fn abandon(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> bool {
        if self.dice.below(8) != 0 {
            return false;
        }
        let stream: Option<UnixStream> = self.api.try_connect();
        if let Some(stream) = &stream {
            let _: io::Result<()> = request(stream, method, path, body);
            std::thread::sleep(Duration::from_micros(self.dice.below(20_000) as u64));
        }
        stream.is_some()
    }
}
