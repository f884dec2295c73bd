//! Answers requests for secrets, records who changed them, and has running guests synchronized.
//! Out of scope: HTTP; the files ([`crate::secrets`]); the guests ([`crate::engine::agents`]).

use std::sync::Arc;

use super::group_events::requester;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::secret::{SecretChange, SecretName, SecretView};
use crate::clock;
use crate::engine::{Engine, agents};
use crate::host::blocking::FILE_TIMEOUT;
use crate::secrets::{Error, Secrets};
use crate::wire::Refusal;

/// All secrets.
pub(super) async fn list(engine: &Arc<Engine>) -> Result<Vec<SecretView>, Refusal> {
    on_disk(engine, Secrets::list).await
}

/// Creates one.
pub(super) async fn create(
    engine: &Arc<Engine>,
    name: SecretName,
    change: SecretChange,
) -> Result<SecretView, Refusal> {
    let done = (EventReason::SecretCreated, "created");
    commit(engine, name, done, |secrets, name| {
        secrets.create(name, change)
    })
    .await
}

/// Changes one.
pub(super) async fn update(
    engine: &Arc<Engine>,
    name: SecretName,
    change: SecretChange,
) -> Result<SecretView, Refusal> {
    let done = (EventReason::SecretUpdated, "updated");
    commit(engine, name, done, |secrets, name| {
        secrets.update(name, change)
    })
    .await
}

/// Deletes one.
pub(super) async fn delete(engine: &Arc<Engine>, name: SecretName) -> Result<(), Refusal> {
    let done = (EventReason::SecretDeleted, "deleted");
    commit(engine, name, done, Secrets::delete).await
}

/// Makes a change and records it. Both are completed if the client leaves.
async fn commit<T: Send + 'static>(
    engine: &Arc<Engine>,
    name: SecretName,
    (reason, what): (EventReason, &'static str),
    change: impl FnOnce(&Secrets, &SecretName) -> Result<T, Error> + Send + 'static,
) -> Result<T, Refusal> {
    let (by, engine) = (requester(), Arc::clone(engine));
    let task = tokio::spawn(async move {
        let key = name.clone();
        let done = on_disk(&engine, move |secrets| change(secrets, &key)).await?;
        let message = format!("secret \"{name}\" {what} {by}");
        let (now, kind) = (clock::now(), EventType::Normal);
        let events = engine.store.events();
        events.note(now, kind, &ObjectRef::Host, reason, &message);
        agents::secret_changed(&engine, &name);
        Ok(done)
    });
    let done = task.await;
    done.unwrap_or_else(|error| Err(Refusal::Failed(error.to_string())))
}

/// Runs what reads or writes files on a thread that may block. What takes too long is completed, and reported as failed.
async fn on_disk<T: Send + 'static>(
    engine: &Arc<Engine>,
    work: impl FnOnce(&Secrets) -> Result<T, Error> + Send + 'static,
) -> Result<T, Refusal> {
    let secrets = Arc::clone(&engine.secrets);
    let task = tokio::task::spawn_blocking(move || work(&secrets));
    match tokio::time::timeout(FILE_TIMEOUT, task).await {
        Ok(Ok(result)) => result.map_err(refusal),
        Ok(Err(error)) => Err(Refusal::Failed(error.to_string())),
        Err(_) => Err(Refusal::Failed(
            "the state directory does not respond".to_owned(),
        )),
    }
}

fn refusal(error: Error) -> Refusal {
    let text = error.to_string();
    match error {
        Error::NotFound(name) => Refusal::NotFound(format!("secret \"{name}\"")),
        Error::Exists(_) => Refusal::Conflict(vec![text]),
        Error::Limit(_) => Refusal::Invalid(vec![text]),
        Error::Damaged(_) | Error::Host(_) => Refusal::Failed(text),
    }
}
