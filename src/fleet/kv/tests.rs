//! The client against a server on loopback that answers as each test specifies.
//! Out of scope: real etcd (`tests/e2e/fleet`).

mod failover;
mod hostile;
mod server;
mod streams;
mod tokens;

use std::num::NonZeroU32;
use std::time::Duration;

use server::{Reply, Server};

use super::{Client, Config, Credentials, Password};

/// A page of a list.
const PAGE: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// The header of a response.
const HEADER: &str =
    r#""header":{"cluster_id":"1","member_id":"2","revision":"5","raft_term":"3"}"#;

/// A client of these servers whose requests end after 600 ms.
fn client(servers: &[&Server]) -> Client {
    Client::new(&config(servers)).unwrap()
}

fn config(servers: &[&Server]) -> Config {
    let urls = servers.iter().map(|server| server.url());
    Config {
        deadline: Duration::from_millis(600),
        ..Config::new(urls.collect())
    }
}

/// The same with a user.
fn client_of_user(servers: &[&Server]) -> Client {
    let credentials = Some(Credentials {
        user: "node-a".to_owned(),
        password: Password::new("s3cret"),
    });
    let config = config(servers);
    Client::new(&Config {
        credentials,
        ..config
    })
    .unwrap()
}

/// A response with a header alone.
fn done() -> Reply {
    Reply::ok(format!("{{{HEADER}}}"))
}

/// An error of etcd.
fn error(status: u16, code: u32, message: &str) -> Reply {
    let body = serde_json::json!({"error": message, "message": message, "code": code});
    Reply::Status(status, body.to_string())
}
