//! Connects this daemon to the fleet as the settings file says, and disconnects it. Changes of the settings apply at once.
//! Out of scope: the connection, the agent and the scheduler ([`crate::fleet`]).
//!
//! Without `fleet:` in the settings file nothing here runs. VMs of a fleet that are in the local store then keep running until a user deletes
//! their groups on this node, and those that may be replaced are not started.

mod answers;
mod connect;
mod report;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::meta::Uid;
use crate::engine::Engine;
use crate::fleet::agent::Agent;
use crate::fleet::control::Control;
use crate::fleet::link::{Link, boottime};
use crate::store;

pub use connect::Config;
use connect::Files;

/// How long after a failure the settings are tried again, and the interval in which the files that they name are read again.
const RETRY: Duration = Duration::from_secs(30);

/// What runs for the fleet.
#[derive(Clone)]
pub struct Member {
    /// The connection.
    pub link: Arc<Link>,
    /// The scheduler, which may be off.
    pub control: Arc<Control>,
    /// The agent of this node.
    pub agent: Arc<Agent>,
}

/// The connection of this daemon; empty without `fleet:` in the settings file.
#[derive(Default)]
pub struct Slot(RwLock<State>);

#[derive(Default)]
enum State {
    #[default]
    Off,
    /// The settings cannot be used, with the reason.
    Failed(String),
    On(Box<Member>),
}

impl Slot {
    /// The connection; `None` without `fleet:` in the settings file, or if it cannot be used.
    pub fn get(&self) -> Option<Arc<Link>> {
        self.member().map(|member| member.link)
    }

    /// The same, with what uses it.
    pub fn member(&self) -> Option<Member> {
        match &*self.0.read() {
            State::On(member) => Some((**member).clone()),
            State::Off | State::Failed(_) => None,
        }
    }

    /// Why the settings of the fleet cannot be used.
    pub fn failure(&self) -> Option<String> {
        match &*self.0.read() {
            State::Failed(why) => Some(why.clone()),
            State::Off | State::On(_) => None,
        }
    }

    /// Why the copies of these VMs of the fleet on this node must stay, a sentence. `None`: this node has left the fleet, or has contact and
    /// the fleet does not have them.
    pub(super) fn keeps(&self, vms: &BTreeSet<Uid>) -> Option<String> {
        let link = match &*self.0.read() {
            State::Off => return None,
            State::Failed(why) => return Some(format!("the fleet cannot be asked: {why}")),
            State::On(member) => Arc::clone(&member.link),
        };
        link.read(|mirror, contact| {
            let mut kept = vms.iter().filter(|uid| mirror.vms.contains_key(uid));
            match (contact.may_act(boottime()), kept.next()) {
                (false, _) => Some("this node has no contact to etcd".to_owned()),
                (true, Some(_)) => {
                    Some("delete it with `slicectl delete --fleet`, on any node".to_owned())
                }
                (true, None) => None,
            }
        })
    }

    fn set(&self, state: State) {
        *self.0.write() = state;
    }
}

/// Follows the settings until `stop`.
pub(super) async fn run(
    engine: Arc<Engine>,
    slot: Arc<Slot>,
    mut configs: watch::Receiver<Option<Config>>,
    stop: CancellationToken,
) {
    loop {
        let config = configs.borrow_and_update().clone();
        let Some(config) = config else {
            slot.set(State::Off);
            tokio::select! {
                changed = configs.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            continue;
        };
        let end = stop.child_token();
        let running = connected(&engine, &slot, config, end.clone());
        tokio::select! {
            () = running => {}
            changed = configs.changed() => if changed.is_err() { return },
            () = stop.cancelled() => {
                return;
            }
        }
        end.cancel();
    }
}

/// Runs with these settings until the files that they name change; returns early to try again.
async fn connected(engine: &Arc<Engine>, slot: &Slot, config: Config, stop: CancellationToken) {
    let files = Files::read(&config);
    let link = match connect::link(engine, &config, &files) {
        Ok(link) => link,
        Err(why) => {
            report::failed(engine, slot.failure().as_ref(), &why);
            slot.set(State::Failed(why));
            tokio::time::sleep(RETRY).await;
            return;
        }
    };
    let agent = Agent::new(
        Arc::clone(&link),
        Arc::clone(engine),
        config.node_settings(),
    );
    let control = Control::new(Arc::clone(&link), config.fleet.control);
    slot.set(State::On(Box::new(Member {
        link: Arc::clone(&link),
        control: Arc::clone(&control),
        agent: Arc::clone(&agent),
    })));
    let store = engine.store.clone();
    let store_facts = move |facts| {
        let store = store.clone();
        async move {
            let stored = store.write(|txn| txn.put_fleet_facts(facts));
            stored
                .await
                .map_err(|error: store::Error| error.to_string())
        }
    };
    // The leader resigns when it is stopped: its successor does not wait for the end of the lease.
    let scheduling = tokio::spawn({
        let (control, stop) = (Arc::clone(&control), stop.clone());
        async move { control.run(stop).await }
    });
    let aborted = tokio_util::task::AbortOnDropHandle::new(scheduling);
    tokio::select! {
        () = link.run(store_facts, stop.clone()) => {}
        () = agent.run() => {}
        () = report::contact(engine, &link) => {}
        () = connect::changed(&config, &files, RETRY) => {}
    }
    stop.cancel();
    // It ends by itself, within a deadline.
    let _ = tokio::time::timeout(Duration::from_secs(2), aborted).await;
}
