//! The task of one agent: asks it, and gives its guest what is missing.
//! Out of scope: which agents are asked, and the known state of all ([`super`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::super::Engine;
use super::super::provision::{self, Desired, Outcome};
use super::Target;
use crate::api::condition::{Reason, Status};
use crate::api::event::ObjectRef;
use crate::api::meta::Uid;
use crate::clock;
use crate::guest::probe;
use crate::host::process::{self, Identity, ProcessState};
use crate::reconcile::vmm::BackEndState;
use crate::vmm::{AGENT, VSOCK};

/// The shortest and the longest delay between requests to an agent that does not answer yet.
const SHORTEST_DELAY: Duration = Duration::from_millis(25);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A delay is this part of the time waited so far, so that the answer of an agent is noticed less than a tenth later than it could be.
const PART_OF_WAITED: u32 = 12;
/// How long after the start of its VMM an agent is asked. After that only a resync asks.
const GIVE_UP: Duration = Duration::from_secs(600);
/// How long a VMM may take to end after the back end of its device.
const VMM_END: Duration = Duration::from_secs(2);

/// A QEMU with another device.
const OF_EARLIER_VERSION: &str = "its VMM was started by an earlier version of sliced, without a vsock device: guest access returns when the VM is restarted";

/// A guest that is not ready to be used, but can be repaired.
const IN_INITRD: &str = "it answers in the initrd: the guest has not found its root file system";

/// The delay until the next request, and `None` after [`GIVE_UP`].
fn next_delay(waited: Duration) -> Option<Duration> {
    let delay = (waited / PART_OF_WAITED).clamp(SHORTEST_DELAY, LONGEST_DELAY);
    (waited < GIVE_UP).then_some(delay)
}

/// The agent that a task follows.
pub(super) struct Followed {
    pub uid: Uid,
    pub target: Target,
    pub vmm: Identity,
    pub dir: PathBuf,
    pub wake: Arc<Notify>,
}

/// Asks until the agent answers, and whenever something has changed; and waits for the end of the process that handles the device.
pub(super) async fn follow(engine: Arc<Engine>, of: Followed) {
    let report = |found| {
        if engine.agents.set(of.uid, &of.target, found) {
            engine.store.notify_agent(of.uid);
        }
    };
    let socket = of.dir.join(VSOCK);
    let ask = async {
        let (mut pause, mut began) = (SHORTEST_DELAY, clock::monotonic());
        loop {
            match ask(&engine, &of).await {
                Ok(outcome) => {
                    let is_running = outcome.is_running();
                    note_userdata(&engine, &of, &outcome);
                    report(outcome.condition());
                    match is_running {
                        true => {
                            tokio::select! {
                                // An error is found again by the next request. A guest that reports an end which is none is asked less
                                // and less often.
                                _ = probe::userdata_ended(&socket) => tokio::time::sleep(pause).await,
                                () = of.wake.notified() => {}
                            }
                            pause = (pause * 2).min(LONGEST_DELAY);
                        }
                        false => {
                            of.wake.notified().await;
                            pause = SHORTEST_DELAY;
                        }
                    }
                    began = clock::monotonic();
                }
                Err(cause) => {
                    report((Status::False, Reason::NotAnswering, cause));
                    let waited = clock::monotonic().saturating_duration_since(began);
                    match next_delay(waited) {
                        Some(delay) => tokio::time::sleep(delay).await,
                        None => of.wake.notified().await,
                    }
                }
            }
        }
    };
    tokio::select! {
        () = ask => {}
        () = device_lost(&of.vmm, &of.dir) => {
            let cause = "the process that handles the vsock device has ended: guest access returns when the VM is restarted";
            report((Status::False, Reason::NotAnswering, cause.to_owned()));
        }
    }
}

/// Records the end of the userdata.
fn note_userdata(engine: &Engine, of: &Followed, outcome: &Outcome) {
    let name = engine
        .store
        .read(|world| world.vm(of.uid).map(|vm| vm.meta.name.clone()));
    let event = engine.agents.userdata_event(of.uid, &of.target, outcome);
    if let (Some(name), Some((kind, reason, text))) = (name, event) {
        let object = ObjectRef::vm(&name);
        let events = engine.store.events();
        events.note(clock::now(), kind, &object, reason, &text);
    }
}

/// Asks the agent, and gives its guest what it is to get and has not.
async fn ask(engine: &Arc<Engine>, of: &Followed) -> Result<Outcome, String> {
    if of.dir.join(AGENT).exists() {
        return Err(OF_EARLIER_VERSION.to_owned());
    }
    let asking = &engine.agents.asking;
    let _permit = asking.acquire().await.map_err(|error| error.to_string())?;
    let socket = of.dir.join(VSOCK);
    let health = probe::health(&socket).await?;
    // Asked again, with the delays of a guest that boots.
    if health.in_initrd {
        return Err(IN_INITRD.to_owned());
    }
    let desired = engine.store.read(|world| world.vm(of.uid).map(Desired::of));
    match desired {
        Some(desired) => Ok(provision::provision(engine, desired, &health, &socket).await),
        // It is deleted, and this task ends.
        None => Ok(Outcome::default()),
    }
}

/// Returns when the process that handles the device has ended and the VMM has not. Never, if the VMM handles the device itself.
async fn device_lost(vmm: &Identity, dir: &Path) {
    let back_end = match BackEndState::of(dir) {
        Ok(BackEndState::Running(identity)) => Some(identity),
        Ok(BackEndState::Ended(_)) => None,
        // A record that cannot be read is reported by the stage.
        Ok(BackEndState::None) | Err(_) => return std::future::pending().await,
    };
    if let Some(identity) = back_end
        && let Ok(ProcessState::Alive(process)) = process::open(&identity)
        && process.ended().await.is_err()
    {
        return std::future::pending().await;
    }
    // It ends with its VMM.
    if let Ok(ProcessState::Alive(process)) = process::open(vmm)
        && tokio::time::timeout(VMM_END, process.ended())
            .await
            .is_err()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_answer_is_asked_less_and_less_often_and_then_not_at_all() {
        let (mut waited, mut delays) = (Duration::ZERO, Vec::new());
        while let Some(delay) = next_delay(waited) {
            let is_late = delay > SHORTEST_DELAY && delay * 10 > waited;
            assert!(!is_late, "{delay:?} after {waited:?}");
            delays.push(delay);
            waited += delay;
        }
        assert!(delays.is_sorted());
        assert_eq!(delays.first(), Some(&SHORTEST_DELAY));
        assert_eq!(delays.last(), Some(&LONGEST_DELAY));
        assert!(delays.len() < 130, "{}", delays.len());
        assert!(waited < GIVE_UP + LONGEST_DELAY);
    }
}
